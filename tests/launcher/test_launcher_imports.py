"""Imports run one way, and the launcher's answers need none of the heavy packages."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from launcher.paths import ROOT

HEAVY = {"torch", "transformers", "mlflow", "numpy", "peft", "datasets", "accelerate"}


def imported(path: Path) -> set[str]:
    """Top-level names of all packages that a file imports, at any depth."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("path", [ROOT / "launch.py", *sorted((ROOT / "launcher").rglob("*.py"))], ids=lambda p: p.name)
def test_the_launcher_imports_nothing_that_comes_after_it(path):
    assert not imported(path) & (HEAVY | {"trainer", "postprocess", "cluster"})


def test_nothing_of_the_cluster_imports_what_trains():
    files = sorted((ROOT / "cluster").rglob("*.py"))
    assert files
    assert [str(path) for path in files if imported(path) & (HEAVY | {"trainer", "postprocess"})] == []


def test_the_trainer_does_not_import_postprocess():
    files = sorted((ROOT / "trainer").rglob("*.py"))
    assert files
    assert [str(path) for path in files if "postprocess" in imported(path)] == []


def loading(program: str, directory: Path) -> subprocess.CompletedProcess[str]:
    """Runs a program in which ``refuse(NAMES)`` ends it where one of these packages is loaded."""
    refuse = "def refuse(names):\n    loaded = names & set(sys.modules)\n    assert not loaded, loaded\n"
    code = f"import sys\nfrom launcher.app import main\n{refuse}{program}"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, "-c", code], cwd=directory, env=env, capture_output=True, text=True)


def test_answers_need_no_heavy_package_and_help_not_even_hydra(tmp_path):
    answers = [["--help"], ["--version"], ["--cfg", "job"], ["method=lara"]]
    program = f"""
for arguments, code in zip({answers!r}, (0, 0, 0, 2), strict=True):
    assert main(arguments) == code, arguments
    refuse({HEAVY!r} | ({{"hydra"}} if arguments == ["--help"] else set()))
"""
    done = loading(program, tmp_path)
    assert done.returncode == 0, done.stderr


PLANS = [
    ["experiment=blog_fpft_vs_peft", "plan=true"],
    ["experiment=tiny", "plan=true", "accelerator=cuda"],
    ["experiment=tiny", "plan=true", "plan.format=json", "accelerator=cuda"],
    ["experiment=tiny", "plan=true", "dataset=dolly15k"],
    ["-m", "experiment=tiny", "seed=0,1", "cluster=slurm", "dry_run=true", "tracking=none"],
]


def test_plans_and_submission_import_no_framework(tmp_path):
    """A plan tokenizes with the tokenizers library alone, and asks a process of its own to probe a device: the one here
    finds none."""
    program = f"""
from launcher.jobs import helper_process
asked = []
helper_process.python_module = lambda module, *_: asked.append(module) or [sys.executable, "-c", "print({{}})"]
for arguments in {PLANS!r}:
    assert main(arguments) == 0, arguments
    refuse({HEAVY - {"numpy"}!r})
assert asked == ["trainer.probes.device"], asked
"""
    done = loading(program, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr

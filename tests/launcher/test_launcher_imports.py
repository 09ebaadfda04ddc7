"""Imports run one way, and the launcher's answers need none of the heavy packages."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from launcher.paths import ROOT

# Functions that import a module by its name. A name that is given to a process (launcher.jobs.helper_process) is none.
IMPORTING = {"import_module", "__import__", "find_spec", "runpy.run_module"}
HEAVY = {"torch", "transformers", "mlflow", "numpy", "peft", "datasets", "accelerate"}


def imported(path: Path) -> set[str]:
    """Top-level names of all packages that a file imports, at any depth, also by a name in a string."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.add(node.module.split(".")[0])
        elif isinstance(node, ast.Call) and called(node) in IMPORTING:
            names |= {text.split(".")[0] for text in literals(node)}
    return names


def called(node: ast.Call) -> str:
    """The function's own name: import_module of importlib.import_module, and runpy.run_module whole."""
    name = ast.unparse(node.func)
    return name if name.startswith("runpy.") else name.rpartition(".")[2]


def literals(node: ast.Call) -> list[str]:
    """Strings, and beginnings of f-strings, in a call's arguments."""
    parts = [*node.args, *(keyword.value for keyword in node.keywords)]
    found = [each.value for part in parts for each in ast.walk(part) if isinstance(each, ast.Constant)]
    return [text for text in found if isinstance(text, str)]


@pytest.mark.parametrize("path", [ROOT / "launch.py", *sorted((ROOT / "launcher").rglob("*.py"))], ids=lambda p: p.name)
def test_the_launcher_imports_nothing_that_comes_after_it(path):
    assert not imported(path) & (HEAVY | {"trainer", "postprocess", "cluster"})


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("importlib.import_module('trainer.train')", {"trainer"}),
        ("import_module(f'postprocess.{name}', package=None)", {"postprocess"}),
        ("runpy.run_module('trainer.train')", {"trainer"}),
        ("__import__(NAMES.get(name, 'torch'))", {"torch"}),
        ("run_module('trainer.tracking.sweep', request)", set()),
    ],
)
def test_a_module_that_is_imported_by_its_name_is_seen_and_one_that_is_a_process_is_fine(line, found, tmp_path):
    (tmp_path / "module.py").write_text(line)
    assert imported(tmp_path / "module.py") == found


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
    """A plan asks processes of their own for the shape of the data, and to probe a device: those here find none."""
    program = f"""
from launcher.jobs import helper_process
asked = []
helper_process.python_module = lambda module, *_: asked.append(module) or [sys.executable, "-c", "print({{}})"]
for arguments in {PLANS!r}:
    assert main(arguments) == 0, arguments
    refuse({HEAVY!r})
assert asked == ["trainer.probes.dataset"] * 3 + ["trainer.probes.device"], asked
"""
    done = loading(program, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr

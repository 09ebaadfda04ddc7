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


@pytest.mark.parametrize("arguments", [["--help"], ["--cfg", "job"], ["--version"], ["method=lara"]])
def test_answers_need_no_heavy_package(arguments, tmp_path):
    code = (
        "import sys; from launcher.app import main; main(sys.argv[1:]);"
        f"loaded = {HEAVY!r} & set(sys.modules); assert not loaded, loaded"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_help_does_not_import_hydra(tmp_path):
    code = "import sys; from launcher.app import main; main(['--help']); assert 'hydra' not in sys.modules"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, check=True, stdout=subprocess.DEVNULL)


@pytest.mark.parametrize(
    "arguments",
    [
        ["experiment=blog_fpft_vs_peft", "plan=true"],
        ["experiment=tiny", "plan=true", "accelerator=cuda"],
        ["experiment=tiny", "plan=true", "plan.format=json", "accelerator=cuda"],
        ["-m", "experiment=tiny", "seed=0,1", "cluster=slurm", "dry_run=true", "tracking=none"],
    ],
)
def test_plans_and_submission_import_no_framework(arguments, tmp_path):
    """A plan tokenizes with the tokenizers library alone, and asks a process of its own to probe a device."""
    frameworks = HEAVY - {"numpy"}
    code = (
        "import sys; from launcher.app import main; code = main(sys.argv[1:]);"
        f"loaded = {frameworks!r} & set(sys.modules); assert not loaded, loaded; sys.exit(code)"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_training_stage_imports_no_package_that_it_does_not_use(tmp_path):
    code = (
        "import sys, trainer.train, trainer.engines.torch_engine, transformers.trainer, transformers.generation;"
        "loaded = {'sklearn', 'datasets', 'mlflow', 'trl', 'tensorflow', 'matplotlib'} & set(sys.modules);"
        "assert not loaded, loaded"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

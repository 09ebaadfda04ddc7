"""`python -m cluster env`: the job, what it refuses, and its run on a real Slurm."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from launcher.executors.slurm.ledger import read
from launcher.paths import ROOT
from tests.limits import PATIENCE
from tests.slurm.conftest import User, slurm, user  # noqa: F401 (fixtures)

SCRIPT = ROOT / "cluster" / "jobs" / "make_environment.sh"


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    """A package of one module, ready to be installed without any index."""
    path = tmp_path / "tiny-1.0-py3-none-any.whl"
    info = "tiny-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("tiny.py", "VALUE = 42\n")
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n")
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", f"tiny.py,,\n{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n")
    return path


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs the job's script on a node whose driver and runtime library have these versions."""

    def run(directory: Path, *requirements: str, driver: str | None = None, runtime: str | None = None):
        node = tmp_path / "node"
        if driver:
            (node / "sys/module/neuron").mkdir(parents=True, exist_ok=True)
            (node / "sys/module/neuron/version").write_text(driver)
        if runtime:
            (node / "neuron/lib").mkdir(parents=True, exist_ok=True)
            (node / "neuron/lib" / f"libnrt.so.{runtime}").touch()
            (node / "neuron/lib/libnrt.so.1").touch()
        checked = "true" if driver or runtime else "false"
        environment = {**os.environ, "SYS": str(node / "sys"), "NEURON": str(node / "neuron"), "PIP_NO_INDEX": "1"}
        command = [str(SCRIPT), str(directory), sys.executable, checked, *requirements]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False)

    return run


@pytest.mark.parametrize(
    ("driver", "runtime", "says"),
    [
        ("2.23.9.0", "2.28.23.0", "driver 2.23 is too old for runtime library 2.28, which needs 2.24"),
        (None, "2.28.23.0", "no Neuron driver is loaded"),
        ("2.24.7.0", None, "no Neuron runtime library"),
    ],
)
def test_a_node_that_cannot_run_it_is_refused_before_anything_is_made(make, tmp_path, driver, runtime, says):
    done = make(tmp_path / "venv", "tiny", driver=driver, runtime=runtime)
    assert done.returncode == 1
    assert says in done.stderr
    assert not (tmp_path / "venv").exists()


@pytest.mark.parametrize("file", ["thesis.tex", "pyvenv.cfg"])
def test_a_directory_of_something_else_is_refused(file, make, tmp_path):
    (tmp_path / "venv").mkdir()
    (tmp_path / "venv" / file).touch()
    done = make(tmp_path / "venv", "tiny")
    assert done.returncode == 1
    assert "holds something else: give another environment.directory, or remove it first" in done.stderr
    assert (tmp_path / "venv" / file).exists()


def test_an_environment_in_use_stays_when_others_ask_for_more(make, wheel, tmp_path):
    """Found by someone whose colleague's training died: the second job emptied the directory first."""
    venv, interpreter = tmp_path / "venv", tmp_path / "venv" / "bin" / "python"
    venv.mkdir()
    for file in (venv / "half", tmp_path / "venv.unfinished"):  # what a killed job leaves is made anew
        file.touch()
    assert make(venv, str(wheel)).returncode == 0
    assert not (venv / "half").exists()
    assert not (tmp_path / "venv.unfinished").exists()
    done = make(venv, str(wheel), "another")
    assert done.returncode == 1
    assert f"was made with other requirements ({sys.executable} {wheel}), and runs may be using it" in done.stderr
    value = subprocess.run([interpreter, "-c", "import tiny; print(tiny.VALUE)"], capture_output=True, text=True)
    assert value.stdout == "42\n"


@pytest.mark.parametrize(
    ("driver", "runtime", "says"),
    [
        ("2.24.7.0", "2.28.23.0", "driver 2.24 is new enough for runtime library 2.28"),
        ("2.30.2.0", "2.28.23.0", "driver 2.30 is new enough"),
        ("2.24.7.0", "2.99.1.0", "is not known here, so not checked"),
    ],
)
def test_versions_that_go_together_go_on_to_pip(make, tmp_path, driver, runtime, says):
    """A requirement that isn't there ends it, after the check."""
    done = make(tmp_path / "venv", "--help", driver=driver, runtime=runtime)
    assert says in done.stdout


def test_the_job_is_printed(offline):
    done = offline("env", "dry_run=true", "environment.time_limit_min=30", "environment.project=false")
    assert done.returncode == 0, done.stderr
    assert "#SBATCH --partition=trn1\n" in done.stdout
    assert "#SBATCH --time=30\n" in done.stdout
    assert "'optimum-neuron[training,neuronx]==0.4.5'" in done.stdout
    assert "export PIP_EXTRA_INDEX_URL=https://" in done.stdout
    assert SCRIPT.read_text() in done.stdout


def test_slurm_makes_the_environment_once(user: User, wheel: Path):  # noqa: F811
    directory = user.directory.parent / "shared venv"
    settings = (
        f"environment.directory='{str(directory).replace(' ', '-')}'", f"environment.packages=['{wheel}']",
        f"environment.python='{sys.executable}'", "environment.partition=dev", "environment.driver=false",
        "environment.project=false", "environment.index_url=null", f"storage.mount_path={user.directory.parent}",
    )  # fmt: skip
    for name in ("first", "second"):
        command = [sys.executable, "-m", "cluster", "env", *settings, f"output={name}"]
        environment = {**user.slurm.environment, "PYTHONPATH": str(ROOT), "PIP_NO_INDEX": "1"}
        done = subprocess.run(command, cwd=user.directory, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert f"submitted {name}: env " in done.stdout
        assert "retry" not in done.stdout
        assert user.wait(name) == 0
        log = next((user.directory / name / "logs").glob("*_0_log.out")).read_text()
        made = Path(str(directory).replace(" ", "-"))
        assert ("is complete already" if name == "second" else "is complete; its packages") in log
    said = subprocess.run(
        [str(made / "bin/python"), "-c", "import tiny; print(tiny.VALUE)"], capture_output=True, text=True, check=True
    )
    assert said.stdout == "42\n"
    assert "tiny" in (made / "packages.txt").read_text()
    status = json.loads(user.launcher("status", "first", "--json").stdout)
    assert [run["state"] for run in status["runs"]] == ["done"]
    [job] = read(user.directory / "first").runs[0].jobs
    assert job.stage == "env"
    assert json.loads((user.directory / "first" / "logs" / f"{job.id}.end.json").read_text()) == {"exit_code": 0}
    again = user.launcher("retry", "first")
    assert (again.returncode, "give the command that submitted it" in again.stderr) == (2, True)


def test_it_fails_in_words_that_last(make, tmp_path, monkeypatch):
    monkeypatch.setenv("END_FILES", str(tmp_path))
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert make(tmp_path / "venv", "tiny", driver="2.24.7.0").returncode == 1
    assert json.loads((tmp_path / "7.end.json").read_text()) == {"exit_code": 1}


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        (("environment.directory=/home/me/venv",), "environment.directory: /home/me/venv"),
        (("output=/home/me/out", "environment.project=false"), "the job's directory /home/me/out"),
        (("output=/fsx/out",), "the checkout "),
    ],
)
def test_places_that_the_nodes_do_not_share_are_refused(offline, tmp_path, settings, what):
    for name in ("sbatch", "srun", "squeue", "scancel", "scontrol"):
        (tmp_path / name).touch(mode=0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    done = offline("env", *settings, PATH=path)
    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    assert line.startswith(f"error: {what}")
    assert "is not below storage.mount_path=/fsx" in line
    done = offline("env", *settings, "dry_run=true", PATH=path)
    assert done.returncode == 0
    assert what in done.stderr


def test_slurm_is_asked_first(user: User):  # noqa: F811
    shared = user.directory.parent
    command = [sys.executable, "-m", "cluster", "env", "environment.partition=nowhere", "output=out",
               "environment.project=false", f"storage.mount_path={shared}", f"environment.directory={shared}/venv",
              ]  # fmt: skip
    environment = {**user.slurm.environment, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=user.directory, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "Slurm would not take the jobs" in done.stderr
    assert not (user.directory / "out").exists()

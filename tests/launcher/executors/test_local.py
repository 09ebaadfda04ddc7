"""The local runner, with real child processes in place of the stages."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from launcher.executors import local
from launcher.jobs import supervisor, torchrun
from launcher.jobs.helper_process import python_module
from launcher.jobs.variables import WAITING, variables
from launcher.paths import ROOT
from launcher.run_dir.layout import RunDir
from tests.launcher.conftest import single
from tests.limits import PATIENCE, until

# A launcher process: argv is the run directory, the number of replicas, then one Python program for each stage. The
# file `looks` grows each time that it looks whether the stage has ended, and whether something is to be handed on.
LAUNCHER = """
import subprocess, sys
from pathlib import Path
from launcher.executors import local
from launcher.run_dir.layout import RunDir
from launcher.config.schema import *
class Run:
    stages = ["fetch", "train"][:len(sys.argv) - 3]
    parallelism = ParallelismConfig(name="p", data_parallel=int(sys.argv[2]))
    accelerator, cluster = AcceleratorConfig(name="cpu"), ClusterConfig()
programs = dict(zip(Run.stages, sys.argv[3:]))
wait = subprocess.Popen.wait
def looked(child, timeout=None):
    with Path(sys.argv[1], "looks").open("a") as stream:
        stream.write(".")
    return wait(child, timeout)
subprocess.Popen.wait = looked
command = lambda stage, run_dir, processes, elastic: [sys.executable, "-c", programs[stage], str(run_dir)]
sys.exit(local.run_stages(Run, RunDir(Path(sys.argv[1])), command))
"""

LOOKS = 4
"""times that the launcher looks after a signal, in which what must not happen would have happened"""

# Writes its pid, counts signals in a file, and ends in order when the launcher could have sent another one: as the
# training stage does.
PATIENT = f"""
import os, pathlib, signal, sys, time
here = pathlib.Path(sys.argv[1]); seen = []
looks = lambda: (here / "looks").stat().st_size
for number in (signal.SIGINT, signal.SIGTERM): signal.signal(number, lambda n, _: seen.append((looks(), n)))
(here / "stages").mkdir(exist_ok=True); (here / f"worker-{{os.getpid()}}").touch()
while not seen or looks() < seen[0][0] + {LOOKS}: time.sleep(0.02)
(here / f"signals-{{os.getpid()}}").write_text(" ".join(signal.Signals(n).name for _, n in seen))
if seen[0][1] == signal.SIGTERM: sys.exit(75)
(here / "stages/train.json").write_text('{{"status": "interrupted"}}')
"""

# Ended by a SIGKILL alone.
STUBBORN = f"""
import os, pathlib, signal, sys, time
signal.signal(signal.SIGINT, signal.SIG_IGN); signal.signal(signal.SIGTERM, signal.SIG_IGN)
(pathlib.Path(sys.argv[1]) / f"worker-{{os.getpid()}}").touch()
time.sleep({PATIENCE})
"""

# As torchrun: two workers in sessions of their own; a SIGINT to the agent itself is a fault.
AGENT = f"""
import pathlib, signal, subprocess, sys
here = sys.argv[1]
signal.signal(signal.SIGINT, lambda *_: (pathlib.Path(here) / "agent-was-signalled").touch())
program = {PATIENT!r}
command = [sys.executable, "-c", program, here, "launcher.jobs.run_stage"]
children = [subprocess.Popen(command, start_new_session=True) for _ in range(2)]
sys.exit(max(child.wait() for child in children))
"""


@pytest.mark.parametrize(
    "left",
    [
        {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "3", "MASTER_ADDR": "h", "MASTER_PORT": "1"},
        {"RANK": "none"},
        {"PMI_SIZE": "2", "PMI_RANK": "1"},
        {"OMPI_COMM_WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "x", "PET_NNODES": "3", "GROUP_RANK": "1"},
    ],
)
def test_numbers_of_another_launchers_processes_reach_no_stage(left, monkeypatch):
    for name, value in left.items():
        monkeypatch.setenv(name, value)
    assert not left.keys() & supervisor.child_environment(1).keys()
    assert supervisor.child_environment(1, {"RANK": "1"})["RANK"] == "1"  # of a node, in stage compile


@pytest.mark.parametrize(("name", "value"), [("RANK", "3"), ("RANK", "none"), ("WORLD_SIZE", "2")])
def test_a_stage_that_is_one_of_several_outside_torchrun_says_so(name, value, tmp_path):
    command = python_module("launcher.jobs.run_stage", "fetch", str(tmp_path))
    done = subprocess.run(command, env={**os.environ, name: value}, capture_output=True, text=True, timeout=PATIENCE)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: {name}={value} is set, but torchrun did not start this process")
    assert len(done.stderr.splitlines()) == 1


@pytest.fixture
def start(tmp_path):
    """Starts a launcher process over the given stage programs; whatever is left is killed at the end."""
    started: list[subprocess.Popen[str]] = []

    def run(*programs: str, replicas: int = 1) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", LAUNCHER, str(tmp_path), str(replicas), *programs]
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        started.append(subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True, start_new_session=True))
        return started[-1]

    yield run
    pids = [int(path.name.split("-")[1]) for path in tmp_path.glob("worker-*")]
    for pid in [*pids, *(process.pid for process in started)]:
        with suppress(psutil.Error):
            if "-c" in psutil.Process(pid).cmdline():
                psutil.Process(pid).kill()
    for process in started:
        process.communicate(timeout=PATIENCE)


def workers_of(folder: Path) -> list[int]:
    return [int(path.name.split("-")[1]) for path in folder.glob("worker-*")]


def is_running(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


@pytest.mark.parametrize(
    ("number", "forwarded", "code"),
    [(signal.SIGINT, "SIGINT", 130), (signal.SIGTERM, "SIGTERM", 75), (signal.SIGUSR2, "SIGTERM", 75)],
)
def test_a_signal_is_handed_on_once_and_the_run_ends_in_order(number, forwarded, code, start, tmp_path):
    launcher = start("pass", PATIENT)
    until(lambda: workers_of(tmp_path))
    launcher.send_signal(number)
    _, stderr = launcher.communicate(timeout=PATIENCE)
    assert launcher.returncode == code
    assert "stopping after this step" in stderr
    assert [path.read_text() for path in tmp_path.glob("signals-*")] == [forwarded]


def test_torchruns_workers_are_interrupted_and_never_torchrun_itself(start, tmp_path):
    launcher = start("pass", AGENT, replicas=2)
    until(lambda: len(workers_of(tmp_path)) == 2)
    launcher.send_signal(signal.SIGINT)
    launcher.communicate(timeout=PATIENCE)
    assert launcher.returncode == 130
    assert [path.read_text() for path in tmp_path.glob("signals-*")] == ["SIGINT", "SIGINT"]
    assert not (tmp_path / "agent-was-signalled").exists()


def test_the_first_node_does_not_wait_for_a_torchrun_that_waits_for_other_nodes(tmp_path, monkeypatch):
    """Their processes may have been told to leave before they could, and are gone: the job would reach its time limit,
    and not be started again."""
    monkeypatch.setattr(supervisor, "LINGER_SECONDS", 0.2)
    lingering = AGENT.replace("sys.exit(", "codes = (") + (
        "import time; (pathlib.Path(here) / 'waits').touch(); time.sleep(3600)\n"
    )
    interrupts = supervisor.Interrupts(patient=True)
    interrupts.hurried = True
    interrupts(signal.SIGUSR2, None)
    command = [sys.executable, "-c", lingering, str(tmp_path)]
    assert supervisor.run_stage("train", RunDir(tmp_path), command, 2, interrupts) == 75
    assert (tmp_path / "waits").exists()


def test_a_second_interrupt_kills_at_once(start, tmp_path):
    launcher = start(STUBBORN)
    until(lambda: workers_of(tmp_path))
    launcher.send_signal(signal.SIGINT)
    # Two signals of a kind are one for a process that has not handled the first.
    while "stopping after this step" not in launcher.stderr.readline():
        assert launcher.poll() is None
    looks = tmp_path / "looks"
    before = looks.stat().st_size
    until(lambda: looks.stat().st_size >= before + LOOKS)
    assert launcher.poll() is None
    assert all(is_running(pid) for pid in workers_of(tmp_path))
    launcher.send_signal(signal.SIGINT)
    launcher.communicate(timeout=PATIENCE)
    assert launcher.returncode == 130
    assert not any(is_running(pid) for pid in workers_of(tmp_path))


def test_the_child_dies_with_the_launcher(start, tmp_path):
    launcher = start("import os, sys, time, pathlib\n"
                     "(pathlib.Path(sys.argv[1]) / f'worker-{os.getpid()}').touch()\n"
                     f"time.sleep({PATIENCE})")  # fmt: skip
    until(lambda: workers_of(tmp_path))
    (pid,) = workers_of(tmp_path)
    launcher.kill()
    until(lambda: not is_running(pid))


@pytest.mark.parametrize(
    ("program", "code", "message"),
    [
        ("raise SystemExit(0)", 0, ""),
        ("raise SystemExit(3)", 3, ""),
        ("import os; os.kill(os.getpid(), 9)", 1, "killed by SIGKILL: likely out of memory"),
        ("import os; os.kill(os.getpid(), 11)", 1, "killed by SIGSEGV"),
    ],
)
def test_the_exit_code_of_a_stage_is_the_runs(program, code, message, start):
    launcher = start("pass", program)
    _, stderr = launcher.communicate(timeout=PATIENCE)
    assert launcher.returncode == code
    assert message in stderr


def test_a_failed_stage_stops_the_chain(start, tmp_path):
    launcher = start("raise SystemExit(4)", "import pathlib, sys; pathlib.Path(sys.argv[1], 'trained').touch()")
    launcher.communicate(timeout=PATIENCE)
    assert launcher.returncode == 4
    assert not (tmp_path / "trained").exists()


def test_a_stage_finds_our_packages_and_not_the_users(cwd, tmp_path):
    (cwd / "launcher").mkdir()
    (cwd / "launcher" / "__init__.py").write_text("raise SystemExit('the wrong launcher')")
    config = single("stages=[fetch]").config
    found = repr(str(tmp_path / "found"))
    code = f"import launcher.jobs.run_stage, pathlib; pathlib.Path({found}).write_text(launcher.__file__)"
    assert local.run_stages(config, RunDir(tmp_path), lambda *_: [sys.executable, "-c", code]) == 0
    assert Path((tmp_path / "found").read_text()).parent == ROOT / "launcher"


def test_commands_of_the_stages():
    one = torchrun.stage_command("train", Path("/r"), 1)
    two = torchrun.stage_command("train", Path("/r"), 2)
    assert one[0] == sys.executable
    assert one[-3:] == ["launcher.jobs.run_stage", "train", "/r"]
    assert two[1:6] == ["-m", "torch.distributed.run", "--no-python", "--nproc-per-node=2", "--standalone"]
    assert two[6:] == one


def test_a_stage_is_of_this_copy_of_the_project_also_without_safe_path(cwd, tmp_path, monkeypatch):
    """As on Python 3.10, where -m would look in the working directory first."""
    (cwd / "launcher").mkdir()
    (cwd / "launcher" / "__init__.py").write_text("raise SystemExit('the wrong launcher')")
    command = torchrun.stage_command("train", tmp_path / "nothing", 1)
    done = subprocess.run(command, cwd=cwd, env={"PATH": os.environ["PATH"]}, capture_output=True, text=True)
    assert "the wrong launcher" not in done.stderr
    assert "run.lock" in done.stderr


def test_settings_of_accelerate_in_the_environment_do_not_reach_the_training(monkeypatch):
    """ACCELERATE_MIXED_PRECISION=bf16 would train a run in bf16 that says fp32."""
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert not [name for name in supervisor.child_environment(1) if name.startswith("ACCELERATE")]


@pytest.mark.parametrize(("cpus", "replicas", "threads"), [(8, 1, "8"), (8, 2, "4"), (2, 4, "1")])
def test_threads_are_shared_among_the_replicas(cpus, replicas, threads, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(supervisor, "available_cpus", lambda: cpus)
    assert supervisor.child_environment(replicas)["OMP_NUM_THREADS"] == threads
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert supervisor.child_environment(replicas)["OMP_NUM_THREADS"] == "7"


def test_the_stage_process_tells_a_refusal_in_one_line(tmp_path, cwd):
    command = [sys.executable, "-m", "launcher.jobs.run_stage", "trian", str(tmp_path)]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 2
    assert (
        done.stderr == "error: unknown stage 'trian': allowed are fetch, compile, train, consolidate, merge, generate\n"
    )


def test_the_stage_process_ends_when_the_launcher_is_gone_already(tmp_path):
    command = [sys.executable, "-m", "launcher.jobs.run_stage", "fetch", str(tmp_path)]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "TRNTUNE_LAUNCHER_PID": "1"}
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.parametrize("name", [None, *WAITING])
def test_on_a_cpu_threads_wait_briefly_unless_the_user_has_chosen(name, cwd, monkeypatch):
    for each in WAITING:
        monkeypatch.delenv(each, raising=False)
    if name is not None:
        monkeypatch.setenv(name, "1")
    expected = {"GOMP_SPINCOUNT": "10000"} if name is None else {}
    for stage in ("train", "generate"):
        assert variables(stage, single().config) == expected
    own = "cluster.environment=['GOMP_SPINCOUNT=7']"
    assert variables("train", single("cluster=slurm", own).config)["GOMP_SPINCOUNT"] == "7"

"""Fixtures shared by all tests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import submitit  # noqa: F401 (see below)

from launcher.jobs.supervisor import available_cpus
from launcher.paths import ROOT
from tests import observed
from tests.limits import PATIENCE
from tests.warm import popen

# Its assertions are read like those of a test.
pytest.register_assert_rewrite("tests.resuming")

# submitit configures logging when it is imported, and logging then closes every handler there is. absl's, which comes
# with rouge-score, closes its stream with itself unless that is standard error at this moment: in a test with capsys it
# isn't, and pytest's own capture would be closed for good. So submitit comes before whatever imports absl.

# The workers of pytest-xdist share the CPUs: with a thread for every CPU each, theirs and those of the runs that they
# start would mostly wait for each other. Before torch is imported; not in the process that starts the workers, whose
# environment they inherit.
WORKERS = os.environ.get("PYTEST_XDIST_WORKER_COUNT")
if WORKERS is not None:
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, available_cpus() // int(WORKERS))))

# Two random layers on 40 rows: what a run leaves behind is the same as for a real model, in seconds.
TINY = ("experiment=tiny", "tracking.samples=1", "tracking.sample_tokens=4")


@dataclass(frozen=True)
class Run:
    """A finished command and the run directory that it was told to use."""

    directory: Path
    process: subprocess.CompletedProcess[str]

    @property
    def result(self) -> dict[str, Any]:
        return json.loads((self.directory / "stages" / "train.json").read_text())

    def metrics(self, event: str) -> list[dict[str, Any]]:
        lines = (self.directory / "metrics.jsonl").read_text().splitlines()
        return [record for record in map(json.loads, lines) if record["event"] == event]


def command(*arguments: str) -> list[str]:
    return [sys.executable, str(ROOT / "launch.py"), *arguments]


def environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "HF_TOKEN")}
    # A tiny run is over before MLflow's monitor would have looked a first time.
    return {**kept, "MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL": "0.2"}


def launch(cwd: Path, *arguments: str, timeout: float = PATIENCE) -> subprocess.CompletedProcess[str]:
    """Runs launch.py in ``cwd`` until it ends."""
    return subprocess.run(
        command(*arguments), cwd=cwd, env=environment(), capture_output=True, text=True, timeout=timeout
    )


FORKS = popen.Forks()
popen.install(FORKS, observed.started)
observed.install()
RUN = "PYTEST_XDIST_TESTRUNUID"
"""the variable by which pytest-xdist's workers, and all that they start, are known"""


@pytest.fixture(autouse=True)
def _apart(request: pytest.FixtureRequest) -> Iterator[None]:
    """A test that is marked ``cold`` starts its processes by exec. What a test, or a library that it imports, sets in
    the environment is gone with it."""
    before = dict(os.environ)
    FORKS.enabled = request.node.get_closest_marker("cold") is None
    # Where hardly a test runs a stage, importing what stages need would take longer than all of them.
    FORKS.kind = "launcher" if request.path.is_relative_to(ROOT / "tests" / "launcher") else "stages"
    yield
    FORKS.enabled = True
    if before != dict(os.environ):
        os.environ.clear()
        os.environ.update(before)


def pytest_collection_finish() -> None:
    """What the modules of the tests have imported may have set more in the environment."""
    FORKS.adopt(os.environ)


@pytest.hookimpl(tryfirst=True)  # pytest-xdist's own, which reads the marks, comes later
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes minutes begins first, and the tests that do so alone each on the next worker that is free: at the end
    all would wait for one."""
    if WORKERS is not None:
        for number, item in enumerate(items):
            if is_long(item) and is_alone(item):
                item.add_marker(pytest.mark.xdist_group(f"long{number}"))
    items.sort(key=lambda item: (not is_long(item), not is_alone(item)))


def is_long(item: pytest.Item) -> bool:
    return item.get_closest_marker("long") is not None


def is_alone(item: pytest.Item) -> bool:
    """True for a test that is itself marked long, not only its module."""
    return any(mark.name == "long" for mark in item.own_markers)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Tests of a module stay together, so that what its fixtures make is made once."""
    from xdist.scheduler import LoadGroupScheduling

    class ByModule(LoadGroupScheduling):
        def _split_scope(self, nodeid: str) -> str:
            group = super()._split_scope(nodeid)
            return nodeid.partition("::")[0] if group == nodeid else group

    return ByModule(config, log)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    observed.forget()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Whoever reads that a test failed sees what it started and what that left."""
    report = yield
    if report.failed:
        places = [path for path in (getattr(item, "funcargs", {}).get("tmp_path"),) if path is not None]
        report.sections.append(("processes", observed.processes()))
        report.sections.append(("run directories", observed.run_directories(*places)))
    return report


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """After the last test, when the workers have gone too: nothing that they started may be left."""
    run = getattr(session.config, "workerinput", {}).get("testrunuid")
    manager = session.config.pluginmanager.getplugin("dsession")
    if run is not None or manager is None:
        return
    uid = manager.nodemanager.testrunuid
    end = time.monotonic() + 30
    while (left := observed.left(RUN, uid)) and time.monotonic() < end:
        time.sleep(0.2)
    if left:
        print("\nERROR processes that the tests started are left:", *left, sep="\n  ")
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture
def run_tiny(tmp_path: Path) -> Callable[..., Run]:
    """Runs `launch.py experiment=tiny ...` in an empty directory, into the run directory of the given name."""

    def run(name: str, *arguments: str) -> Run:
        directory = tmp_path / name
        return Run(directory, launch(tmp_path, *TINY, f"hydra.run.dir={directory}", *arguments))

    return run

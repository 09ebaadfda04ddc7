"""The stage that compiles every graph of the training before it starts: neuron_parallel_compile around its command.

Training without it would compile one graph after the other, on accelerators that wait. The graphs go to the directory
of launcher.neuron.variables.graph_directory, which the training stage reads.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from launcher.config.schema import Config, world_size
from launcher.errors import SUSPENDED, SuspendedError, TrntuneError
from launcher.jobs.helper_process import python_module
from launcher.jobs.job import processes_per_node
from launcher.jobs.supervisor import available_cpus, child_environment, counting_interrupts, kill_session, prepare_child
from launcher.jobs.torchrun import is_rank_zero, torchrun
from launcher.jobs.variables import COMPILE, TORCHRUN_OPTIONS
from launcher.neuron.graphs import shapes
from launcher.neuron.variables import graph_directory
from launcher.paths import shown
from launcher.run_dir.layout import RunDir
from launcher.run_dir.result import RunStatus
from trainer.compilation import record, trial
from trainer.compilation.cache import Module, compiled, modules

TOOL = "neuron_parallel_compile"
POLL_SECONDS = 0.2


def run(config: Config, run_dir: RunDir) -> dict[str, Any]:
    """Compile; returns the graphs, how many of them were in the cache already, and the seconds that it took."""
    if run_dir.stage_result("fetch") is None:
        raise TrntuneError(f"{run_dir.path}: stage compile needs the result of stage fetch: stages=[fetch,compile]")
    directory = graph_directory(config)
    _make(directory)
    began = time.perf_counter()
    known = compiled(directory)
    if (record_ := record.valid(config, directory)) is not None and _nodes() == 1:
        _say(f"{len(record_.graphs)} graphs are compiled already ({directory})")
        return _result(config, directory, known, known, 0.0)
    if is_rank_zero():
        run_dir.stage_file(COMPILE).unlink(missing_ok=True)
    _compile(config, run_dir, directory)
    found = compiled(directory)
    _check_all_there(directory, found)
    if is_rank_zero():
        record.write(config, directory, found)
    return _result(config, directory, known, found, time.perf_counter() - began)


def _result(
    config: Config, directory: Path, known: dict[str, Module], found: dict[str, Module], seconds: float
) -> dict[str, Any]:
    new = [name for name in found if name not in known]
    if seconds:
        _say(f"{len(found)} graphs, {len(new)} of them compiled now, in {seconds:.0f} s ({directory})")
    return {
        "status": RunStatus.FINISHED,
        "shapes": shapes(config),
        "directory": str(directory),
        "compiler": sorted({module.compiler for module in found.values()}),
        "graphs": sorted(found),
        "compiled": len(new),
        "cache_hits": len(found) - len(new),
        "seconds": seconds,
    }


def _compile(config: Config, run_dir: RunDir, directory: Path) -> None:
    """Run the tool around the trial run, and remove what that leaves."""
    tool = shutil.which(TOOL)
    if tool is None:
        raise TrntuneError(
            f"{TOOL} is not on PATH: it comes with torch-neuronx, from AWS's own package index (docs/trainium.md), or "
            "leave stage compile out: training then compiles on the accelerators"
        )
    trial_dir = run_dir.path / "trial"
    if is_rank_zero():
        trial.make(config, run_dir, trial_dir)
    try:
        code = _run_tool([tool, *_trial_command(config, trial_dir)], processes_per_node(config))
    finally:
        if is_rank_zero():
            shutil.rmtree(trial_dir, ignore_errors=True)
    if code != 0:
        raise TrntuneError(
            f"{TOOL} failed with exit code {code}, its messages are above; {_failures(directory)}graphs that are "
            "compiled stay in the cache"
        )


def _trial_command(config: Config, trial_dir: Path) -> list[str]:
    """The training stage's own command, for the trial run's directory."""
    here = world_size(config) if TORCHRUN_OPTIONS not in os.environ else processes_per_node(config)
    meeting = shlex.split(os.environ.get(TORCHRUN_OPTIONS, "--standalone"))
    return torchrun(python_module("launcher.jobs.run_stage", "train", str(trial_dir)), here, meeting)


def _nodes() -> int:
    """Nodes that this stage runs on."""
    options = shlex.split(os.environ.get(TORCHRUN_OPTIONS, ""))
    return next((int(option.partition("=")[2]) for option in options if option.startswith("--nnodes=")), 1)


def _run_tool(command: list[str], processes: int) -> int:
    """Run it to its end. Told to stop, all of it is ended at once: what is compiled is in the cache."""
    env = child_environment(processes)
    env["OMP_NUM_THREADS"] = str(max(1, available_cpus() // processes))  # this process's own share is all of them
    with counting_interrupts() as interrupts:
        with subprocess.Popen(command, env=env, start_new_session=True, preexec_fn=prepare_child) as child:
            while child.poll() is None:
                if interrupts.count:
                    kill_session(child.pid)
                time.sleep(POLL_SECONDS)
        if interrupts.count and interrupts.exit_code == SUSPENDED:
            raise SuspendedError(
                "stopped: graphs that are compiled stay in the cache; start it again to compile the rest"
            )
        if interrupts.count:
            raise KeyboardInterrupt
        return child.returncode


def _check_all_there(directory: Path, found: dict[str, Module]) -> None:
    """Raise TrntuneError where a graph is missing, whatever the tool's exit code was."""
    if missing := [module for module in modules(directory) if not module.compiled]:
        raise TrntuneError(
            f"{len(missing)} of {len(missing) + len(found)} graphs are not compiled: {_failures(directory)}"
            f"look at {missing[0].path}; --retry_failed_compilation in accelerator.neuron.compiler_flags tries again"
        )
    if not found:
        raise TrntuneError(
            f"{TOOL} left no graph in {directory}: does something change NEURON_CC_FLAGS after the launcher has set it?"
        )


def _failures(directory: Path) -> str:
    """What there is to be said of graphs that did not compile."""
    failed = [module for module in modules(directory) if module.failed]
    locks = list(directory.glob("neuronxcc-*/MODULE_*/*.lock"))
    said = f"the compiler gave up {failed[0].name} ({failed[0].path / 'model.log'}); " if failed else ""
    if locks and not failed:
        said += f"{len(locks)} locks are left ({TOOL} --command clear-locks removes those of killed processes); "
    return said


def _make(directory: Path) -> None:
    """The cache directory, which this process can write."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        raise TrntuneError(
            f"accelerator.neuron.cache_dir: {shown(directory)} can't be written: {error.strerror}; give another"
        ) from None


def _say(text: str) -> None:
    if is_rank_zero():
        print(text, file=sys.stderr, flush=True)

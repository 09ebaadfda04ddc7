"""What must be true before anything is submitted. A job that can't work would wait in the queue for hours to say so."""

from __future__ import annotations

import re
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from launcher.checks.diagnostic import Diagnostic
from launcher.config.schema import ClusterConfig, Config, world_size
from launcher.data.files import entries, is_file
from launcher.errors import TrntuneError, UsageError
from launcher.executors.slurm.asking import SUBMISSION_SECONDS, ask, words
from launcher.executors.slurm.environment import submission_environment
from launcher.jobs.executor import is_submitted

if TYPE_CHECKING:
    from launcher.config.compose import Composition

_OPTION = r"--[a-z][a-z0-9-]*(=.+)?"
# With a second value for one of these a job has other nodes than its processes count on, other code, or logs and an end
# that nobody finds.
_OWN = ("error", "nodes", "ntasks", "ntasks-per-node", "output")
# With one of these the command does something else than submit or run, or answers in other words than are read here.
_OTHER_WORK = ("help", "test-only", "usage", "version")
_OWN_OPTIONS = {
    "sbatch_args": (
        *_OWN, *_OTHER_WORK, "array", "clusters", "dependency", "open-mode", "parsable", "quiet", "signal", "wait",
        "wrap",
    ),
    "srun_args": (*_OWN, *_OTHER_WORK, "chdir", "export", "jobid", "kill-on-bad-exit", "multi-prog"),
}  # fmt: skip


def check_cluster(config: Config) -> Iterator[Diagnostic]:
    """Settings of conf/cluster that are wrong whatever the cluster."""
    cluster = config.cluster
    if not is_submitted(cluster):
        if config.dry_run:
            why = f"cluster={cluster.name} submits nothing"
            yield Diagnostic("dry_run", "true", why, "take cluster=slurm, or plan=true")
        return
    for key in ("srun_args", "sbatch_args"):
        for option in getattr(cluster, key):
            if not re.fullmatch(_OPTION, option):
                yield Diagnostic(f"cluster.{key}", option, "is not --name or --name=value", "write it so")
            elif option.removeprefix("--").partition("=")[0] in _OWN_OPTIONS[key]:
                remedy = "leave it out; nodes follow from parallelism and cluster.processes_per_node"
                yield Diagnostic(f"cluster.{key}", option, "is the launcher's own to set", remedy)
    each, world = cluster.processes_per_node, world_size(config)
    devices = config.accelerator.devices_per_instance
    if each is None and devices is None and world > 1 and config.accelerator.device != "cpu":
        kind = "GPUs" if config.accelerator.device == "cuda" else "devices"
        why = f"{world} processes of training would all be on one node"
        remedy = f"give the {kind} that a node has, or cluster.processes_per_node"
        yield Diagnostic("accelerator.devices_per_instance", None, why, remedy)
    if each is not None and devices is not None and each > devices:
        why = f"a node of {config.accelerator.name} has {devices} devices"
        yield Diagnostic("cluster.processes_per_node", each, why, f"nearest is {devices}")
    elif each is not None and world > each and world % each:
        why = f"the {world} processes of training don't fill nodes of {each}"
        best = max(n for n in range(1, each + 1) if world % n == 0)
        yield Diagnostic("cluster.processes_per_node", each, why, f"nearest is {best}")


def check_composition(composition: Composition) -> None:
    """Raise UsageError for what no cluster can run as it is composed."""
    configs = [run.config for run in composition.runs]
    for key in ("cluster", "dry_run"):
        if any(getattr(config, key) != getattr(configs[0], key) for config in configs):
            raise UsageError(f"{key} differs between the runs of the sweep: one command submits to one cluster")
    shared_file = next((c.tracking.uri for c in configs if c.tracking.enabled and _is_sqlite(c.tracking.uri)), None)
    if len(configs) > 1 and configs[0].cluster.max_parallel != 1 and shared_file:
        raise UsageError(
            f"tracking.uri={shared_file}: runs on several nodes would write one SQLite file at a time; give an MLflow "
            "server (tracking.uri=http://HOST:PORT), tracking=none, or cluster.max_parallel=1"
        )
    for path in (run.directory for run in composition.runs):
        if found := re.search(r"[%\\\n:]", str(path)):
            # Of a path with a colon Python would look in the halves, and run another copy of the project.
            who = "PYTHONPATH gives" if found.group() == ":" else "Slurm gives"
            where = "" if found.group() == ":" else " in the names of logs"
            raise UsageError(f"{str(path)!r}: {who} {found.group()!r}{where} a meaning; give another directory")


def _is_sqlite(uri: str) -> bool:
    return uri.startswith("sqlite:")


# What it is, where it lies, and what to do where the nodes don't see it.
ModelLocation = tuple[str, Path, str]


def not_below(root: Path, places: Iterable[ModelLocation], setting: str) -> list[str]:
    """A line for each place that doesn't lie below ``root``, which ``setting`` says is what all nodes share."""
    roots = (root, root.resolve())  # it may be a link to where the file system is mounted
    return [
        f"{what} {path} is not below {setting}={root}, which is all that the nodes share: {remedy}"
        for what, path, remedy in places
        # Python's link into the system is no fault: the virtual environment is what counts.
        if not any((path if what == "Python" else path.resolve()).is_relative_to(place) for place in roots)
    ]


def inputs(config: Config) -> list[ModelLocation]:
    """What a run's settings name that its jobs need."""
    dataset = config.dataset
    template = dataset.chat_template
    named = {
        "model.path": config.model.path,
        "dataset.path": dataset.path,
        "dataset.eval_path": dataset.eval_path,
        # Else it is the name of one of the model's.
        "dataset.chat_template": template if template and is_file(template) else None,
    }
    found: list[tuple[str, str | None, str]] = [
        (f"{key}:", each, "copy it there")
        for key, value in named.items()
        for each in entries(value)
        if not each.startswith("hub:")
    ]
    found.append(("cluster.cache_dir:", config.cluster.cache_dir, "give one that is"))
    if config.tracking.enabled and _is_sqlite(config.tracking.uri):
        file = config.tracking.uri.removeprefix("sqlite:///")
        found.append(("the file of tracking.uri,", file, "give an MLflow server (tracking.uri=http://HOST:PORT)"))
    return [(what, Path(value).expanduser().absolute(), remedy) for what, value, remedy in found if value]


def not_shared(cluster: ClusterConfig, directory: Path, needed: Iterable[ModelLocation] = ()) -> list[str]:
    """What the nodes would not find, since it doesn't lie below cluster.shared_root; a line for each."""
    if cluster.shared_root is None:
        return []
    root = Path(cluster.shared_root)
    python = Path(cluster.python or sys.executable)
    places = (
        ("the run directory", directory, f"give output_dir={root}/..."),
        ("the working directory", Path.cwd(), f"submit from a directory below {root}"),
        ("Python", python, f"install trntune into a virtual environment below {root}, or give cluster.python"),
        *dict.fromkeys(needed),
    )
    return not_below(root, places, "cluster.shared_root")


def check_commands(what: str, otherwise: str = "") -> None:
    """Raise UsageError where Slurm's commands aren't installed."""
    wanted = ("sbatch", "srun", "squeue", "scancel", "scontrol")
    missing = [command for command in wanted if shutil.which(command) is None]
    if missing:
        raise UsageError(f"{what}: no {missing[0]} here: submit from a node of the cluster{otherwise}")


def check_this_machine(configs: Sequence[Config], directory: Path) -> None:
    """Raise UsageError where this machine can't submit, or not so that the nodes can run it. ``configs``: of all runs,
    which have one cluster."""
    cluster = configs[0].cluster
    check_commands(f"cluster={cluster.name}", ", or use cluster=local")
    if found := not_shared(cluster, directory, [place for config in configs for place in inputs(config)]):
        raise UsageError(found[0])


def ask_slurm(scripts: Sequence[str]) -> None:
    """Have Slurm say whether it would take these batch scripts; of those that ask for the same, one. Raises
    TrntuneError."""
    for text in {_wishes(text): text for text in scripts}.values():
        with tempfile.NamedTemporaryFile("w", suffix=".sh") as file:
            file.write(text)
            file.flush()
            command = ["sbatch", "--test-only", file.name]
            done = ask(command, SUBMISSION_SECONDS, submission_environment(), "nothing was submitted")
        if done.returncode:
            why = words(done.stderr.replace("allocation failure:", ""))
            options = ", ".join(re.findall(r"#SBATCH --((?:partition|account|qos|nodes|time|mem|gres)\S*)", text))
            raise TrntuneError(f"Slurm would not take the jobs: {why} (asked for {options}); nothing was submitted")


def ask_srun(options: Sequence[str]) -> None:
    """Have srun say whether it knows ``options`` (cluster.srun_args): sbatch reads none of them, so that a job would
    wait in the queue to end of one. Raises TrntuneError."""
    if not options:
        return
    # It reads options in their order, and the last one ends it.
    command = ["srun", *options, "--version"]
    done = ask(command, SUBMISSION_SECONDS, submission_environment(), "nothing was submitted")
    if done.returncode:
        why = words(done.stderr.partition("Try ")[0])
        raise TrntuneError(f"srun would not take cluster.srun_args={' '.join(options)}: {why}; nothing was submitted")


def _wishes(script: str) -> tuple[str, ...]:
    """What a batch script asks Slurm for: all but names and places, in which the runs of a sweep differ."""
    lines = (line for line in script.splitlines() if line.startswith("#SBATCH "))
    return tuple(line for line in lines if not re.match(r"#SBATCH --(job-name|output)=", line))

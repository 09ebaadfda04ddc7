"""`python -m cluster env`: the job that makes the Python environment of training, on the cluster's own Slurm."""

from __future__ import annotations

import shlex
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.schema import SetupConfig
from launcher.errors import UsageError
from launcher.executors.slurm.checks import ModelLocation, ask_slurm, check_commands, not_below
from launcher.executors.slurm.ledger import Job, Ledger, RunJobs
from launcher.executors.slurm.resources import batch_file
from launcher.executors.slurm.sending import hand_in, undisturbed
from launcher.executors.slurm.submit import say_submitted
from launcher.paths import ROOT, shown
from launcher.run_dir.create import make_private
from launcher.run_dir.layout import RunDir

_SCRIPT = Path(__file__).resolve().parent / "jobs" / "make_environment.sh"
STAGE = "env"


@dataclass(frozen=True)
class EnvironmentJob:
    """The job before it is submitted."""

    directory: Path
    config: SetupConfig

    @property
    def script(self) -> Path:
        """The copy that runs: what was submitted, whatever happens to the checkout."""
        return self.directory / _SCRIPT.name

    @property
    def logs(self) -> Path:
        return RunDir(self.directory).logs

    def batch(self) -> str:
        """The text that sbatch gets."""
        return batch_file(self.command(), self.logs, self.options())

    def command(self) -> str:
        environment = self.config.environment
        driver = str(environment.driver).lower()
        arguments = [environment.directory, environment.python, driver, *requirements(self.config)]
        return shlex.join(["bash", str(self.script), *arguments])

    def options(self) -> dict[str, Any]:
        """submitit's parameters."""
        environment = self.config.environment
        index = [f"export PIP_EXTRA_INDEX_URL={shlex.quote(environment.index_url)}"] if environment.index_url else []
        return {
            "job_name": STAGE,
            "partition": environment.partition or self.config.workers.partition,
            "time": environment.time_limit_min,
            "nodes": 1,
            "ntasks_per_node": 1,
            "stderr_to_stdout": True,
            "wckey": None,
            "setup": [*index, f"export END_FILES={shlex.quote(str(self.logs))}"],
            "srun_args": ["--kill-on-bad-exit=1", "--export=ALL"],
        }

    def not_shared(self) -> list[str]:
        """What the node that runs it, or those that train, would not find; a line for each."""
        environment, root = self.config.environment, Path(self.config.storage.mount_path)
        checkout = [("the checkout", ROOT, f"run this from one below {root}, or give environment.project=false")]
        places: list[ModelLocation] = [
            ("environment.directory:", Path(environment.directory), f"give environment.directory={root}/..."),
            ("the job's directory", self.directory, f"give output={root}/..., or start it from below {root}"),
            *(checkout if environment.project else []),
        ]
        return not_below(root, places, "storage.mount_path")


def requirements(config: SetupConfig) -> list[str]:
    """What pip installs: the configured packages and, from a checkout, trntune itself. Raises UsageError."""
    environment = config.environment
    if not environment.project:
        return list(environment.packages)
    if not (ROOT / "pyproject.toml").is_file():
        raise UsageError(
            f"environment.project=true: {ROOT} is no checkout of trntune: run this from one, or give "
            "environment.project=false and trntune among environment.packages"
        )
    return [*environment.packages, "--editable", str(ROOT)]


def run(config: SetupConfig) -> int:
    """Print the job or submit it. Returns 0."""
    given = (
        Path(config.output).expanduser()
        if config.output
        else Path("outputs") / f"{time.strftime('%Y-%m-%d_%H-%M-%S')}_env"
    )
    job = EnvironmentJob(given.absolute(), config)
    if config.dry_run:
        print(job.batch())
        print(f"# {shown(job.script)}, a copy of {shown(_SCRIPT)}:")
        print(_SCRIPT.read_text(encoding="utf-8"), end="")
        for line in job.not_shared():
            print(f"note: refused when it is submitted: {line}", file=sys.stderr)
        return 0
    check_commands("env")
    if found := job.not_shared():
        raise UsageError(found[0])
    batch = job.batch()
    ask_slurm([batch])
    _submit(job, batch)
    return 0


def _submit(job: EnvironmentJob, batch: str) -> None:
    for directory in (job.directory, job.logs):
        make_private(directory)
    shutil.copyfile(_SCRIPT, job.script)
    file = job.directory / "env.sbatch"
    file.write_text(batch, encoding="utf-8")
    with undisturbed():
        number = hand_in(file)
        run = RunJobs(job.directory, [], [Job(STAGE, number, "")], stages=[STAGE])
        Ledger(job.directory, [], [run], single=True).write()
    say_submitted(job.directory, f"{STAGE} {number}", "wait, cancel")

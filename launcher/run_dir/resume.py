"""Starting a run directory again: the configuration is compared, and what has finished is not done twice."""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from launcher.config.error_messages import first_line
from launcher.config.schema import Config
from launcher.errors import UsageError
from launcher.io import write_atomic
from launcher.jobs.run_stage import PREPARING, forget
from launcher.neuron.graphs import shapes
from launcher.paths import shown
from launcher.run_dir.attempts import Attempts
from launcher.run_dir.config_diff import ALLOW, Change, changes, check_changes
from launcher.run_dir.layout import RunDir
from launcher.run_dir.result import COMPLETE

PREFIX = "resume="


@dataclass(frozen=True)
class Stored:
    """The command that a directory was made by."""

    overrides: list[str]
    multirun: bool


def holds_run(directory: Path) -> bool:
    """True for the directory of a run that was started before."""
    return RunDir(directory).config_file.is_file()


def find_changes(config: Config, directory: Path) -> list[Change]:
    """What ``config`` changes in the run of ``directory``. Raises UsageError for what it must not."""
    try:
        before = RunDir(directory).load_config()
    except Exception as error:
        raise UsageError(
            f"{shown(directory)}/.hydra/config.yaml is not this version's ({first_line(str(error))}): give another "
            "hydra.run.dir, or leave it out"
        ) from None
    found = changes(before, config)
    check_changes(found, config.training.allow_config_change, shown(directory))
    return found


def record_changes(config: Config, overrides: Sequence[str], directory: Path) -> None:
    """Make ``config`` the run's; what it was before stays in .hydra/changes.jsonl."""
    found = find_changes(config, directory)
    run_dir = RunDir(directory)
    if found:
        _keep_record(found, overrides, run_dir)
    if asdict(run_dir.load_config()) != asdict(config):  # also what may differ every time: later stages read it
        write_atomic(run_dir.config_file, OmegaConf.to_yaml(OmegaConf.structured(config)))


def _keep_record(found: list[Change], overrides: Sequence[str], run_dir: RunDir) -> None:
    """Write down what is changed, and forget what was only true of the old configuration."""
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    record = {"time": now, "changes": [{"key": c.key, "before": c.before, "after": c.after} for c in found]}
    with (run_dir.hydra / "changes.jsonl").open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(record) + "\n")
    # A result of the old configuration is none of the new one.
    forget("train", run_dir)
    Attempts(run_dir.attempts).changed()
    lasting = [line for line in overrides if not line.startswith(f"{ALLOW}=")]
    write_atomic(run_dir.hydra / "overrides.yaml", OmegaConf.to_yaml(OmegaConf.create(lasting)))


def finished(stage: str, config: Config, run_dir: RunDir) -> bool:
    """True when the stage need not run again: its result is there, made with the same settings, and so is what the
    result names."""
    result = run_dir.stage_result(stage)
    if result is None:
        return False
    if stage == "fetch":
        return all(Path(result[key]).exists() for key in ("model_dir", "dataset_path"))
    if stage == "compile":
        return result["shapes"] == shapes(config) and Path(result["directory"]).is_dir()
    settings = getattr(config, stage, None)
    if settings is not None and result.get("settings") != asdict(settings):
        return False
    made = {"consolidate": run_dir.path / str(result.get("saved")), "merge": Path(str(result.get("model")))}
    if stage in made and not made[stage].is_dir():
        return False
    return result.get("status") in COMPLETE


def remaining(config: Config, run_dir: RunDir) -> list[str]:
    """Stages that are still to run, in order. What follows a stage that runs is made from its result, so it runs too;
    only what is fetched or compiled is the same every time."""
    left: list[str] = []
    for stage in config.stages:
        if any(earlier not in PREPARING for earlier in left) or not finished(stage, config, run_dir):
            left.append(stage)
    return left


def stored_command(lines: Iterable[str]) -> tuple[list[str], bool] | None:
    """``resume=DIR`` as the overrides that DIR was made by, those given beside it last; and whether it is a sweep.

    None where the command line has no ``resume=``. Raises UsageError for a directory that holds no run.
    """
    given = list(lines)
    named = [line for line in given if line.startswith(PREFIX)]
    if not named:
        return None
    directory = Path(named[-1].removeprefix(PREFIX)).expanduser().absolute()
    rest = [line for line in given if not line.startswith(PREFIX)]
    stored = _stored(directory)
    key = "hydra.sweep.dir" if stored.multirun else "hydra.run.dir"
    place = str(directory).replace("\\", "\\\\").replace("'", "\\'")
    # Hydra takes a group's choice once only: what is given now stands for what was given then.
    now = {line.partition("=")[0] for line in rest} | {key}
    before = [line for line in stored.overrides if line.partition("=")[0] not in now]
    return [*before, *rest, f"{key}='{place}'"], stored.multirun


def _stored(directory: Path) -> Stored:
    sweep = directory / "sweep.json"
    if sweep.is_file():
        try:
            content: dict[str, Any] = json.loads(sweep.read_text(encoding="utf-8"))
            return Stored([str(line) for line in content["overrides"]], multirun=True)
        except (ValueError, KeyError, TypeError) as error:
            raise UsageError(f"{shown(sweep)}: not a record of a sweep ({error!r}); restore it from a copy") from None
    overrides = RunDir(directory).hydra / "overrides.yaml"
    if not overrides.is_file():
        raise UsageError(f"{PREFIX}{shown(directory)}: there is no run or sweep in it")
    return Stored([str(line) for line in OmegaConf.load(overrides)], multirun=False)

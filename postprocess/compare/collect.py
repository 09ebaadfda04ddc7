"""Reading runs from run directories, sweeps and directories that hold runs."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from launcher.errors import UsageError
from launcher.paths import shown
from launcher.run_dir.layout import RunDir
from postprocess.compare.runs import CONFIG, METRICS, TRAIN, Collection, Excluded, Run, parse_run

SWEEP = "sweep.json"


def collect(paths: Iterable[Path]) -> Collection:
    """Every run below ``paths``, each once however often it was named. Raises UsageError for what is neither."""
    collection = Collection()
    seen: set[Path] = set()
    for path in paths:
        for directory, exit_code in run_directories(path):
            # A run that is given twice would count as its own repeat.
            if directory.resolve() not in seen:
                seen.add(directory.resolve())
                _add(collection, directory, exit_code)
    return collection


def is_run(path: Path) -> bool:
    return RunDir(path).hydra.is_dir()


def is_sweep(path: Path) -> bool:
    return (path / SWEEP).is_file()


def run_directories(path: Path) -> list[tuple[Path, int | None]]:
    """Run directories of a run, a sweep or a directory of either, with the exit code where a sweep has noted it."""
    if not path.is_dir():
        raise UsageError(f"{shown(path)}: no such directory; give a run or a sweep that launch.py has made")
    if is_run(path):
        return [(path, None)]
    if not is_sweep(path) and (sweeps := sorted(child for child in path.iterdir() if is_sweep(child))):
        return [*_runs_in(path), *(found for sweep in sweeps for found in _runs_in(sweep))]
    if not (found := _runs_in(path)):
        raise UsageError(
            f"{shown(path)}: neither a run nor a sweep (no .hydra, no {SWEEP}, no runs in it); "
            "give a directory that launch.py has made"
        )
    return found


def _runs_in(path: Path) -> list[tuple[Path, int | None]]:
    noted = _noted(path) if is_sweep(path) else {}
    # A sweep that was killed has runs that its sweep.json doesn't know yet.
    there = [child.name for child in path.iterdir() if is_run(child)]
    names = [*noted, *sorted(set(there) - set(noted), key=_run_order)]
    return [(path / name, noted.get(name)) for name in names]


def _run_order(name: str) -> tuple[int, str]:
    """A sweep's runs start with their number: 2_method=full before 10_method=full."""
    number = name.partition("_")[0]
    return (int(number) if number.isascii() and number.isdigit() else 0, name)


def _noted(path: Path) -> dict[str, int | None]:
    file = path / SWEEP
    try:
        runs: list[dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))["runs"]
        return {str(run["directory"]): run.get("exit_code") for run in runs}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{shown(file)}: not a sweep's record; give the run directories instead") from error


def _add(collection: Collection, directory: Path, exit_code: int | None) -> None:
    name = shown(directory)
    found = _read(directory, name, exit_code)
    collection.add(found)
    if isinstance(found, Run) and exit_code not in (0, None):
        collection.notes.append(
            f"{name}: its training finished and is compared, but it ended with exit code {exit_code}"
        )


def _read(directory: Path, name: str, exit_code: int | None) -> Run | Excluded:
    run_dir = RunDir(directory)
    files = {TRAIN: run_dir.stage_file("train"), CONFIG: run_dir.config_file, METRICS: run_dir.metrics}
    if not directory.is_dir():
        return Excluded(name, f"its directory is gone; {SWEEP} still names it")
    texts = {}
    for kind, file in files.items():
        try:
            texts[kind] = file.read_text(encoding="utf-8")
        except FileNotFoundError:
            return Excluded(name, _missing(kind, file.relative_to(directory), exit_code))
        except (OSError, UnicodeDecodeError) as error:
            return Excluded(name, f"{file.relative_to(directory)} cannot be read: {' '.join(str(error).split())}")
    return parse_run(name, texts)


def _missing(kind: str, file: Path, exit_code: int | None) -> str:
    if kind != TRAIN:
        return f"{file} is missing"
    if exit_code in (0, None):
        return f"unfinished: its training stage has left no result ({file})"
    return f"failed with exit code {exit_code} before its training stage left a result ({file})"

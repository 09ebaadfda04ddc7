"""What is noted beside the graphs of a configuration, once all of them are compiled: trntune.json."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from launcher.config.schema import Config
from launcher.executors.slurm.snapshot import digest as code_digest
from launcher.io import write_json
from launcher.neuron.graphs import Shapes, differences, shapes
from launcher.run_dir.provenance import installed_packages
from trainer.compilation.cache import Module, compiled

FILE = "trntune.json"
# Another version of one of them traces other graphs, or compiles them anew.
PACKAGES = (
    "neuronx-cc", "torch-neuronx", "torch-xla", "neuronx-distributed", "optimum-neuron", "torch", "transformers", "peft"
)  # fmt: skip


@dataclass(frozen=True)
class Record:
    """All graphs of a configuration, and what they were made with."""

    shapes: Shapes
    versions: dict[str, str | None]
    code: str
    """hash of the project's own code"""
    graphs: list[str]


def versions() -> dict[str, str | None]:
    """The installed packages that graphs depend on."""
    return installed_packages(PACKAGES)


def write(config: Config, directory: Path, found: dict[str, Module]) -> None:
    """Note that these are all of them."""
    write_json(directory / FILE, asdict(Record(shapes(config), versions(), code_digest(), sorted(found))))


def read(directory: Path) -> Record | None:
    """The record of ``directory``; None where there is none that this version can read."""
    try:
        return Record(**json.loads((directory / FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def valid(config: Config, directory: Path) -> Record | None:
    """The record, where the graphs that it names are those that this process would trace, and all are there."""
    found = read(directory)
    if found is None or found.shapes != shapes(config) or found.versions != versions() or found.code != code_digest():
        return None
    return found if found.graphs and set(found.graphs) <= set(compiled(directory)) else None


def nearest(config: Config, root: Path) -> list[str]:
    """What is different from the most similar configuration that has graphs below ``root``: "row length 1024 -> 2048".
    [] where there is none, or one that differs in nothing."""
    here = shapes(config)
    records = (read(path.parent) for path in root.glob(f"*/{FILE}"))
    changes = [differences(record.shapes, here) for record in records if record is not None]
    return min(changes, key=len, default=[])

"""The manifest: what makes a directory a checkpoint. It is written last, and names every file with size and SHA-256."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from launcher.io import sha256

FORMAT = 1
MANIFEST = "manifest.json"


class InvalidCheckpointError(Exception):
    """Why a directory is no checkpoint that can be used."""


@dataclass(frozen=True)
class FileEntry:
    """One file of a checkpoint."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class World:
    """The processes that wrote a checkpoint."""

    size: int
    data_parallel: int
    tensor_parallel: int
    pipeline_parallel: int


@dataclass(frozen=True)
class Position:
    """Where in the data a checkpoint stands. It always lies between two optimizer steps."""

    epoch: int
    """whole passes over the training rows"""
    rows: int
    """rows of the pass at hand that were trained on, all replicas together"""


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint is of."""

    step: int
    epoch: float
    """passes over the training rows, with their fraction"""
    position: Position
    world: World
    identity: dict[str, Any]
    """what must be the same for the state to mean the same: model, adapter, data, batch"""
    config_sha256: str
    """of the whole resolved configuration"""
    versions: dict[str, str | None]
    created_at: str
    files: dict[str, FileEntry]


def to_text(manifest: Manifest) -> str:
    """JSON with a checksum of itself."""
    content = {"format": FORMAT, **asdict(manifest)}
    return json.dumps({**content, "sha256": _checksum(content)}, indent=1, sort_keys=True) + "\n"


def from_text(text: str) -> Manifest:
    """Raises InvalidCheckpointError for anything but a whole manifest of this format."""
    try:
        content = json.loads(text)
        checksum = content.pop("sha256")
        if content.get("format") != FORMAT:
            raise InvalidCheckpointError(f"{MANIFEST} has format {content.get('format')}, this version reads {FORMAT}")
        if checksum != _checksum(content):
            raise InvalidCheckpointError(f"{MANIFEST} is damaged: its checksum is another one")
        del content["format"]
        content["position"] = Position(**content["position"])
        content["world"] = World(**content["world"])
        content["files"] = {name: FileEntry(**entry) for name, entry in content["files"].items()}
        return Manifest(**content)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InvalidCheckpointError(f"{MANIFEST} is damaged ({type(error).__name__})") from None


def read(directory: Path) -> Manifest:
    """The manifest of a directory. Raises InvalidCheckpointError when it has none, or one of another step."""
    try:
        text = (directory / MANIFEST).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InvalidCheckpointError(f"it has no {MANIFEST}: it was never finished") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidCheckpointError(f"{MANIFEST} can't be read ({error})") from None
    manifest = from_text(text)
    if directory.name != f"step-{manifest.step}":
        raise InvalidCheckpointError(f"{MANIFEST} is of step {manifest.step}")
    for name in manifest.files:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts:
            raise InvalidCheckpointError(f"{MANIFEST} names {name}, which is not in the checkpoint")
    return manifest


def verify(directory: Path, contents: bool) -> Manifest:
    """The manifest, once every file that it names is there with its size and, with ``contents``, its SHA-256."""
    manifest = read(directory)
    for name, entry in manifest.files.items():
        file = directory / name
        try:
            size = file.stat().st_size
            if size != entry.bytes:
                raise InvalidCheckpointError(f"{name} has {size:,} bytes, not {entry.bytes:,}")
            if contents and sha256(file) != entry.sha256:
                raise InvalidCheckpointError(f"{name} is damaged: its SHA-256 is another one")
        except FileNotFoundError:
            raise InvalidCheckpointError(f"{name} is missing") from None
        except OSError as error:
            raise InvalidCheckpointError(f"{name} can't be read ({error.strerror})") from None
    return manifest


def describe(file: Path) -> FileEntry:
    """Size and SHA-256 of a file that was written."""
    return FileEntry(file.stat().st_size, sha256(file))


def _checksum(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

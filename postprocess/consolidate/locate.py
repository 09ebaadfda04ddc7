"""Where optimum-neuron's shards are, given a run directory, a checkpoint in it, or the shards' own directory."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from launcher.errors import TrntuneError, UsageError

SHARDS = "shards"
ADAPTER_SHARDS = "adapter_shards"
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")


@dataclass(frozen=True)
class Location:
    """``shards`` holds model/ and the metadata; ``adapter`` is the adapter's name, None for a whole model."""

    shards: Path
    adapter: str | None

    @property
    def home(self) -> Path:
        """The directory that was given to save_pretrained: config.json and tokenizer files are here."""
        return self.shards.parent if self.adapter is None else self.shards.parent.parent


def locate(source: Path) -> Location | None:
    """The shards below ``source``, None when there are none. Of several checkpoints the last is taken.

    Raises UsageError when several adapters are there and none is named.
    """
    for directory in (source, source / "sharded", source / "checkpoints"):
        for candidate in (directory, *_checkpoints(directory)):
            found = _in_directory(candidate)
            if found is not None:
                return found
    return None


def _checkpoints(directory: Path) -> list[Path]:
    numbered = [(match, path) for path in directory.glob("checkpoint-*") if (match := _CHECKPOINT.fullmatch(path.name))]
    return [path for _, path in sorted(numbered, key=lambda item: -int(item[0][1]))]


def _in_directory(directory: Path) -> Location | None:
    if _is_shards(directory):
        return _location(directory)
    for name in (ADAPTER_SHARDS, SHARDS):
        if (directory / name).is_dir():
            return _location(directory / name)
    adapters = sorted(directory.glob(f"adapter_*/{ADAPTER_SHARDS}"))
    if len(adapters) > 1:
        names = ", ".join(str(path.parent) for path in adapters)
        raise UsageError(f"{directory} holds {len(adapters)} adapters: give one of {names}")
    return _location(adapters[0]) if adapters else None


def _location(shards: Path) -> Location:
    shards = shards.absolute()
    is_adapter = shards.name == ADAPTER_SHARDS or shards.parent.name.startswith("adapter_")
    if not is_adapter:
        return Location(shards, None)
    if not shards.parent.name.startswith("adapter_"):
        raise TrntuneError(f"{shards}: the directory above it must be called adapter_<name>, as it was when written")
    return Location(shards, shards.parent.name.removeprefix("adapter_"))


def _is_shards(directory: Path) -> bool:
    return any(directory.glob("mp_metadata_pp_rank_*")) or any(directory.glob("model/dp_rank_*"))

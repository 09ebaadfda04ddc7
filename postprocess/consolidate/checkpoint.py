"""The torch engine's checkpoints (checkpoints/step-N) as a Source: already whole, they are verified and completed."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from launcher.errors import TrntuneError
from launcher.run_dir.layout import RunDir
from postprocess.consolidate.origin import stated_base
from postprocess.consolidate.source import Kind
from postprocess.safetensors.header import TensorSpec, read_header
from trainer.checkpoints.manifest import MANIFEST, InvalidCheckpointError, Manifest, verify

_STEP = re.compile(r"step-(\d+)")
_WEIGHTS = {"model": "weights/model.safetensors", "adapter": "weights/adapter_model.safetensors"}
_CONFIGS = {"model": "config.json", "adapter": "adapter_config.json"}


def locate_checkpoint(source: Path) -> Path | None:
    """A step-N directory: ``source`` itself, or the newest below it or below its checkpoints/; None without one."""
    if _STEP.fullmatch(source.name) and (source / MANIFEST).is_file():
        return source
    for directory in (source, source / "checkpoints"):
        committed = [path.parent for path in directory.glob(f"step-*/{MANIFEST}")]
        found = [(int(match[1]), path) for path in committed if (match := _STEP.fullmatch(path.name))]
        if found:
            return max(found)[1]
    return None


def verified(directory: Path) -> Manifest:
    """The manifest of a checkpoint whose every byte is as it says. Raises TrntuneError for any other."""
    try:
        return verify(directory, contents=True)
    except InvalidCheckpointError as error:
        raise TrntuneError(f"{directory} can't be used: {error}") from None


def open_checkpoint(directory: Path, base: Path | None) -> TorchSource:
    """Raises TrntuneError for a checkpoint that is damaged or not of the torch engine."""
    manifest = verified(directory)
    kinds: list[Kind] = [kind for kind in ("model", "adapter") if _WEIGHTS[kind] in manifest.files]
    if len(kinds) != 1:
        raise TrntuneError(f"{directory} has no weights of the torch engine")
    return TorchSource(directory.absolute(), manifest, kinds[0], base)


@dataclass(frozen=True)
class TorchSource:
    """A checkpoint whose every byte is as its manifest says."""

    directory: Path
    manifest: Manifest
    kind: Kind
    base: Path | None

    @property
    def _file(self) -> Path:
        return self.directory / _WEIGHTS[self.kind]

    @property
    def files(self) -> Sequence[Path]:
        return [self.directory / MANIFEST]

    @cached_property
    def specs(self) -> list[TensorSpec]:
        header = read_header(self._file)
        return [TensorSpec(name, entry.dtype, tuple(entry.shape)) for name, entry in header.items()]

    @cached_property
    def texts(self) -> dict[str, str]:
        name = _CONFIGS[self.kind]
        text = (self.directory / "weights" / name).read_text(encoding="utf-8")
        return {name: text, **(stated_base(self.manifest) if self.kind == "adapter" else {})}

    @cached_property
    def companions(self) -> list[Path]:
        """The base that the run was started from has the tokenizer: training doesn't change it."""
        run_dir = RunDir(self.directory.parent.parent)
        fetched = run_dir.stage_result("fetch") or {}
        known = [Path(fetched["model_dir"])] if "model_dir" in fetched else []
        return [*([self.base] if self.base else []), *known]

    def check(self, allow_diverged: bool) -> list[str]:
        """One process has written the weights of all: nothing can differ. Says what the result will lack."""
        if any((place / "tokenizer.json").is_file() for place in self.companions):
            return []
        return ["no tokenizer was found; --base names the directory of the base model"]

    def blocks(self, name: str) -> Iterator[torch.Tensor]:
        with safe_open(self._file, framework="pt") as stored:
            yield stored.get_tensor(name)

    def describe(self) -> dict[str, Any]:
        return {"format": "trntune checkpoint", "step": self.manifest.step, "world": self.manifest.world.size}

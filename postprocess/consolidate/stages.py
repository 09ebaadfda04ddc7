"""The pipeline stages of a checkpoint, each with all its tensor-parallel ranks, or one error of what is missing."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from launcher.errors import TrntuneError, first
from postprocess.consolidate.locate import Location
from postprocess.consolidate.metadata import StageMetadata, read_metadata
from postprocess.consolidate.shards import SAFETENSORS, RankShard, ShardTensor, rank_file, ranks_present

_METADATA = re.compile(r"mp_metadata_pp_rank_(\d+)\.json")
_LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.")
# Written by neuronx_distributed before the first and after the last file of a checkpoint.
_MARKERS = ("checkpoint", "done")
_SHOWN = 8


@dataclass(frozen=True)
class Stage:
    """One pipeline stage: its metadata and its tensor-parallel ranks in order."""

    number: int
    metadata: StageMetadata
    ranks: tuple[RankShard, ...]

    @cached_property
    def tensors(self) -> dict[str, list[ShardTensor]]:
        """Names as saved to each rank's part. Raises TrntuneError when ranks, or they and the metadata, differ."""
        names = list(self.ranks[0].tensors)
        for rank in self.ranks[1:]:
            if set(rank.tensors) != set(names):
                differing = sorted(set(rank.tensors) ^ set(names))
                raise TrntuneError(f"{rank.path} and {self.ranks[0].path.name} hold other tensors: {some(differing)}")
        absent = sorted(self.metadata.required - set(names))
        if absent:
            raise TrntuneError(f"{self.ranks[0].path} lacks {some(absent)}, which {self.metadata.path.name} lists")
        return {name: [rank.tensors[name] for rank in self.ranks] for name in names}


def open_stages(location: Location) -> list[Stage]:
    """Every stage with every rank. Raises TrntuneError that lists all that is missing."""
    shards, model = location.shards, location.shards / "model"
    present = ranks_present(model)
    metadata = {number: read_metadata(path, location.adapter) for number, path in _metadata_files(shards).items()}
    topology = _read_topology(location.home)
    stages = max(pp for pp in [0, *(pp for _, pp in present), *metadata, topology.get("pp", 1) - 1]) + 1
    tensor_parallel = _tensor_parallel(shards, metadata, topology)
    wanted = {(tp, pp) for pp in range(stages) for tp in range(tensor_parallel)}
    # Ours have none: the directory got its name when all was in it.
    markers = () if any(model.glob(f"*{SAFETENSORS}")) else _MARKERS
    missing = [str(shards / name) for name in markers if not (shards / name).is_file()]
    missing += [str(shards / f"mp_metadata_pp_rank_{pp}.json") for pp in range(stages) if pp not in metadata]
    missing += [str(rank_file(model, tp, pp)) for tp, pp in sorted(wanted - present, key=lambda rank: rank[::-1])]
    ranks = {(tp, pp): RankShard(rank_file(model, tp, pp)) for tp, pp in sorted(wanted & present)}
    missing += [str(path) for rank in ranks.values() for path in rank.missing_files()]
    _check_complete(shards, missing, f"{tensor_parallel} tensor-parallel ranks in {stages} pipeline stages")
    if present - wanted:
        extra = some([rank_file(model, *rank).name for rank in sorted(present - wanted)])
        raise TrntuneError(f"{model}: {extra} do not belong to {tensor_parallel} tensor-parallel ranks")
    return [Stage(pp, metadata[pp], tuple(ranks[tp, pp] for tp in range(tensor_parallel))) for pp in range(stages)]


def check_layers(stages: list[Stage], shards: Path) -> None:
    """Every layer once, and both ends of the model, by what the stages' metadata lists. Raises TrntuneError."""
    held: dict[int, int] = {}
    for stage in stages:
        layers = {int(match[1]) for name in stage.metadata.partitions if (match := _LAYER.search(name))}
        twice = sorted(layers & set(held))
        if twice:
            raise TrntuneError(
                f"{shards}: pipeline stages {held[twice[0]]} and {stage.number} both hold layer {twice[0]}"
            )
        held.update(dict.fromkeys(layers, stage.number))
    absent = sorted(set(range(max(held, default=-1) + 1)) - set(held))
    if absent:
        raise TrntuneError(f"{shards}: no pipeline stage holds layer {some([str(layer) for layer in absent])}")
    names = {name for stage in stages for name in stage.metadata.partitions}
    for end, role in (("model.embed_tokens.", "first"), ("model.norm.", "last")):
        if not any(end in name for name in names):
            raise TrntuneError(f"{shards}: the {role} pipeline stage is missing: no metadata lists {end}weight")


def some(names: list[str]) -> str:
    """The first few of ``names``, and how many more there are."""
    return first(names, _SHOWN)


def _check_complete(shards: Path, missing: list[str], layout: str) -> None:
    if missing:
        short = some([str(Path(path).relative_to(shards)) for path in missing])
        raise TrntuneError(f"{shards} is incomplete ({layout}): missing {short}: copy the whole checkpoint")


def _metadata_files(shards: Path) -> dict[int, Path]:
    matches = {path: _METADATA.fullmatch(path.name) for path in shards.glob("mp_metadata_pp_rank_*")}
    return {int(match[1]): path for path, match in sorted(matches.items()) if match}


def _read_topology(home: Path) -> dict[str, int]:
    """tp and pp of trn_config.json beside the shards of a whole model, empty where there is none."""
    path = home / "trn_config.json"
    if not path.is_file():
        return {}
    try:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return {"tp": int(values["tensor_parallel_size"]), "pp": int(values["pipeline_parallel_size"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TrntuneError(f"{path} cannot be read: {type(error).__name__}: {error}") from None


def _tensor_parallel(shards: Path, metadata: dict[int, StageMetadata], topology: dict[str, int]) -> int:
    sizes = {size for stage in metadata.values() for size in stage.tp_sizes} | {topology.get("tp", 1)}
    if "tp" not in topology and len(sizes) > 1:
        sizes.discard(1)
    if len(sizes) != 1:
        raise TrntuneError(f"{shards}: its metadata is of several tensor-parallel sizes: {sorted(sizes)}")
    return sizes.pop()

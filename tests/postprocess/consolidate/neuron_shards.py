"""Shards of optimum-neuron for tests: those in tests/data, copies of them, and ones of other layouts.

More of them, among them ones from real training, are used where TRNTUNE_NEURON_SHARDS or `../shared/data/neuron_shards`
beside the checkout has them.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import importlib
import json
import os
import shutil
import sys
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from launcher.paths import ROOT
from postprocess.consolidate.shards import RankShard, rank_file
from tests.library_sets import optimum_neuron_missing

DATA = ROOT / "tests" / "data" / "neuron_shards"
SHARED = Path(os.environ.get("TRNTUNE_NEURON_SHARDS", ROOT.parent / "shared" / "data" / "neuron_shards"))
# adapter_shards or shards, below each directory of DATA.
SHARDS = {
    "full_gqa": "shards",
    "lora_gqa": "adapter_default/adapter_shards",
    "lora_plain": "adapter_default/adapter_shards",
}

Tensors = dict[str, torch.Tensor]


def copied(name: str, to: Path) -> Path:
    """A copy of a directory of DATA that a test may change."""
    return Path(shutil.copytree(DATA / name, to / name))


def shared(name: str) -> Path:
    """A directory of SHARED, or the test is skipped."""
    if not (SHARED / name).is_dir():
        pytest.skip(f"{SHARED / name} is not there")
    return SHARED / name


def digests(tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """SHA-256 of each tensor's bytes."""
    raw = {name: tensor.contiguous().view(torch.uint8).numpy().tobytes() for name, tensor in tensors.items()}
    return {name: hashlib.sha256(data).hexdigest() for name, data in raw.items()}


def result(directory: Path) -> Tensors:
    """All tensors of a consolidated directory."""
    found: Tensors = {}
    for file in directory.glob("*.safetensors"):
        found.update(load_file(file))
    return found


def rank_tensors(shards: Path, stages: int = 1) -> list[list[Tensors]]:
    """What each rank of each stage holds, read by the product's reader."""
    found = []
    for stage in range(stages):
        count = len(list((shards / "model").glob(f"*_pp_rank_{stage:02d}.pt")))
        ranks = [RankShard(rank_file(shards / "model", tp, stage)) for tp in range(count)]
        found.append([{name: rank.load(name).clone() for name in rank.tensors} for rank in ranks])
    return found


def write_shards(shards: Path, stages: Sequence[Sequence[Tensors]], metadata: Sequence[dict[str, Any]]) -> Path:
    """Shards without xser: one tensor dict a rank."""
    shutil.rmtree(shards, ignore_errors=True)
    (shards / "model").mkdir(parents=True)
    for pp, (ranks, content) in enumerate(zip(stages, metadata, strict=True)):
        (shards / f"mp_metadata_pp_rank_{pp}.json").write_text(json.dumps(content))
        for tp, tensors in enumerate(ranks):
            torch.save(tensors, rank_file(shards / "model", tp, pp))
    for marker in ("checkpoint", "done"):
        (shards / marker).write_text("1")
    return shards


def read_metadata(shards: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((shards / "mp_metadata_pp_rank_0.json").read_text())
    return content


def two_stages(shards: Path) -> tuple[list[list[Tensors]], list[dict[str, Any]]]:
    """The tensors and metadata of a checkpoint of one stage and two layers as two stages of one layer each."""
    (ranks,), metadata = rank_tensors(shards), read_metadata(shards)

    def is_second(name: str) -> bool:
        return any(part in f"{name}." for part in (".layers.1.", "model.norm.", "lm_head."))

    stages, contents = [], []
    for second in (False, True):
        stages.append([{n: t for n, t in rank.items() if is_second(n) == second} for rank in ranks])
        specs = metadata["model_weight_transformation_specs"]
        contents.append(
            {
                "parameters": {n: v for n, v in metadata["parameters"].items() if is_second(n) == second},
                "model_weight_transformation_specs": [
                    s if is_second(s["module_fully_qualified_name"]) == second else {**s, "specs": []} for s in specs
                ],
            }
        )
    return stages, contents


@functools.cache
def optimum_neuron() -> Any:
    """optimum-neuron's own transformations_utils, or the test is skipped.

    Its inverse transformations are plain torch, but the module imports the AWS-only neuronx_distributed for the other
    direction: stand-ins are there while it is imported.
    """
    try:
        neuron = importlib.import_module("optimum.neuron")
    except ImportError as error:
        optimum_neuron_missing(f"optimum-neuron can't be imported ({error}): .ci/run tests this with its own libraries")
    package = types.ModuleType("optimum.neuron.models.training")
    package.__path__ = [str(Path(str(neuron.__file__)).parent / "models" / "training")]
    layers = types.ModuleType("neuronx_distributed.parallel_layers.layers")
    state = types.ModuleType("neuronx_distributed.parallel_layers.parallel_state")
    vars(layers)["create_local_weight"] = None
    vars(state).update(get_tensor_model_parallel_rank=lambda: 0, get_tensor_model_parallel_size=lambda: 1)
    parents = [types.ModuleType(n) for n in ("neuronx_distributed", "neuronx_distributed.parallel_layers")]
    stand_ins = {module.__name__: module for module in (package, *parents, layers, state)}
    sys.modules.update(stand_ins)
    try:
        return importlib.import_module("optimum.neuron.models.training.transformations_utils")
    except ImportError as error:
        optimum_neuron_missing(f"optimum-neuron can't be imported ({error}): .ci/run tests this with its own libraries")
    finally:
        for name in stand_ins:
            del sys.modules[name]


def consolidated_by_optimum_neuron(
    stages: Sequence[Sequence[Tensors]], metadata: Sequence[dict[str, Any]], adapter: str | None
) -> Tensors:
    """The same shards put together by optimum-neuron's own functions, as its consolidation calls them."""
    theirs = optimum_neuron()
    found: Tensors = {}
    for ranks, content in zip(stages, metadata, strict=True):
        entries = copy.deepcopy(content["model_weight_transformation_specs"])  # from_metadata changes its argument
        specs = [theirs.ModelWeightTransformationSpecs.from_metadata(entry) for entry in entries]
        parts = {name: [rank[name] for rank in ranks] for name in ranks[0]}
        found.update(theirs.to_original_weights(specs, parts, content["parameters"], adapter_name=adapter))
    return found

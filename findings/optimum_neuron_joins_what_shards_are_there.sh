#!/usr/bin/env bash
# optimum-neuron 0.4.5: consolidation of tensor-parallel shards joins the files that are there, however many there should be.
#
# Nothing compares the number of dp_rank_*_tp_rank_*_pp_rank_*.pt files, or the result's shape, with what was saved. With one of
# four shards lost (a copy that broke off) the weight is a quarter smaller; with the last pipeline stage lost its layers are missing.
# Neither is told. What loads the result may then fill the rest with random numbers.
#
# The functions are plain torch; only names of neuronx_distributed, which isn't on the public index, are stood in for at import.
#
# Seen:
#   4 of 4 shards: weight of 8 x 4; 3 of 4 shards: weight of 6 x 4
#   2 of 2 pipeline stages: layers.0, layers.1; 1 of 2: layers.0
# Exit code 0: still so. 1: the lost file is noticed, or another version was installed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check optimum-neuron==0.4.5 torch==2.13.0 peft==0.17.0
cat >"$work/shards.py" <<'PYTHON'
import importlib
import json
import sys
import types
from importlib.metadata import version
from pathlib import Path

import optimum.neuron
import torch


def stand_in(name, **content):
    module = types.ModuleType(name)
    vars(module).update(content)
    sys.modules[name] = module
    return module


training = stand_in("optimum.neuron.models.training")  # its own __init__ imports the models, which need the device's library
training.__path__ = [str(Path(optimum.neuron.__file__).parent / "models" / "training")]
stand_in("neuronx_distributed")
stand_in("neuronx_distributed.parallel_layers")
stand_in("neuronx_distributed.parallel_layers.layers", create_local_weight=None)
stand_in(
    "neuronx_distributed.parallel_layers.parallel_state",
    get_tensor_model_parallel_rank=lambda: 0,
    get_tensor_model_parallel_size=lambda: 1,
)
stand_in("optimum.neuron.models.training.modeling_utils", MODEL_PARALLEL_SHARDS_DIR_NAME="shards")
checkpointing = importlib.import_module("optimum.neuron.models.training.checkpointing")


def saved(directory, stages, ranks):
    """A checkpoint of one weight of 8 x 4 a stage, split by rows over the ranks."""
    (directory / "model").mkdir(parents=True)
    for stage in range(stages):
        name = f"layers.{stage}.weight"
        for rank, part in enumerate(torch.arange(32.0).reshape(8, 4).chunk(ranks)):
            file = directory / "model" / f"dp_rank_00_tp_rank_{rank:02d}_pp_rank_{stage:02d}.pt"
            torch.save({name: part.clone()}, file)
        parameters = {name: {"tensor_model_parallel": ranks > 1, "partition_dim": 0, "partition_stride": 1}}
        content = {"parameters": parameters, "model_weight_transformation_specs": []}
        (directory / f"mp_metadata_pp_rank_{stage}.json").write_text(json.dumps(content))
    return directory


def joined(directory):
    return checkpointing.consolidate_model_parallel_checkpoints(directory)


def size(directory):
    return " x ".join(map(str, joined(directory)["layers.0.weight"].shape))


def layers(directory):
    return ", ".join(name.removesuffix(".weight") for name in joined(directory))


print(f"optimum-neuron {version('optimum-neuron')}")
split = saved(Path("split"), stages=1, ranks=4)
whole = size(split)
(split / "model" / "dp_rank_00_tp_rank_03_pp_rank_00.pt").unlink()
part = size(split)
print(f"4 of 4 shards: weight of {whole}; 3 of 4 shards: weight of {part}")
staged = saved(Path("staged"), stages=2, ranks=1)
both = layers(staged)
(staged / "model" / "dp_rank_00_tp_rank_00_pp_rank_01.pt").unlink()
one = layers(staged)
print(f"2 of 2 pipeline stages: {both}; 1 of 2: {one}")
sys.exit(0 if (whole, part, both, one) == ("8 x 4", "6 x 4", "layers.0, layers.1", "layers.0") else 1)
PYTHON
cd "$work"
venv/bin/python shards.py 2>/dev/null

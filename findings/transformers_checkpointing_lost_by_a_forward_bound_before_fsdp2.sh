#!/usr/bin/env bash
# transformers 5 recomputes activations inside a layer's class-level forward, and only in the outermost of the wrappers
# that it puts around the forward of each class. FSDP2's fully_shard makes a class of its own for each layer that it
# takes (FSDPLlamaDecoderLayer), which gets a wrapper, too. Where a layer's forward was replaced by something made of
# layer.forward before that (layer.forward = torch.compile(layer.forward), a timer, a logger), the bound method is the
# inner wrapper: it finds that it isn't the outermost, the outermost is never called, and all activations are kept.
# gradient_checkpointing stays True, nothing is said, and memory is as large as without it. Sharding first, or no FSDP2,
# keeps it.
#
# Seen with transformers 5.24.0, torch 2.13.0 (CPU build), Python 3.11, November 2026: numbers that two layers, head and
# loss keep for the backward pass: 141889 without checkpointing, 28097 with it, 28097 replaced without FSDP2, 28097
# sharded and then replaced, 141889 replaced and then sharded.
#
# Met while decoder layers were compiled before FSDP2 took them.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/pip install --quiet --disable-pip-version-check "torch==2.13.0" "transformers==5.24.0" "numpy<3"
env/bin/python - <<'PYTHON'
import functools
import sys

import torch
import torch.distributed as dist
import transformers
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import LlamaConfig, LlamaForCausalLM

dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
mesh = init_device_mesh("cpu", (1,))


def replaced(layer):
    inner = layer.forward

    @functools.wraps(inner)
    def forward(*args, **kwargs):
        return inner(*args, **kwargs)

    layer.forward = forward


def kept(checkpointing, *steps):
    """Numbers that a training step's forward pass keeps, once ``steps`` were done with each layer in turn."""
    torch.manual_seed(0)
    sizes = dict(hidden_size=32, intermediate_size=64, num_attention_heads=4, num_key_value_heads=2)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=97, num_hidden_layers=2, **sizes)).train()
    if checkpointing:
        model.gradient_checkpointing_enable()
    for layer in model.model.layers:
        for step in steps:
            step(layer)
    found = []
    ids = torch.arange(64)[None]
    with torch.autograd.graph.saved_tensors_hooks(lambda x: found.append(x.numel()) or x, lambda x: x):
        loss = model(ids, labels=ids).loss
    loss.backward()
    return sum(found)


def sharded(layer):
    fully_shard(layer, mesh=mesh)


found = {
    "kept without checkpointing": kept(False, sharded),
    "with it": kept(True, sharded),
    "replaced, no FSDP2": kept(True, replaced),
    "sharded, then replaced": kept(True, sharded, replaced),
    "replaced, then sharded": kept(True, replaced, sharded),
}
dist.destroy_process_group()
print(f"transformers {transformers.__version__}, torch {torch.__version__}: {found}")
whole, less, plain, after, before = found.values()
if not (less == after <= whole / 2 and plain <= whole / 2 and before >= whole):
    sys.exit("the behaviour has changed")
PYTHON

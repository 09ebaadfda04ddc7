#!/usr/bin/env bash
# torch 2.13.0's FSDP2: a model that fully_shard has cut can't be evaluated in inference mode before it has been used once without.
#
# Measuring the held-out loss before the first step, the usual thing in fine-tuning, raises. One forward pass under no_grad is enough
# for inference mode to work from then on, also for a step after it: the tensors that parameters are gathered into are made in the
# first pass, and made in inference mode they have no version counter, which FSDP2 asks for.
#
# Seen:
#   first pass under no_grad: works
#   first pass in inference mode: RuntimeError: Inference tensors do not track version counter.
#   inference mode after a pass under no_grad: works
#   a step after that: works
# Exit code 0: still so. 1: the first pass in inference mode works, or another version was installed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy
cat >"$work/passes.py" <<'PYTHON'
import sys

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard

assert torch.__version__.startswith("2.13.0"), torch.__version__
ROWS = torch.ones(2, 4)


def model():
    layers = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1))
    for layer in layers:
        fully_shard(layer)
    return fully_shard(layers)


def evaluate(layers, mode):
    with mode():
        layers(ROWS)


def step(layers):
    layers(ROWS).sum().backward()


def told(words, action, *arguments):
    try:
        action(*arguments)
        found = "works"
    except RuntimeError as error:
        found = f"RuntimeError: {str(error).splitlines()[0]}"
    print(f"{words}: {found}")
    return found


dist.init_process_group("gloo", init_method=f"file://{sys.argv[1]}/store", rank=0, world_size=1)
layers = model()
found = [
    told("first pass under no_grad", evaluate, layers, torch.no_grad),
    told("first pass in inference mode", evaluate, model(), torch.inference_mode),
    told("inference mode after a pass under no_grad", evaluate, layers, torch.inference_mode),
    told("a step after that", step, layers),
]
dist.destroy_process_group()
assert [each == "works" for each in found] == [True, False, True, True]
PYTHON
"$work/venv/bin/python" "$work/passes.py" "$work" 2>/dev/null

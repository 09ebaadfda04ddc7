#!/usr/bin/env bash
# torch.distributed.tensor.parallel: ColwiseParallel and RowwiseParallel keep requires_grad of what they cut, and
# SequenceParallel doesn't: it puts a new nn.Parameter in place of each one, which is trained whatever the old one was.
# Parallelizing a model after its base was frozen (LoRA) makes its norms trainable, without a word. An optimizer over
# the parameters that require gradients then trains them, and an adapter is saved without them.
#
# Seen with torch 2.13.0 (CPU build), Python 3.11, November 2026 (with 2.8.0 all three give True):
#   requires_grad=False before; after ColwiseParallel False, RowwiseParallel False, SequenceParallel True
#
# Met while norms of a frozen base were given to sequence parallelism.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/pip install --quiet --disable-pip-version-check "torch==2.13.0" "numpy<3"
env/bin/python - <<'PYTHON'
import sys

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, SequenceParallel, parallelize_module

dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
mesh = init_device_mesh("cpu", (1,))


def after(module, style):
    """requires_grad of a frozen module's weight once it is parallelized."""
    module.requires_grad_(False)
    parallelize_module(module, mesh, style)
    return module.weight.requires_grad


found = {
    "ColwiseParallel": after(nn.Linear(4, 4, bias=False), ColwiseParallel()),
    "RowwiseParallel": after(nn.Linear(4, 4, bias=False), RowwiseParallel()),
    "SequenceParallel": after(nn.RMSNorm(4), SequenceParallel()),
}
dist.destroy_process_group()
print(f"torch {torch.__version__}: {found}")
if found != {"ColwiseParallel": False, "RowwiseParallel": False, "SequenceParallel": True}:
    sys.exit("the behaviour has changed")
PYTHON

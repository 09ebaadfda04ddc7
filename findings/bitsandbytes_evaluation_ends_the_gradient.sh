#!/usr/bin/env bash
# bitsandbytes 0.50.2 (0.49.2 too), on a CPU with AVX512-BF16: a Linear4bit that has been in evaluation once passes no gradient
# to its input any more, though it is back in training, and nothing says so.
#
# In evaluation the layer packs its weight anew for a kernel of such CPUs, and keeps it so; the kernel has no backward pass. What
# follows has a gradient still (in QLoRA its own adapter), so that a loss falls and looks right, while whatever lies below the
# layer gets none from it. A training loop that evaluates first, or between steps, trains only part of its adapters. 0.48.2 does
# not do it. Staying in training mode, or loading the base again after an evaluation, helps.
#
# Seen:
#   bitsandbytes 0.48.2: before an evaluation the input has a gradient, after it True
#   bitsandbytes 0.50.2: before an evaluation the input has a gradient, after it False
# Exit code 0: still so. 1: the gradient is there, or this CPU has no AVX512-BF16, which is said.
set -euo pipefail
grep -qw avx512_bf16 /proc/cpuinfo || { echo "this CPU has no AVX512-BF16: it can't be shown here"; exit 1; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 bitsandbytes==0.48.2 numpy==2.2.6
cat >"$work/gradient.py" <<'PYTHON'
import sys
import warnings

import bitsandbytes
import torch

warnings.simplefilter("ignore")
torch.manual_seed(0)
layer = bitsandbytes.nn.Linear4bit(256, 256, bias=False, compute_dtype=torch.bfloat16, quant_type="nf4").to("cpu")
layer.requires_grad_(False)


def has_gradient():
    layer.train()
    x = torch.randn(4, 256, dtype=torch.bfloat16, requires_grad=True)
    factor = torch.ones(256, dtype=torch.bfloat16, requires_grad=True)  # what is trained above the layer
    (layer(x) * factor).sum().backward()
    assert factor.grad is not None
    return x.grad is not None and bool(x.grad.abs().sum() > 0)


before = has_gradient()
layer.eval()
with torch.no_grad():
    layer(torch.randn(4, 256, dtype=torch.bfloat16))
after = has_gradient()
words = "before an evaluation the input has a gradient, after it"
print(f"bitsandbytes {bitsandbytes.__version__}: {words if before else 'no gradient at all:'} {after}")
sys.exit(0 if before and after == (sys.argv[1] == "kept") else 1)
PYTHON
cd "$work"
venv/bin/python gradient.py kept 2>/dev/null
venv/bin/pip install --quiet --disable-pip-version-check bitsandbytes==0.50.2
venv/bin/python gradient.py lost 2>/dev/null

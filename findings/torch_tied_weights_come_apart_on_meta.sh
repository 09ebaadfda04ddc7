#!/usr/bin/env bash
# torch 2.13.0: Module.to("meta") makes two parameters of one that two modules share, so that whoever counts the parameters of a model
# there counts a tied embedding twice. Made on meta, or moved to another dtype, they stay one.
#
# Module._apply puts new data into a parameter only where tensors of the new device can take the place of the old; else it makes a new
# parameter for each module. It asks that of pairs of backends, and meta and CPU are none; out-of-tree devices (PrivateUse1) are none
# either, and there a tied head is trained apart from its embedding without a word.
#
# Seen, an embedding of 1,000 by 64 and a head that is tied to it:
#   on the CPU: one parameter, 64,000 numbers
#   made on meta: one parameter, 64,000 numbers
#   moved to bfloat16: one parameter, 64,000 numbers
#   moved to meta: two parameters, 128,000 numbers
# Exit code 0: still so. 1: moved to meta it stays one parameter, or another version was installed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy
cat >"$work/tied.py" <<'PYTHON'
import torch
from torch import nn

assert torch.__version__.startswith("2.13.0"), torch.__version__


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(1000, 64)
        self.head = nn.Linear(64, 1000, bias=False)
        self.head.weight = self.embedding.weight


def told(words, model):
    one = model.head.weight is model.embedding.weight
    numbers = sum(parameter.numel() for parameter in model.parameters())
    print(f"{words}: {'one parameter' if one else 'two parameters'}, {numbers:,} numbers")
    return one


with torch.device("meta"):
    made = Tied()
found = [
    told("on the CPU", Tied()),
    told("made on meta", made),
    told("moved to bfloat16", Tied().to(torch.bfloat16)),
    told("moved to meta", Tied().to("meta")),
]
assert found == [True, True, True, False]
PYTHON
"$work/venv/bin/python" "$work/tied.py" 2>/dev/null

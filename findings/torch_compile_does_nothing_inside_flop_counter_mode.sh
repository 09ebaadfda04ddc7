#!/usr/bin/env bash
# Inside torch.utils.flop_counter.FlopCounterMode, as inside any TorchDispatchMode that isn't torch's own tracing,
# torch.compile compiles nothing and runs the function as it is written: without a warning, and the backend is never
# called. A step that is timed while its FLOPs are counted is the step without the compiler. Only fullgraph=True says it,
# by a RuntimeError ("found no compiled frames").
#
# Seen with torch 2.13.0 (CPU build), Python 3.11, November 2026:
#   outside of the mode      the backend is called once
#   inside                   never; no warning; 64 FLOPs are counted, those of the function as written
#   inside, fullgraph=True   RuntimeError ... non-infra torch dispatch mode present
#
# Met while the calls of a device were taken down by such a mode: layers that had been handed to torch.compile ran eager.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/pip install --quiet --disable-pip-version-check "torch==2.13.0" "numpy<3"
env/bin/python - <<'PYTHON'
import sys
import warnings

import torch
from torch.utils.flop_counter import FlopCounterMode

calls = 0
weight = torch.ones(4, 4)


def backend(graph, inputs):
    global calls
    calls += 1
    return graph.forward


def layer(x):
    return (x @ weight).relu()


def tried(inside, fullgraph=False):
    """Calls of the backend, warnings, and what was counted or raised."""
    global calls
    torch._dynamo.reset()
    calls, outcome = 0, None
    compiled = torch.compile(layer, backend=backend, fullgraph=fullgraph)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            if inside:
                with FlopCounterMode(display=False) as counter:
                    compiled(torch.ones(2, 4))
                outcome = counter.get_total_flops()
            else:
                compiled(torch.ones(2, 4))
        except RuntimeError as error:
            outcome = "RuntimeError" if "dispatch mode" in str(error) else str(error)
    return calls, len(told), outcome


found = [tried(inside=False), tried(inside=True), tried(inside=True, fullgraph=True)]
print(f"torch {torch.__version__}: outside {found[0]}, inside {found[1]}, with fullgraph {found[2]}")
if found != [(1, 0, None), (0, 0, 64), (0, 0, "RuntimeError")]:
    sys.exit("the behaviour has changed")
PYTHON

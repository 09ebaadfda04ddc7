"""Put on PYTHONPATH by tests/neuron/test_one_rank.py: in a process that trains, stand-ins for AWS's modules, and the
faults of tests/faults/sitecustomize.py, of which Python itself would import one of this name alone."""

import importlib.util
import sys
from pathlib import Path

if "launcher.jobs.run_stage" in sys.orig_argv and "train" in sys.orig_argv:
    importlib.import_module("stand_ins")
    spec = importlib.util.spec_from_file_location("faults", Path(__file__).parents[2] / "faults" / "sitecustomize.py")
    assert spec is not None
    assert spec.loader is not None
    sys.modules["faults"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules["faults"])

"""Put on PYTHONPATH by the tests beside it: stand-ins for AWS's modules, first of all in a process that trains."""

import importlib
import sys

if "launcher.jobs.run_stage" in sys.orig_argv and "train" in sys.orig_argv:
    for name in ("neuron_shim", "lab_init"):  # in this order: the second imports torch_xla
        importlib.import_module(name)

"""Imported by every Python process that has this folder on its PYTHONPATH: with NEURON_CC_FLAGS in its environment,
each shape that reaches a model's embedding is a graph."""

from __future__ import annotations

import importlib.abc
import importlib.util
import os
import sys

ENGINE = "trainer.engines.torch.engine"


class Finder(importlib.abc.MetaPathFinder):
    """Hooks into torch once the engine is there: importing torch here would slow every process down."""

    def find_spec(self, name, path, target=None):
        if name != ENGINE:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        original = spec.loader.exec_module

        def exec_module(module):
            original(module)
            watch()

        spec.loader.exec_module = exec_module
        return spec


def watch() -> None:
    import graphs
    import torch

    def before(module, arguments):
        if isinstance(module, torch.nn.Embedding):
            mode = "train" if module.training else "eval"
            graphs.run(f"{tuple(arguments[0].shape)} {mode} gradients={torch.is_grad_enabled()}")

    torch.nn.modules.module.register_module_forward_pre_hook(before)


if "NEURON_CC_FLAGS" in os.environ:
    sys.meta_path.insert(0, Finder())

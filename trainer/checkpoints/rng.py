"""The states of every random number generator of a process, as tensors."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch

from trainer import device

RngState = dict[str, torch.Tensor]


def capture() -> RngState:
    """Python's, numpy's and torch's generators, on the CPU and on this process's device where it has one.

    float64 holds Python's and numpy's cached Gaussian; NaN stands for none.
    """
    _, words, gauss = random.getstate()
    _, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    return {
        "python": torch.tensor(words, dtype=torch.int64),
        "python_gauss": torch.tensor(float("nan") if gauss is None else gauss, dtype=torch.float64),
        "numpy": torch.from_numpy(np.asarray(keys).astype(np.int64)),
        "numpy_position": torch.tensor([position, has_gauss], dtype=torch.int64),
        "numpy_gauss": torch.tensor(cached, dtype=torch.float64),
        "torch": torch.get_rng_state().clone(),
        **device.generator_states(),
    }


def restore(state: RngState) -> None:
    """Put every generator where ``capture`` found it."""
    gauss = float(state["python_gauss"])
    random.setstate((3, tuple(state["python"].tolist()), None if np.isnan(gauss) else gauss))
    position, has_gauss = state["numpy_position"].tolist()
    keys: Any = state["numpy"].numpy().astype(np.uint32)
    np.random.set_state(("MT19937", keys, position, has_gauss, float(state["numpy_gauss"])))
    torch.set_rng_state(state["torch"].to(torch.uint8))
    device.restore_generators(state)

"""The random generators of a rank, with the device's own. Imports what exists on Neuron machines alone."""

from __future__ import annotations

import torch
import torch_xla.core.xla_model as xm

from trainer.checkpoints import rng

XLA_SEED = "xla"


def capture() -> rng.RngState:
    """Their state now."""
    # The seed has 64 bits without a sign, which no safetensors type for torch 2.8 holds: two halves.
    high, low = divmod(int(xm.get_rng_state()), 1 << 32)
    return {**rng.capture(), XLA_SEED: torch.tensor([high, low], dtype=torch.int64)}


def restore(state: rng.RngState) -> None:
    """Put them back to ``state``."""
    rng.restore(state)
    high, low = state[XLA_SEED].tolist()
    xm.set_rng_state((high << 32) + low)

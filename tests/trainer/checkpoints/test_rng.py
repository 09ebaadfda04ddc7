"""Every generator goes on where it was."""

from __future__ import annotations

import random

import numpy as np
import torch

from trainer.checkpoints import rng


def draw() -> list[float]:
    return [
        random.random(),
        random.gauss(0, 1),
        float(np.random.rand()),
        float(np.random.randn()),
        float(torch.rand(())),
        float(torch.randn(())),
    ]


def test_generators_are_put_back_with_their_cached_gaussians():
    for draws in range(4):
        for _ in range(draws):
            random.gauss(0, 1)
            np.random.randn()
        state = rng.capture()
        expected = [draw() for _ in range(3)]
        draw()
        rng.restore(state)
        assert [draw() for _ in range(3)] == expected

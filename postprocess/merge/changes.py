"""What an adapter does to a weight: pure functions on blocks of its rows, in peft's order of operations.

All sums are in fp32 (fp64 where the base is): ``weight`` comes in widened and goes out unrounded. The order matters: it
makes the result bitwise that of peft 0.17's merge_and_unload in fp32 (tuners/lora/layer.py, variants.py, dora.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

Load = Callable[[str], Tensor]


class Change(Protocol):
    """One step on a weight of shape (rows, ...)."""

    @property
    def by_rows(self) -> bool:
        """Whether a block of rows can be changed without the others."""
        ...

    @property
    def adds(self) -> bool:
        """Whether it adds something that doesn't depend on the weight."""
        ...

    def keys(self) -> tuple[str, ...]:
        """The adapter's tensors that it reads."""
        ...

    def apply(self, weight: Tensor, rows: slice, load: Load) -> Tensor:
        """The changed rows; ``weight`` holds rows ``rows`` of the whole, ``load`` gives the adapter's tensors."""
        ...


def widen(tensor: Tensor) -> Tensor:
    """fp32, or fp64 where it is that: the dtype in which sums are taken."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


@dataclass(frozen=True)
class LowRank:
    """``weight + scaling * B @ A``; with a magnitude (DoRA) each output's vector is then scaled to that length.

    A: (r, in), B: (out, r). ``transposed``: the weight is (in, out), as in an embedding and in GPT-2's Conv1D.
    """

    a: str
    b: str
    scaling: float
    transposed: bool
    magnitude: str | None = None

    @property
    def by_rows(self) -> bool:
        return self.magnitude is None or not self.transposed

    @property
    def adds(self) -> bool:
        return self.magnitude is None

    def keys(self) -> tuple[str, ...]:
        return (self.a, self.b, *([self.magnitude] if self.magnitude else []))

    def apply(self, weight: Tensor, rows: slice, load: Load) -> Tensor:
        a, b = load(self.a), load(self.b)
        a, b = (a[:, rows], b) if self.transposed else (a, b[rows])
        # Clones lie aligned in memory, as in a loaded model: a matrix product may depend on that in its last bit.
        delta = widen(b).clone() @ widen(a).clone()
        delta = (delta.T if self.transposed else delta).mul_(self.scaling)
        if self.magnitude is None:
            # Into the memory of delta: fresh memory costs more than the sum.
            return delta.add_(weight) if delta.dtype == weight.dtype else weight + delta
        magnitude = widen(load(self.magnitude)).reshape(-1)
        return _dora(weight, delta, magnitude if self.transposed else magnitude[rows], self.transposed)


def _dora(weight: Tensor, delta: Tensor, magnitude: Tensor, transposed: bool) -> Tensor:
    total = weight + delta
    outputs = weight.T + delta.T if transposed else total
    factor = (magnitude / torch.linalg.norm(outputs, dim=1)).view(-1, 1)
    return (factor.T if transposed else factor) * total


@dataclass(frozen=True)
class AddBias:
    """``bias + scaling * lora_B.bias`` (peft's lora_bias)."""

    key: str
    scaling: float
    by_rows: bool = True
    adds: bool = True

    def keys(self) -> tuple[str, ...]:
        return (self.key,)

    def apply(self, weight: Tensor, rows: slice, load: Load) -> Tensor:
        return weight + widen(load(self.key))[rows] * self.scaling


@dataclass(frozen=True)
class Replace:
    """A tensor trained in full: modules_to_save, biases, embeddings saved beside their adapter."""

    key: str
    by_rows: bool = True
    adds: bool = False

    def keys(self) -> tuple[str, ...]:
        return (self.key,)

    def apply(self, weight: Tensor, rows: slice, load: Load) -> Tensor:
        return widen(load(self.key)[rows])


@dataclass(frozen=True)
class ReplaceRows:
    """Some rows trained in full (peft's trainable_token_indices): row ``indices[i]`` becomes row i of the tensor."""

    key: str
    indices: tuple[int, ...]
    by_rows: bool = True
    adds: bool = False

    def keys(self) -> tuple[str, ...]:
        return (self.key,)

    def apply(self, weight: Tensor, rows: slice, load: Load) -> Tensor:
        start, stop, _ = rows.indices(max(self.indices) + 1)
        within = [(number, index - start) for number, index in enumerate(self.indices) if start <= index < stop]
        if not within:
            return weight
        numbers, places = (torch.tensor(column) for column in zip(*within, strict=True))
        return weight.index_copy(0, places, widen(load(self.key)[numbers]).to(weight.dtype))

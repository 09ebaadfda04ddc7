"""Tensors of safetensors files, one at a time, and the first of any that holds a number that is not finite."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open


def stored_tensors(files: Iterable[Path]) -> Iterator[tuple[str, torch.Tensor]]:
    """Names and tensors, mapped from the files: none is held here once the next is asked for."""
    for file in files:
        with safe_open(file, framework="pt") as content:
            opened: Any = content
            for name in opened.keys():  # noqa: SIM118 (it is no mapping)
                yield name, opened.get_tensor(name)


def stored_shapes(files: Iterable[Path]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of tensors, by the headers of their files."""
    found = {}
    for file in files:
        with safe_open(file, framework="pt") as content:
            opened: Any = content
            found.update({name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()})  # noqa: SIM118
    return found


def first_not_finite(tensors: Iterable[tuple[str, torch.Tensor]]) -> tuple[str, torch.Tensor] | None:
    """The first with an infinite number or a NaN in it."""
    floating = (each for each in tensors if each[1].is_floating_point())
    return next((each for each in floating if not bool(each[1].isfinite().all())), None)


def not_finite_text(tensors: Iterable[tuple[str, torch.Tensor]]) -> str | None:
    """What to say of it: its name and how many of its numbers are not finite."""
    found = first_not_finite(tensors)
    if found is None:
        return None
    name, tensor = found
    count = tensor.numel() - int(tensor.isfinite().sum())
    return f"{name} holds {count:,} numbers of {tensor.numel():,} that are not finite"

"""What a checkpoint is to the rest: a list of tensors as the finished model has them, and a way to read each of them.

A format of checkpoints is one class with these few members. `run.open_source` chooses
the class by what the directory holds; nothing else knows of formats.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import torch

from postprocess.safetensors.header import TensorSpec

Kind = Literal["model", "adapter"]


class Source(Protocol):
    """A checkpoint, opened and found complete. Opening one reads names, shapes and sizes, no weights."""

    @property
    def kind(self) -> Kind:
        """A whole model, or a peft adapter."""

    @property
    def directory(self) -> Path:
        """Where it was found."""

    @property
    def files(self) -> Sequence[Path]:
        """Every file that the result depends on."""

    @property
    def specs(self) -> Sequence[TensorSpec]:
        """The tensors of the result in the order in which they are stored."""

    @property
    def texts(self) -> dict[str, str]:
        """Files that the format itself brings: name to content, such as adapter_config.json."""

    @property
    def companions(self) -> Sequence[Path]:
        """Directories to copy config and tokenizer files from: the first that has a file gives it."""

    def check(self, allow_diverged: bool) -> list[str]:
        """Look at the weights as far as they can be wrong, before anything is written.

        Returns warnings. Raises TrntuneError for weights that must not be used.
        """

    def blocks(self, name: str) -> Iterator[torch.Tensor]:
        """One tensor of ``specs`` in pieces along its first axis, on the CPU. Raises TrntuneError."""

    def describe(self) -> dict[str, Any]:
        """Facts for consolidate.json: format, ranks, versions."""

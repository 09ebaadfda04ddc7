"""What an engine hands to the checkpoints, and what it takes from them when training goes on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class EngineState:
    """What one rank needs to go on after a step, copied to host memory: training may change its own at once."""

    step: int
    epoch: float
    tensors: dict[str, dict[str, torch.Tensor]]
    """file name -> tensors"""
    documents: dict[str, Any]
    """file name -> JSON value"""


class RestoredState(Protocol):
    """A checkpoint that training goes on from."""

    @property
    def step(self) -> int: ...

    def has(self, name: str) -> bool: ...

    def tensors(self, name: str) -> dict[str, torch.Tensor]: ...

    def shapes(self, name: str) -> dict[str, tuple[int, ...]]: ...

    def document(self, name: str) -> Any: ...


class Checkpoints(Protocol):
    """What the engine asks and tells about checkpoints. All ranks make the same calls in the same order."""

    @property
    def resumed(self) -> RestoredState | None: ...

    saved_step: int
    """newest step that is saved or being saved"""

    def due(self, step: int, last: bool) -> bool: ...

    def stalled(self, seconds: float) -> None: ...

    def save(self, state: EngineState) -> None: ...

    def poll(self) -> None:
        """Report a save that has ended by now, without waiting."""
        ...

    def wait(self) -> Any:
        """Wait for the save under way, if any: after it ``saved_step`` is the same on every rank."""
        ...

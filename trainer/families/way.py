"""How a model is trained: what trainer.families.proof finds by trying."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Way:
    """How a model is trained so that it is the one that transformers computes."""

    packed: str | None
    """why documents can't share a row; None: they can"""
    alone: str | None
    """why it can't be trained with a document a row either; None: it can"""
    attention: str
    """the attention of transformers that computes what its eager one does: sdpa, or eager where sdpa leaves something
    out"""
    plain_head: bool
    """the logits are the head's product with the decoder's output"""
    too_long: bool = False
    """what is refused is so for the length of the rows: shorter ones can be trained"""

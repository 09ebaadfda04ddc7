"""The model families that are known by name: names, shapes and splits of their layers, and in what they differ.

Written down here once, for checks, plan and consolidation: importing transformers' models takes longer than a plan, or
than consolidating a small model. Tests hold the table against transformers' modules.
"""

from __future__ import annotations

from dataclasses import dataclass

COLUMN, ROW = "column", "row"
"""How tensor parallelism splits a linear layer: its outputs (dimension 0 of the weight) or its inputs (dimension 1)."""

ATTENTION, MLP = "self_attn", "mlp"
LAYERS, EMBEDDING, NORM, HEAD = "model.layers", "model.embed_tokens", "model.norm", "lm_head"
BLOCK_NORMS = ("input_layernorm", "post_attention_layernorm")
HEAD_NORMS = ("q_norm", "k_norm")

HIDDEN, INNER, QUERIES, KEYS = "hidden", "inner", "queries", "keys"
"""Widths: of the model, inside the MLP, and of all query heads and all key (or value) heads together."""


@dataclass(frozen=True)
class Family:
    """In what a family differs from Llama."""

    head_norms: bool = False
    """queries and keys are normed in each head"""
    whole_ends: bool = False
    """optimum-neuron has embedding and output head whole on every rank"""
    may_bias_mlp: bool = True
    """its config.json has a switch for biases of the MLP"""


FAMILIES = {
    "llama": Family(),
    "granite": Family(whole_ends=True),
    "qwen3": Family(head_norms=True, may_bias_mlp=False),
}
"""By model_type of transformers' config.json: the families that optimum-neuron 0.4.5 trains."""


@dataclass(frozen=True)
class LinearRow:
    """A linear layer of a decoder block; ``outputs`` and ``inputs`` are names of widths."""

    name: str
    block: str
    outputs: str
    inputs: str
    split: str


LINEAR_LAYERS = (
    LinearRow("q_proj", ATTENTION, QUERIES, HIDDEN, COLUMN),
    LinearRow("k_proj", ATTENTION, KEYS, HIDDEN, COLUMN),
    LinearRow("v_proj", ATTENTION, KEYS, HIDDEN, COLUMN),
    LinearRow("o_proj", ATTENTION, HIDDEN, QUERIES, ROW),
    LinearRow("gate_proj", MLP, INNER, HIDDEN, COLUMN),
    LinearRow("up_proj", MLP, INNER, HIDDEN, COLUMN),
    LinearRow("down_proj", MLP, HIDDEN, INNER, ROW),
)
"""Of one decoder block, in transformers' order; all families have the same."""

LINEAR_NAMES = tuple(row.name for row in LINEAR_LAYERS)
QKV = tuple(row.name for row in LINEAR_LAYERS if row.block == ATTENTION and row.split == COLUMN)
"""Layers that optimum-neuron may make one of, which then has one lora_A."""
GATE_UP = tuple(row.name for row in LINEAR_LAYERS if row.block == MLP and row.split == COLUMN)
"""Layers that optimum-neuron makes one of, which then has one lora_A."""
KEY_VALUE = tuple(row.name for row in LINEAR_LAYERS if row.outputs == KEYS)
"""Layers that are repeated where there are fewer key/value heads than tensor-parallel ranks."""

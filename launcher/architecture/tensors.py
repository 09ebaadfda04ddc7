"""Every tensor of a decoder-only model and its adapter, and what a tensor- and pipeline-parallel rank holds of it.

Shapes are those of transformers' Llama, Granite and Qwen3 and of peft's LoRA layers; tests compare them with the real
modules on the meta device. They are written out here because a launcher that built the modules would pay seconds for
imports.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass

from launcher.architecture.adapters import Modules, first_layer, trained, trained_biases
from launcher.architecture.family_table import (
    ATTENTION,
    BLOCK_NORMS,
    COLUMN,
    EMBEDDING,
    FAMILIES,
    GATE_UP,
    HEAD,
    HEAD_NORMS,
    HIDDEN,
    INNER,
    KEY_VALUE,
    KEYS,
    LAYERS,
    LINEAR_LAYERS,
    MLP,
    NORM,
    QUERIES,
)
from launcher.config.schema import ArchitectureConfig, Config, LoraConfig
from launcher.neuron.graphs import fuses_qkv


@dataclass(frozen=True)
class Linear:
    """A linear layer [outputs, inputs] of a decoder block."""

    name: str
    block: str
    outputs: int
    inputs: int
    split: str

    @property
    def path(self) -> str:
        """Its name in the block, as in transformers' state dict."""
        return f"{self.block}.{self.name}"


@dataclass(frozen=True)
class Tensor:
    """A parameter: its full shape, and the dimension that tensor parallelism splits (None: every rank has all of it).

    ``layer`` counts decoder layers; FIRST and LAST are the pipeline stages of the embedding and of the output head.
    """

    name: str
    shape: tuple[int, ...]
    layer: int
    split: int | None = None
    repeated: int = 1
    """copies over the tensor-parallel ranks that a split tensor is first extended by (fewer KV heads than ranks)"""

    @property
    def size(self) -> int:
        """Elements of the whole tensor."""
        return math.prod(self.shape)

    def local_size(self, tensor_parallel: int) -> int:
        """Elements on one tensor-parallel rank; a dimension that doesn't divide is padded, as the engines do."""
        if self.split is None:
            return self.size
        dimension = self.shape[self.split]
        part = math.ceil(dimension * self.repeated / tensor_parallel)
        return self.size // dimension * part


FIRST, LAST = -1, -2


def linear_layers(facts: ArchitectureConfig) -> tuple[Linear, ...]:
    """The linear layers of one decoder block, in their order."""
    widths = {
        HIDDEN: facts.hidden_size,
        INNER: facts.intermediate_size,
        QUERIES: facts.heads * facts.head_dim,
        KEYS: facts.kv_heads * facts.head_dim,
    }
    return tuple(
        Linear(row.name, row.block, widths[row.outputs], widths[row.inputs], row.split) for row in LINEAR_LAYERS
    )


def kv_copies(facts: ArchitectureConfig, tensor_parallel: int) -> int:
    """How often each KV head is stored when there are fewer of them than tensor-parallel ranks."""
    return max(1, tensor_parallel // facts.kv_heads)


def base_tensors(facts: ArchitectureConfig, tensor_parallel: int = 1) -> Iterator[Tensor]:
    """The model's own parameters. A tied output head is the embedding and is given once."""
    vocabulary = (facts.vocab_size, facts.hidden_size)
    split = _split_of_ends(facts)
    yield Tensor(f"{EMBEDDING}.weight", vocabulary, FIRST, split)
    for layer in range(facts.layers):
        yield from _block(facts, layer, tensor_parallel)
    yield Tensor(f"{NORM}.weight", (facts.hidden_size,), LAST)
    if not facts.tied_embeddings:
        yield Tensor(f"{HEAD}.weight", vocabulary, LAST, split)


def _split_of_ends(facts: ArchitectureConfig) -> int | None:
    """The dimension by which embedding and head are split: optimum-neuron's Granite has both whole on every rank."""
    return None if FAMILIES[facts.family].whole_ends else 0


def _is_biased(facts: ArchitectureConfig, linear: Linear) -> bool:
    return facts.attention_bias if linear.block == ATTENTION else facts.mlp_bias


def _block(facts: ArchitectureConfig, layer: int, tensor_parallel: int) -> Iterator[Tensor]:
    prefix = f"model.layers.{layer}"
    for linear in linear_layers(facts):
        copies = kv_copies(facts, tensor_parallel) if linear.name in KEY_VALUE else 1
        split = 0 if linear.split == COLUMN else 1
        yield Tensor(f"{prefix}.{linear.path}.weight", (linear.outputs, linear.inputs), layer, split, copies)
        if _is_biased(facts, linear):
            # Of a split by inputs every rank adds its part of the product, and one of them the bias.
            yield Tensor(f"{prefix}.{linear.path}.bias", (linear.outputs,), layer, 0 if split == 0 else None, copies)
    if FAMILIES[facts.family].head_norms:
        for name in HEAD_NORMS:
            yield Tensor(f"{prefix}.{ATTENTION}.{name}.weight", (facts.head_dim,), layer)
    for name in BLOCK_NORMS:
        yield Tensor(f"{prefix}.{name}.weight", (facts.hidden_size,), layer)


def modules(facts: ArchitectureConfig) -> Modules:
    """The names of transformers' modules of a plain Llama, Granite or Qwen3."""
    linear = linear_layers(facts)
    biased = tuple(each.path for each in linear if _is_biased(facts, each))
    paths = tuple(each.path for each in linear)
    return _modules(facts.family, facts.layers, facts.vocab_size, facts.tied_embeddings, paths, biased)


@functools.lru_cache(maxsize=64)
def _modules(
    family: str, layers: int, vocabulary: int, tied: bool, linear: tuple[str, ...], biased: tuple[str, ...]
) -> Modules:
    blocks = [f"{LAYERS}.{layer}" for layer in range(layers)]
    inner = [name for block in blocks for name in (block, *(f"{block}.{part}" for part in _parts(family, linear)))]
    names = ("model", EMBEDDING, LAYERS, *inner, NORM, "model.rotary_emb", HEAD)
    return Modules(
        names=names,
        linear=tuple(f"{block}.{part}" for block in blocks for part in linear),
        leaves=frozenset(name for name in names if name in (EMBEDDING, HEAD) or name.endswith(("_proj", "norm"))),
        biases=frozenset(f"{block}.{part}.bias" for block in blocks for part in biased),
        layers=LAYERS,
        count=layers,
        embedding=EMBEDDING,
        head=HEAD,
        vocabulary=vocabulary,
        tied=tied,
    )


def _parts(family: str, linear: tuple[str, ...]) -> list[str]:
    """A block's modules below itself, in transformers' order."""
    attention, mlp = ([name for name in linear if name.startswith(block)] for block in (ATTENTION, MLP))
    norms = [f"{ATTENTION}.{name}" for name in HEAD_NORMS] if FAMILIES[family].head_norms else []
    return [ATTENTION, *attention, *norms, MLP, *mlp, f"{MLP}.act_fn", *BLOCK_NORMS]


@dataclass(frozen=True)
class LayerAdapter:
    """An adapter of rank ``r`` on a linear layer of decoder layer ``layer``."""

    layer: int
    linear: Linear
    r: int


def adapted_layers(facts: ArchitectureConfig, lora: LoraConfig) -> list[LayerAdapter]:
    """The linear layers that get an adapter, in the model's order."""
    known, by_path = modules(facts), {linear.path: linear for linear in linear_layers(facts)}
    found = []
    for adapter in trained(lora, known).adapters:
        layer = known.layer_of(adapter.name)
        assert layer is not None
        found.append(LayerAdapter(layer, by_path[adapter.name.removeprefix(f"{LAYERS}.{layer}.")], adapter.r))
    return found


def first_reached(facts: ArchitectureConfig, lora: LoraConfig) -> int:
    """The first decoder layer that the backward pass reaches."""
    known = modules(facts)
    return first_layer(lora, trained(lora, known), known)


def sharing_a(config: Config, facts: ArchitectureConfig) -> frozenset[str]:
    """Layers without an A of their own: optimum-neuron fuses up with gate, and k and v with q where it must repeat
    them, and a fused layer has one A (optimum/neuron/peft/tuners/lora/layer.py)."""
    if config.accelerator.engine != "neuron":
        return frozenset()
    return frozenset({*GATE_UP[1:], *(KEY_VALUE if fuses_qkv(facts, config.parallelism) else ())})


def adapter_tensors(
    facts: ArchitectureConfig, lora: LoraConfig, tensor_parallel: int = 1, sharing: frozenset[str] = frozenset()
) -> Iterator[Tensor]:
    """LoRA's A [r, inputs] and B [outputs, r], and DoRA's magnitude [outputs]. What the split cuts in the base layer
    it cuts in the adapter; the other matrix is whole on every rank. ``sharing``: layers that have no A of their own."""
    for adapter in adapted_layers(facts, lora):
        layer, linear, r = adapter.layer, adapter.linear, adapter.r
        prefix = f"{LAYERS}.{layer}.{linear.path}"
        column = linear.split == COLUMN
        copies = kv_copies(facts, tensor_parallel) if linear.name in KEY_VALUE else 1
        if linear.name not in sharing:
            yield Tensor(f"{prefix}.lora_A", (r, linear.inputs), layer, None if column else 1)
        yield Tensor(f"{prefix}.lora_B", (linear.outputs, r), layer, 0 if column else None, copies)
        if lora.use_dora:
            yield Tensor(f"{prefix}.magnitude", (linear.outputs,), layer, 0 if column else None, copies)


def other_tensors(facts: ArchitectureConfig, lora: LoraConfig) -> Iterator[Tensor]:
    """What is trained beside A and B: copies of the modules that are trained in full, biases, and rows of the
    embedding."""
    known = modules(facts)
    found = trained(lora, known)
    biases = trained_biases(lora, found, known)
    for tensor in (*base_tensors(facts), *_tied_head(facts)):
        if tensor.name.rpartition(".")[0] in found.saved or tensor.name in biases:
            yield tensor
    if found.tokens:
        yield Tensor(f"{EMBEDDING}.tokens", (len(found.tokens), facts.hidden_size), FIRST)


def _tied_head(facts: ArchitectureConfig) -> list[Tensor]:
    """The output head where ``base_tensors`` leaves it out: trained in full it is a copy of its own."""
    size = (facts.vocab_size, facts.hidden_size)
    return [Tensor(f"{HEAD}.weight", size, LAST, _split_of_ends(facts))] if facts.tied_embeddings else []

"""Bytes that one layer keeps for the backward pass, a token: what autograd saves in transformers' Llama and Qwen3.

Counted from the tensors that autograd saves (tests compare with torch.autograd.graph.saved_tensors_hooks). Attention
is fused, so it keeps queries, keys, values, output and a normalizer a head, not the weights of every pair. In fp32 on
a CPU trainer.fused and trainer.models.block_attention keep less: no copy of what is kept already.
"""

from __future__ import annotations

from dataclasses import dataclass

from launcher.architecture.family_table import FAMILIES, ROW
from launcher.architecture.quantized import is_quantized
from launcher.architecture.tensors import LayerAdapter, Linear, adapted_layers, first_reached
from launcher.config.schema import ArchitectureConfig, Config, ParallelismConfig

NORM_BYTES = 4  # normalization runs in fp32 in every precision
PRODUCT_BYTES = {"fp32": 4, "bf16": 2}


@dataclass(frozen=True)
class Kept:
    """Bytes a token of one layer. ``hidden`` lies between the blocks, where only sequence parallelism splits it;
    ``inner`` lies inside them, where tensor parallelism does. ``inputs`` are those of the products at a block's
    begin: under sequence parallelism optimum-neuron gathers them anew for the backward pass, DTensor keeps them whole.
    """

    hidden: float
    inner: float
    inputs: float = 0.0

    def __add__(self, other: Kept) -> Kept:
        return Kept(self.hidden + other.hidden, self.inner + other.inner, self.inputs + other.inputs)

    @property
    def total(self) -> float:
        """Of a process that has the layer for itself."""
        return self.hidden + self.inner + self.inputs

    def on_rank(self, parallel: ParallelismConfig, gathers_anew: bool) -> float:
        """Bytes a token on one tensor-parallel rank."""
        ranks = parallel.tensor_parallel
        positions = ranks if parallel.sequence_parallel else 1
        return self.hidden / positions + self.inner / ranks + self.inputs / (positions if gathers_anew else 1)


def kept_by_layer(config: Config, facts: ArchitectureConfig) -> Kept:
    """What one decoder layer keeps, bytes a token: the mean of those that the backward pass reaches."""
    width = PRODUCT_BYTES[config.training.precision]
    common = _frozen(facts, width, is_fused(config))
    if config.method.name == "full":
        return common + _trained(facts, width, config.training.precision == "bf16", _fuses_layers(config))
    return common + _adapters(config, facts, width)


def reached_layers(config: Config, facts: ArchitectureConfig) -> int:
    """Decoder layers that the backward pass reaches: those below the first with anything trained keep nothing. All of
    them for a family whose layers the plan doesn't know."""
    adapted = config.method.name == "lora" and config.model.architecture is not None
    return facts.layers - (first_reached(facts, config.lora) if adapted else 0)


def layer_input(facts: ArchitectureConfig) -> Kept:
    """What is kept of a layer that is recomputed: its input, in the residual stream's fp32."""
    return Kept(facts.hidden_size * NORM_BYTES, 0)


def is_fused(config: Config) -> bool:
    """Whether the passes of trainer.models.block_attention are taken, and with them trainer.fused's."""
    accelerator = config.accelerator
    plain = not is_quantized(config) and config.training.precision == "fp32"
    return plain and accelerator.engine == "torch" and accelerator.device == "cpu"


def _fuses_layers(config: Config) -> bool:
    """Whether trainer.fused's passes are taken: not of layers that are split."""
    return is_fused(config) and config.parallelism.tensor_parallel == 1


def _frozen(facts: ArchitectureConfig, width: int, fused: bool) -> Kept:
    """What the gradient of the layer's input needs, whether or not its weights are trained."""
    query, key = facts.heads * facts.head_dim, facts.kv_heads * facts.head_dim
    norms = 2 * (facts.hidden_size + 1)
    # queries, keys and values; else also the output and a normalizer, and keys and values repeated for each query head
    attention = width * (query + 2 * key) if fused else width * 4 * query + NORM_BYTES * facts.heads
    # gate, its activation, and up
    inner = attention + width * 3 * facts.intermediate_size
    if FAMILIES[facts.family].head_norms:
        inner += NORM_BYTES * (query + key + facts.heads + facts.kv_heads)
    return Kept(NORM_BYTES * norms, inner)


def _trained(facts: ArchitectureConfig, width: int, casts: bool, fused: bool) -> Kept:
    """Inputs of the products and of the norms, which the gradients of their weights need; a fused norm has its own
    already. Under autocast every linear layer keeps its own bf16 copy of an fp32 input."""
    query, key = facts.heads * facts.head_dim, facts.kv_heads * facts.head_dim
    inputs = (5 if casts else 2) * facts.hidden_size
    inner = width * (query + facts.intermediate_size)
    if fused:
        return Kept(0, inner, width * inputs)
    if FAMILIES[facts.family].head_norms:
        inner += NORM_BYTES * (query + key)
    return Kept(NORM_BYTES * 2 * facts.hidden_size, inner, width * inputs)


def _adapters(config: Config, facts: ArchitectureConfig, width: int) -> Kept:
    """What the adapters keep, the mean of the layers that are reached."""
    by_layer: dict[int, list[LayerAdapter]] = {}
    for adapter in adapted_layers(facts, config.lora):
        by_layer.setdefault(adapter.layer, []).append(adapter)
    kept = Kept(0, 0)
    for adapters in by_layer.values():
        kept += _layers_adapters(config, adapters, width)
    reached = max(1, reached_layers(config, facts))
    return Kept(kept.hidden / reached, kept.inner / reached, kept.inputs / reached)


def _layers_adapters(config: Config, adapters: list[LayerAdapter], width: int) -> Kept:
    """The adapters' inputs: with dropout each keeps its own copy and its mask, without it what they share once. A fused
    layer keeps only the mask of its own."""
    fused = _fuses_layers(config) and not config.lora.use_dora
    kept = Kept(0, 0)
    seen: set[str] = set()
    # peft keeps a mask in the adapter's fp32 on a CPU and as one byte on a GPU.
    mask = (4 if config.accelerator.device == "cpu" else 1) if config.lora.dropout else 0
    for adapter in adapters:
        linear = adapter.linear
        # The projections of attention read one tensor, and so do gate and up.
        source = linear.name if _reads_inner(linear) else linear.block
        own = bool(mask) and not fused
        size = linear.inputs * ((width if own or source not in seen else 0) + mask)
        seen.add(source)
        inner = width * adapter.r + (width * 2 * linear.outputs if config.lora.use_dora else 0)
        kept += Kept(0, size + inner) if _reads_inner(linear) else Kept(0, inner, size)
    return kept


def _reads_inner(linear: Linear) -> bool:
    """True for o_proj and down_proj, whose input lies inside a block."""
    return linear.split == ROW

"""Every causal language model that the installed transformers registers, small, and the settings that change it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from transformers import AutoConfig, PretrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from trainer.families.small import own_positions, text_config

LENGTH = 1024
"""positions of a row"""

# What a family's configuration leaves off, or asks for only in some of its models.
_WINDOWED = {"use_sliding_window": True, "sliding_window": 512, "max_window_layers": 1}
_VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "qwen2": {"use_sliding_window": _WINDOWED},
    "qwen2_moe": {"use_sliding_window": _WINDOWED},
    "qwen3": {"use_sliding_window": _WINDOWED},
    "qwen3_moe": {"use_sliding_window": _WINDOWED},
    "smollm3": {"use_sliding_window": {"use_sliding_window": True, "sliding_window": 512}},
    "phi3": {"sliding_window": {"sliding_window": 512}},
    "llama": {
        "rope_scaling dynamic, longer rows": {
            "max_position_embeddings": 512,
            "rope_scaling": {"rope_type": "dynamic", "factor": 2.0},
        },
    },
    "llama4_text": {"rows of over floor_scale": {"floor_scale": 512}},
    "falcon": {
        "alibi": {"alibi": True, "parallel_attn": False},
        "new_decoder_architecture": {"new_decoder_architecture": True, "num_kv_heads": 8},
    },
    "gpt2": {"scale_attn_by_inverse_layer_idx": {"scale_attn_by_inverse_layer_idx": True}},
    "lfm2": {"convolutions": {"full_attn_idxs": [1, 3]}},
    "doge": {"rows of over keep_window_size": {"keep_window_size": 512}},
    "bert": {"is_decoder": {"is_decoder": True}},
    "roberta": {"is_decoder": {"is_decoder": True}},
    "electra": {"is_decoder": {"is_decoder": True}},
}


# What configurations can't be without, and have no value for by themselves.
_NEEDED: dict[str, dict[str, Any]] = {
    "deepseek_v2": {"num_experts_per_tok": 6, "topk_method": "greedy"},
    "dots1": {
        **{"n_routed_experts": 8, "n_shared_experts": 1, "num_experts_per_tok": 2, "first_k_dense_replace": 1},
        **{"n_group": 1, "topk_group": 1},
    },
    "hunyuan_v1_dense": {"head_dim": 128},
    "hunyuan_v1_moe": {"head_dim": 128, "num_experts": 8, "moe_topk": 2},
    "ministral": {"head_dim": 128},
    "nemotron": {"num_key_value_heads": 48},
    "jamba": {"use_mamba_kernels": False, "attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_offset": 0},
    "zamba": {"use_mamba_kernels": False},
    "dbrx": {"attn_config": {"clip_qkv": 8.0, "kv_n_heads": 8}},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"] * 16},
    "bamba": {"attn_layer_indices": [1]},
    "reformer": {"is_decoder": True, "axial_pos_embds": False},
    "xmod": {"default_language": "en_XX", "is_decoder": True},
}


@dataclass(frozen=True)
class Case:
    """A family, and settings beside its own."""

    family: str
    variant: str = ""
    settings: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.family} ({self.variant})" if self.variant else self.family

    def length(self, config: PretrainedConfig) -> int:
        """Positions of the rows that it is tried on: no more than a family has, but where that is the case itself."""
        own = own_positions(text_config(config).to_dict())
        return LENGTH if own is None or "rows" in self.variant else min(LENGTH, own[1])

    def config(self) -> PretrainedConfig:
        """transformers' configuration of it, at full size. Raises what transformers raises where there is none."""
        found: PretrainedConfig = AutoConfig.for_model(self.family, **_NEEDED.get(self.family, {}), **self.settings)
        return found


def cases() -> Iterator[Case]:
    """All of them, in transformers' order."""
    for family in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        yield Case(family)
        for name, settings in _VARIANTS.get(family, {}).items():
            yield Case(family, name, settings)

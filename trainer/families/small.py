"""A small model of any family: transformers' own architecture with every size shrunk and every kind of layer kept.

What a model computes depends on its kinds of layers and on its settings, hardly on its sizes, so a copy that takes
milliseconds shows how the family behaves (trainer.families.proof) before any weight is read.
"""

from __future__ import annotations

import copy
import inspect
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

VOCABULARY = 99
WINDOW = 8
"""positions: what windows and chunks of attention are shrunk to"""
_MAX_LAYERS = 6
_POSITIONS = 512
POSITIONS = (
    *("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "context_length", "max_target_positions"),
)
"""transformers' names for how many positions a model has, or was trained on"""
_MAX_PARAMETERS = 5_000_000

# transformers' names for the sizes of a model, over all families.
_SIZES: dict[str, int] = {
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "word_embed_proj_dim", "lru_width", "emb_dim"), 64),
    **dict.fromkeys(("embedding_dim", "embedding_size", "d_embed", "input_embedding_size", "decoder_hidden_size"), 64),
    **dict.fromkeys(("output_embedding_size", "ema_projection_size"), 64),
    **dict.fromkeys(("pronunciation_embed_dim", "shape_embed_dim", "shared_representation_size"), 64),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "decoder_ffn_dim", "encoder_ffn_dim", "d_inner", "dff"), 96),
    **dict.fromkeys(("n_inner", "dim_ff", "feed_forward_size", "ffn_hidden_size", "nffn_hidden_size"), 96),
    **dict.fromkeys(("intermediate_size_mlp", "shared_intermediate_size", "shared_expert_intermediate_size"), 96),
    **dict.fromkeys(("moe_intermediate_size", "expert_ffn_hidden_size"), 48),
    **dict.fromkeys(("head_dim", "kv_channels", "d_head", "dim_head", "attention_head_size", "qk_nope_head_dim"), 16),
    **dict.fromkeys(("qk_rope_head_dim", "linear_key_head_dim", "linear_value_head_dim", "rotary_dim"), 16),
    **dict.fromkeys(("v_head_dim", "mamba_d_head", "mamba_headdim", "mamba_d_state", "state_size"), 16),
    **dict.fromkeys(("qk_head_dim",), 32),
    **dict.fromkeys(("mamba_d_ssm",), 128),
    **dict.fromkeys(("encoder_hash_byte_group_vocab",), 500),
    **dict.fromkeys(("n_groups", "num_kv_shared_layers", "kv_n_heads"), 2),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank", "laurel_rank", "adapter_rank", "mamba_dt_rank"), 16),
    **dict.fromkeys(("time_step_rank", "hidden_size_per_layer_input"), 16),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_k", "moe_topk"), 2),
    **dict.fromkeys(("n_group", "topk_group", "zero_expert_num"), 2),
    "first_k_dense_replace": 1,  # layers before the first with experts
    **dict.fromkeys(("decoder_layers", "encoder_layers", "num_encoder_layers", "num_decoder_layers"), 2),
    **dict.fromkeys(("decoder_attention_heads", "encoder_attention_heads"), 4),
    **dict.fromkeys(("num_encoder_attention_heads", "num_decoder_attention_heads"), 4),
    **dict.fromkeys((*POSITIONS, "max_source_positions"), _POSITIONS),
    **dict.fromkeys(("query_pre_attn_scalar",), 16),
    **dict.fromkeys(("bos_token_id", "decoder_start_token_id"), 1),
    **dict.fromkeys(("eos_token_id", "sep_token_id", "forced_eos_token_id", "forced_bos_token_id"), 2),
    "pad_token_id": 0,
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input", "decoder_vocab_size", "_vocab_size"), VOCABULARY),
}
_HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads", "attention_heads")
_KEY_HEADS = ("num_key_value_heads", "num_kv_heads")
_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_blocks")
WINDOWS = (
    *("sliding_window", "attention_chunk_size", "window_size", "attention_window_size", "local_attention"),
    *("lsh_attn_chunk_length", "local_attn_chunk_length"),
)
"""settings that bound how far attention reaches, in positions"""
THRESHOLD = 16
"""positions: where what begins at a length begins"""
_THRESHOLDS = (
    *("floor_scale", "keep_window_size", "original_max_position_embeddings"),
    *("mamba_chunk_size", "chunk_size"),  # of scans: what they compute must not depend on it
)
_SENSES = re.compile("vision|image|video|audio|speech|vq")
"""in the names of parts that read something else than texts"""
_CAPS = ("attn_logit_softcapping", "attn_logits_soft_cap")
"""soft caps of attention scores: 1, so that the scores of random weights feel them"""


def small_config(config: PretrainedConfig, length: int) -> PretrainedConfig:
    """A copy of ``config`` with every known size shrunk; layers of every kind stay, in their order.

    Of a model that reads pictures, too, it is the part for texts where the family has one. ``length`` is how long rows
    will be: what begins at a length that they reach begins at THRESHOLD. Raises whatever the family's configuration
    raises for sizes that don't fit together.
    """
    config = text_config(config)
    left_out = ("transformers_version", "model_type", "_sliding_window_pattern")
    settings = {name: value for name, value in config.to_dict().items() if name not in left_out}
    changed = _changed(settings, length)
    parts = {
        name: small_config(part, length)
        for name in config.sub_configs
        if isinstance(part := getattr(config, name, None), PretrainedConfig)
    }
    kind, wanted = type(config), {**settings, **changed}
    try:
        small = kind(**{**wanted, **{name: part.to_dict() for name, part in parts.items()}})
    except (TypeError, ValueError):  # some families take parts as objects only, and parts no settings of all models
        known = inspect.signature(kind).parameters
        small = kind(**{name: value for name, value in {**wanted, **parts}.items() if parts or name in known})
    for name in {*WINDOWS, *_THRESHOLDS, *_CAPS} & set(changed):
        if getattr(small, name, None) != changed[name]:  # a constructor may make it from another setting
            setattr(small, name, changed[name])
    small._name_or_path = config._name_or_path
    return small


def _changed(settings: dict[str, Any], length: int) -> dict[str, Any]:
    """The settings that get another value."""
    layers = _layers(settings)
    found: dict[str, Any] = {"dtype": "float32", **layers}
    for name, value in {**settings, **layers}.items():
        if name not in _SIZES:
            continue
        if _counts(value):
            found[name] = min(value, _SIZES[name])
        elif isinstance(value, list) and value and all(map(_counts, value)):
            found[name] = [min(entry, _SIZES[name]) for entry in value]
    found.update({name: WINDOW for name in WINDOWS if _counts(settings.get(name))})
    found.update({name: THRESHOLD for name in _THRESHOLDS if _counts(settings.get(name)) and settings[name] < length})
    # A table of positions ends there, and has no row for what comes after; rotary embeddings go on.
    found.update({name: THRESHOLD for name in POSITIONS if _counts(settings.get(name)) and settings[name] < length})
    found.update({name: 1.0 for name in _CAPS if settings.get(name)})
    if isinstance(settings.get("rope_scaling"), dict):
        found.update(_rope(settings, length))
    return found | _heads(settings) | _scan_heads(settings)


def _counts(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _rope(settings: dict[str, Any], length: int) -> dict[str, Any]:
    """Rotary embeddings that change with the length of the longest row: at THRESHOLD, if ``length`` gets there."""
    rope = dict(settings["rope_scaling"])
    kind = rope.get("rope_type", rope.get("type"))
    heads = next((settings[name] for name in _HEADS if _counts(settings.get(name))), 1)
    width = settings.get("head_dim") or (settings.get("hidden_size") or heads) // heads
    for name in ("short_factor", "long_factor"):
        if isinstance(rope.get(name), list):
            rope[name] = rope[name][: max(1, len(rope[name]) * 16 // width)]
    name = "original_max_position_embeddings"
    if _counts(rope.get(name)) and rope[name] < length:
        rope[name] = THRESHOLD
    found: dict[str, Any] = {"rope_scaling": rope}
    if kind == "dynamic" and settings.get("max_position_embeddings", length) < length:
        found["max_position_embeddings"] = THRESHOLD
    return found


def _heads(settings: dict[str, Any]) -> dict[str, int]:
    """4 heads, and as few key heads as the original has in proportion."""
    heads = next((settings[name] for name in _HEADS if _counts(settings.get(name))), 4)
    found = {name: 4 for name in _HEADS if _counts(settings.get(name))}
    for name in _KEY_HEADS:
        if _counts(settings.get(name)):
            ratio = heads // settings[name]
            found[name] = 4 if ratio <= 1 else 1 if settings[name] == 1 else 2
    for name in ("attention_hidden_size", "attention_head_dim"):
        if _counts(settings.get(name)) and _counts(settings.get("hidden_size")):
            width = 64 * settings.get("attention_hidden_size", settings["hidden_size"]) // settings["hidden_size"]
            found[name] = width if name == "attention_hidden_size" else width // 4
    return found


def _scan_heads(settings: dict[str, Any]) -> dict[str, int]:
    """As many heads of 16 as fill the widened hidden states of a state space model."""
    found = {}
    if _counts(settings.get("mamba_n_heads")):
        width = 128 if "mamba_d_ssm" in settings else 64 * int(settings.get("mamba_expand", 2))
        size: Any = settings.get("mamba_d_head")
        found["mamba_n_heads"] = width // (min(size, 16) if _counts(size) else 16)
    if _counts(settings.get("expand")) and "num_heads" in settings:
        found |= {"num_heads": settings["expand"] * 4, "head_dim": 16}
    return found


def _layers(settings: dict[str, Any]) -> dict[str, Any]:
    """Layers of every kind that the lists of ``settings`` (an entry for each layer) tell apart; two without lists."""
    names = [name for name in _LAYERS if _counts(settings.get(name))]
    if not names:
        return {}
    count = settings[names[0]]
    lists = {name: value for name, value in settings.items() if isinstance(value, list) and len(value) == count}
    kinds: dict[str, int] = {}
    for index in range(count):
        kinds.setdefault(repr([value[index] for value in lists.values()]), index)
    chosen = sorted(kinds.values())[:_MAX_LAYERS]
    while len(chosen) < min(2, count):
        chosen = sorted({*chosen, next(index for index in range(count) if index not in chosen)})
    found: dict[str, Any] = {name: len(chosen) for name in names}
    if "attention_types" in settings:  # GPT-Neo makes its list of layers from it
        found["attention_types"] = [[[settings["attention_layers"][index] for index in chosen], 1]]
    return found | {name: [value[index] for index in chosen] for name, value in lists.items()}


def small_model(config: PretrainedConfig, attention: str, trust_remote_code: bool = False) -> PreTrainedModel:
    """The family's model at the size of ``config``, fp32 on the CPU, with weights in which nothing is neutral.

    Layers begin with weights of zero and of one that would hide what a setting does: all are moved. The caller's
    random numbers stay as they are. Raises ValueError where a size of the family has a name that isn't known here.
    """
    if (count := _parameters(config, trust_remote_code)) > _MAX_PARAMETERS:
        raise ValueError(f"{type(config).__name__} stays at {count:,} parameters")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            config, attn_implementation=attention, trust_remote_code=trust_remote_code
        )
        model = model.float()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn(parameter.shape) * (0.1 if parameter.dim() < 2 else 0.15))
    return model.eval()


def with_attention(model: PreTrainedModel, attention: str) -> PreTrainedModel:
    """A small model with the weights of ``model`` and another attention. Not every family can change it in place, and
    those that can't say so in a warning alone, so it is another model in any case."""
    other = type(model)._from_config(copy.deepcopy(model.config), attn_implementation=attention)
    other.float().load_state_dict(model.state_dict())
    return other.train(model.training)


def own_positions(settings: Mapping[str, Any]) -> tuple[str, int] | None:
    """How many positions a model has, or was trained on: name and value in its configuration. None: it doesn't say."""
    return next(((name, settings[name]) for name in POSITIONS if _counts(settings.get(name))), None)


def over_positions(model_dir: Path, length: int) -> str | None:
    """What to say of rows longer than those that a model with rotary embeddings was trained on; None: they aren't."""
    own = own_positions(json.loads((model_dir / "config.json").read_text(encoding="utf-8")))
    if own is None or own[1] >= length:
        return None
    return f"is over the {own[1]} positions that the model was trained on ({own[0]})"


def not_for_texts(config: PretrainedConfig, trust_remote_code: bool = False) -> str | None:
    """Why AutoModelForCausalLM makes of this configuration no model of texts alone; None where it does.

    The part for pictures of a model that has one would be loaded, get adapters and never be trained.
    """
    if trust_remote_code and "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {}):
        return None
    kind: Any = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    if kind is None:
        return f"transformers has no causal language model for {type(config).__name__}"
    if text_config(config) is not config:
        return None
    parts = [name for name in config.sub_configs if _SENSES.search(name) and getattr(config, name, None) is not None]
    if not parts and not isinstance(getattr(config, "text_config", None), PretrainedConfig):
        return None
    beside = f" ({', '.join(parts)})" if parts else ""
    return f"{kind.__name__} has parts beside the one for texts{beside}, which texts don't train"


def _parameters(config: PretrainedConfig, trust_remote_code: bool) -> int:
    """Of the model, without making them; 0 for a family that computes while it is built."""
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    except (NotImplementedError, RuntimeError):
        return 0
    return sum(parameter.numel() for parameter in model.parameters())


def text_config(config: PretrainedConfig) -> PretrainedConfig:
    """The part of ``config`` that AutoModelForCausalLM builds: of a model of texts and pictures the texts' part, where
    the family has a class for it (as from_pretrained does; from_config doesn't)."""
    text = config.get_text_config()
    wanted: Any = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    own = wanted is not None and wanted.config_class is type(text) and type(text) in MODEL_FOR_CAUSAL_LM_MAPPING
    return text if own else config

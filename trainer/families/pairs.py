"""What attention of a transformers configuration costs: how far each layer reaches, and how wide it is."""

from __future__ import annotations

from typing import Any

from launcher.architecture.attention_pairs import ALL, CHUNK, NONE, WINDOW, Extent
from trainer.libraries.transformers_versions import setting

# transformers' names, over all families.
_WINDOWS = ("sliding_window", "window_size", "attention_window_size", "local_attention")
_KINDS = {
    **dict.fromkeys(("full_attention", "attention", "global", "hybrid"), ALL),
    **dict.fromkeys(("sliding_attention", "local"), WINDOW),
    "chunked_attention": CHUNK,
}
_LISTS = ("layer_types", "layers_block_type", "attention_layers")
_HEADS = ("decoder_attention_heads", "num_attention_heads", "n_head")
_LAYERS = ("decoder_layers", "num_hidden_layers")


def layer_extents(config: Any) -> list[Extent]:
    """Of each layer: by the configuration's list of their kinds, or its one window for all of them. A kind that is no
    attention (a convolution, a state space) reaches nowhere."""
    config = config.get_text_config(decoder=True)
    window, chunk = _first(config, _WINDOWS), setting(config, "attention_chunk_size")
    sizes = {ALL: None, WINDOW: window, CHUNK: chunk, NONE: None}
    kinds = _first(config, _LISTS)
    if not heads(config):
        kinds = [NONE] * layers(config)
    elif isinstance(kinds, list | tuple) and len(kinds) == layers(config):
        kinds = [_KINDS.get(kind, NONE) for kind in kinds]
    else:
        kinds = [ALL if window is None else WINDOW] * layers(config)
    # A window that is not set is none.
    return [Extent(kind, sizes[kind]) if sizes[kind] or kind == NONE else Extent() for kind in kinds]


def layers(config: Any) -> int:
    """Decoder layers."""
    return int(_first(config, _LAYERS) or 1)


def heads(config: Any) -> int:
    """Query heads; 0 for a model without attention."""
    found = _first(config, _HEADS)
    return found if isinstance(found, int) else 0


def head_size(config: Any) -> int:
    """Of a query and its value: their mean where they differ."""
    query, value = (setting(config, name) for name in ("qk_head_dim", "v_head_dim"))
    if isinstance(query, int) and isinstance(value, int):
        return (query + value) // 2
    return int(setting(config, "head_dim") or config.hidden_size // max(1, heads(config)))


def attention_width(config: Any) -> int:
    """Layers x heads x head size; what ``layer_extents`` takes the mean over."""
    config = config.get_text_config(decoder=True)
    return layers(config) * heads(config) * head_size(config) if heads(config) else 0


def _first(config: Any, names: tuple[str, ...]) -> Any:
    found = (setting(config, name) for name in names)
    return next((value for value in found if value is not None), None)

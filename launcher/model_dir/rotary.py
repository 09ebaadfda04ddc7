"""Rotary settings of a config.json. transformers 5 writes them under one key, which 4.57 doesn't read: it takes its own
default base instead, without a word, and the model's positions are others."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from launcher.model_dir.files import settings_of
from launcher.run_dir.provenance import installed

JOINED = "rope_parameters"
"""transformers 5's key: settings of all layers, or by kind of layer"""
APART = (
    *("rope_theta", "rope_scaling", "partial_rotary_factor", "rope_local_base_freq", "rotary_emb_base", "rotary_pct"),
    *("global_rope_theta", "local_rope_theta"),
)
"""4.57's keys, which 5 still reads: those that configuration classes of 4.57.6 write and those of 5.24.0 don't."""
_OTHER_NAMES = ("gpt_neox", "gpt_neox_japanese")
"""families that 4.57 reads by names of their own"""


def with_both(document: Mapping[str, Any], base: Mapping[str, Any]) -> dict[str, Any]:
    """A config.json that transformers 5 wrote, with rotary settings as 4.57 reads them, too: those of the ``base``'s
    config.json, whose positions are the same, else what they say themselves."""
    if JOINED not in document:
        return dict(document)
    return {**document, **_apart(document), **{key: base[key] for key in APART if key in base}}


def _apart(document: Mapping[str, Any]) -> dict[str, Any]:
    """Nothing where that can't be told: of settings by kind of layer."""
    joined = document[JOINED]
    if not isinstance(joined, Mapping) or "rope_theta" not in joined or document.get("model_type") in _OTHER_NAMES:
        return {}
    scaling = {key: value for key, value in joined.items() if key not in ("rope_theta", "partial_rotary_factor")}
    scaled = scaling.get("rope_type", "default") != "default"
    factor = {key: joined[key] for key in ("partial_rotary_factor",) if key in joined}
    return {"rope_theta": joined["rope_theta"], "rope_scaling": scaling if scaled else None, **factor}


def _told_apart(document: Mapping[str, Any]) -> bool:
    """Whether 4.57 finds in its own keys what stands under transformers 5's. Scalings are only looked for: they are
    written in several ways."""
    apart = _apart(document)
    if not apart:
        return any(key in document for key in APART)
    scaled = apart.pop("rope_scaling") is not None
    same = all(document.get(key) == value for key, value in apart.items())
    return same and (not scaled or bool(document.get("rope_scaling")))


def rotary_fault(directory: Path) -> str | None:
    """Why the transformers that is installed would give the model of a directory other positions; None where it
    doesn't."""
    release = installed("transformers") or ""
    if not release.startswith("4."):
        return None
    document = settings_of(directory)
    if not isinstance(document, dict) or JOINED not in document or _told_apart(document):
        return None
    remedy = "take the newest libraries (docs/dependencies.md)"
    if apart := _apart(document):
        remedy = f"add {json.dumps(apart)[1:-1]} to it, or {remedy}"
    return (
        f'its config.json has rotary settings as transformers 5 writes them ("{JOINED}"), of which transformers '
        f"{release} reads nothing, and its own keys don't say the same, so that positions would be others: {remedy}"
    )

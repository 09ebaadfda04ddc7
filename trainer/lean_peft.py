"""Keeps peft from importing bitsandbytes for a base that isn't packed: a second of processor time in each stage.

Wherever the package is installed, peft 0.17 imports it to ask of each layer whether it is one of its own. None can be
before somebody has loaded it, as transformers does for a packed base. Newer ones import it with peft itself, for
measuring condition numbers (helpers.py), which nothing here does. Imported before whatever else imports peft.
"""

from __future__ import annotations

import sys
from typing import Any

from trainer.lean_imports import hidden

with hidden("bitsandbytes"):
    from peft import import_utils
    from peft.tuners.lora import model

# Whoever has asked meanwhile, is to look again: they keep the answer.
import_utils.is_bnb_available.cache_clear()
import_utils.is_bnb_4bit_available.cache_clear()

_lora_model: Any = model
_has_4bit = _lora_model.is_bnb_4bit_available


def _is_loaded() -> bool:
    return "bitsandbytes" in sys.modules


def _has_4bit_loaded() -> bool:
    return _is_loaded() and bool(_has_4bit())


_lora_model.is_bnb_available = _is_loaded
_lora_model.is_bnb_4bit_available = _has_4bit_loaded

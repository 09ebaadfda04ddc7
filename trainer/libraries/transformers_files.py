"""What transformers 4.57 and 5 write otherwise beside weights, so that what was saved under one is read under the other
(and by whatever serves it with either): config.json and tokenizer_config.json."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerFast

from launcher.model_dir.rotary import with_both
from trainer.libraries.transformers_versions import MAJOR

_CONFIG, _TOKENIZER = "config.json", "tokenizer_config.json"
_EXTRA = "extra_special_tokens"
_OLD_CLASS, _NEW_CLASS = "PreTrainedTokenizerFast", "TokenizersBackend"
"""one class: 5 reads both names, 4.57 the first alone"""


def save_tokenizer(tokenizer: Any, directory: Path) -> None:
    """As transformers saves one, in words that 4.57 and 5 read."""
    tokenizer.save_pretrained(directory)
    _rewrite(directory / _TOKENIZER, _for_both)


def mend_config(directory: Path, base: Mapping[str, Any]) -> None:
    """Have 4.57 read the config.json that transformers has just saved in ``directory`` as 5 does; ``base`` is that of
    the model that was loaded."""
    _rewrite(directory / _CONFIG, lambda document: with_both(document, base))


def auto_tokenizer(directory: Path, **options: Any) -> Any:
    """transformers' AutoTokenizer, under 4.57 also of a directory that 5 has saved."""
    document = _read(directory / _TOKENIZER) if MAJOR < 5 else {}
    changed = {key: value for key, value in _for_both(document).items() if document.get(key) != value}
    if not changed:
        return AutoTokenizer.from_pretrained(directory, **options)
    loader = PreTrainedTokenizerFast if changed.pop("tokenizer_class", None) else AutoTokenizer
    if isinstance(document.get(_EXTRA), list):
        changed[_EXTRA] = {}
    return loader.from_pretrained(directory, **changed, **options)


def _for_both(document: Mapping[str, Any]) -> dict[str, Any]:
    """Of tokenizer_config.json: 5 gives the class another name, and special tokens that have no role as a list where
    4.57 has a mapping of those that have one."""
    found = dict(document)
    if found.get("tokenizer_class") == _NEW_CLASS:
        found["tokenizer_class"] = _OLD_CLASS
    if isinstance(found.get(_EXTRA), list):
        found["additional_special_tokens"] = found.pop(_EXTRA)
    return found


def _rewrite(path: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    document = _read(path)
    if (changed := change(document)) != document:
        path.write_text(json.dumps(changed, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # whoever reads it says so
        return {}
    return found if isinstance(found, dict) else {}

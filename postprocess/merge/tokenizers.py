"""The proof that the merged directory has a tokenizer which can be loaded, and which one it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from launcher.errors import TrntuneError
from trainer.libraries.transformers_files import auto_tokenizer

TEXTS = (
    "The capital of France is Paris, and the capital of Italy is",
    "def fibonacci(n):\n    if n < 2:\n        return n\n    return",
    "Grüße, 東京 \U0001f600\t12 x 12",
)
_SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id")


def prove_tokenizer(source: Path, merged: Path) -> dict[str, Any]:
    """Load the tokenizers of ``source``, the base or the adapter, and of the merged directory, and encode texts with
    both. Returns what was found, or why nothing was compared.

    Raises TrntuneError where the source's works and the merged model's doesn't, or encodes otherwise.
    """
    try:
        expected = _encoded(source)
    except Exception as error:  # none there, code of its own, a package that is missing: nothing that a merge breaks
        return {"compared": False, "reason": f"{source} has none that can be loaded here: {_line(error)}"}
    try:
        found = _encoded(merged)
    except Exception as error:
        raise TrntuneError(f"the merged model's tokenizer can't be loaded ({_line(error)}): nothing was kept") from None
    if found != expected:
        raise TrntuneError(f"the merged model's tokenizer encodes otherwise than that of {source}: nothing was kept")
    return {"compared": True, "texts": list(TEXTS)}


def _encoded(directory: Path) -> list[Any]:
    """Ids of TEXTS, and of the tokens that have a role."""
    tokenizer = auto_tokenizer(directory, trust_remote_code=False, local_files_only=True)
    return [*(tokenizer(text)["input_ids"] for text in TEXTS), *(getattr(tokenizer, name) for name in _SPECIAL)]


def _line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__

"""Whether a model directory holds what its config.json asks for, told by the headers of its files: transformers fills
what is missing with random numbers, and says so where nobody looks."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from launcher.errors import TrntuneError
from launcher.model_dir.config_json import read_architecture
from launcher.model_dir.files import (
    INDEX,
    SINGLE,
    index_of,
    quantization_fault,
    tokenizer_fault,
    weight_files,
    weights_fault,
)
from launcher.model_dir.rotary import rotary_fault
from launcher.model_dir.safetensors_header import read_json_header

Shapes = dict[str, tuple[int, ...]]

_HEAD, _PREFIX = "lm_head.weight", "model."
_OF_PEFT = (".base_layer.", ".lora_A.", ".lora_B.", "base_model.model.")
# GPTQ's and AWQ's, bitsandbytes', FP8's: of weights whose config.json doesn't say that they are quantized.
_OF_QUANTIZED = (".qweight", ".qzeros", ".weight_packed", ".absmax", ".quant_state.", ".weight_scale")
_QUANTIZED_DTYPES = ("F8", "F6", "F4", "I", "U")


def stored_shapes(directory: Path) -> Shapes | None:
    """Names and shapes of the tensors that transformers would read there; None where it would read none, or where a
    file is damaged: whoever loads them says so."""
    try:
        if (directory / SINGLE).is_file():
            return _header(directory / SINGLE)
        files = index_of(directory / INDEX)
        headers = {file: _header(directory / file) for file in set((files or {}).values())}
        if files is None:
            return None
        return {name: headers[file][name] for name, file in files.items() if name in headers[file]}
    except (TrntuneError, KeyError, TypeError, AttributeError):
        return None


def _header(file: Path) -> Shapes:
    header, _ = read_json_header(file)
    return {name: tuple(entry["shape"]) for name, entry in header.items() if name != "__metadata__"}


def incomplete(directory: Path) -> str | None:
    """Why the files of a plain Llama, Granite or Qwen3 are not the whole model of its own config.json; None where they
    are, and where that can't be told: of other families, and of files that can't be read."""
    found, facts = stored_shapes(directory), read_architecture(directory)
    if found is None or facts is None:
        return None
    from launcher.architecture.tensors import base_tensors

    expected = {tensor.name: tensor.shape for tensor in base_tensors(facts)}
    # transformers takes the names of a model that was saved without its head; beside a head it calls them corrupted.
    if _HEAD not in found and not any(name.startswith(_PREFIX.rstrip(".")) for name in found):
        found = {_with_prefix(name, expected): shape for name, shape in found.items()}
    missing = [name for name in expected if name not in found]
    if missing:
        return missing_text(missing, len(expected), found.keys() - expected.keys(), _HEAD)
    for name, shape in expected.items():
        if found[name] != shape:
            return f"{name} has shape {list(found[name])}, but its config.json asks for {list(shape)}"
    return None


def _with_prefix(name: str, expected: Collection[str]) -> str:
    return f"{_PREFIX}{name}" if f"{_PREFIX}{name}" in expected else name


def missing_text(missing: Collection[str], expected: int, unexpected: Collection[str], head: str | None) -> str:
    """What to say of tensors that no file has: names, and the likely cause by what is there instead. ``head``: the name
    of the output head's weight."""
    names = sorted(missing)
    listed = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    cause = _cause(names, set(unexpected), head)
    return f"{len(names):,} of the {expected:,} tensors of its config.json are in none of its files ({listed}): {cause}"


def _cause(missing: list[str], unexpected: Collection[str], head: str | None) -> str:
    if any(part in name for name in unexpected for part in _OF_PEFT):
        return (
            "the files have peft's names, of a model with an adapter in it; save the base, or merge the adapter first"
        )
    if any(part in name for name in unexpected for part in _OF_QUANTIZED):
        return "the files have names of quantized weights; take the unquantized model that it was made from"
    for name in sorted(unexpected):
        old, new = _beginnings(missing[0], name)
        if old != missing[0] and all(
            each.startswith(old) and f"{new}{each.removeprefix(old)}" in unexpected for each in missing
        ):
            where = f"with {new!r} in place of {old!r}" if new else f"without {old!r}"
            where = where if old else f"with {new!r} before their names"
            return f"all are there {where}; save it with the names of its own class"
    if missing == [head]:
        return 'the output head; if it is the embedding, config.json has to say "tie_word_embeddings": true'
    return "download or convert it again"


def _beginnings(one: str, other: str) -> tuple[str, str]:
    """What two dotted names begin with before the parts that they end with alike."""
    left, right = one.split("."), other.split(".")
    while left and right and left[-1] == right[-1]:
        left.pop()
        right.pop()
    same = one.count(".") + 1 - len(left)
    if not same:
        return one, other
    return "".join(f"{part}." for part in left), "".join(f"{part}." for part in right)


def vocabulary_fault(directory: Path) -> str | None:
    """Why the tokenizer of a directory doesn't fit its embedding, by tokenizer.json and config.json; None where it does
    or can't be told."""
    try:
        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
        rows = config.get("vocab_size") or (config.get("text_config") or {}).get("vocab_size")
        last = last_token(json.loads((directory / "tokenizer.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return too_few_rows(last, rows) if isinstance(rows, int) else None


def last_token(tokenizer: Mapping[str, Any]) -> int:
    """The highest id that a tokenizer.json knows. Raises KeyError or TypeError for what is none."""
    vocabulary = tokenizer["model"]["vocab"]
    last = max(vocabulary.values()) if isinstance(vocabulary, dict) else len(vocabulary) - 1
    return max([last, *(token["id"] for token in tokenizer.get("added_tokens", []))])


def too_few_rows(last: int, rows: int) -> str | None:
    """What to say of an embedding of ``rows`` rows under a tokenizer whose highest id is ``last``; None: it has all."""
    if last < rows:
        return None
    return (
        f"its tokenizer has {last + 1:,} tokens, but its embedding only {rows:,} rows: tokens were added and the model "
        "was not resized; take the tokenizer that belongs to it, or save it after model.resize_token_embeddings"
    )


def unreadable(directory: Path) -> str | None:
    """Why nothing can be read of a model directory, by the names of its files and config.json; None where it can."""
    faults = (quantization_fault, weights_fault, dtype_fault, rotary_fault)
    return next((fault for find in faults if (fault := find(directory))), None)


def dtype_fault(directory: Path) -> str | None:
    """Which weight is stored in whole numbers or 8 bits, as only quantized ones are, which config.json doesn't speak
    of; None: none, as far as the files can be read."""
    try:
        headers = [read_json_header(file)[0] for file in weight_files(directory)]
        named = (item for header in headers for item in header.items())
        dtypes = {name: str(entry["dtype"]) for name, entry in named if name.endswith(".weight")}
    except (TrntuneError, KeyError, TypeError, AttributeError):
        return None
    found = next((name for name, dtype in sorted(dtypes.items()) if dtype.startswith(_QUANTIZED_DTYPES)), None)
    if found is None:
        return None
    return f"{found} is stored as {dtypes[found]}, as quantized weights are: take the unquantized model"


def check_not_quantized(directory: Path) -> None:
    """Raise TrntuneError for a model whose weights are quantized."""
    fault = quantization_fault(directory)
    if fault is not None:
        raise TrntuneError(f"{directory}: {fault}")


def check_readable(directory: Path) -> None:
    """Raise TrntuneError for what ``unreadable`` finds."""
    fault = unreadable(directory) if directory.is_dir() else None
    if fault is not None:
        raise TrntuneError(f"{directory}: {fault}")


def check_fit(directory: Path) -> None:
    """Raise TrntuneError for a model directory whose files can't be read or don't hold the model of its config.json, or
    whose tokenizer has more tokens than that has rows."""
    check_readable(directory)
    fault = incomplete(directory) or vocabulary_fault(directory)
    if fault is not None:
        raise TrntuneError(f"{directory}: {fault}")


def absent(directory: Path) -> str | None:
    """Which parts of a model directory aren't there at all; None where all are."""
    missing = [] if (directory / "config.json").is_file() else ["config.json"]
    missing += [] if weight_files(directory) else ["*.safetensors"]
    if missing:
        return f"{', '.join(missing)} missing; save a model there with transformers' save_pretrained"
    return tokenizer_fault(directory)

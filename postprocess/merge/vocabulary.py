"""An adapter whose training resized the vocabulary: its embeddings have other rows than the base's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from launcher.errors import TrntuneError, in_one_line
from postprocess.merge.adapter import Adapter
from postprocess.merge.files import has_tokenizer
from postprocess.merge.renames import PREFIX
from trainer.libraries.transformers_files import auto_tokenizer

# What embeddings are padded to, for the sake of fast matrix products: powers of two.
_MULTIPLES = tuple(2**power for power in range(10))
# Parts of a wrapped embedding's name that its weight doesn't have in the base.
_WRAPPERS = (".token_adapter.base_layer.", ".base_layer.")


@dataclass(frozen=True)
class Vocabulary:
    """``rows`` of the embeddings as they were trained, ``base_rows`` before; ``tokens`` of the adapter's tokenizer."""

    rows: int
    base_rows: int
    tokens: int


def plain_name(key: str) -> str:
    """The base's own name of what an adapter's file has whole."""
    name = key.removeprefix(PREFIX)
    for part in _WRAPPERS:
        name = name.replace(part, ".")
    return name


def vocabulary_of(adapter: Adapter, model: Any) -> Vocabulary | None:
    """How the adapter resized the vocabulary of ``model``, the base; None where it didn't, or has no embedding whole.

    Raises TrntuneError where the adapter's own tokenizer doesn't explain its rows: it is then another base's.
    """
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    names = {f"{name}.weight" for name, module in model.named_modules() if module in (embedding, head)}
    found = {key: entry.shape[0] for key, entry in adapter.tensors.items() if plain_name(key) in names and entry.shape}
    base_rows = len(embedding.weight)
    other = {key: rows for key, rows in found.items() if rows != base_rows}
    if not other:
        return None
    key, rows = next(iter(other.items()))
    different = f"{adapter.weights}: {key} has {rows:,} rows, the base {base_rows:,}"
    if len(set(found.values())) > 1:
        raise TrntuneError(f"{different}, and others of its tensors {sorted(set(found.values()) - {rows})[0]:,}")
    tokens = tokens_of(adapter)
    if tokens is None:
        raise TrntuneError(
            f"{different}: another base, or a vocabulary resized for training, of which no tokenizer beside the "
            f"adapter tells; put the one of its training into {adapter.directory}"
        )
    if not explains(tokens, rows):
        raise TrntuneError(
            f"{different}, and the tokenizer beside the adapter has {tokens:,} tokens, which explains neither: another "
            "base, or another tokenizer than the one of its training"
        )
    return Vocabulary(rows, base_rows, tokens)


def resize(model: Any, vocabulary: Vocabulary) -> None:
    """Give a base the rows that its adapter was trained with. New ones are zero: the adapter has what they became."""
    model.resize_token_embeddings(vocabulary.rows, mean_resizing=False)
    with torch.no_grad():
        for module in (model.get_input_embeddings(), model.get_output_embeddings()):
            if module is not None:
                module.weight[vocabulary.base_rows :] = 0


def explains(tokens: int, rows: int) -> bool:
    """Whether an embedding resized for so many tokens has so many rows: as many, or padded to a multiple."""
    return any(-(-tokens // multiple) * multiple == rows for multiple in _MULTIPLES)


def tokens_of(adapter: Adapter) -> int | None:
    """The highest id and one of the tokenizer beside the adapter; None where there is none."""
    if not has_tokenizer(adapter.directory):
        return None
    try:
        tokenizer = auto_tokenizer(adapter.directory, trust_remote_code=False, local_files_only=True)
        return 1 + max(tokenizer.get_vocab().values())
    except Exception as error:  # of a damaged one, or of one whose package is missing: many kinds
        raise TrntuneError(f"{adapter.directory}: its tokenizer can't be loaded: {in_one_line(error, 200)}") from None

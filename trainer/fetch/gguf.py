"""A GGUF file to a Hugging Face model directory, once.

transformers reads the weights. Its tokenizer for this format is not used: for SmolLM2's file it takes <|im_start|> for
the end of sequence, adds it in front, and doesn't split digits. The file's own metadata says all of it, so the
tokenizer is built from that.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from gguf import GGUFReader, TokenType
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedTokenizerFast
from transformers.utils import logging

from launcher.errors import TrntuneError
from trainer.libraries.transformers_files import mend_config, save_tokenizer


def convert(file: Path, directory: Path, parameters: int | None) -> None:
    """Write ``file`` to ``directory`` as fp32 safetensors, exactly the dequantized values, with its tokenizer.

    Raises TrntuneError when the model doesn't have ``parameters`` parameters, tied ones counted once.
    """
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    reader = GGUFReader(file)
    tokenizer = build_tokenizer(reader)
    model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    found = sum(parameter.numel() for parameter in model.parameters())
    if parameters is not None and found != parameters:
        raise TrntuneError(f"{file.name} has {found:,} parameters, not {parameters:,} as model.parameters says")
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    ids["pad_token_id"] = tokenizer.pad_token_id
    model.generation_config = GenerationConfig(**ids)
    model.config.update(ids)
    model.save_pretrained(directory)
    mend_config(directory, {})
    save_tokenizer(tokenizer, directory)


def build_tokenizer(reader: GGUFReader) -> PreTrainedTokenizerFast:
    """The tokenizer that the file's metadata describes. Raises TrntuneError for a kind that is not known here."""
    kind = _field(reader, "tokenizer.ggml.model"), _field(reader, "tokenizer.ggml.pre")
    if kind not in _PRE_TOKENIZERS:
        raise TrntuneError(f"GGUF tokenizer {kind[0]}/{kind[1]} is not known here (known: gpt2/gpt-2, gpt2/smollm)")
    tokens: list[str] = _field(reader, "tokenizer.ggml.tokens")
    merges = [tuple(merge.split(" ", 1)) for merge in _field(reader, "tokenizer.ggml.merges")]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = _PRE_TOKENIZERS[kind]()
    tokenizer.decoder = decoders.ByteLevel()
    types = _field(reader, "tokenizer.ggml.token_type")
    control = [token for token, type_ in zip(tokens, types, strict=True) if type_ == TokenType.CONTROL]
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in control])

    def named(role: str) -> str | None:
        number = _field(reader, f"tokenizer.ggml.{role}_token_id")
        return None if number is None else tokens[number]

    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=named("bos"),
        eos_token=named("eos"),
        pad_token=named("padding"),
        unk_token=named("unknown"),
        chat_template=_field(reader, "tokenizer.chat_template"),
        model_max_length=_field(reader, f"{_field(reader, 'general.architecture')}.context_length"),
        clean_up_tokenization_spaces=False,
    )


def _byte_level() -> Any:
    return pre_tokenizers.ByteLevel(add_prefix_space=False)


def _digits_then_byte_level() -> Any:
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _byte_level()])


# By the file's tokenizer.ggml.model and .pre. llama.cpp splits digits one by one for "smollm".
_PRE_TOKENIZERS = {("gpt2", "gpt-2"): _byte_level, ("gpt2", "smollm"): _digits_then_byte_level}


def _field(reader: GGUFReader, name: str) -> Any:
    field = reader.get_field(name)
    return None if field is None else field.contents()

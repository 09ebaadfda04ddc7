"""Tokenizers and chat templates in the manner of those that people fine-tune, small and of our own making."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

TEMPLATES = Path(__file__).parent / "templates"
_TEXT = (
    "What is a river?\nIt is water that flows to the sea.\n\nAnd a lake?\n\n\nWater that stays. "
    "You are a helpful assistant. system user assistant model think\n\nwhat is known "
) * 3
CONTROL = {
    "llama3": ("<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"),
    "qwen3": (None, "<|im_end|>", "<|im_start|>"),
    "gemma": ("<bos>", "<end_of_turn>", "<start_of_turn>", "<eos>"),
    "mistral": ("<s>", "</s>", "[INST]", "[/INST]"),
    "smollm2": (None, "<|im_end|>", "<|im_start|>"),
    "marked": (None, "<|im_end|>", "<|im_start|>"),
}
"""Of each family: BOS, what ends an answer, others."""
BYTES = ("llama3", "qwen3", "smollm2", "marked")
"""Those whose tokenizers work on bytes. The others' are in SentencePiece's manner, Mistral's with a space before each
text."""
_PATTERN = r"[^\S\r\n]?[\p{L}\p{N}]+|\s*[\r\n]+|\s+|[^\s\p{L}\p{N}]+"
"""As those of Llama 3 and Qwen, all line ends that follow each other are one piece; GPT-2's leaves the last one out."""


@functools.cache
def tokenizer(family: str) -> Any:
    """A tokenizer of about 400 tokens with the template of the family. BOS is put before a text where there is one."""
    bos, end, *others = CONTROL[family]
    special = [token for token in (bos, end, *others) if token]
    backend = _of_bytes(special, family) if family in BYTES else _of_pieces(special, family)
    backend.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    if family == "qwen3":
        backend.add_tokens([AddedToken(token, normalized=False, special=False) for token in ("<think>", "</think>")])
    if bos is not None:
        number = backend.token_to_id(bos)
        backend.post_processor = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, number)])
    eos = "<eos>" if family == "gemma" else end
    template = (TEMPLATES / f"{family}.jinja").read_text()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=bos, eos_token=eos, pad_token=eos, chat_template=template
    )


def _of_bytes(special: list[str], family: str) -> Tokenizer:
    found = Tokenizer(models.BPE())
    own = family in ("llama3", "qwen3")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not own)
    split = pre_tokenizers.Split(Regex(_PATTERN), "isolated")
    found.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level]) if own else byte_level
    found.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=alphabet, special_tokens=special, show_progress=False
    )
    found.train_from_iterator([_TEXT], trainer)
    return found


def _of_pieces(special: list[str], family: str) -> Tokenizer:
    found = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    spaces = normalizers.Replace(" ", "▁")
    found.normalizer = spaces
    apart = [pre_tokenizers.Split("\n", "isolated"), pre_tokenizers.Split("▁", "merged_with_next")]
    found.pre_tokenizer = pre_tokenizers.Sequence(apart)
    pieces = [f"<0x{number:02X}>" for number in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=["<unk>", *special, *pieces], show_progress=False)
    found.train_from_iterator([_TEXT], trainer)
    found.pre_tokenizer = None
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if family == "mistral":
        found.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces])
        steps.append(decoders.Strip(" ", 1, 0))
    found.decoder = decoders.Sequence(steps)
    return found

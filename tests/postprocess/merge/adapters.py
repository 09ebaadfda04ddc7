"""Adapters that are changed after peft has written them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast

from launcher.errors import TrntuneError
from postprocess.merge import MergeOptions, merge
from tests.postprocess.merge.models import stored

QUICK = MergeOptions(logits=False)
FILE = "adapter_model.safetensors"
ROWS = 101  # of the bases
Tensors = dict[str, torch.Tensor]


def save_tokenizer(directory: Path, *words: str, **settings: str) -> None:
    vocabulary = {word: number for number, word in enumerate(("<unk>", "<eos>", *words))}
    backend = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", eos_token="<eos>", **settings).save_pretrained(
        directory
    )


def configure(adapter: Path, **changes: Any) -> None:
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def rename(adapter: Path, change: Callable[[str], str]) -> None:
    save_file({change(name): tensor for name, tensor in load_file(adapter / FILE).items()}, adapter / FILE)


def same(out: Path, expected: dict[str, torch.Tensor]) -> None:
    found = stored(out)
    assert found
    for name, tensor in found.items():
        assert torch.equal(tensor, expected[name]), name


def rewrite(adapter: Path, change: Callable[[Tensors], Tensors]) -> None:
    file = adapter / "adapter_model.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in change(load_file(file)).items()}, file)


def refused(base: Path, adapter: Path, match: str, options: MergeOptions = QUICK) -> None:
    before = sorted(base.parent.iterdir())
    with pytest.raises(TrntuneError, match=match) as caught:
        merge(base, adapter, base.parent / "out", options)
    assert "\n" not in str(caught.value)
    assert sorted(base.parent.iterdir()) == before

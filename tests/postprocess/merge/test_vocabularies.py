"""Adapters of a resized vocabulary, and what adapters answer without being merged."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from launcher.errors import TrntuneError, UsageError
from postprocess.generate.models import Answerers, locate
from postprocess.merge import merge
from postprocess.merge.__main__ import main
from postprocess.merge.adapter import read_adapter
from postprocess.merge.apply import adapted as put_on
from postprocess.merge.renames import parse_renames
from postprocess.merge.vocabulary import explains
from tests.postprocess.merge.adapters import FILE, QUICK, ROWS, rename, save_tokenizer
from tests.postprocess.merge.models import adapted, load, make_adapter, stored

RESIZED = ROWS + 3
# Whether the head is stored apart, by kind of base, settings, and how embeddings were saved.
VOCABULARIES: list[tuple[str, dict[str, Any], bool | str, bool]] = [
    ("llama", {"modules_to_save": ["embed_tokens", "lm_head"]}, False, False),
    ("llama", {"modules_to_save": ["embed_tokens", "lm_head"]}, "auto", False),
    ("llama", {"modules_to_save": ["embed_tokens"]}, "auto", False),
    ("llama", {}, "auto", False),
    ("llama", {"target_modules": ["q_proj", "embed_tokens", "lm_head"]}, "auto", False),
    ("llama", {"trainable_token_indices": [ROWS, ROWS + 1, 7]}, "auto", False),
    ("llama_tied", {"modules_to_save": ["embed_tokens", "lm_head"]}, False, True),
    ("llama_tied", {"modules_to_save": ["embed_tokens"]}, "auto", True),
    ("llama_tied", {"target_modules": ["q_proj", "embed_tokens"]}, "auto", True),
    ("llama_tied", {"trainable_token_indices": [ROWS, ROWS + 1, 7]}, "auto", False),
    ("llama_tied", {}, "auto", False),
    ("qwen3", {}, True, False),
]


@pytest.mark.parametrize(("kind", "config", "saving", "untied"), VOCABULARIES)
def test_a_resized_vocabulary(
    bases, tmp_path: Path, kind: str, config: dict[str, Any], saving: bool | str, untied: bool
) -> None:
    base = bases(kind)
    settings = {"target_modules": ["q_proj"], "rows": RESIZED, "save_embedding_layers": saving, **config}
    adapter = make_adapter(tmp_path / "adapter", base, **settings)
    save_tokenizer(adapter, *(f"w{number}" for number in range(RESIZED - 2)))
    record = merge(base, adapter, tmp_path / "out")
    assert record["vocabulary"] == {"rows": RESIZED, "base_rows": ROWS, "tokens": RESIZED}
    assert record["tokenizer"]["from"] == "adapter"
    assert record["embeddings_untied"] is untied
    assert json.loads((tmp_path / "out" / "config.json").read_text())["vocab_size"] == RESIZED
    assert record["logits"]["compared"]
    assert record["logits"]["prompts"][-1] == "the last 16 tokens"
    assert_same_logits(base, adapter, tmp_path / "out", RESIZED)


def assert_same_logits(base: Path, adapter: Path, out: Path, rows: int) -> None:
    tokens = torch.arange(rows - 40, rows)[None]
    with torch.no_grad():
        expected = adapted(base, adapter, rows=rows)(tokens).logits
        torch.testing.assert_close(load(out)(tokens).logits, expected, atol=1e-5, rtol=1e-4)


def test_a_vocabulary_that_became_smaller(bases, tmp_path: Path) -> None:
    """A padded embedding, resized to the tokenizer's tokens; the head trained with it is the base's first rows."""
    base, rows = bases("llama"), ROWS - 11
    settings = {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"], "save_embedding_layers": False}
    adapter = make_adapter(tmp_path / "adapter", base, rows=rows, **settings)
    save_tokenizer(adapter, *(f"w{number}" for number in range(rows - 2)))
    record = merge(base, adapter, tmp_path / "out")
    assert record["vocabulary"] == {"rows": rows, "base_rows": ROWS, "tokens": rows}
    assert torch.equal(stored(tmp_path / "out")["lm_head.weight"], stored(base)["lm_head.weight"][:rows])
    assert_same_logits(base, adapter, tmp_path / "out", rows)


def test_a_resized_vocabulary_in_another_dtype(bases, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = bases("llama")
    settings = {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"], "rows": RESIZED}
    adapter = make_adapter(tmp_path / "adapter", base, **settings)
    save_tokenizer(adapter, *(f"w{number}" for number in range(RESIZED - 2)))
    assert main([str(base), str(adapter), str(tmp_path / "out"), "--dtype", "bfloat16"]) == 0
    [line] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("vocabulary")]
    assert line.endswith(
        "104 rows, the base has 101: resized for training, as the adapter's tokenizer of 104 tokens explains"
    )
    trained = load_file(adapter / FILE)["base_model.model.model.embed_tokens.weight"]
    assert torch.equal(stored(tmp_path / "out")["model.embed_tokens.weight"], trained.bfloat16())


def test_rows_that_nothing_explains(bases, tmp_path: Path) -> None:
    base = bases("llama")
    settings = {"target_modules": ["q_proj"], "rows": RESIZED, "save_embedding_layers": False}
    adapter = make_adapter(tmp_path / "adapter", base, modules_to_save=["embed_tokens", "lm_head"], **settings)

    def refused(directory: Path, match: str) -> None:
        with pytest.raises(TrntuneError, match=match) as caught:
            merge(base, directory, tmp_path / "out", QUICK)
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "out").exists()

    refused(adapter, "has 104 rows, the base 101: another base, or a vocabulary resized .* put the one of its training")
    save_tokenizer(adapter, "too", "few")
    refused(adapter, "the tokenizer beside the adapter has 4 tokens, which explains neither")
    (adapter / "tokenizer.json").write_text("{}")
    refused(adapter, "its tokenizer can't be loaded")
    lost = make_adapter(tmp_path / "lost", base, modules_to_save=["embed_tokens"], **settings)
    save_tokenizer(lost, *(f"w{number}" for number in range(RESIZED - 2)))
    refused(lost, "resized to 104 rows .* new rows of lm_head.weight are not in the file: merge into the resized base")


def test_the_rows_that_a_tokenizer_explains() -> None:
    assert explains(104, 104)
    assert explains(150_003, 150_016)  # a multiple of 32
    assert explains(32_001, 32_064)  # of 64
    assert not explains(104, 101)
    assert not explains(104, 107)


def test_an_adapter_that_took_its_beginning_off_the_base_answers_with_the_rest(bases, tmp_path: Path) -> None:
    base = bases("llama")
    adapter = make_adapter(tmp_path / "adapter", base, target_modules=["q_proj"], init_lora_weights="pissa")
    tokens = torch.arange(1, 40)[None]
    with torch.no_grad():
        expected = adapted(base, adapter)(tokens).logits
        found = put_on(load(base), read_adapter(adapter))(tokens).logits
        plain = put_on(load(base), replace(read_adapter(adapter), config=without_start(adapter)))(tokens).logits
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(plain, expected, atol=1e-5)  # it would have shown


def without_start(adapter: Path) -> dict[str, Any]:
    return {**json.loads((adapter / "adapter_config.json").read_text()), "init_lora_weights": True}


def test_an_adapter_answers_with_other_names_and_a_resized_vocabulary(bases, tmp_path: Path) -> None:
    """What answers is the adapter, or nothing: peft itself would load what fits, here nothing."""
    base = bases("llama")
    settings = {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"], "rows": RESIZED}
    adapter = make_adapter(tmp_path / "adapter", base, save_embedding_layers=False, **settings)
    save_tokenizer(adapter, *(f"w{number}" for number in range(RESIZED - 2)))
    tokens = torch.arange(60, RESIZED)[None]
    with torch.no_grad():
        expected = adapted(base, adapter, rows=RESIZED)(tokens).logits
        plain = load(base)(tokens[:, : ROWS - 60]).logits
    rename(adapter, lambda name: name.removeprefix("base_model.model."))
    with pytest.raises(TrntuneError, match=r"fit with --rename =base_model\.model\.$"):
        Answerers(locate(adapter, base, None), torch.float32, "cpu")
    answerers = Answerers(locate(adapter, base, None, parse_renames(["=base_model.model."])), torch.float32, "cpu")
    with torch.no_grad(), answerers.model("tuned") as model:
        torch.testing.assert_close(model(tokens).logits, expected)
    with torch.no_grad(), answerers.model("base") as model:
        torch.testing.assert_close(model(tokens[:, : ROWS - 60]).logits, plain)
    with pytest.raises(UsageError, match="is no adapter directory"):
        locate(base, None, None, parse_renames(["a=b"]))

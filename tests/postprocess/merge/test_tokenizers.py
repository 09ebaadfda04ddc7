"""The tokenizer of a merged model is the adapter's where it has a whole one, else the base's."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from launcher.errors import TrntuneError
from postprocess.generate.models import ModelLocation
from postprocess.merge import MergeOptions, merge, run
from postprocess.merge.__main__ import main
from tests.postprocess.merge.adapters import save_tokenizer
from tests.postprocess.merge.models import make_adapter, make_base


def test_the_adapters_tokenizer_replaces_the_bases_as_a_whole(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", "llama")
    adapter = make_adapter(tmp_path / "adapter", base, target_modules=["q_proj"])
    save_tokenizer(base, "Paris")
    for name in ("vocab.json", "LICENSE"):
        (base / name).write_text("base")
    plain = merge(base, adapter, tmp_path / "plain", MergeOptions(logits=False))["tokenizer"]
    assert (plain["from"], plain["left"], plain["compared"]) == ("base", [], True)
    assert (tmp_path / "plain" / "vocab.json").read_text() == "base"
    save_tokenizer(adapter, "Italy", "is", pad_token="is", chat_template="adapter")
    own = merge(base, adapter, tmp_path / "own", MergeOptions(logits=False))["tokenizer"]
    assert (own["from"], own["left"], own["compared"]) == ("adapter", [], True)
    assert AutoTokenizer.from_pretrained(tmp_path / "own").get_vocab() == {"<unk>": 0, "<eos>": 1, "Italy": 2, "is": 3}
    assert (tmp_path / "own" / "chat_template.jinja").read_text() == "adapter"
    assert (tmp_path / "own" / "LICENSE").read_text() == "base"
    assert not (tmp_path / "own" / "vocab.json").exists()
    assert not (tmp_path / "own" / "README.md").exists()


def test_a_part_of_a_tokenizer_beside_the_adapter_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = make_base(tmp_path / "base", "llama")
    adapter = make_adapter(tmp_path / "adapter", base, target_modules=["q_proj"])
    save_tokenizer(base, "Paris")
    save_tokenizer(adapter, "Paris", pad_token="<eos>")
    (adapter / "tokenizer.json").unlink()
    (adapter / "special_tokens_map.json").write_text("{}")  # as transformers before 5 saves it
    assert main([str(base), str(adapter), str(tmp_path / "out"), "--no-logits"]) == 0
    assert (
        "tokenizer     the base's: the adapter's special_tokens_map.json, tokenizer_config.json make no tokenizer"
        in (capsys.readouterr().out)
    )
    assert AutoTokenizer.from_pretrained(tmp_path / "out")("Paris")["input_ids"] == [2]
    assert json.loads((tmp_path / "out" / "merge.json").read_text())["tokenizer"]["from"] == "base"
    assert ModelLocation(base, adapter, None, "plain", None).tokenizer == base


def test_a_tokenizer_that_is_copied_wrong_is_no_merge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when a directory is written to while it is merged."""
    base = make_base(tmp_path / "base", "llama")
    adapter = make_adapter(tmp_path / "adapter", base, target_modules=["q_proj"])
    save_tokenizer(base, "Paris")
    save_tokenizer(tmp_path / "other", "Italy")
    copied = run.copy_side_files

    def copy(files: list[Path], directory: Path, texts: dict[str, str | None]) -> None:
        copied(files, directory, texts)
        shutil.copyfile(tmp_path / "other" / "tokenizer.json", directory / "tokenizer.json")

    monkeypatch.setattr(run, "copy_side_files", copy)
    with pytest.raises(TrntuneError, match="encodes otherwise"):
        merge(base, adapter, tmp_path / "out", MergeOptions(logits=False))
    assert not (tmp_path / "out").exists()

"""What a checkpoint must not be: each is refused with one line, and nothing is written."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from postprocess.consolidate.__main__ import main
from tests.postprocess.consolidate.neuron_shards import (
    DATA,
    SHARDS,
    copied,
)
from tests.postprocess.consolidate.refusing import ADAPTER, Refused, edit_json


def each_file_gone(directory: Path) -> Iterator[Path]:
    """Every file of a checkpoint, one after the other away while it is its turn."""
    for path in sorted(path for path in directory.rglob("*") if path.is_file()):
        aside = path.with_name("aside")
        path.rename(aside)
        yield path
        aside.rename(path)


@pytest.mark.parametrize("name", SHARDS)
def test_any_missing_file_is_noticed(name: str, tmp_path: Path, refused: Refused) -> None:
    run = copied(name, tmp_path)
    for path in [*run.glob("_logits*"), run / "expected.json"]:
        path.unlink()  # the tests' own
    (run / "trn_config.json").unlink(missing_ok=True)  # nothing depends on it
    for path in each_file_gone(run):
        assert path.name in refused(run)


def test_all_that_is_missing_is_listed(tmp_path: Path, refused: Refused) -> None:
    run = copied("full_gqa", tmp_path)
    model = run / "shards" / "model"
    (model / "dp_rank_00_tp_rank_01_pp_rank_00.pt").unlink()
    shutil.rmtree(model / "dp_rank_00_tp_rank_03_pp_rank_00.pt.tensors")
    (run / "shards" / "done").unlink()
    error = refused(run)
    assert "incomplete (4 tensor-parallel ranks in 1 pipeline stages): missing done, " in error
    assert "model/dp_rank_00_tp_rank_01_pp_rank_00.pt, " in error
    assert "model/dp_rank_00_tp_rank_03_pp_rank_00.pt.tensors/tensor_0.pt" in error
    assert "and 13 more" in error


@pytest.mark.parametrize("rank", [0, 3])
def test_a_missing_rank_is_noticed_without_its_other_files(rank: int, tmp_path: Path, refused: Refused) -> None:
    run = copied("full_gqa", tmp_path)
    name = f"dp_rank_00_tp_rank_{rank:02d}_pp_rank_00.pt"
    (run / "trn_config.json").unlink()
    for path in (run / "shards" / "model").glob(f"{name}*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert f"missing model/{name}: copy the whole checkpoint" in refused(run)


@pytest.mark.parametrize("name", SHARDS)
def test_a_truncated_file_is_noticed(name: str, tmp_path: Path, refused: Refused) -> None:
    run = copied(name, tmp_path)
    for path in sorted((run / SHARDS[name] / "model").glob("dp_rank_00_tp_rank_01*.pt*")):
        file = path / "tensor_3.pt" if path.is_dir() else path
        whole = file.read_bytes()
        for size in (0, len(whole) // 2, len(whole) - 1):
            file.write_bytes(whole[:size])
            assert file.name in refused(run)
        file.write_bytes(whole)


def test_a_tensor_file_of_another_tensor_is_noticed(tmp_path: Path, refused: Refused) -> None:
    run = copied("full_gqa", tmp_path)
    tensors = run / "shards" / "model" / "dp_rank_00_tp_rank_02_pp_rank_00.pt.tensors"
    shutil.copy(tensors / "tensor_0.pt", tensors / "tensor_1.pt")
    assert "tensor_1.pt is not the tensor that" in refused(run)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ("dp_rank_00_tp_rank_04_pp_rank_00.pt", "tp_rank_04_pp_rank_00.pt do not belong to 4 tensor-parallel ranks"),
        ("dp_rank_01_tp_rank_00_pp_rank_00.pt", "a rank that is not understood"),
        ("dp_rank_00_ep_rank_00_tp_rank_00_pp_rank_00.pt", "a rank that is not understood"),
        ("dp_rank_00_tp_rank_00_pp_rank_01.pt", "missing mp_metadata_pp_rank_1.json"),
    ],
)
def test_a_rank_too_many(extra: str, message: str, tmp_path: Path, refused: Refused) -> None:
    run = copied("full_gqa", tmp_path)
    model = run / "shards" / "model"
    shutil.copy(model / "dp_rank_00_tp_rank_00_pp_rank_00.pt", model / extra)
    assert message in refused(run)


def test_metadata_of_another_model(tmp_path: Path, refused: Refused) -> None:
    run = copied("lora_plain", tmp_path)
    shutil.copy(DATA / "full_gqa" / "shards" / "mp_metadata_pp_rank_0.json", run / ADAPTER)
    shutil.copy(DATA / "lora_gqa" / ADAPTER / "mp_metadata_pp_rank_0.json", run / ADAPTER)
    assert "missing model/dp_rank_00_tp_rank_02_pp_rank_00.pt" in refused(run)
    run = copied("full_gqa", tmp_path)
    path = run / "shards" / "mp_metadata_pp_rank_0.json"
    text = path.read_text()
    path.write_text(text.replace("qkv_proj.weight_q", "qkv_proj.weight_x"))
    assert "lacks model.layers.0.self_attn.qkv_proj.weight_x" in refused(run)
    path.write_text(text.replace('"num_attention_heads": 8', '"num_attention_heads": 4'))
    assert "heads" in refused(run)
    path.write_text("[]")
    assert "is not optimum-neuron's metadata" in refused(run)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vocab_size": 300}, "model.embed_tokens.weight is (264, 64) in"),
        ({"num_hidden_layers": 3}, "lacks model.layers.2."),
        ({"num_hidden_layers": 1}, "holds model.layers.1."),
        ({"num_attention_heads": 4, "head_dim": 16}, "is of 8 heads, 2 key heads"),
        ({"num_key_value_heads": 4}, "is of 8 heads, 2 key heads"),
        ({"hidden_size": None}, "hidden_size is None, not a number"),
        ({"tie_word_embeddings": True}, "holds lm_head.weight, which the model in"),
        ({"model_type": "no_such_family"}, "no_such_family"),
    ],
)
def test_config_of_another_model(change: dict[str, Any], message: str, tmp_path: Path, refused: Refused) -> None:
    run = copied("full_gqa", tmp_path)
    edit_json(run / "config.json", lambda config: config.update(change))
    assert message in refused(run)


def test_config_absent_or_broken(tmp_path: Path, refused: Refused) -> None:
    run = copied("full_gqa", tmp_path)
    (run / "config.json").write_text("{")
    assert "config.json is not JSON" in refused(run)
    (run / "config.json").write_text("{}")
    assert "has no model_type" in refused(run)
    (run / "config.json").unlink()
    assert "config.json is missing: give the base model's directory with --base" in refused(run)
    (tmp_path / "empty").mkdir()
    assert "--base must be the directory of the base model" in refused(run, "--base", str(tmp_path / "empty"))
    assert "is no directory" in refused(run, "--base", str(tmp_path / "nowhere"), code=2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"r": 8}, "its r is 8, "),
        ({"target_modules": ["q_proj"]}, "its target_modules do not name"),
        ({"target_modules": r".*\.mlp\..*"}, "its target_modules do not name"),
        ({"peft_type": "IA3"}, "is not of a LoRA adapter"),
        ({"use_dora": True}, "use_dora is set"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save is set"),
    ],
)
def test_config_of_another_adapter(change: dict[str, Any], message: str, tmp_path: Path, refused: Refused) -> None:
    run = copied("lora_gqa", tmp_path)
    edit_json(run / "adapter_default" / "adapter_config.json", lambda config: config.update(change))
    assert message in refused(run)


def test_an_adapter_of_another_base(tmp_path: Path, refused: Refused) -> None:
    base = tmp_path / "base"
    base.mkdir()
    shutil.copy(DATA / "full_gqa" / "config.json", base)
    edit_json(base / "config.json", lambda config: config.update(intermediate_size=128))
    error = refused(DATA / "lora_gqa", "--base", str(base))
    assert "does not fit (128, 64)" in error
    edit_json(base / "config.json", lambda config: config.update(intermediate_size=96, num_hidden_layers=1))
    assert "model.layers.1.self_attn.q_proj is no layer of" in refused(DATA / "lora_gqa", "--base", str(base))


def test_several_adapters(tmp_path: Path, refused: Refused) -> None:
    run = copied("lora_plain", tmp_path)
    shutil.copytree(run / "adapter_default", run / "adapter_other")
    assert "holds 2 adapters: give one of " in refused(run, code=2)
    # The metadata names the adapter: shards of one do not pass for another's.
    assert "does not say how" in refused(run / "adapter_other")


@pytest.mark.parametrize("arguments", [[], ["nowhere", "out"], [".", "out", "--shard-size", "x"], ["--no", "a", "b"]])
def test_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_directory_without_shards(tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "run" / "checkpoints" / "step-3").mkdir(parents=True)
    assert "holds no checkpoint: there is no step-N" in refused(tmp_path / "run", code=2)

"""What the ranks' tensors must not be: each is refused with one line, and nothing is written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from postprocess.consolidate.__main__ import main
from tests.postprocess.consolidate.neuron_shards import (
    DATA,
    SHARDS,
    copied,
    digests,
    rank_tensors,
    read_metadata,
    result,
    two_stages,
    write_shards,
)
from tests.postprocess.consolidate.refusing import ADAPTER, Refused, edit_json


def test_an_adapter_without_a_half(tmp_path: Path, refused: Refused) -> None:
    run = copied("lora_plain", tmp_path)
    (ranks,), metadata = rank_tensors(run / ADAPTER), read_metadata(run / ADAPTER)
    half = "base_model.model.model.layers.0.self_attn.q_proj.lora_A."
    kept = [{name: tensor for name, tensor in rank.items() if not name.startswith(half)} for rank in ranks]
    write_shards(run / ADAPTER, [kept], [metadata])
    assert f"lacks {half}weight, which" in refused(run)
    del metadata["parameters"][f"{half}default.weight"]
    write_shards(run / ADAPTER, [kept], [metadata])
    assert f"q_proj.lora_B.weight is there without {half}weight" in refused(run)


@pytest.mark.parametrize("name", SHARDS)
def test_pipeline_stages_that_are_no_model(name: str, tmp_path: Path, refused: Refused) -> None:
    run = copied(name, tmp_path)
    shards = run / SHARDS[name]
    stages, metadata = two_stages(shards)
    (run / "trn_config.json").unlink(missing_ok=True)
    write_shards(shards, stages[:1], metadata[:1])
    assert "the last pipeline stage is missing" in refused(run)
    write_shards(shards, stages[1:], metadata[1:])
    assert "no pipeline stage holds layer 0" in refused(run)
    write_shards(shards, [*stages, stages[0]], [*metadata, metadata[0]])
    assert "pipeline stages 0 and 2 both hold layer 0" in refused(run)
    write_shards(shards, stages, metadata)
    (shards / "model" / "dp_rank_00_tp_rank_01_pp_rank_01.pt").unlink()
    assert "missing model/dp_rank_00_tp_rank_01_pp_rank_01.pt" in refused(run)
    (shards / "mp_metadata_pp_rank_0.json").unlink()
    assert "missing mp_metadata_pp_rank_0.json, model/dp_rank_00_tp_rank_01_pp_rank_01.pt" in refused(run)


def test_trn_config_tells_of_stages_that_left_no_trace(tmp_path: Path, refused: Refused) -> None:
    run = copied("full_gqa", tmp_path)
    edit_json(run / "trn_config.json", lambda config: config.update(pipeline_parallel_size=2))
    assert "missing mp_metadata_pp_rank_1.json, model/dp_rank_00_tp_rank_00_pp_rank_01.pt" in refused(run)
    edit_json(run / "trn_config.json", lambda config: config.update(pipeline_parallel_size=1, tensor_parallel_size=8))
    assert "several tensor-parallel sizes: [4, 8]" in refused(run)


def test_ranks_with_other_tensors(tmp_path: Path, refused: Refused) -> None:
    run = copied("full_gqa", tmp_path)
    (ranks,), metadata = rank_tensors(run / "shards"), read_metadata(run / "shards")
    del ranks[2]["model.norm.weight"]
    write_shards(run / "shards", [ranks], [metadata])
    assert "hold other tensors: model.norm.weight" in refused(run)
    ranks[2]["model.norm.weight"] = torch.ones(32)
    write_shards(run / "shards", [ranks], [metadata])
    assert "model.norm.weight: the ranks' parts do not fit each other" in refused(run)
    ranks[2]["model.norm.weight"] = ranks[0]["model.norm.weight"].bfloat16()
    write_shards(run / "shards", [ranks], [metadata])
    assert "the ranks' parts do not fit each other" in refused(run)


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("full_gqa", "model.layers.1.input_layernorm.weight"),
        ("full_gqa", "model.layers.1.self_attn.qkv_proj.weight_k"),
        ("lora_plain", "base_model.model.model.layers.0.mlp.gate_up_proj.lora_A.weight"),
        ("lora_plain", "base_model.model.model.layers.0.mlp.down_proj.lora_B.weight"),
    ],
)
def test_replicas_that_diverged(
    name: str, tensor: str, tmp_path: Path, refused: Refused, capsys: pytest.CaptureFixture[str]
) -> None:
    run = copied(name, tmp_path)
    (ranks,), metadata = rank_tensors(run / SHARDS[name]), read_metadata(run / SHARDS[name])
    ranks[-1][tensor].view(-1)[5] += 0.25
    write_shards(run / SHARDS[name], [ranks], [metadata])
    original = tensor.replace("qkv_proj.weight_k", "k_proj.weight").replace("gate_up_proj", "up_proj")
    error = refused(run)
    assert f"a tensor that all ranks must hold alike differs between them, most {original} by up to 0.25: " in error
    assert "--allow-diverged takes rank 0's" in error
    assert main([str(run), str(tmp_path / "out"), "--allow-diverged"]) == 0
    assert capsys.readouterr().err.startswith("warning: a tensor that all ranks must hold alike")
    assert digests(result(tmp_path / "out")) == json.loads((DATA / name / "expected.json").read_text())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_replicas_without_numbers(value: float, tmp_path: Path, refused: Refused) -> None:
    run = copied("full_gqa", tmp_path)
    (ranks,), metadata = rank_tensors(run / "shards"), read_metadata(run / "shards")
    ranks[3]["model.norm.weight"][0] = value
    write_shards(run / "shards", [ranks], [metadata])
    assert "model.norm.weight by up to inf" in refused(run)
    for rank in ranks:
        rank["model.norm.weight"][0] = value
    write_shards(run / "shards", [ranks], [metadata])
    assert main([str(run), str(tmp_path / "out")]) == 0


def test_a_tied_output_embedding_is_not_written_and_must_be_the_input_embedding(
    tmp_path: Path, refused: Refused
) -> None:
    run = copied("full_gqa", tmp_path)
    edit_json(run / "config.json", lambda config: config.update(tie_word_embeddings=True))
    (ranks,), metadata = rank_tensors(run / "shards"), read_metadata(run / "shards")
    # named_parameters lists a shared parameter once, state_dict each name of it.
    del metadata["parameters"]["lm_head.weight"]
    write_shards(run / "shards", [ranks], [metadata])
    assert "most lm_head.weight by up to" in refused(run)
    for rank in ranks:
        rank["lm_head.weight"] = rank["model.embed_tokens.weight"].clone()
    write_shards(run / "shards", [ranks], [metadata])
    assert main([str(run), str(tmp_path / "out")]) == 0
    expected = json.loads((DATA / "full_gqa" / "expected.json").read_text())
    del expected["lm_head.weight"]
    assert digests(result(tmp_path / "out")) == expected

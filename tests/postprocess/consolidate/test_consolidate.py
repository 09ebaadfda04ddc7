"""Consolidated weights are what optimum-neuron's own functions make of the same shards, bit for bit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from postprocess.consolidate import layout
from postprocess.consolidate.__main__ import main
from postprocess.consolidate.expected import read_config
from postprocess.consolidate.run import Options, consolidate
from postprocess.safetensors import writer
from postprocess.safetensors.header import source_tensors
from tests.postprocess.consolidate.neuron_shards import (
    DATA,
    SHARDS,
    consolidated_by_optimum_neuron,
    copied,
    digests,
    rank_tensors,
    read_metadata,
    result,
    shared,
    two_stages,
    write_shards,
)

# name: directory of the checkpoint, its shards
SHARED_RUNS = {
    "full_kv4_tp1": "shards",
    "full_kv4_tp2_noxser": "shards",
    "full_kv4_tp2_xser": "shards",
    "full_kv2_tp4_gqa_xser": "shards",
    "lora_kv4_tp1": "adapter_default/adapter_shards",
    "lora_kv4_tp2_noxser": "adapter_default/adapter_shards",
    "lora_kv4_tp2_xser": "adapter_default/adapter_shards",
    "lora_kv2_tp4_gqa_xser": "adapter_default/adapter_shards",
    "trainer/t_full_tp2/checkpoint-3": "shards",
    "trainer/t_lora_tp2_nosp/checkpoint-3": "adapter_default/adapter_shards",
    "trainer/t_lora_tp4gqa/checkpoint-3": "adapter_default/adapter_shards",
    "trainer/f_dp2tp2/checkpoint-2": "shards",
}
# Trained in a way that let replicas diverge: see the README beside the shards.
DIVERGED = ("trainer/t_lora_tp4gqa/checkpoint-3", "trainer/f_dp2tp2/checkpoint-2")
IDS = (torch.arange(32).view(2, 16) * 7) % 256


@pytest.mark.parametrize("name", SHARDS)
def test_equals_what_optimum_neuron_made_of_it(name: str, tmp_path: Path) -> None:
    consolidate(DATA / name, tmp_path / "out")
    assert digests(result(tmp_path / "out")) == json.loads((DATA / name / "expected.json").read_text())


@pytest.mark.parametrize("size", [1, 1000, 4096])
@pytest.mark.parametrize("name", SHARDS)
def test_the_size_of_the_pieces_changes_nothing(
    name: str, size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layout, "_BLOCK_BYTES", size)
    monkeypatch.setattr(writer, "_CHUNK", max(size, 100))
    consolidate(DATA / name, tmp_path / "out")
    assert digests(result(tmp_path / "out")) == json.loads((DATA / name / "expected.json").read_text())


@pytest.mark.parametrize("name", SHARDS)
def test_equals_optimum_neurons_functions(name: str, tmp_path: Path) -> None:
    shards = DATA / name / SHARDS[name]
    adapter = "default" if name.startswith("lora") else None
    theirs = consolidated_by_optimum_neuron(rank_tensors(shards), [read_metadata(shards)], adapter)
    consolidate(DATA / name, tmp_path / "out")
    assert digests(result(tmp_path / "out")) == digests(theirs)


@pytest.mark.parametrize("name", SHARED_RUNS)
def test_equals_optimum_neurons_functions_for_every_run(name: str, tmp_path: Path) -> None:
    shards = shared(name) / SHARED_RUNS[name]
    adapter = "default" if "adapter" in SHARED_RUNS[name] else None
    theirs = consolidated_by_optimum_neuron(rank_tensors(shards), [read_metadata(shards)], adapter)
    consolidate(shared(name), tmp_path / "out", Options(allow_diverged=name in DIVERGED))
    ours = result(tmp_path / "out")
    assert digests(ours) == digests(theirs)
    if (shared(name) / "consolidated").is_dir():
        assert digests(ours) == digests(result(shared(name) / "consolidated"))


@pytest.mark.parametrize("name", DIVERGED)
def test_diverged_runs_are_refused(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(shared(name)), str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert "tensors that all ranks must hold alike differ between them, most " in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", SHARDS)
def test_pipeline_stages_are_one_model(name: str, tmp_path: Path) -> None:
    run = copied(name, tmp_path)
    stages, metadata = two_stages(run / SHARDS[name])
    (run / "trn_config.json").unlink(missing_ok=True)
    write_shards(run / SHARDS[name], stages, metadata)
    made = consolidate(run, tmp_path / "out")
    assert made["input"]["pipeline_stages"] == 2
    assert digests(result(tmp_path / "out")) == json.loads((DATA / name / "expected.json").read_text())


def test_the_model_loads_and_gives_the_sharded_models_logits(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    consolidate(DATA / "full_gqa", tmp_path / "model", Options(shard_bytes=100_000))
    assert len(list((tmp_path / "model").glob("model-*.safetensors"))) > 1
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    torch.testing.assert_close(_logits(model), _reference("full_gqa"), atol=1e-5, rtol=1e-5)


def test_the_adapter_loads_on_its_base_and_gives_the_sharded_models_logits(tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base, adapter = tmp_path / "base", tmp_path / "adapter"
    consolidate(DATA / "full_gqa", base)
    consolidate(DATA / "lora_gqa", adapter, Options(base=base))
    model = AutoModelForCausalLM.from_pretrained(base)
    without = _logits(model)
    tuned = PeftModel.from_pretrained(model, str(adapter))
    torch.testing.assert_close(_logits(tuned), _reference("lora_gqa"), atol=1e-5, rtol=1e-5)
    assert (_logits(tuned) - without).abs().max() > 1e-3
    config = json.loads((adapter / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(base)
    assert {"q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"} < set(config["target_modules"])


def test_names_of_fused_layers_become_the_originals(tmp_path: Path) -> None:
    run = copied("lora_gqa", tmp_path)
    path = run / "adapter_default" / "adapter_config.json"
    config = json.loads(path.read_text())
    config.update(target_modules=["qkv_proj", "o_proj", "gate_up_proj", "down_proj"], alpha_pattern={"qkv_proj": 4})
    path.write_text(json.dumps(config))
    consolidate(run, tmp_path / "out")
    made = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert made["target_modules"] == ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    assert made["alpha_pattern"] == {"q_proj": 4, "k_proj": 4, "v_proj": 4}


@pytest.mark.parametrize("below", ["", "shards", "as_checkpoint", "as_run", "as_trntune_run"])
def test_finds_the_shards_from_anywhere(below: str, tmp_path: Path) -> None:
    home = {
        "as_checkpoint": "r/checkpoint-20",
        "as_run": "r/checkpoint-20",
        "as_trntune_run": "r/checkpoints/checkpoint-20",
    }
    place = copied("full_gqa", tmp_path)
    if below in home:
        (tmp_path / home[below]).parent.mkdir(parents=True)
        place = place.rename(tmp_path / home[below])
        (place.parent / "checkpoint-3" / "shards").mkdir(parents=True)
        (tmp_path / "r" / "model").mkdir()
        place = place if below == "as_checkpoint" else tmp_path / "r"
    elif below:
        place = place / below
    made = consolidate(place, tmp_path / "out")
    assert made["tensors"] == 21
    assert (tmp_path / "out" / "config.json").is_file()


def test_companions_come_from_the_input_first_then_from_the_base(tmp_path: Path) -> None:
    run, base = copied("full_gqa", tmp_path), tmp_path / "base"
    base.mkdir()
    (run / "tokenizer.json").write_text("run's")
    for name in ("tokenizer.json", "generation_config.json", "chat_template.jinja"):
        (base / name).write_text('{"of": "base"}')
    (base / "config.json").write_bytes((run / "config.json").read_bytes())
    consolidate(run, tmp_path / "out", Options(base=base))
    texts = {path.name: path.read_text() for path in (tmp_path / "out").iterdir() if path.suffix != ".safetensors"}
    assert texts["tokenizer.json"] == "run's"
    assert texts["generation_config.json"] == texts["chat_template.jinja"] == '{"of": "base"}'


def test_the_command_tells_what_it_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [str(DATA / "full_gqa"), str(tmp_path / "out"), "--shard-size", "100KB"]
    assert main(arguments) == 0
    assert capsys.readouterr().out == (
        f"{tmp_path / 'out'}: model of 21 tensors, 0.4 MB, from 4 x 1 ranks (tensor-parallel x pipeline)\n"
    )
    assert main(arguments) == 0
    assert capsys.readouterr().out.endswith("is this input's result already: nothing to do\n")
    made = json.loads((tmp_path / "out" / "consolidate.json").read_text())
    assert (made["kind"], made["tensors"], made["bytes"]) == ("model", 21, 365_824)
    assert made["input"]["format"] == "optimum-neuron"
    assert sum(tensor.spec.nbytes for tensor in source_tensors(tmp_path / "out").values()) == made["bytes"]


@pytest.mark.parametrize(
    ("family", "change"),
    [
        ("Llama", {}),
        ("Llama", {"num_key_value_heads": 2, "head_dim": 24, "attention_bias": True, "mlp_bias": True}),
        ("Llama", {"tie_word_embeddings": True}),
        ("Granite", {"num_key_value_heads": 4}),
        ("Qwen3", {"num_key_value_heads": 2, "head_dim": 16, "tie_word_embeddings": True}),
        ("Mistral", {"num_key_value_heads": 2}),
    ],
)
def test_expected_shapes_are_transformers(family: str, change: dict[str, object], tmp_path: Path) -> None:
    import transformers

    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 8}
    config = getattr(transformers, f"{family}Config")(**{**sizes, "vocab_size": 128, **change})
    config.save_pretrained(tmp_path)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    expected = read_config(tmp_path)
    assert expected is not None
    assert expected.shapes == {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def _logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


def _reference(name: str) -> torch.Tensor:
    parts = [torch.load(DATA / name / f"_logits_tp{rank}.pt", weights_only=True) for rank in range(4)]
    return torch.cat(parts, dim=-1)

"""Bases whose weights are quantized are refused by name, wherever they are read."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from launcher.checks.validate import problems
from launcher.errors import TrntuneError
from launcher.model_dir.weights import check_fit
from postprocess.generate.models import Answerers, ModelLocation
from tests.trainer.models.conftest import config_of, load
from trainer.families.choose import found_way
from trainer.fetch.local import check_directory
from trainer.probes.model import on_meta

QUANTIZED = {
    "bitsandbytes, 4 bits": {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}},
    "bitsandbytes, 8 bits": {"quantization_config": {"load_in_8bit": True}},
    "GPTQ, 4 bits": {"quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 128}},
    "AWQ, 4 bits": {"quantization_config": {"quant_method": "awq", "bits": 4, "version": "gemm"}},
    "FP8": {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}},
    "MXFP4": {"quantization_config": {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}},
    "compressed-tensors, pack-quantized": {
        "quantization_config": {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {}}
    },
    "compressed-tensors": {"compression_config": {"quant_method": "compressed-tensors"}},
    "MLX, 4 bits": {"quantization": {"group_size": 64, "bits": 4}},
    "hqq": {"text_config": {"quantization_config": {"quant_method": "hqq"}}},
}


@pytest.mark.parametrize("kind", QUANTIZED)
def test_a_quantized_base_is_refused_by_name_wherever_it_is_read(kind, base):
    config_json = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config_json, **QUANTIZED[kind]}))
    instead = "a copy of it in bf16" if kind == "MXFP4" else "the unquantized model that it was made from"
    if kind != "MXFP4":
        instead += " (lora=qlora packs it while it trains)"
    says = f"its weights are quantized ({kind}), which nothing here trains, merges or answers with: take {instead}"
    [problem] = problems(config_of(base))
    assert str(problem) == f"model.path={base}: {says}"
    with pytest.raises(TrntuneError) as fetched:
        check_directory(str(base))
    assert str(fetched.value) == f"model.path={base}: {says}"
    answerers = Answerers(ModelLocation(None, None, base, "plain", None), torch.float32, "cpu")
    for read in (load, check_fit, on_meta, lambda base: found_way(base, 64), lambda _: _enter(answerers)):
        with pytest.raises(TrntuneError) as caught:
            read(base)
        assert str(caught.value) == f"{base}: {says}"


def _enter(answerers: Answerers) -> None:
    with answerers.model("tuned"):
        pass


def test_an_entry_that_transformers_raises_a_traceback_for(base):
    config_json = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config_json, "quantization_config": None}))
    [problem] = problems(config_of(base))
    assert problem.why.startswith('its config.json gives "quantization_config" as no object')
    with pytest.raises(TrntuneError, match="take it away"):
        load(base)


def test_quantized_weights_that_config_json_does_not_speak_of_are_named(base):
    def rename(name: str) -> str:
        return name.replace("q_proj.weight", "q_proj.qweight")

    tensors = load_file(base / "model.safetensors")
    save_file({rename(name): tensor for name, tensor in tensors.items()}, base / "model.safetensors", {"format": "pt"})
    [problem] = problems(config_of(base))
    assert problem.why.endswith(
        "the files have names of quantized weights; take the unquantized model that it was made from"
    )

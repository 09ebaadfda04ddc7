"""What can't be merged is refused in one line, and nothing is written."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from launcher.errors import TrntuneError
from postprocess.merge import MergeOptions, logits, merge
from postprocess.merge.__main__ import main
from postprocess.merge.changes import LowRank
from tests.postprocess.merge.adapters import QUICK, Tensors, configure, refused, rewrite
from tests.postprocess.merge.models import make_base
from trainer.models.fingerprint import fingerprint

LAYER = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"peft_type": "IA3"}, "peft_type IA3"),
        ({"peft_type": "LOHA"}, "peft_type LOHA"),
        ({"task_type": "SEQ_CLS"}, "task SEQ_CLS"),
        ({"layer_replication": [[0, 2], [0, 2]]}, "layer_replication is set"),
        ({"use_qalora": True}, "use_qalora is set"),
        ({"target_parameters": ["mlp.experts"]}, "target_parameters is set"),
        ({"alora_invocation_tokens": [5, 6]}, "activated LoRA"),
        ({"invented_in_2030": 1}, "doesn't know invented_in_2030"),
        ({"init_lora_weights": "pissa_niter_4"}, "changed the base weights before training"),
        ({"init_lora_weights": "loftq"}, "changed the base weights before training"),
        ({"target_modules": ["qkv"]}, "doesn't fit the base: Target modules"),
        ({"target_modules": ["q_proj"]}, "4 tensors match nothing in the base: .*v_proj.lora_A.weight.* and 1 more"),
        ({"target_modules": ["q_proj", "v_proj", "o_proj"]}, r"4 tensors .* are missing: .*o_proj.lora_A"),
        ({"use_dora": True}, r"4 tensors .* are missing: .*lora_magnitude_vector"),
        ({"r": 8}, r"has shape \[4, 48\], but base and configuration need \[8, 48\]"),
        ({"rank_pattern": {"v_proj": 2}}, r"v_proj.lora_A.weight has shape \[4, 48\]"),
        ({"lora_bias": True}, r"lora_B.bias"),
        ({"lora_alpha": "sixteen"}, r"lora_alpha is 'sixteen' in adapter_config.json, not a number"),
    ],
)
def test_configurations(base: Path, adapter: Path, changes: dict[str, Any], match: str) -> None:
    configure(adapter, **changes)
    refused(base, adapter, match)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda t: {n: v for n, v in t.items() if n != f"{LAYER}.lora_A.weight"}, r"1 tensors .* missing: .*lora_A"),
        (lambda t: {n: v for n, v in t.items() if n != f"{LAYER}.lora_B.weight"}, r"1 tensors .* missing: .*lora_B"),
        (lambda t: {**t, "base_model.model.model.layers.7.x.lora_A.weight": torch.ones(1)}, "1 tensors match nothing"),
        (lambda t: {n.replace("q_proj", "query"): v for n, v in t.items()}, "4 tensors match nothing"),
        (lambda t: {n: v.repeat(1, 2) if "lora_A" in n else v for n, v in t.items()}, "has shape"),
        (lambda t: {n: v[:-1] if "lora_B" in n else v for n, v in t.items()}, "has shape"),
    ],
)
def test_adapter_tensors(base: Path, adapter: Path, change: Callable[[Tensors], Tensors], match: str) -> None:
    rewrite(adapter, change)
    refused(base, adapter, match)


def test_an_adapter_with_a_nan_whether_or_not_logits_are_compared(base: Path, adapter: Path, tmp_path: Path) -> None:
    tensors = load_file(adapter / "adapter_model.safetensors")
    name = next(name for name in tensors if "lora_A" in name)
    tensors[name][0, 1] = float("nan")
    save_file(tensors, adapter / "adapter_model.safetensors", metadata={"format": "pt"})
    for options in (MergeOptions(), MergeOptions(logits=False)):
        with pytest.raises(TrntuneError, match=rf"{name} holds 1 numbers of [\d,]+ that are not finite"):
            merge(base, adapter, tmp_path / "out", options)
    assert not (tmp_path / "out").exists()


def test_adapter_directories(base: Path, adapter: Path, tmp_path: Path) -> None:
    refused(base, base, "not an adapter directory")
    weights = adapter / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    refused(base, adapter, "is damaged")
    weights.rename(adapter / "adapter_model.bin")
    refused(base, adapter, "only adapter_model.bin, a pickle")
    (adapter / "adapter_config.json").write_text("[]")
    refused(base, adapter, "not a JSON object")


def test_bases(base: Path, adapter: Path) -> None:
    config = json.loads((base / "config.json").read_text())
    for changes, match in (
        ({"num_hidden_layers": 3}, "has|missing|match nothing"),
        ({"intermediate_size": 96}, r"shape \[80, 48\], but config.json asks for \[96, 48\]"),
        ({"model_type": "from_the_future"}, "can't be used"),
        ({"quantization_config": {"quant_method": "fp8"}}, "quantized"),
    ):
        (base / "config.json").write_text(json.dumps({**config, **changes}))
        refused(base, adapter, match)
    (base / "config.json").unlink()
    refused(base, adapter, "config.json can't be used")
    weights = base / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    refused(base, adapter, "is damaged")
    weights.rename(base / "pytorch_model.bin")
    refused(base, adapter, r"only weights are pytorch_model\.bin, pickles, .* postprocess\.convert")
    (base / "pytorch_model.bin").unlink()
    refused(base, adapter, "neither model.safetensors nor")


def test_a_base_that_lacks_weights(base: Path, adapter: Path) -> None:
    weights = base / "model.safetensors"
    save_file({n: t for n, t in load_file(weights).items() if "layers.1.mlp" not in n}, weights, {"format": "pt"})
    refused(base, adapter, "3 weights that config.json asks for are missing: model.layers.1.mlp")


def test_a_base_of_another_size(made: tuple[Path, Path], adapter: Path, tmp_path: Path) -> None:
    other = make_base(tmp_path / "other", "gpt2")
    refused(other, adapter, "doesn't fit the base")


def test_another_base_than_the_adapters_own(base: Path, adapter: Path, tmp_path: Path) -> None:
    (adapter / "base.json").write_text(json.dumps({"fingerprint": fingerprint(base), "model": "llama"}))
    assert merge(base, adapter, tmp_path / "right", QUICK)["tensors"]["changed"] == 4
    other = make_base(tmp_path / "other", "llama", seed=5)
    refused(other, adapter, "trained on another base than .*--any-base")
    assert merge(other, adapter, tmp_path / "any", MergeOptions(logits=False, any_base=True))["tensors"]["changed"] == 4
    (adapter / "base.json").write_text("{}")
    refused(base, adapter, "no fingerprint in it")


def test_an_adapter_that_states_no_base_is_merged_and_that_is_said(
    base: Path, adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(base), str(adapter), str(tmp_path / "out"), "--no-logits"]) == 0
    [line] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("base ")]
    assert line.endswith("not checked: the adapter has no base.json, so nothing says which base it was trained on")
    (adapter / "base.json").write_text(json.dumps({"fingerprint": fingerprint(base), "model": "llama"}))
    assert main([str(base), str(adapter), str(tmp_path / "checked"), "--no-logits"]) == 0
    assert "not checked: the adapter" not in capsys.readouterr().out


def test_a_tokenizer_with_more_tokens_than_the_embedding(base: Path, adapter: Path) -> None:
    tokenizer = {"model": {"vocab": {"a": 0, "b": 100}}, "added_tokens": [{"id": 101}]}
    (adapter / "tokenizer.json").write_text(json.dumps(tokenizer))
    refused(base, adapter, "token 101, but the embedding only 101 rows")


def test_a_change_lost_in_rounding(base: Path, adapter: Path) -> None:
    rewrite(adapter, lambda tensors: {name: tensor * 1e-9 for name, tensor in tensors.items()})
    refused(base, adapter, "below the resolution of F32")


def test_logits_that_differ_leave_nothing(base: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A scaling that is wrong by 1 % is seen by nothing but the logits."""
    right = LowRank.apply
    monkeypatch.setattr(
        LowRank, "apply", lambda self, weight, rows, load: weight + 1.01 * (right(self, weight, rows, load) - weight)
    )
    refused(base, adapter, "logits differ from base", MergeOptions())


def test_logits_are_left_out_where_memory_is_short(
    base: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logits, "memory_available", lambda: 1000)
    found = merge(base, adapter, tmp_path / "out")["logits"]
    assert not found["compared"]
    assert "GB of memory in float32" in found["reason"]


def test_the_command_line(base: Path, adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [str(base), str(adapter), str(tmp_path / "out")]
    for wrong in (["--dtype", "int8"], ["--shard-size", "5 apples"], ["--shard-size", "0"], ["--unknown"]):
        assert main([*arguments, *wrong]) == 2
        assert capsys.readouterr().err.startswith("error: ")
    assert main(arguments[:2]) == 2
    assert main([str(base), str(base), str(tmp_path / "out")]) == 1
    assert not (tmp_path / "out").exists()
    capsys.readouterr()
    assert main([*arguments, "--no-logits"]) == 0
    assert "4 changed (lora)" in capsys.readouterr().out
    assert main([*arguments, "--no-logits"]) == 0
    assert "nothing to do" in capsys.readouterr().out


def test_the_command_line_imports_no_torch_for_help_and_usage_errors() -> None:
    code = "import sys, postprocess.merge.__main__ as m; m.main(['a']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0

"""A model whose samples can't share a row, or that can't be trained at all, is refused before anything is made."""

from __future__ import annotations

import json

import pytest

from launcher.architecture.families import check_family
from launcher.errors import UsageError
from tests.conftest import launch
from tests.launcher.conftest import single
from trainer.libraries.transformers_versions import MAJOR

SIZES = {"vocab_size": 300, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}


def model(tmp_path, **facts) -> str:
    """A model directory as far as it is looked at: config.json."""
    directory = tmp_path / "model"
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps({**SIZES, "intermediate_size": 96, **facts}))
    return f"model.path={directory}"


def test_a_state_space_model_is_refused_with_packing(tmp_path):
    arguments = ("model=local", model(tmp_path, model_type="mamba"), "lora.target_modules=[in_proj]")
    done = launch(tmp_path, *arguments)
    assert done.returncode == 2
    assert "MambaForCausalLM has layers of its own" in done.stderr
    assert "dataset.packing=false works" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    check_family(single(*arguments, "dataset.packing=false").config)


def test_experts_of_their_own_are_not_sharded_where_they_are_trained(tmp_path):
    """Experts are one parameter since transformers 5, and a layer each before."""
    facts = {"model_type": "qwen3_moe", "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    given = ("model=local", model(tmp_path, **facts), "dataset.packing=false", "parallelism=fsdp2")
    check_family(single(*given, "lora.target_modules=[q_proj]").config)
    full = single(*given, "method=full").config
    if MAJOR >= 5:
        check_family(full)
    else:
        with pytest.raises(UsageError, match=r"sharding=fsdp: .* each expert as parameters of its own .*=ddp"):
            check_family(full)


def test_experts_are_refused_where_each_shape_is_compiled(tmp_path):
    facts = {"model_type": "qwen3_moe", "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    rows = ("dataset.packing=false", "training.max_length=512", "accelerator=trn2_3xlarge_native")
    given = ("model=local", model(tmp_path, **facts), *rows, "parallelism=single", "lora.target_modules=[q_proj]")
    with pytest.raises(UsageError, match="other numbers of tokens in each step, and TorchNeuron"):
        check_family(single(*given).config)


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"model_type": "bert"}, "can't be trained here, since BertLMHeadModel isn't causal"),
        (
            {"model_type": "opt", "max_position_embeddings": 64},
            r"on rows of training.max_length=\d+, since it has 64 positions \(max_position_embeddings\) .* lower it",
        ),
        (
            {"model_type": "gemma3", "text_config": {"hidden_size": 64}, "vision_config": {"hidden_size": 64}},
            r"since Gemma3ForConditionalGeneration has parts beside the one for texts \(vision_config\).*another model",
        ),
        ({"model_type": "qwen2_5_vl"}, "since transformers has no causal language model for Qwen2_5_VLConfig"),
        (
            {"model_type": "llama", "max_position_embeddings": 64, "rope_scaling": {"type": "dynamic", "factor": 2.0}},
            r"on rows of training.max_length=\d+, since .* shorter rows work: lower it",
        ),
    ],
)
def test_what_would_train_another_model_is_refused(tmp_path, facts, message):
    with pytest.raises(UsageError, match=message):
        check_family(single("model=local", model(tmp_path, **facts), "dataset.packing=false").config)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("lora.target_modules=[q_prog]",), "no linear layer q_prog: .*did you mean q_proj"),
        (("lora.modules_to_save=[norm]",), "5 of them: model.layers.0.input_layernorm, .* such as model.norm"),
        (("lora.exclude_modules=[w1]",), "w1 is none of the 4 layers that get an adapter"),
        (("lora.layers_to_transform=[2]",), "mistral has no layer 2; they are 0 to 1"),
    ],
)
def test_an_adapter_that_would_be_another_one_is_refused(tmp_path, options, message):
    with pytest.raises(UsageError, match=message):
        check_family(single("model=local", model(tmp_path, model_type="mistral"), *options).config)


def test_a_window_is_no_reason_to_refuse(tmp_path):
    facts = {"model_type": "mistral", "num_key_value_heads": 2, "sliding_window": 32}
    check_family(single("model=local", model(tmp_path, **facts)).config)

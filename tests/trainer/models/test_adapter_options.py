"""Every option of the lora group: it trains what the plan counts, and saves, goes on and merges as it trained."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoConfig

from launcher.config.schema import Config
from launcher.errors import TrntuneError
from postprocess.generate.models import Answerers, ModelLocation
from postprocess.merge import MergeOptions, merge
from tests.launcher.conftest import single
from tests.postprocess.merge.models import load, peft_merge, stored
from trainer.data.collate import Collator
from trainer.data.tokenize import Example
from trainer.engines.state import copied, put
from trainer.engines.torch import state
from trainer.families.small import small_config, small_model
from trainer.families.way import Way
from trainer.fetch.sources import fetch_model
from trainer.libraries.peft_versions import SAVES_BIASES_OF_ADAPTED_LAYERS
from trainer.models.adapt import check_adapted_as_planned, check_faults, modules_of, peft_config
from trainer.models.causal_lm import MODEL_INPUTS, CausalLMLoss
from trainer.models.load import apply_method, count_parameters, load_model, load_tokenizer
from trainer.models.size import ParameterCounts, model_size
from trainer.probes.model import describe

ALONE = Way(packed="one at a time is enough here", alone=None, attention="sdpa", plain_head=True)
ALL = "lora.target_modules=[all-linear]"
# Of each: the model, the options, and whether tied embeddings come to differ, which peft's merge gets wrong.
OPTIONS: dict[str, tuple[str, tuple[str, ...], bool]] = {
    "rank_pattern": ("llama", ("lora.rank_pattern={q_proj:8,layers.1.self_attn.v_proj:3}",), False),
    "alpha_pattern": ("qwen3", ("lora.alpha_pattern={v_proj:3}", "lora.use_rslora=true"), False),
    "all_linear": ("qwen3", (ALL, "lora.rank_pattern={mlp.*:4}"), False),
    "all_linear_conv1d": ("gpt2", (ALL, "lora.exclude_modules=[attn.c_proj]"), False),
    "exclude_modules": ("llama", (ALL, "lora.exclude_modules=[down_proj,layers.0.self_attn.k_proj]"), False),
    "layers_to_transform": ("llama", (ALL, "lora.layers_to_transform=[1]"), False),
    "layers_of_gpt2": ("gpt2", ("lora.target_modules=[c_attn]", "lora.layers_to_transform=[0]"), False),
    "full_names": ("llama", ("lora.target_modules=[model.layers.1.self_attn.q_proj,mlp.up_proj]",), False),
    "all_biases": ("llama", ("lora.bias=all",), False),
    "biases_of_adapted": ("llama", ("lora.bias=lora_only", "lora.rank_pattern={q_proj:2}"), False),
    "biases_of_gpt2": ("gpt2", ("lora.target_modules=[c_attn]", "lora.bias=all"), False),
    "gaussian": ("llama", ("lora.init_lora_weights=gaussian", "lora.use_dora=true"), False),
    "orthogonal": ("llama", ("lora.init_lora_weights=orthogonal",), False),
    "norms": ("qwen3", ("lora.modules_to_save=[model.norm,input_layernorm,q_norm]",), False),
    "linear_in_full": ("llama", ("lora.modules_to_save=[layers.0.mlp.up_proj,lm_head]", "lora.bias=all"), False),
    "embedding_in_full": ("llama", ("lora.modules_to_save=[embed_tokens]", "lora.layers_to_transform=[1]"), False),
    "tied_head": ("llama_tied", ("lora.modules_to_save=[lm_head]",), True),
    "tied_embedding": ("qwen3", ("lora.modules_to_save=[embed_tokens]",), True),
    "both_of_a_tie": ("llama_tied", ("lora.modules_to_save=[embed_tokens,lm_head]",), True),
    "tokens": ("llama", ("lora.trainable_token_indices=[3,77,5]",), False),
    "tokens_tied": (
        "llama_tied",
        ("lora.trainable_token_indices=[3,77,5]", "lora.modules_to_save=[model.norm]"),
        False,
    ),
    "tokens_of_gpt2": ("gpt2", ("lora.target_modules=[c_attn]", "lora.trainable_token_indices=[7]"), False),
}


def config_of(base: Path, *options: str) -> Config:
    return single("model=local", f"model.path={base}", "lora.dropout=0", *options).config


def adapted(base: Path, config: Config) -> PeftModel:
    return apply_method(load_model(base, config, "sdpa"), config)


def train(model: PeftModel, autocast: bool = False) -> None:
    """Two steps, large enough to be seen everywhere."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=3e-3)
    module = CausalLMLoss(model, ALONE).train()
    ids = torch.randint(3, 99, (40,), generator=torch.Generator().manual_seed(0)).tolist()
    ids[7:9] = [77, 5]
    batch = Collator(40, pad_token_id=0)([[Example(ids, ids)]])
    for _ in range(2):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            module(**{name: batch[name] for name in MODEL_INPUTS}).backward()
        assert all(parameter.grad is not None for parameter in trained)
        optimizer.step()
        optimizer.zero_grad()
    model.eval()


def logits(model) -> torch.Tensor:
    with torch.inference_mode():
        return model(input_ids=torch.tensor([[77, 5, *range(3, 50)]]), use_cache=False).logits


@pytest.mark.parametrize("name", OPTIONS)
def test_an_option_trains_what_the_plan_counts_and_saves_resumes_and_merges_it(name, bases, tmp_path):
    kind, options, unties = OPTIONS[name]
    base, config = bases[kind], config_of(bases[kind], *options)
    model = adapted(base, config)
    untrained = {key: tensor.clone() for key, tensor in state.live_weights(model).items()}
    torch.testing.assert_close(logits(model.eval()), logits(load(base)), atol=1e-5, rtol=1e-5)

    total, trainable = count_parameters(model)
    counted = describe(str(base), asdict(config.lora))
    assert (counted["total"], counted["trainable"]) == (total, trainable)
    assert total == count_parameters(load(base))[0]

    train(model)
    live = state.live_weights(model)
    assert sum(tensor.numel() for tensor in live.values()) >= trainable
    assert all(
        not torch.equal(live[key], tensor) for key, tensor in untrained.items() if "lora_A" not in key or "orth" in name
    )

    state.save_weights(model, tmp_path / "adapter")
    again = PeftModel.from_pretrained(load(base), str(tmp_path / "adapter")).eval()
    assert torch.equal(logits(again), logits(model))

    resumed = adapted(base, config)
    put(state.live_weights(resumed), copied(live))
    assert torch.equal(logits(resumed.eval()), logits(model))

    record = merge(base, tmp_path / "adapter", tmp_path / "merged", MergeOptions())
    assert record["logits"]["compared"]
    assert record["embeddings_untied"] == unties
    torch.testing.assert_close(logits(load(tmp_path / "merged")), logits(model), atol=2e-5, rtol=1e-4)
    if not unties:
        expected = peft_merge(base, tmp_path / "adapter")
        assert all(torch.equal(tensor, expected[key]) for key, tensor in stored(tmp_path / "merged").items())


def test_what_is_trained_on_a_bf16_base_is_fp32_and_moves_by_less_than_bf16_can_say(bases):
    options = ("lora.modules_to_save=[lm_head,model.norm]", "lora.bias=all", "lora.trainable_token_indices=[5]")
    config = config_of(bases["llama"], *options, "training.precision=bf16")
    model = adapted(bases["llama"], config)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert {p.dtype for p in model.parameters() if not p.requires_grad} == {torch.bfloat16}
    before = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    train(model, autocast=True)
    assert all(not torch.equal(p, before[name]) for name, p in model.named_parameters() if name in before)


def test_biases_of_adapted_layers_are_in_the_adapter_where_peft_forgets_them_too(bases, tmp_path):
    config = config_of(bases["llama"], "lora.bias=lora_only")
    model = adapted(bases["llama"], config)
    model.save_pretrained(str(tmp_path / "theirs"))
    state.save_weights(model, tmp_path / "ours")
    theirs, ours = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("theirs", "ours"))
    layers = [f"base_model.model.model.layers.{n}.self_attn.{name}_proj" for n in (0, 1) for name in "qv"]
    biases = {f"{layer}.base_layer.bias" for layer in layers}
    assert {name for name in ours if name.endswith("bias")} == biases
    assert ours.keys() - theirs.keys() == (set() if SAVES_BIASES_OF_ADAPTED_LAYERS else biases)


def small(family: str):
    return small_model(small_config(AutoConfig.for_model(family), 64), "eager")


@pytest.mark.parametrize(
    ("family", "options", "piece"),
    [
        ("gemma3_text", ("lora.trainable_token_indices=[5]",), "ScaledWordEmbedding does more than look rows up"),
        ("roberta", ("lora.trainable_token_indices=[5]", "lora.target_modules=[query]"), "output head's bias"),
        ("mixtral", ("lora.modules_to_save=[o_proj,norm]",), "9 of them|13 of them|5 of them"),
        ("gpt2", ("lora.target_modules=[c_attn]", "lora.bias=lora_only", "lora.modules_to_save=[ln]"), "no module ln"),
    ],
)  # fmt: skip
def test_what_a_family_cannot_have_is_refused_by_name(family, options, piece):
    with pytest.raises(TrntuneError, match=piece):
        check_faults(small(family), config_of(Path("x"), *options).lora)


def test_all_linear_names_layers_in_full_where_a_last_part_is_another_modules_too():
    model, lora = small("git"), config_of(Path("x"), ALL).lora
    modules = check_faults(model, lora)
    adapter = peft_config(lora, modules)
    assert adapter.target_modules == set(modules.linear)
    check_adapted_as_planned(get_peft_model(model, adapter), lora, modules)


def test_flops_are_those_of_what_is_trained_and_reached(bases):
    config = config_of(bases["llama"], "lora.layers_to_transform=[1]", "lora.modules_to_save=[lm_head,model.norm]")
    base = load_model(bases["llama"], config, "sdpa")
    modules = modules_of(base)
    layer = sum(p.numel() for p in base.model.layers[0].parameters())
    head = base.lm_head.weight.numel()
    model = apply_method(base, config)
    size = model_size(model.get_base_model(), ParameterCounts(*count_parameters(model), 0), config, modules)
    r, hidden, kv = config.lora.r, 48, 24
    assert size.matmul_params == 2 * layer + head + hidden
    assert size.adapter_params == r * (hidden + hidden) + r * (hidden + kv)
    assert (size.saved_params, size.forward_only_params) == (head, layer)
    assert size.forward_only_width * 2 == size.attention_width
    counted = describe(str(bases["llama"]), asdict(config.lora))
    assert counted["low_rank"] == size.adapter_params
    assert (counted["saved_matmul"], counted["forward_only"], counted["first_layer"]) == (head, layer, 1)


@pytest.mark.parametrize("option", ["lora.modules_to_save=[embed_tokens]", "lora.trainable_token_indices=[5]"])
@pytest.mark.parametrize("kind", ["llama", "llama_tied"])
def test_a_trained_embedding_is_no_product_and_is_looked_up_once(kind, option, bases):
    config = config_of(bases[kind], option)
    base = load_model(bases[kind], config, "sdpa")
    modules, total = modules_of(base), base.num_parameters()
    looked_up = 0 if modules.tied else base.get_input_embeddings().weight.numel()
    model = apply_method(base, config)
    size = model_size(model.get_base_model(), ParameterCounts(*count_parameters(model), 0), config, modules)
    assert size.matmul_params == total - looked_up == describe(str(bases[kind]), asdict(config.lora))["matmul"]
    assert size.saved_params == 0


def test_answers_of_the_base_are_the_bases_though_an_adapter_with_biases_changes_it(bases, tmp_path):
    config = config_of(bases["llama"], "lora.bias=all")
    model = adapted(bases["llama"], config)
    train(model)
    state.save_weights(model, tmp_path)
    load_tokenizer(fetch_model(single("model=tiny_llama").config.model)).save_pretrained(tmp_path)
    answerers = Answerers(ModelLocation(bases["llama"], tmp_path, None, "plain", None), torch.float32, "cpu")
    with answerers.model("base") as base, answerers.model("tuned") as tuned:
        assert torch.equal(logits(base), logits(load(bases["llama"])))
        assert torch.equal(logits(tuned), logits(model))

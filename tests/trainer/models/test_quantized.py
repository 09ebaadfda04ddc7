"""A base in 4 bit under an adapter: what is packed, that it trains, and that the adapter serves the unpacked base."""

from __future__ import annotations

import json
from dataclasses import asdict
from importlib import metadata
from pathlib import Path

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from launcher.architecture.parameters import count
from launcher.architecture.quantized import BYTES_PER_WEIGHT, check_quantized
from launcher.checks.validate import fill_architecture, problems
from launcher.errors import TrntuneError
from launcher.plan.memory import estimate
from postprocess.merge import MergeOptions, merge
from tests.launcher.conftest import single
from tests.postprocess.merge.models import load, make_base
from tests.trainer.models.test_adapter_options import ALL, adapted, config_of, logits, train
from trainer.engines.state import copied, put
from trainer.engines.torch import state
from trainer.families.small import small_config, small_model
from trainer.libraries.transformers_versions import parts_of_parameters
from trainer.models.adapt import is_packed, modules_of, size
from trainer.models.load import count_parameters, load_model
from trainer.models.quantized import has_even_scales
from trainer.models.size import ParameterCounts, model_size
from trainer.probes.model import describe

NF4 = "lora.quantize_base=nf4"
# Between two values of NF4 lie at most 0.304 of a block's largest number: Dettmers et al. 2023, appendix E.
HALF_GAP = 0.152
OPTIONS: dict[str, tuple[str, tuple[str, ...]]] = {
    "two layers of each block": ("llama", ()),
    "all linear layers, tied head": ("llama_tied", (ALL, "lora.init_lora_weights=gaussian")),
    "some trained in full": ("llama", (ALL, "lora.modules_to_save=[layers.0.mlp.up_proj,lm_head,model.norm]")),
    "DoRA": ("qwen3", (ALL, "lora.use_dora=true")),
    "rows of the embedding": ("qwen3", ("lora.trainable_token_indices=[3,77,5]",)),
    "bf16": ("llama", (ALL, "training.precision=bf16")),
}  # fmt: skip


@pytest.mark.parametrize("name", OPTIONS)
def test_a_packed_base_trains_every_adapter_which_then_serves_the_base_itself(name, bases, tmp_path):
    kind, options = OPTIONS[name]
    base, config = bases[kind], config_of(bases[kind], NF4, *options)
    model, plain = adapted(base, config), load(base)
    packed = {name for name, module in model.get_base_model().named_modules() if is_packed(module)}
    saved = config.lora.modules_to_save or ()
    expected = {name for name in modules_of(plain).linear if not any(name.endswith(key) for key in saved)}
    assert {name.removesuffix(".base_layer") for name in packed} == expected

    weights = dict(plain.named_parameters())
    for name in packed:
        weight = model.get_base_model().get_submodule(name).weight
        unpacked = dequantize_4bit(weight.data, weight.quant_state).float()
        given = weights[f"{name.removesuffix('.base_layer')}.weight"]
        assert weight.dtype == torch.uint8
        # An eighth more for the scales, which are quantized themselves.
        assert (unpacked - given).abs().max() <= 1.125 * HALF_GAP * given.abs().max()
        assert not torch.equal(unpacked, given)

    total, trainable = count_parameters(model)
    assert (total, trainable) == count_parameters(adapted(base, config_of(base, *options)))
    counted = describe(str(base), asdict(config.lora))
    numbers = sum(size(model.get_base_model().get_submodule(name).weight) for name in packed)
    assert (counted["total"], counted["trainable"], counted["packed"]) == (total, trainable, numbers)
    fill_architecture(config)
    assert count(config, config.model.architecture).packed == numbers

    # bitsandbytes from 0.49 on gives no gradient after the model has evaluated once.
    before = logits(model.eval())
    untrained = {key: tensor.clone() for key, tensor in state.live_weights(model).items()}
    train(model, autocast=config.training.precision == "bf16")
    live = state.live_weights(model)
    assert all(not torch.equal(live[key], tensor) for key, tensor in untrained.items() if "lora_B" in key)
    assert not torch.equal(logits(model), before)

    resumed = adapted(base, config)
    put(state.live_weights(resumed), copied(live))
    assert torch.equal(logits(resumed.eval()), logits(model))

    state.save_weights(model, tmp_path / "adapter")
    assert "quant" not in (tmp_path / "adapter" / "adapter_config.json").read_text().lower().replace('"loftq', "")
    own = logits(PeftModel.from_pretrained(plain, str(tmp_path / "adapter")).eval())
    record = merge(base, tmp_path / "adapter", tmp_path / "merged", MergeOptions())
    assert record["logits"]["compared"]
    torch.testing.assert_close(logits(load(tmp_path / "merged")), own, atol=2e-5, rtol=1e-4)


def test_flops_and_the_plan_count_numbers_and_not_packed_bytes(bases):
    options = ("lora.layers_to_transform=[1]", "lora.target_modules=[q_proj]")
    sizes = []
    for packing in ((), (NF4,)):
        config = config_of(bases["llama"], *options, *packing)
        model = adapted(bases["llama"], config)
        counts = ParameterCounts(*count_parameters(model), 0)
        sizes.append(model_size(model.get_base_model(), counts, config, modules_of(load(bases["llama"]))))
    assert sizes[0] == sizes[1]
    assert sizes[0].forward_only_params > 0


def test_the_plan_has_the_packed_base_in_its_memory():
    """An 8B base: 7.5e9 numbers in its layers at 0.516 bytes, the embeddings and norms in bf16, the adapter in fp32."""
    model = ("model=llama31_8b", "method=lora", "lora=qlora", "training.precision=bf16", "accelerator=cuda")
    config = single(*model).config
    facts = config.model.architecture
    parameters = count(config, facts)
    memory = estimate(config, facts, parameters, 1e12)
    packed = 32 * (2 * 4096 * 4096 + 2 * 1024 * 4096 + 3 * 14336 * 4096)
    assert parameters.packed == packed
    rest = 8_030_261_248 - packed
    adapter = parameters.trainable * 6
    assert memory.weights == pytest.approx(packed * 0.5159 + rest * 2 + adapter + 14336 * 4096 * 2, rel=1e-4)
    plain = single(*model, "lora.quantize_base=null").config
    assert estimate(plain, facts, count(plain, facts), 1e12).weights > 2.5 * memory.weights


def test_a_packed_weight_takes_the_bytes_that_the_plan_counts(bases):
    """A layer large enough for whole blocks of scales."""
    from bitsandbytes.nn import Params4bit

    weight = Params4bit(torch.randn(512, 2048), requires_grad=False, quant_type="nf4").to("cpu")
    scales = weight.quant_state
    held = weight.nbytes + scales.absmax.nbytes + scales.state2.absmax.nbytes
    assert held == 512 * 2048 * BYTES_PER_WEIGHT


def test_a_router_that_computes_more_than_a_product_is_not_packed(tmp_path):
    """Llama 4's is a linear layer by class, and gives scores and logits; Mixtral's is a plain one, and since
    transformers 5 no linear layer, but one that chooses."""
    plain = not parts_of_parameters(small_model(small_config(AutoConfig.for_model("mixtral"), 64), "eager"))
    mixtrals = "block_sparse_moe.gate" if plain else "mlp.gate"
    for family, router in (("llama4_text", "feed_forward.router"), ("mixtral", mixtrals)):
        base = tmp_path / family
        small_model(small_config(AutoConfig.for_model(family), 64), "eager").save_pretrained(base)
        model = load_model(base, config_of(base, NF4, "lora.target_modules=[q_proj]"), "eager")
        packed = {name for name, module in model.named_modules() if is_packed(module)}
        assert packed == set(modules_of(load(base)).linear)
        assert any(name.endswith(router) for name, _ in model.named_modules())
        assert any(name.endswith(router) for name in packed) == (plain and family == "mixtral")
        model(input_ids=torch.tensor([[5, 6, 7]]))


def test_what_cannot_be_packed_is_refused_before_a_step(bases, tmp_path):
    with pytest.raises(TrntuneError, match=r"keep their weights turned \(Conv1D\)"):
        load_model(bases["gpt2"], config_of(bases["gpt2"], NF4, "lora.target_modules=[c_attn]"), "eager")

    broken = make_base(tmp_path / "broken", "llama")
    tensors = load_file(broken / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = float("nan")
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(TrntuneError, match=r"up_proj.weight holds 1 numbers of 3,840 that are not finite"):
        load_model(broken, config_of(broken, NF4), "eager")


def test_an_expert_with_numbers_that_are_not_finite_is_refused_though_it_is_no_layer_in_the_model(tmp_path):
    """Since transformers 5 all experts are one parameter, by another name than those in files."""
    base = tmp_path / "base"
    small_model(small_config(AutoConfig.for_model("mixtral"), 64), "eager").save_pretrained(base)
    tensors, name = load_file(base / "model.safetensors"), "model.layers.1.block_sparse_moe.experts.2.w3.weight"
    tensors[name][3, 5] = float("inf")
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(TrntuneError, match=rf"{name} holds 1 numbers of [\d,]+ that are not finite"):
        load_model(base, config_of(base, NF4, "lora.target_modules=[q_proj]"), "eager")


def change(directory: Path, **tensors: torch.Tensor) -> Path:
    """The base with other tensors, dots in their names as underscores in pairs."""
    found = load_file(directory / "model.safetensors")
    found.update({name.replace("__", "."): tensor for name, tensor in tensors.items()})
    save_file(found, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


@pytest.mark.parametrize("value", [0.0, 1e38], ids=["zero", "too large for a mean"])
def test_a_layer_whose_scales_are_all_the_same_stays_as_it_is(value, tmp_path, capsys):
    """bitsandbytes packs scales by how far they are from their mean; depth-extended models have layers of zeros."""
    weight = torch.full((48, 80), value)
    base = change(make_base(tmp_path / "base", "llama"), model__layers__1__mlp__down_proj__weight=weight)
    config = config_of(base, NF4, ALL)
    assert has_even_scales(weight)
    assert not has_even_scales(torch.randn(48, 80))
    assert has_even_scales(torch.randn(1, 64))  # a scale of its own is its mean
    model = adapted(base, config)
    assert "layers.1.mlp.down_proj stay as they are: their scales are all the same" in capsys.readouterr().err
    layer = model.get_base_model().model.layers[1].mlp
    assert torch.equal(layer.down_proj.base_layer.weight, weight)
    assert is_packed(layer.up_proj.base_layer)
    if not value:
        train(model)


def test_a_spare_tensor_of_the_files_is_not_looked_at(tmp_path):
    spare = torch.full((48, 48), float("nan"))
    base = change(make_base(tmp_path / "base", "llama"), model__layers__7__self_attn__q_proj__weight=spare)
    assert adapted(base, config_of(base, NF4)) is not None


def test_a_process_of_several_packs_on_the_cpu_too(bases):
    """Beside gloo a process's device has a number, by which transformers would look for an accelerator."""
    model = load_model(bases["llama"], config_of(bases["llama"], NF4), "eager", torch.device("cpu", 0))
    assert any(is_packed(module) for module in model.modules())


def test_the_plan_refuses_what_training_would(bases):
    lora = config_of(bases["gpt2"], NF4, "lora.target_modules=[c_attn]").lora
    with pytest.raises(TrntuneError, match=r"keep their weights turned \(Conv1D\)"):
        describe(str(bases["gpt2"]), asdict(lora))


def test_where_it_cannot_run_it_is_refused_with_what_to_install(monkeypatch):
    neuron = single("accelerator=trn1_32xlarge", "lora=qlora", "model=llama31_8b").config
    assert "bitsandbytes has no kernels for neuron" in str(next(check_quantized(neuron)))
    [problem] = problems(single("lora=qlora", "lora.init_lora_weights=orthogonal").config)
    assert str(problem).startswith(
        "lora.init_lora_weights=orthogonal: peft can't begin so on packed weights; take one of"
    )
    here = single("lora=qlora").config
    assert problems(here) == []
    for version, why in (("0.50.2", "bitsandbytes 0.50.2 was not seen to train here"), (None, "is not installed")):
        monkeypatch.setattr(metadata, "version", lambda package, version=version: answered(version))
        [problem] = problems(here)
        assert problem.key == "lora.quantize_base"
        assert why in problem.why
        assert problem.remedy == 'pip install -e ".[qlora]"'


def answered(version: str | None) -> str:
    if version is None:
        raise metadata.PackageNotFoundError
    return version


def test_an_unknown_packing_is_refused_with_those_that_there_are():
    config = single("method=lora").config
    config.lora.quantize_base = "int8"
    assert "nf4" in str(problems(config)[0])


def test_a_base_that_is_quantized_already_is_answered_with_the_way_that_works(bases, tmp_path):
    base = make_base(tmp_path / "base", "llama")
    settings = json.loads((base / "config.json").read_text())
    settings["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (base / "config.json").write_text(json.dumps(settings))
    problem = next(problem for problem in problems(config_of(base, NF4)) if "quantized" in problem.why)
    assert "take the unquantized model that it was made from (lora=qlora packs it while it trains)" in problem.why

"""Layers by torch.compile, and what is counted of it. torch's own "aot_eager" takes the compiler's place where what is
compiled doesn't matter: it traces as inductor does, in a tenth of the time."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AttentionInterface, LlamaConfig, LlamaForCausalLM

from launcher.errors import TrntuneError
from tests.launcher.conftest import single
from trainer.compilation import layers
from trainer.compilation.layers import check_compiler, compile_layers
from trainer.compilation.programs import Programs, watch_programs
from trainer.families.choose import enable_checkpointing
from trainer.metrics.throughput import Stopwatch
from trainer.models.attention import DOCUMENT_ATTENTION, document_attention
from trainer.models.causal_lm import CausalLMLoss


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    """torch.compile's settings and attention's place are the whole process's."""
    from torch._dynamo import config
    from torch._dynamo.callback import callback_handler
    from torch._functorch import config as autograd_config

    with config.patch(recompile_limit=config.recompile_limit, fail_on_recompile_limit_hit=False):
        with autograd_config.patch(enable_autograd_cache=autograd_config.enable_autograd_cache):
            yield
    AttentionInterface.register(DOCUMENT_ATTENTION, document_attention)
    callback_handler.clear()
    torch._dynamo.reset()


def watched(*overrides: str) -> tuple[Programs, list[str]]:
    told: list[str] = []
    found = watch_programs(single("experiment=tiny", *overrides).config, Stopwatch(), told.append)
    assert found is not None
    return found, told


def of_length(function: Any, length: int) -> None:
    function(torch.ones(length))


COMPILED = "training.compile=layers"
NATIVE = ("accelerator=trn2_3xlarge_native", "parallelism=single", "dataset.packing=false")


def test_a_step_that_compiles_after_the_first_ones_is_told_once_with_torchs_reason():
    found, told = watched(COMPILED, "tracking.skip_steps=2")
    double = torch.compile(lambda x: x * 2, backend="eager", dynamic=False)
    for length in (4, 5, 5):
        of_length(double, length)
        found.after_step()
    assert (found.compilations, found.late, told) == (2, 0, [])
    for length in (6, 7):
        of_length(double, length)
        found.after_step()
    assert (found.compilations, found.late) == (4, 2)
    [line] = told
    assert line.startswith("warning: step 4 of this start compiled 1 time after warm-up (")
    assert "size mismatch" in line
    assert {name: found.result()[name] for name in ("compilations", "late_compilations")} == {
        "compilations": 4,
        "late_compilations": 2,
    }


def test_that_nothing_was_compiled_is_told_once():
    found, told = watched(COMPILED)
    for _ in range(3):
        found.after_step()
    assert told == ["warning: training.compile=layers: torch.compile has compiled nothing, and says nothing about it"]


def test_the_first_evaluation_compiles_and_no_other_may():
    found, told = watched(COMPILED)
    double = torch.compile(lambda x: x * 2, backend="eager", dynamic=False)
    of_length(double, 4)
    found.after_evaluation()
    assert not found.late
    of_length(double, 5)
    found.after_evaluation()
    assert found.late == len(told) == 1


def test_on_torch_neuron_it_ends_the_run_unless_allowed():
    for more, ends in (((), True), (("accelerator.torch_neuron.on_new_graph=warn",), False)):
        found, told = watched(*NATIVE, "tracking.skip_steps=0", *more)
        double = torch.compile(lambda x: x * 2, backend="eager", dynamic=False)
        of_length(double, 4)
        found.after_step()
        of_length(double, 5)
        if ends:
            with pytest.raises(TrntuneError, match=r"^step 2 .* accelerator\.torch_neuron\.on_new_graph=warn goes on$"):
                found.after_step()
        else:
            found.after_step()
            assert len(told) == 1
        torch._dynamo.reset()


def test_what_the_host_computes_for_the_device_ends_the_run_unless_allowed(monkeypatch):
    beside = types.SimpleNamespace(get_fallback_ops=lambda: {"aten::sort"})
    monkeypatch.setitem(sys.modules, "torch_neuronx", beside)
    found, _ = watched(*NATIVE, "tracking.skip_steps=1")
    found.after_step()  # loading and the first step may need the host
    with pytest.raises(TrntuneError, match=r"^the host computes .*: aten::sort; accelerator\.torch_neuron\.on_host"):
        found.after_step()
    warned = ("accelerator.torch_neuron.on_host_operator=warn", "training.compile=none")
    found, told = watched(*NATIVE, "tracking.skip_steps=1", *warned)
    for _ in range(3):
        found.after_step()
    assert told == ["warning: the host computes what the device has no kernel for: aten::sort"]
    assert found.result()["host_operators"] == 1


def test_compiling_is_a_part_of_its_own():
    found, _ = watched(COMPILED)
    with found.stopwatch.part("train"):
        of_length(torch.compile(lambda x: x * 2, backend="eager"), 4)
    seconds = found.stopwatch.seconds
    assert 0 < found.seconds == pytest.approx(seconds["compile"])
    assert seconds["train"] >= 0


def test_nothing_is_watched_where_nothing_is_compiled():
    assert watch_programs(single("experiment=tiny").config, Stopwatch(), print) is None


def batch(lengths: tuple[int, ...], row: int) -> tuple[torch.Tensor, ...]:
    ids = torch.arange(row).remainder(97)[None]
    ends = torch.tensor(lengths).cumsum(0).tolist()
    documents = [(0, end - length, end) for end, length in zip(ends, lengths, strict=True)]
    positions = torch.cat([*map(torch.arange, lengths), torch.zeros(row - ends[-1], dtype=torch.int64)])[None]
    return ids, positions, torch.tensor(documents), ids.roll(-1)


ROWS = (batch((20, 9), 32), batch((7, 8, 9), 32), batch((31,), 32), batch((32,), 32))


def losses_and_gradients(depth: int, compiled: bool) -> tuple[list[torch.Tensor], int]:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
    facts = LlamaConfig(vocab_size=97, num_hidden_layers=depth, attn_implementation=DOCUMENT_ATTENTION, **sizes)
    model = LlamaForCausalLM(facts)
    found, _ = watched(COMPILED)
    if compiled:
        assert compile_layers(model.model.layers, "cpu") == depth
    module = CausalLMLoss(model).train()
    results = []
    for row in ROWS:
        loss = module(*row)
        loss.backward()
        gradients = [parameter.grad.clone() for parameter in model.parameters()]
        results += [loss.detach(), *gradients]
        module.zero_grad()
        found.after_step()
    return results, found.compilations


def test_layers_share_what_is_compiled_and_rows_of_other_documents_use_it(monkeypatch):
    monkeypatch.setattr(layers, "compiler_backend", lambda kind: "aot_eager")
    written, none = losses_and_gradients(3, compiled=False)
    found, three = losses_and_gradients(3, compiled=True)
    assert none == 0
    for mine, theirs in zip(found, written, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
    torch._dynamo.reset()
    _, six = losses_and_gradients(6, compiled=True)
    assert 0 < three == six < 12


def kept_numbers(compiled: bool, again: bool, split: bool) -> tuple[int, list[torch.Tensor], int]:
    """How many numbers a forward pass keeps, the gradients, and how often torch compiled."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
    facts = LlamaConfig(vocab_size=97, num_hidden_layers=2, attn_implementation=DOCUMENT_ATTENTION, **sizes)
    model = LlamaForCausalLM(facts)
    found, _ = watched(COMPILED)
    if again:
        enable_checkpointing(model)
    if compiled:
        compile_layers(model.model.layers, "cpu", split)
    module, kept = CausalLMLoss(model).train(), []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
        loss = module(*ROWS[0])
    loss.backward()
    return sum(kept), [parameter.grad for parameter in model.parameters()], found.compilations


@pytest.mark.parametrize("split", [False, True])
def test_compiled_layers_compute_again_what_they_dont_keep(split, monkeypatch):
    monkeypatch.setattr(layers, "compiler_backend", lambda kind: "aot_eager")
    kept, expected, _ = kept_numbers(compiled=False, again=True, split=split)
    all_of_it, _, compilations = kept_numbers(compiled=True, again=False, split=split)
    torch._dynamo.reset()
    found, gradients, as_many = kept_numbers(compiled=True, again=True, split=split)
    assert found == kept < all_of_it / 2
    assert as_many == compilations > 0
    for mine, theirs in zip(gradients, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def test_a_layer_that_cant_be_compiled_is_told_in_one_line(monkeypatch):
    def refuse(graph: Any, inputs: Any) -> Any:
        raise RuntimeError("no such kernel\nand a long explanation")

    monkeypatch.setattr(layers, "compiler_backend", lambda kind: refuse)
    layer = nn.Linear(2, 2)
    compile_layers([layer], "cpu")
    with pytest.raises(TrntuneError) as told:
        layer(torch.ones(1, 2))
    assert "\n" not in str(told.value)
    assert str(told.value).startswith("training.compile=layers: Linear can't be compiled: ")
    assert "no such kernel" in str(told.value)
    with pytest.raises(TrntuneError, match=r"^training\.compile=layers: torch.compile doesn't .*compile=none$"):
        check_compiler(torch.device("cpu"))


def test_a_run_of_compiled_layers_is_that_of_layers_as_written(run_tiny):
    written, compiled = run_tiny("written", "lora.dropout=0"), run_tiny("compiled", "lora.dropout=0", COMPILED)
    for run in (written, compiled):
        assert run.process.returncode == 0, run.process.stderr
    result = compiled.result
    assert result["compilations"] > 0
    assert result["late_compilations"] == 0
    assert result["compile_seconds"] > 0
    for key in ("loss", "grad_norm"):
        mine, theirs = ([line[key] for line in run.metrics("train")] for run in (compiled, written))
        assert mine == pytest.approx(theirs, rel=1e-3)

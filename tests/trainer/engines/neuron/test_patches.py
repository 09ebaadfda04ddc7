"""The mends of optimum-neuron's silent faults, and that they are refused on anything but what they were written for."""

from __future__ import annotations

import ast
import copy
import math
from typing import Any

import pytest
import torch
from torch import nn

from launcher.errors import TrntuneError
from tests.library_sets import neuron_source
from trainer.engines.neuron import patches as patches


def source_of(name: str) -> str:
    """The text of a function, class or method of the installed wheel: importing it would need torch_xla."""
    root, parts = neuron_source("optimum/neuron/version.py").parents[2], name.split(".")
    for cut in range(len(parts) - 1, 0, -1):
        file = root.joinpath(*parts[:cut]).with_suffix(".py")
        if file.is_file():
            return _segment(file.read_text(), parts[cut:])
    raise AssertionError(f"{name} is not in the installed optimum-neuron")


def _segment(text: str, path: list[str]) -> str:
    node: Any = ast.parse(text)
    for name in path:
        node = next(child for child in node.body if getattr(child, "name", None) == name)
    return ast.unparse(node)


FINGERPRINTS = {**patches.FINGERPRINTS, **patches.OF_COPIES, **patches.OF_STAGES}


@pytest.mark.parametrize("name", sorted(name for name in FINGERPRINTS if name.startswith("optimum.")))
def test_the_installed_optimum_neuron_is_the_one_that_is_mended(name: str) -> None:
    assert patches.fingerprint(source_of(name)) == FINGERPRINTS[name]


def test_a_fingerprint_sees_code_and_not_comments() -> None:
    plain, told = "def f(x):\n    return x + 1\n", 'def f(x):\n    """Says."""\n    # why\n    return (x + 1)\n'
    assert patches.fingerprint(told) == patches.fingerprint(plain)
    assert patches.fingerprint("def f(x):\n    return x + 2\n") != patches.fingerprint(plain)


@pytest.mark.parametrize(
    ("name", "library"),
    [
        ("optimum.neuron.accelerate.optimizer.NeuronAcceleratedOptimizer", r"optimum-neuron 0\.4\.5"),
        ("neuronx_distributed.parallel_layers.grads.get_grad_norm", r"neuronx_distributed 0\.15 to 0\.17"),
    ],
)
def test_another_source_is_refused(name: str, library: str) -> None:
    def other() -> None: ...

    with pytest.raises(TrntuneError, match=f"^{name} is not that of {library}"):
        patches.check(lambda name: other, {name: FINGERPRINTS[name]})


class Norm(nn.Module):
    """A replicated parameter that is marked, a split one, and a replicated one that nobody marked: lora_A."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.split, self.lora_a = (nn.Parameter(torch.ones(2)) for _ in range(3))
        self.frozen = nn.Parameter(torch.ones(2), requires_grad=False)
        self.norm.sequence_parallel_enabled = True  # type: ignore[attr-defined]
        self.split.tensor_model_parallel = True  # type: ignore[attr-defined]


def summed_over(others: list[torch.Tensor]) -> Any:
    """A fake all-reduce: what the other rank has is added, gradient by gradient."""
    left = iter(others)
    return lambda gradient: gradient.add_(next(left))


def test_replicated_halves_of_lora_are_summed_over_the_ranks_and_split_ones_are_not() -> None:
    model = Norm()
    assert patches.mark_replicated(model) == ["norm", "lora_a"]
    for parameter in (model.norm, model.split, model.lora_a):
        parameter.grad = torch.ones(2)
    optimizer = torch.optim.AdamW([model.norm, model.split, model.lora_a])
    patches.reduce_sequence_parallel_gradients(optimizer, summed_over([torch.full((2,), 3.0), torch.full((2,), 5.0)]))
    assert model.norm.grad is not None
    assert model.lora_a.grad is not None
    assert model.split.grad is not None
    assert (model.norm.grad[0], model.lora_a.grad[0], model.split.grad[0]) == (4, 6, 1)


def test_a_gradient_that_was_moved_to_main_grad_is_summed_there() -> None:
    parameter = Norm().norm
    parameter.main_grad = torch.ones(2)  # type: ignore[attr-defined]
    assert parameter.grad is None
    optimizer = torch.optim.AdamW([parameter])
    patches.reduce_sequence_parallel_gradients(optimizer, summed_over([torch.full((2,), 2.0)]))
    assert torch.equal(parameter.main_grad, torch.full((2,), 3.0))


class Replacing(torch.optim.AdamW):
    """As ZeRO-1 is made: from another optimizer's groups, and then accelerate loads its state into itself."""

    def __init__(self, original: torch.optim.Optimizer) -> None:
        super().__init__(original.param_groups)
        self.load_state_dict(copy.deepcopy(self.state_dict()))


def test_the_schedule_reaches_the_optimizer_that_replaced_its_own() -> None:
    parameter = nn.Parameter(torch.zeros(1))
    original = torch.optim.AdamW([parameter], lr=1.0)
    scheduler = torch.optim.lr_scheduler.LambdaLR(original, lambda step: step / 4)
    used = Replacing(original)
    original.step()
    scheduler.step()
    assert used.param_groups[0]["lr"] == 0, "the fault is gone: the mend can go too"
    patches.set_learning_rates(used, scheduler.get_last_lr())
    assert used.param_groups[0]["lr"] == 0.25


def test_copies_of_a_head_are_on_the_ranks_that_have_its_weights() -> None:
    """Rank r of a model has head r modulo the number of heads [GQAQKVColumnParallelLinearSpec: weights are repeated
    whole, and then cut]."""
    assert patches.head_groups([[0, 1, 2, 3], [4, 5, 6, 7]], 2) == [[0, 2], [1, 3], [4, 6], [5, 7]]
    assert patches.head_groups([[0, 8, 16, 24], [1, 9, 17, 25]], 2) == [[0, 16], [8, 24], [1, 17], [9, 25]]
    assert patches.head_groups([[0, 1]], 1) == [[0], [1]]
    assert patches.head_groups([[0, 1, 2, 3]], 4) == [[0, 1, 2, 3]]


class Projections(nn.Module):
    """One rank's part of a fused layer of queries, keys and values."""

    def __init__(self, kv_size_multiplier: int) -> None:
        super().__init__()
        self.kv_size_multiplier = kv_size_multiplier
        self.weight_q, self.weight_k, self.weight_v = (nn.Parameter(torch.ones(3)) for _ in range(3))


def squares_over_two_ranks(parameters: list[Any]) -> torch.Tensor:
    """As neuronx_distributed's norm: what is split counts on each rank, and the other rank's gradients are the same."""
    return torch.stack([2 * (p.grad**2).sum() for p in parameters if p.tensor_model_parallel]).sum().sqrt()


def test_the_norm_counts_a_head_once_though_two_ranks_have_it() -> None:
    model = nn.Module()
    model.qkv = Projections(2)
    for parameter in model.parameters():
        parameter.tensor_model_parallel = True  # type: ignore[attr-defined]
        parameter.grad = torch.full((3,), 2.0)
    # Of queries each rank has its own three; of keys and values there are three, which both have.
    expected = math.sqrt((3 + 3 + 3 + 3) * 2.0**2)
    parts = [(name, parameter, None) for name, parameter in model.named_parameters()]
    assert squares_over_two_ranks([p for _, p, _ in parts]) == pytest.approx(math.sqrt(18 * 2.0**2))
    patches.mark_copies(parts, model)
    norm = patches.counted_once(squares_over_two_ranks)
    assert norm([p for _, p, _ in parts]) == pytest.approx(expected)
    assert all(torch.equal(p.grad, torch.full((3,), 2.0)) for p in model.parameters() if p.grad is not None)


def test_a_part_without_a_gradient_is_passed_on() -> None:
    model = nn.Module()
    model.qkv = Projections(4)
    parts = [(name, parameter, None) for name, parameter in model.named_parameters()]
    patches.mark_copies(parts, model)
    assert [part.copies for _, part, _ in parts] == [1, 4, 4]
    assert patches.counted_once(lambda parameters: parameters)([p for _, p, _ in parts])[1] is model.qkv.weight_k


def test_what_flows_back_is_shared_where_every_rank_would_have_all_of_it() -> None:
    ends = (nn.Embedding(5, 3), nn.Linear(3, 5, bias=False))
    inputs = torch.tensor([[1, 2]])

    def gradients() -> list[torch.Tensor]:
        ends[1](ends[0](inputs)).square().sum().backward()
        found = [p.grad.clone() for end in ends for p in end.parameters() if p.grad is not None]
        for end in ends:
            end.zero_grad()
        return found

    whole = gradients()
    patches.share_gradients(ends, 4)
    shared = gradients()
    assert torch.allclose(shared[1], whole[1] / 4)
    assert torch.allclose(shared[0], whole[0] / 16), "through both"
    with torch.no_grad():
        ends[1](ends[0](inputs))


def test_gradients_are_scaled_wherever_they_are_kept() -> None:
    one, other, none = (nn.Parameter(torch.ones(2)) for _ in range(3))
    one.grad, other.main_grad = torch.ones(2), torch.full((2,), 3.0)  # type: ignore[attr-defined]
    patches.scale_gradients(torch.optim.AdamW([one, other, none]), torch.tensor(0.5))
    assert torch.equal(one.grad, torch.full((2,), 0.5))
    assert torch.equal(other.main_grad, torch.full((2,), 1.5))  # type: ignore[attr-defined]
    assert none.grad is None

"""Resume of a sharded optimizer: each rank puts back its own part, and goes on as if nothing had happened."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from trainer.engines.neuron import state as neuron_state
from trainer.engines.state import copied, put


class Zero1:
    """ZeRO-1 as torch_xla makes it, for all ranks of a test in one process: each updates its rows of a bf16 parameter
    through an fp32 master copy."""

    def __init__(self, parameters: list[nn.Parameter], rank: int, ranks: int) -> None:
        self.rank, self.ranks = rank, ranks
        self.param_groups: list[dict[str, Any]] = [{"params": parameters}]
        parts = [nn.Parameter(self.mine(p.detach()).float()) for p in parameters]
        self.base_optimizer = torch.optim.AdamW(parts, lr=0.05)

    def mine(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.chunk(self.ranks)[self.rank]

    def step(self) -> None:
        pairs = zip(self.param_groups[0]["params"], self.base_optimizer.param_groups[0]["params"], strict=True)
        for whole, part in pairs:
            part.grad = self.mine(whole.grad).float()
        self.base_optimizer.step()


def make(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 2)).to(torch.bfloat16)


def train(model: nn.Module, optimizers: list[Zero1], steps: range) -> None:
    for step in steps:
        torch.manual_seed(step)
        model.zero_grad()
        model(torch.randn(8, 4, dtype=torch.bfloat16)).square().sum().backward()
        for optimizer in optimizers:
            optimizer.step()
        parts = [optimizer.base_optimizer.param_groups[0]["params"] for optimizer in optimizers]
        for parameter, *split in zip(optimizers[0].param_groups[0]["params"], *parts, strict=True):
            parameter.data.copy_(torch.cat([part.detach() for part in split]))


def started(seed: int = 0) -> tuple[nn.Module, list[Zero1]]:
    model = make(seed)
    return model, [Zero1(list(model.parameters()), rank, 2) for rank in (0, 1)]


def test_two_and_two_steps_are_four_with_every_rank_restoring_its_own_part() -> None:
    straight, optimizers = started()
    train(straight, optimizers, range(4))
    model, optimizers = started()
    train(model, optimizers, range(2))
    weights = copied(neuron_state.trained_weights(model))
    saved = [copied(neuron_state.optimizer_tensors(optimizer, model)) for optimizer in optimizers]
    again, optimizers = started(seed=7)
    put(neuron_state.trained_weights(again), weights)
    for optimizer, state in zip(optimizers, saved, strict=True):
        neuron_state.restore_optimizer(optimizer, again, state)
    train(again, optimizers, range(2, 4))
    for one, other in zip(straight.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)


def test_master_weights_are_saved_since_bf16_has_lost_their_last_bits() -> None:
    model, optimizers = started()
    train(model, optimizers, range(2))
    state = neuron_state.optimizer_tensors(optimizers[0], model)
    assert state["0.weight.master"].dtype == torch.float32
    assert not torch.equal(state["0.weight.master"], optimizers[0].mine(model[0].weight).float())  # type: ignore[index]


def test_an_optimizer_without_zero_1_is_saved_and_put_back_too() -> None:
    model = make(0)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 4, dtype=torch.bfloat16)).sum().backward()
    optimizer.step()
    state = copied(neuron_state.optimizer_tensors(optimizer, model))
    assert "0.weight.master" not in state
    fresh = torch.optim.AdamW(model.parameters())
    neuron_state.restore_optimizer(fresh, model, state)
    assert neuron_state.optimizer_tensors(fresh, model).keys() == state.keys()


def test_state_of_another_model_is_refused() -> None:
    model, optimizers = started()
    train(model, optimizers, range(1))
    state = neuron_state.optimizer_tensors(optimizers[0], model)
    with pytest.raises(KeyError, match="other parameters"):
        neuron_state.restore_optimizer(optimizers[0], model, {**state, "2.weight.exp_avg": torch.zeros(1)})


def test_an_adapter_is_saved_under_the_names_that_peft_saves_by() -> None:
    model = nn.ModuleDict({"lora_A": nn.ModuleDict({"default": nn.Linear(2, 2, bias=False)})})
    assert list(neuron_state.trained_weights(model)) == ["lora_A.weight"]

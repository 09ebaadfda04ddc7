"""The end of a run on Neuron, as far as it can be tried without one: what ranks write beside weights, and how much."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from tests.trainer.engines.neuron.places import Recorded, ranks
from tests.trainer.engines.neuron.test_state import make, started, train
from tests.trainer.models.conftest import composed
from trainer.engines.neuron import state as neuron_state
from trainer.engines.neuron.engine import NeuronEngine
from trainer.engines.neuron.part import Part
from trainer.fetch.tiny_llama import build
from trainer.models.load import load_tokenizer

PARALLEL = ("parallelism.data_parallel=2", "parallelism.tensor_parallel=1")


def bare(model: nn.Module, rank: int, *overrides: str) -> NeuronEngine:
    """One rank's engine with its part of a model; nothing of it needs a device."""
    engine: Any = NeuronEngine.__new__(NeuronEngine)
    engine.config = composed("accelerator=trn1_32xlarge", *overrides)
    parallel = engine.config.parallelism
    everyone = ranks(parallel.data_parallel, parallel.pipeline_parallel, parallel.tensor_parallel)
    engine.rank, engine.part = rank, Part(engine.config, everyone[rank], Recorded(everyone))
    engine.part.dtype = next(model.parameters()).dtype
    engine.trainer = SimpleNamespace(model=model)
    return engine


def nbytes(tensors: dict[str, torch.Tensor]) -> int:
    return sum(tensor.nbytes for name, tensor in tensors.items() if not name.endswith(".step"))


def test_the_ranks_bytes_are_those_of_a_checkpoint_under_zero_1() -> None:
    model, optimizers = started()
    train(model, optimizers, range(1))
    given = (*PARALLEL, "parallelism.zero_1=true", "method=full")
    shares = [bare(model, rank, *given).saved_bytes() for rank in (0, 1)]
    weights = nbytes(neuron_state.trained_weights(model))
    states = [nbytes(neuron_state.optimizer_tensors(optimizer, model)) for optimizer in optimizers]
    assert [share[0] for share in shares] == [weights, 0]
    assert sum(share[1] for share in shares) == weights + sum(states)


def test_without_zero_1_the_first_replica_writes_for_all() -> None:
    model = make(0).float()
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    given = (*PARALLEL, "parallelism.zero_1=false", "training.early_stopping_patience=1", "training.eval_every=1")
    shares = [bare(model, rank, *given).saved_bytes() for rank in (0, 1)]
    weights = nbytes(neuron_state.trained_weights(model))
    assert shares == [(weights, 2 * weights + nbytes(neuron_state.optimizer_tensors(optimizer, model))), (0, 0)]


@pytest.mark.parametrize(
    ("method", "names"),
    [
        ("full", {"config.json", "shards/mp_metadata_pp_rank_0.json"}),
        ("lora", {"adapter_default/adapter_config.json", "adapter_default/adapter_shards/mp_metadata_pp_rank_0.json"}),
    ],
)
def test_what_says_how_weights_lie_is_written_by_the_rank_that_will_save_it(
    method: str, names: set[str], tmp_path: Path
) -> None:
    architecture = composed("model=tiny_llama").model.architecture
    assert architecture is not None
    build(tmp_path / "base", architecture)
    for rank in (0, 1):
        engine = bare(make(0), rank, f"method={method}", "parallelism.tensor_parallel=2")
        engine.model_dir, engine.tokenizer = tmp_path / "base", load_tokenizer(tmp_path / "base")
        # optimum-neuron's own, which says it, is imported with torch_xla only: tests/neuron has it.
        engine.neuron_model = SimpleNamespace(metadata=lambda model: {"ranks": 2})  # type: ignore[assignment]
        (tmp_path / str(rank)).mkdir()
        engine.rehearse(tmp_path / str(rank))
    written = {str(file.relative_to(tmp_path / "0")) for file in (tmp_path / "0").rglob("*.json")}
    assert names | {"tokenizer.json", "tokenizer_config.json"} <= written
    assert json.loads((tmp_path / "0" / next(name for name in names if "metadata" in name)).read_text()) == {"ranks": 2}
    assert list((tmp_path / "1").iterdir()) == []

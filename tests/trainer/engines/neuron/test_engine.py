"""The neuron engine where there is no Neuron: what it refuses, and what it agrees on with the other ranks."""

from __future__ import annotations

import importlib.util
import re
from typing import Any

import pytest
import torch

from launcher.config.schema import Config
from launcher.errors import TrntuneError, UsageError
from launcher.neuron import libraries
from tests.trainer.engines.neuron.places import Recorded, ranks
from tests.trainer.models.conftest import composed
from trainer.engines.base import create_engine
from trainer.engines.neuron import engine
from trainer.engines.neuron.part import Part
from trainer.metrics.throughput import Counts
from trainer.signals import Stop

NEURON = ("accelerator=trn1_32xlarge",)


def first(settings: Config, *others: Any) -> Part:
    """The part of the first rank; ``others`` is what the other ranks say when they are asked."""
    parallel = settings.parallelism
    everyone = ranks(parallel.data_parallel, parallel.pipeline_parallel, parallel.tensor_parallel)
    return Part(settings, everyone[0], Recorded(everyone, *others))


def test_it_wants_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    with pytest.raises(TrntuneError, match="must be started by torchrun"):
        create_engine(composed(*NEURON))


def test_a_python_whose_libraries_do_not_fit_is_told_as_the_launcher_tells_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    monkeypatch.setattr(libraries, "installed", {"transformers": "5.24.0"}.get)
    with pytest.raises(TrntuneError, match=r"^accelerator=trn1_32xlarge: .* needs .*pip install") as told:
        create_engine(composed(*NEURON))
    with pytest.raises(UsageError, match=re.escape(str(told.value))):
        libraries.check_libraries(composed(*NEURON), ["train"])


def test_a_machine_without_neurons_packages_is_told_which_one_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """AWS's are not among those whose versions are asked."""
    if importlib.util.find_spec("torch_xla") is not None:
        pytest.skip("torch_xla is installed here")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    monkeypatch.setattr(engine, "platform_fault", lambda config: None)
    with pytest.raises(TrntuneError, match=r"needs the Python package (optimum|torch_xla)"):
        create_engine(composed(*NEURON))


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["parallelism.zero_1=true", "training.precision=fp32"], "parallelism.zero_1=true: .* take false"),
    ],
)
def test_what_would_be_trained_wrongly_is_refused(overrides: list[str], words: str) -> None:
    with pytest.raises(TrntuneError, match=words):
        create_engine(composed(*NEURON, *overrides))


def test_counts_are_those_of_one_rank_of_each_replica_and_one_wish_stops_all() -> None:
    # tp 2, dp 2: ranks 0 and 1 have the rows of the first replica, 2 and 3 those of the second.
    mine, second = Counts(examples=3, trained=30, loss_sum=90.0), Counts(examples=2, trained=10, loss_sum=20.0)
    others = [(mine.as_list(), Stop.NO), (second.as_list(), Stop.CHECKPOINT_AND_EXIT), (second.as_list(), Stop.NO)]
    part = first(composed(*NEURON, "parallelism.tensor_parallel=2", "parallelism.data_parallel=2"), *others)
    counts, stop = part.agree(mine, Stop.NO)
    assert (counts.examples, counts.trained, counts.loss_sum) == (5, 40, 110.0)
    assert first(part.config, [5.0], [7.0], [7.0]).summed([5.0]) == [12.0]
    assert stop == Stop.CHECKPOINT_AND_EXIT


def test_a_batch_of_another_shape_would_be_another_graph_and_ends_the_run() -> None:
    part = first(composed(*NEURON, "parallelism.tensor_parallel=1", "parallelism.data_parallel=1"))
    part.note_shapes({"input_ids": torch.zeros(1, 8), "labels": torch.zeros(1, 8)})
    part.note_shapes({"input_ids": torch.ones(1, 8), "labels": torch.zeros(1, 8)})
    with pytest.raises(TrntuneError, match="a batch has shapes"):
        part.note_shapes({"input_ids": torch.zeros(1, 4), "labels": torch.zeros(1, 4)})

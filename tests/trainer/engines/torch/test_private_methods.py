"""The Trainer's methods that PackedTrainer has its own of are those of the installed transformers: an upgrade that
changes one breaks a test, and not a run that goes on."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any

import pytest
import transformers
from transformers import Trainer

from trainer.engines.torch.trainer import PackedTrainer

# As transformers 4.57 and 5.24 have them, without types. Whoever changes one looks at where the Trainer calls it, and
# at ours.
SIGNATURES = {
    "_get_num_items_in_batch": "(self, batch_samples, device)",
    "_load_from_checkpoint": "(self, resume_from_checkpoint, model=None)",
    "_load_optimizer_and_scheduler": "(self, checkpoint)",
    "_load_rng_state": "(self, checkpoint)",
    "_move_model_to_device": "(self, model, device)",
    "_prepare_inputs": "(self, inputs)",
    "_save_checkpoint": "(self, model, trial)",
    "compute_loss": "(self, model, inputs, return_outputs=False, num_items_in_batch=None)",
    "create_scheduler": "(self, num_training_steps, optimizer=None)",
    "evaluate": "(self, eval_dataset=None, ignore_keys=None, metric_key_prefix='eval')",
    "get_train_dataloader": "(self)",
    "log": "(self, logs, start_time=None)",
    "store_flos": "(self)",
}


def overridden() -> set[str]:
    """PackedTrainer's own methods that the Trainer calls."""
    return {name for name in vars(PackedTrainer) if callable(getattr(Trainer, name, None)) and name[:2] != "__"}


def untyped(function: Callable[..., Any]) -> inspect.Signature:
    signature = inspect.signature(function)
    bare = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in signature.parameters.values()]
    return signature.replace(parameters=bare, return_annotation=inspect.Signature.empty)


def test_every_override_is_written_down() -> None:
    assert overridden() == SIGNATURES.keys()


@pytest.mark.parametrize("name", SIGNATURES)
def test_the_installed_trainer_calls_it_so(name: str) -> None:
    assert str(untyped(getattr(Trainer, name))) == SIGNATURES[name]


@pytest.mark.parametrize("name", SIGNATURES)
def test_ours_takes_what_it_is_called_with(name: str) -> None:
    ours, theirs = untyped(getattr(PackedTrainer, name)), untyped(getattr(Trainer, name))
    takes_any = {parameter.kind for parameter in ours.parameters.values()} >= {inspect.Parameter.VAR_KEYWORD}
    assert takes_any or list(ours.parameters.values()) == list(theirs.parameters.values())


@pytest.mark.parametrize("name", [name for name in SIGNATURES if name.startswith("_")])
def test_a_private_one_names_the_versions_that_it_holds_for(name: str) -> None:
    named = re.search(r"transformers (\d+\.\d+) and (\d+\.\d+)", getattr(PackedTrainer, name).__doc__ or "")
    assert named is not None
    assert transformers.__version__.rpartition(".")[0] in named.groups()

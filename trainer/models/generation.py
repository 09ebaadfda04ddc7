"""The settings of generation that a model in memory is saved with: launcher.generation_config's, on transformers'."""

from __future__ import annotations

from pathlib import Path

from transformers import GenerationConfig, PreTrainedModel

from launcher.errors import TrntuneError, in_one_line
from launcher.generation_config import FILE, Changes, repair_of


def check_generation(model_dir: Path) -> None:
    """Raise TrntuneError for a generation_config.json that transformers doesn't load, with its words."""
    if repair_of(model_dir).unread or not (model_dir / FILE).is_file():
        return
    try:
        GenerationConfig.from_pretrained(model_dir, local_files_only=True)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise TrntuneError(f"{model_dir / FILE}: {in_one_line(error)}; correct it, or remove the line") from None


def mend_generation(model: PreTrainedModel, model_dir: Path) -> tuple[str, ...]:
    """Give ``model``, loaded from ``model_dir``, settings that it can be saved with. Returns what to tell of them."""
    repair, settings = repair_of(model_dir), model.generation_config
    if settings is None:  # it can't generate, and none are saved
        return ()
    _change(settings, repair.generation)
    if not (model_dir / FILE).is_file() or repair.unread:
        _change(settings, repair.model)  # they were made of config.json
    for key, value in repair.model.items():
        setattr(model.config, key, value)
    return repair.notes


def _change(settings: GenerationConfig, changes: Changes) -> None:
    defaults = GenerationConfig()
    for key, value in changes.items():
        setattr(settings, key, getattr(defaults, key) if value is None else value)

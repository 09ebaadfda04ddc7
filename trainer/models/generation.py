"""The settings of generation that a model in memory is saved with: launcher.model_dir.generation_config's."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from transformers import GenerationConfig, PreTrainedModel

from launcher.errors import SuspendedError, TrntuneError, in_one_line
from launcher.model_dir.generation_config import FILE, MODEL_FILE, Changes, of_model_file, repair_of, with_ends
from trainer.data.turn_end import ends_of
from trainer.models.load import load_tokenizer


def check_generation(model_dir: Path) -> None:
    """Raise TrntuneError for a generation_config.json that transformers doesn't load, with its words."""
    if repair_of(model_dir).unread or not (model_dir / FILE).is_file():
        return
    try:
        GenerationConfig.from_pretrained(model_dir, local_files_only=True)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise TrntuneError(f"{model_dir / FILE}: {in_one_line(error)}; correct it, or remove the line") from None


def mend_generation(model: PreTrainedModel, model_dir: Path, ends: Sequence[int] = ()) -> tuple[str, ...]:
    """Give ``model``, loaded from ``model_dir``, settings that it can be saved with, and by which generation stops at
    ``ends``. Returns what to tell of them."""
    repair, settings = repair_of(model_dir), model.generation_config
    if settings is None:  # it can't generate, and none are saved
        return ()
    _change(settings, repair.generation)
    if not (model_dir / FILE).is_file() or repair.unread:
        _change(settings, repair.model)  # they were made of config.json
    for key, value in repair.model.items():
        setattr(model.config, key, value)
    found = with_ends(settings.to_dict(), ends)
    _change(settings, found)
    return (*repair.notes, *_ends_note(found))


def stop_at_ends(directory: Path, write: Callable[[Path, str], None]) -> tuple[str, ...]:
    """Have generation_config.json of a model directory name every token that answers end at; what to tell of that."""
    text, notes = _ends_text(directory)
    if text is not None:
        write(directory / FILE, text)
    return notes


def _ends_text(directory: Path) -> tuple[str | None, tuple[str, ...]]:
    """What generation_config.json of a model directory has to be for servers to stop where answers end, None where it
    is that; and what to tell of it. Nothing for a directory whose tokenizer can't be loaded."""
    try:
        ends = ends_of(load_tokenizer(directory))
    except SuspendedError:  # a signal came
        raise
    except Exception:  # none there, or one that others tell of
        return None, ()
    file = directory / FILE
    content = json.loads((file if file.is_file() else directory / MODEL_FILE).read_text(encoding="utf-8"))
    content = content if file.is_file() else of_model_file(content)
    found = with_ends(content, ends)
    text = json.dumps({**content, **found}, indent=2, ensure_ascii=False) + "\n" if found else None
    return text, _ends_note(found)


def _ends_note(found: Changes) -> tuple[str, ...]:
    ids = found.get("eos_token_id")
    return () if ids is None else (f"{FILE} of what is saved has eos_token_id={ids}: answers end at these tokens",)


def _change(settings: GenerationConfig, changes: Changes) -> None:
    defaults = GenerationConfig()
    for key, value in changes.items():
        setattr(settings, key, getattr(defaults, key) if value is None else value)

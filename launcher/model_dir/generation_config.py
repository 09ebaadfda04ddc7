"""What a base says of generation, and what of that a model made of it may say, from its JSON files alone.

transformers loads a generation_config.json that contradicts itself with a warning, and refuses to save it
(GenerationConfig.validate(strict=True)): training would end, and its model could not be written. Where it is clear what
is meant it is put right; the rules are that function's, one by one, of transformers 4.57 and of 5, which has more of
them (top_h, and null, which it takes as nothing said).
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from launcher.errors import TrntuneError

FILE, MODEL_FILE = "generation_config.json", "config.json"

Changes = dict[str, Any]
"""Keys with their new values; None: the key goes, and the default holds."""

# Without do_sample=true these do nothing. Behind each the values that say nothing.
_SAMPLING: Mapping[str, tuple[Any, ...]] = {
    "temperature": (None, 1.0),
    "top_p": (None, 1.0),
    "top_k": (None, 50),
    "min_p": (None,),
    "top_h": (None,),
    "typical_p": (None, 1.0),
    "epsilon_cutoff": (None, 0.0),
    "eta_cutoff": (None, 0.0),
}
# Without several beams these do nothing.
_BEAMS: Mapping[str, tuple[Any, ...]] = {"early_stopping": (None, False), "length_penalty": (None, 1.0)}
# With use_cache=false these do nothing.
_CACHE = ("cache_implementation", "cache_config", "return_legacy_cache")
# Without return_dict_in_generate=true these do nothing.
_OUTPUTS = ("output_attentions", "output_hidden_states", "output_scores", "output_logits")
# What transformers moves from config.json to the generation config as it saves, of all that can contradict itself.
_MOVED = (*_SAMPLING, *_BEAMS, "do_sample", "num_beams")


@dataclass(frozen=True)
class Repair:
    """What a model made of a base says differently, by file; ``notes`` tell it, a line a file."""

    generation: Changes = field(default_factory=dict)
    model: Changes = field(default_factory=dict)
    """of config.json, where older models have such settings"""
    unread: bool = False
    """generation_config.json is no JSON: transformers goes on without it, and so does what is made of the base"""
    notes: tuple[str, ...] = ()


def repair_of(base: Path, named: Path | None = None) -> Repair:
    """What has to be put right in a model directory's settings of generation; nothing for nearly all of them.

    ``named`` is what the notes call the directory. Raises TrntuneError for a generation_config.json that transformers
    can't load either.
    """
    told = named or base
    try:
        given, unread = _read(base / FILE), False
    except ValueError:
        given, unread = None, True
    stated = {key: value for key, value in _model_facts(base).items() if key in _MOVED and value is not None}
    found = repairs(given or {})
    notes = list(_notes(told / FILE, given or {}, found))
    if unread:
        notes.append(f"{told / FILE} is no JSON: what is saved goes without it, as transformers does")
    model = _of_model(stated, given)
    notes += _notes(told / MODEL_FILE, stated, model)
    return Repair(found, model, unread, tuple(notes))


def repairs(content: Mapping[str, Any]) -> Changes:
    """What makes a generation config one that transformers saves; nothing where it already is."""
    found: Changes = {}
    sampling = _stated(content, _SAMPLING)
    if sampling and not content.get("do_sample"):
        # Who gives a temperature and doesn't say how to decode means sampling, as the serving engines take it.
        wanted = content.get("do_sample") is None and _means_sampling(content, sampling)
        found.update({"do_sample": True} if wanted else dict.fromkeys(sampling))
    if content.get("num_beams") in (None, 1):
        found.update(dict.fromkeys(_stated(content, _BEAMS)))
    if content.get("use_cache") is False:
        found.update({key: None for key in _CACHE if content.get(key) is not None})
    if content.get("return_dict_in_generate") is not True:
        found.update({key: None for key in _OUTPUTS if content.get(key) is True})
    padding = content.get("pad_token_id")
    if isinstance(padding, int) and padding < 0:
        found["pad_token_id"] = None
    return found


def with_ends(content: Mapping[str, Any], ends: Collection[int]) -> Changes:
    """What makes generation stop at the tokens ``ends``, too; nothing where it already does."""
    given = content.get("eos_token_id")
    there = given if isinstance(given, list) else [] if given is None else [given]
    missing = [each for each in ends if each not in there]
    every = [*there, *missing]
    return {"eos_token_id": every if len(every) > 1 else every[0]} if missing else {}


def of_model_file(facts: Mapping[str, Any]) -> dict[str, Any]:
    """What transformers takes from config.json where there is no generation_config.json, and which isn't its default:
    a file that is then made must say the same."""
    names = ("bos_token_id", "eos_token_id", "pad_token_id", *_MOVED)
    facts = {**(facts.get("text_config") or {}), **facts}
    return {key: facts[key] for key in names if facts.get(key) is not None}


def applied(content: Mapping[str, Any], changes: Changes) -> dict[str, Any]:
    """``content`` with the changes made."""
    kept = {key: value for key, value in content.items() if key not in changes}
    return {**kept, **{key: value for key, value in changes.items() if value is not None}}


def repaired_texts(base: Path, repair: Repair) -> dict[str, str | None]:
    """The changed files' new texts by name; None for one that goes."""
    texts: dict[str, str | None] = {}
    for name, changes in ((FILE, repair.generation), (MODEL_FILE, repair.model)):
        if changes:
            content = applied(json.loads((base / name).read_text(encoding="utf-8")), changes)
            texts[name] = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    return {**texts, FILE: None} if repair.unread else texts


def _of_model(stated: Mapping[str, Any], given: Mapping[str, Any] | None) -> Changes:
    """Changes of config.json, whose settings are moved over those of generation_config.json when a model is saved."""
    if given is None:
        return repairs(stated)
    # Where there is a generation_config.json it alone decides what generate() does.
    given = applied(given, repairs(given))
    return dict.fromkeys(stated) if repairs({**given, **stated}) else {}


def _stated(content: Mapping[str, Any], neutral: Mapping[str, tuple[Any, ...]]) -> list[str]:
    return [key for key, silent in neutral.items() if key in content and content[key] not in silent]


def _means_sampling(content: Mapping[str, Any], stated: Collection[str]) -> bool:
    """False where zeros say that nothing is to be drawn, or only turn a limit off."""
    return content.get("temperature") != 0 and any(content[key] != 0 for key in stated)


def _notes(file: Path, content: Mapping[str, Any], changes: Changes) -> Iterator[str]:
    gone = [key for key, value in changes.items() if value is None]
    if changes.get("do_sample"):
        given = _listed(content, _stated(content, _SAMPLING))
        yield f"{file} gives {given} without do_sample, which transformers won't save: what is saved has do_sample=true"
    if gone:
        given = _listed(content, gone)
        yield f"{file} gives {given}, to no effect, which transformers won't save: what is saved leaves it out"


def _listed(content: Mapping[str, Any], keys: Collection[str]) -> str:
    return ", ".join(f"{key}={json.dumps(content[key])}" for key in keys)


def _read(file: Path) -> dict[str, Any] | None:
    """A JSON object, or None where there is no file. Raises ValueError for what is no JSON."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise TrntuneError(f"{file} can't be read: {error.strerror or error}; copy the model again") from None
    if not isinstance(found, dict):
        raise TrntuneError(f"{file} is not a JSON object: correct it, or remove it")
    return found


def _model_facts(base: Path) -> dict[str, Any]:
    """config.json, or nothing where it can't be read: whoever loads the model says so."""
    try:
        return _read(base / MODEL_FILE) or {}
    except (ValueError, TrntuneError):
        return {}

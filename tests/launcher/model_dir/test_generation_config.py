"""What a base says of generation against what may be saved, from JSON files alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from launcher.errors import TrntuneError
from launcher.model_dir.generation_config import applied, repair_of, repaired_texts, repairs

SAMPLED = {"temperature": 0.6, "top_p": 0.9, "eos_token_id": 2}


@pytest.mark.parametrize(
    ("content", "changes"),
    [
        ({"eos_token_id": [2, 3], "temperature": 1.0, "top_p": 1.0, "top_k": 50, "min_p": None}, {}),
        ({**SAMPLED, "do_sample": True}, {}),
        (SAMPLED, {"do_sample": True}),
        ({"top_k": 20}, {"do_sample": True}),
        ({**SAMPLED, "do_sample": False}, {"temperature": None, "top_p": None}),
        ({"temperature": 0}, {"temperature": None}),
        ({"temperature": 0.0, "top_p": 0.9}, {"temperature": None, "top_p": None}),
        ({"top_k": 0}, {"top_k": None}),
        ({"early_stopping": True, "length_penalty": 0.8}, {"early_stopping": None, "length_penalty": None}),
        ({"early_stopping": True, "length_penalty": 0.8, "num_beams": 4}, {}),
        ({"pad_token_id": -1}, {"pad_token_id": None}),
        ({"use_cache": False, "cache_implementation": "static"}, {"cache_implementation": None}),
        ({"output_scores": True}, {"output_scores": None}),
        ({"output_scores": True, "return_dict_in_generate": True}, {}),
    ],
    ids=str,
)
def test_what_is_meant_is_kept_and_what_has_no_effect_goes(content: dict[str, Any], changes: dict[str, Any]) -> None:
    assert repairs(content) == changes
    kept = applied(content, changes)
    assert repairs(kept) == {}
    assert {key: kept[key] for key in content if changes.get(key, "kept") is not None} == {
        key: value for key, value in content.items() if changes.get(key, "kept") is not None
    }


def base(directory: Path, generation: Any, model: dict[str, Any] | None = None) -> Path:
    if generation is not None:
        text = generation if isinstance(generation, str) else json.dumps(generation)
        (directory / "generation_config.json").write_text(text)
    (directory / "config.json").write_text(json.dumps({"model_type": "llama", **(model or {})}))
    return directory


def texts(directory: Path) -> dict[str, Any]:
    found = repaired_texts(directory, repair_of(directory))
    return {name: text if text is None else json.loads(text) for name, text in found.items()}


def test_a_file_without_fault_is_left_as_it_is(tmp_path: Path) -> None:
    for generation in (None, {"eos_token_id": 2}, {**SAMPLED, "do_sample": True}):
        found = repair_of(base(tmp_path, generation))
        assert (found.notes, repaired_texts(tmp_path, found)) == ((), {})


def test_the_note_names_the_file_its_values_and_what_is_saved(tmp_path: Path) -> None:
    [note] = repair_of(base(tmp_path, SAMPLED)).notes
    assert note.startswith(f"{tmp_path}/generation_config.json gives temperature=0.6, top_p=0.9 without do_sample")
    assert note.endswith("has do_sample=true")
    [note] = repair_of(base(tmp_path, {**SAMPLED, "do_sample": False}), Path("OUT")).notes
    assert note.startswith("OUT/generation_config.json gives temperature=0.6, top_p=0.9, to no effect")
    assert texts(tmp_path) == {"generation_config.json": {"eos_token_id": 2, "do_sample": False}}


def test_what_an_older_config_json_says_is_put_right_where_it_decides(tmp_path: Path) -> None:
    old = {"temperature": 0.7}
    # Alone it decides; beside a generation_config.json generate() doesn't read it, but saving would move it there.
    assert texts(base(tmp_path, None, old)) == {"config.json": {"model_type": "llama", **old, "do_sample": True}}
    assert texts(base(tmp_path, {"eos_token_id": 2}, old)) == {"config.json": {"model_type": "llama"}}
    assert texts(base(tmp_path, {**SAMPLED, "do_sample": True}, old)) == {}


def test_what_is_no_json_is_left_out_as_transformers_does_and_what_is_no_object_refused(tmp_path: Path) -> None:
    found = repair_of(base(tmp_path, "{broken"))
    assert found.unread
    assert repaired_texts(tmp_path, found) == {"generation_config.json": None}
    assert "is no JSON" in found.notes[0]
    with pytest.raises(TrntuneError, match=r"generation_config\.json is not a JSON object: correct it"):
        repair_of(base(tmp_path, "[1]"))

"""Settings of generation that transformers would not load or save: refused in one line, or repaired."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, GenerationConfig

from launcher.errors import TrntuneError
from launcher.model_dir.generation_config import applied, repairs
from tests.trainer.rehearsal.conftest import SAMPLED, generation_of
from trainer.models.generation import check_generation, mend_generation


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (
            {"early_stopping": "sometimes"},
            r"generation_config\.json: `early_stopping` must be a boolean.*correct it, or remove",
        ),
        ({"num_return_sequences": 3}, r"Greedy methods (\(do_sample != True\) )?without beam search"),
        ([1], "is not a JSON object"),
    ],
)
def test_settings_that_transformers_does_not_load_are_refused_in_one_line(base, content: Any, words: str) -> None:
    with pytest.raises(TrntuneError, match=words) as caught:
        check_generation(base(generation_config=content))
    assert "\n" not in str(caught.value)


# Everything that transformers calls a contradiction, two at a time and all at once.
FAULTS: list[dict[str, Any]] = [
    {"temperature": 0.6, "top_p": 0.9},
    {"temperature": 0.0, "top_k": 5},
    {"min_p": 0.1, "typical_p": 0.9, "epsilon_cutoff": 3e-4, "eta_cutoff": 3e-4},
    {"min_p": 0.0},
    {"do_sample": False, "top_k": 40},
    {"early_stopping": True, "length_penalty": 2.0},
    {"pad_token_id": -1},
    {"use_cache": False, "cache_implementation": "dynamic", "return_legacy_cache": True},
    {"output_scores": True, "output_logits": True, "output_attentions": True, "output_hidden_states": True},
]


@pytest.mark.parametrize("number", range(len(FAULTS)))
def test_what_is_repaired_is_what_transformers_refuses_and_then_saves(number: int, tmp_path: Path) -> None:
    pairs = [{**FAULTS[number], **other} for other in FAULTS]
    for content in (*pairs, {key: value for fault in FAULTS for key, value in fault.items()}):
        with pytest.raises(ValueError, match="GenerationConfig is invalid"):
            GenerationConfig(**content).validate(strict=True)
        kept = GenerationConfig(**applied(content, repairs(content)))
        kept.save_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("content", "repaired"),
    [
        ({"do_sample": None, "top_p": 0.5}, {"top_p": 0.5, "do_sample": True}),
        ({"do_sample": None, "temperature": 0.0}, {"do_sample": None}),
        ({"do_sample": False, "top_h": 0.4}, {"do_sample": False}),
        ({"num_beams": None, "early_stopping": True}, {"num_beams": None}),
    ],
)
def test_what_transformers_refuses_since_5_is_repaired(content: Any, repaired: Any, tmp_path: Path) -> None:
    """4.57 saves it as it is: null is there neither true nor false, and top_h nothing that it knows."""
    assert applied(content, repairs(content)) == repaired
    GenerationConfig(**repaired).save_pretrained(tmp_path)


def test_a_null_is_refused_where_transformers_does_not_load_it(base, tmp_path: Path) -> None:
    directory = base(generation_config={"early_stopping": None})
    try:
        GenerationConfig(early_stopping=None)
    except ValueError:  # transformers 4.57
        with pytest.raises(TrntuneError, match=r"generation_config\.json: `early_stopping` must be a boolean"):
            check_generation(directory)
        return
    check_generation(directory)
    model = AutoModelForCausalLM.from_pretrained(directory)
    assert mend_generation(model, directory) == ()
    model.save_pretrained(tmp_path / "saved")


@pytest.mark.parametrize("generation", [None, "{broken", {"eos_token_id": 2}, {**SAMPLED, "do_sample": True}])
def test_a_model_whose_config_json_has_such_settings_is_saved(base, generation: Any, tmp_path: Path) -> None:
    directory = base(generation_config=generation or {})
    if generation is None:
        (directory / "generation_config.json").unlink()
    facts = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**facts, "do_sample": False, "temperature": 0.7, "top_k": 9}))
    model = AutoModelForCausalLM.from_pretrained(directory)
    assert mend_generation(model, directory) != ()
    model.save_pretrained(tmp_path / "saved")
    content = generation_of(tmp_path / "saved", tmp_path / "again")
    sampling = {key: content[key] for key in ("temperature", "top_k", "top_p") if key in content}
    kept = isinstance(generation, dict) and "temperature" in generation
    assert sampling == ({"temperature": 0.6, "top_p": 0.9} if kept else {})

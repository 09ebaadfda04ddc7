"""A template that ends a turn with another token than the tokenizer's EOS: that is trained, stopped at, and saved."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LlamaConfig, LlamaForCausalLM

from launcher.model_dir.generation_config import with_ends
from postprocess.consolidate.__main__ import main as consolidate
from tests.trainer.data.families import CONTROL
from tests.trainer.data.families import tokenizer as of_family
from trainer.data.rows import InstructionRow
from trainer.data.tokenize import end_ids, tokenize
from trainer.data.turn_end import ends_of, turn_end

NAMES = ("river", "lake", "sea", "pond")


def base_tokenizer(family: str) -> Any:
    """In the manner of a base model: EOS ends texts, and the template ends turns with something else."""
    tokenizer = copy.deepcopy(of_family(family))
    if family != "gemma":
        tokenizer.add_special_tokens({"eos_token": "<|end_of_text|>"})
    return tokenizer


def save_base(directory: Path, family: str) -> Any:
    """A random Llama of two layers with such a tokenizer. Returns that."""
    tokenizer = base_tokenizer(family)
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": None}
    config = LlamaConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=len(tokenizer), max_position_embeddings=128, **ids,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(**ids)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return tokenizer


def write_rows(path: Path) -> None:
    rows = [
        {"instruction": f"What is a {name} {number}?", "response": f"It is a {name}."}
        for name in NAMES
        for number in range(16)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def arguments(base: Path, rows: Path) -> tuple[str, ...]:
    return (
        "model=local", f"model.path={base}", "dataset=jsonl", f"dataset.path={rows}", "dataset.prompt=chat",
        "dataset.max_samples=null", "dataset.eval_samples=8", "training.max_length=128", "training.precision=fp32",
        "generate.questions=8", "generate.max_new_tokens=24", "tracking=none", "tracking.samples=2",
        "tracking.sample_tokens=24",
    )  # fmt: skip


@pytest.mark.parametrize("family", ["gemma", "llama3"])
def test_an_instruction_in_a_chat_prompt_ends_with_the_turn(family):
    tokenizer = base_tokenizer(family)
    end = tokenizer.convert_tokens_to_ids(CONTROL[family][1])
    assert end != tokenizer.eos_token_id
    row = InstructionRow("What is a river?", "", "It is water.")
    [example] = tokenize([row], "chat", "response", 4096, tokenizer).examples
    assert example.labels[-1] == example.input_ids[-1] == end
    whole = tokenizer.apply_chat_template(
        [{"role": "user", "content": row.instruction}, {"role": "assistant", "content": row.response}],
        return_dict=False,
    )
    assert example.input_ids == whole[: len(example.input_ids)]
    assert end_ids(row, "chat", tokenizer) == [end, tokenizer.eos_token_id]
    [plain] = tokenize([row], "plain", "response", 4096, tokenizer).examples
    assert plain.input_ids[-1] == tokenizer.eos_token_id
    assert end_ids(row, "plain", tokenizer) == [tokenizer.eos_token_id]
    assert ends_of(tokenizer) == [tokenizer.eos_token_id, end]


def test_after_training_answers_end_by_themselves_wherever_the_model_is_served(run_tiny, tmp_path: Path) -> None:
    tokenizer = save_base(tmp_path / "base", "gemma")
    write_rows(tmp_path / "rows.jsonl")
    run = run_tiny(
        "run", *arguments(tmp_path / "base", tmp_path / "rows.jsonl"), "method=full", "method.learning_rate=3e-3",
        "dataset.packing=false", "training.global_batch_size=8", "training.epochs=12", "training.max_steps=36",
        "training.eval_every=36", "training.save_every=36", "stages=[fetch,train,generate]",
    )  # fmt: skip
    assert run.process.returncode == 0, run.process.stderr
    eos, end = tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<end_of_turn>")
    assert f"generation_config.json of what is saved has eos_token_id=[{eos}, {end}]" in run.process.stderr
    scores = json.loads((run.directory / "generate" / "scores.json").read_text())["summary"]
    assert scores["tuned"]["ended_by_eos"] == 1
    # Both stop there, so that nothing of the template stands behind the answer.
    samples = [json.loads(line) for line in (run.directory / "samples.jsonl").read_text().splitlines()]
    assert {each["after"] for each in samples} <= {f"It is a {name}." for name in NAMES}

    # As other servers load it: nothing is said about where to stop but by the directory itself.
    model, saved = (kind.from_pretrained(run.directory / "model") for kind in (AutoModelForCausalLM, AutoTokenizer))
    assert model.generation_config.eos_token_id == [eos, end]
    for name in NAMES:
        asked = [{"role": "user", "content": f"What is a {name} 99?"}]
        ids = saved.apply_chat_template(asked, add_generation_prompt=True, return_tensors="pt", return_dict=False)
        answer = model.generate(ids, max_new_tokens=24, do_sample=False, pad_token_id=eos)[0, ids.shape[1] :].tolist()
        assert answer[-1] == end
        assert len(answer) < 24

    assert consolidate([str(run.directory / "checkpoints" / "step-36"), str(tmp_path / "of_step")]) == 0
    assert json.loads((tmp_path / "of_step" / "generation_config.json").read_text())["eos_token_id"] == [eos, end]


def test_a_merge_stops_there_too(run_tiny, tmp_path: Path) -> None:
    tokenizer = save_base(tmp_path / "base", "llama3")
    write_rows(tmp_path / "rows.jsonl")
    run = run_tiny(
        "run", *arguments(tmp_path / "base", tmp_path / "rows.jsonl"), "method=lora", "stages=[fetch,train,merge]"
    )
    assert run.process.returncode == 0, run.process.stderr
    merged = run.directory / "merged"
    ends = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|eot_id|>")]
    settings = json.loads((merged / "generation_config.json").read_text())
    assert (settings["eos_token_id"], settings["bos_token_id"]) == (ends, tokenizer.bos_token_id)
    record = json.loads((merged / "merge.json").read_text())
    assert record["repaired"] == [
        f"generation_config.json of what is saved has eos_token_id={ends}: answers end at these tokens"
    ]
    assert record["files"]["generation_config.json"] == (merged / "generation_config.json").stat().st_size


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({}, {"eos_token_id": [1, 2]}),
        ({"eos_token_id": None}, {"eos_token_id": [1, 2]}),
        ({"eos_token_id": 2}, {"eos_token_id": [2, 1]}),
        ({"eos_token_id": [7, 1]}, {"eos_token_id": [7, 1, 2]}),
        ({"eos_token_id": [2, 1, 7]}, {}),
    ],
)
def test_what_is_there_stays(given: dict[str, Any], found: dict[str, Any]) -> None:
    assert with_ends(given, [1, 2]) == found


@pytest.mark.parametrize(
    "template",
    [
        None,
        "{% for turn in messages %}{{ turn.role",
        "{{ raise_exception('never') }}",
        "{% for turn in messages %}{{ turn.role }}: {{ turn.content }}\n{% endfor %}",
        {"rag": "{{ messages[-1].content }}<end_of_turn>"},
    ],
)
def test_a_template_that_says_nothing_of_an_end_leaves_eos(template: Any) -> None:
    tokenizer = base_tokenizer("gemma")
    tokenizer.chat_template = template
    assert turn_end(tokenizer) is None
    assert ends_of(tokenizer) == [tokenizer.eos_token_id]

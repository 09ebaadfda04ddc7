"""Whole runs of other families than Llama: what is reported, merged and answered is what transformers' eager attention
computes, which leaves no window, soft cap and sink out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch.nn.functional import cross_entropy
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from launcher.run_dir.layout import RunDir
from postprocess.generate.questions import held_out
from trainer.data.prepare import prepare
from trainer.data.tokenize import prompt_ids
from trainer.families.small import small_config, small_model
from trainer.fetch.tiny_llama import byte_tokenizer

pytestmark = pytest.mark.long

NEW_TOKENS = 6
CHAIN = (
    *(
        "model=local",
        "tracking=none",
        "stages=[fetch,train,merge,generate]",
        "tracking.samples=1",
        "tracking.sample_tokens=4",
    ),
    *("lora.target_modules=[all-linear]", "method.learning_rate=0.003", "training.save_every=null"),
    *("generate.questions=3", f"generate.max_new_tokens={NEW_TOKENS}", "generate.batch_size=2"),
)
FAMILIES: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "gemma2": ({}, ()),  # windows of 8 in every other layer, soft caps of scores and of logits
    "gpt_oss": ({}, ()),  # sinks, windows, experts in one parameter
    "qwen3_moe": ({"output_router_logits": True, "router_aux_loss_coef": 0.5}, ()),
    "lfm2": ({"full_attn_idxs": [1, 3]}, ("dataset.packing=false",)),  # convolutions: a sample a row
}


def base_model(directory: Path, family: str, **settings: Any) -> Path:
    """A small model of the family with a tokenizer of bytes."""
    tokenizer = byte_tokenizer(512)
    config = small_config(AutoConfig.for_model(family, **settings), 512)
    config.vocab_size = len(tokenizer)
    config.bos_token_id, config.eos_token_id, config.pad_token_id = None, tokenizer.eos_token_id, tokenizer.pad_token_id
    model = small_model(config, "eager")
    model.generation_config = GenerationConfig(eos_token_id=config.eos_token_id, pad_token_id=config.pad_token_id)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def load(directory: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager").eval()


def loss_of(model: Any, examples: list[Any]) -> float:
    """Mean loss a trained token, each document alone."""
    total, count = 0.0, 0
    for example in examples:
        logits = model(input_ids=torch.tensor([example.input_ids])).logits[0, :-1].float()
        targets = torch.tensor(example.labels[1:])
        total += float(cross_entropy(logits, targets, reduction="sum"))
        count += int((targets != -100).sum())
    return total / count


def greedy(model: Any, ids: list[int], eos: int) -> list[int]:
    """By forward passes without a cache, each prompt alone."""
    found: list[int] = []
    while len(found) < NEW_TOKENS:
        found.append(int(model(torch.tensor([ids + found]), use_cache=False).logits[0, -1].argmax()))
        if found[-1] == eos:
            return found[:-1]
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_a_run_reports_merges_and_answers_what_transformers_computes(family, run_tiny, tmp_path):
    settings, arguments = FAMILIES[family]
    base = base_model(tmp_path / "base", family, **settings)
    run = run_tiny("run", *CHAIN, f"model.path={base}", *arguments)
    assert run.process.returncode == 0, run.process.stderr
    run_dir = RunDir(run.directory)
    tokenizer = AutoTokenizer.from_pretrained(base)
    data = prepare(run_dir.load_config(), Path(run_dir.stage_result("fetch")["dataset_path"]), tokenizer)
    adapted = PeftModel.from_pretrained(load(base), str(run.directory / "adapter")).eval()
    merged = load(run.directory / "merged")
    with torch.inference_mode():
        examples = [example for row in data.eval for example in row]
        after = loss_of(adapted, examples)
        assert after == pytest.approx(run.result["eval_loss_after"], rel=1e-4)
        assert loss_of(merged, examples) == pytest.approx(after, rel=1e-4)
        with adapted.disable_adapter():
            assert loss_of(adapted, examples) == pytest.approx(run.result["eval_loss_before"], rel=1e-4)
        assert abs(after - run.result["eval_loss_before"]) > 1e-3 * after
        records = [json.loads(line) for line in (run.directory / "generate" / "samples.jsonl").read_text().splitlines()]
        assert len(records) == 3
        for record, question in zip(records, held_out(run_dir, 3), strict=True):
            ids = prompt_ids(question.row, "plain", tokenizer)
            expected = tokenizer.decode(greedy(merged, ids, tokenizer.eos_token_id), skip_special_tokens=True).strip()
            assert record["tuned"] == expected

"""`datasets.map` over batches with a fast tokenizer, as its documentation has it: ids and prompt lengths, no more."""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any


def main(job: dict[str, Any]) -> dict[str, Any]:
    """Returns seconds, cpu_seconds, tokens and memory."""
    from datasets import load_dataset
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    start_rss = _peak_rss()

    def encode(batch: dict[str, list[str]]) -> dict[str, list[Any]]:
        prompts = tokenizer(batch["prompt"], return_attention_mask=False)["input_ids"]
        answers = tokenizer(batch["completion"], return_attention_mask=False, add_special_tokens=False)["input_ids"]
        whole = [[*prompt, *answer, tokenizer.eos_token_id] for prompt, answer in zip(prompts, answers, strict=True)]
        return {"input_ids": whole, "prompt_length": list(map(len, prompts))}

    began, cpu = time.perf_counter(), time.process_time()
    rows: Any = load_dataset("json", data_files=job["rows"], split="train", cache_dir=job["cache"])
    rows = rows.map(encode, batched=True, batch_size=1000, remove_columns=rows.column_names)
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    peak = _peak_rss()
    tokens = sum(len(chunk.values) for chunk in rows.data.column("input_ids").chunks)
    return {
        "seconds": seconds, "cpu_seconds": cpu, "tokens": tokens, "start_rss_bytes": start_rss, "peak_rss_bytes": peak,
    }  # fmt: skip


def _peak_rss() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    print(json.dumps(main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))))

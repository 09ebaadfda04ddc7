"""TRL's own preparation of prompt and completion rows: SFTTrainer tokenizes and packs them ("bfd") when it is made.

Runs in an environment of its own. The model is a few random weights: it is only there because the trainer wants one.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any


def main(job: dict[str, Any]) -> dict[str, Any]:
    """Returns seconds, cpu_seconds (also of its worker processes), tokens, padding_fraction and memory."""
    import datasets
    import trl
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1
        )
    )
    settings = SFTConfig(
        output_dir=job["cache"], max_length=job["max_length"], packing=True, packing_strategy="bfd",
        dataset_num_proc=job["processes"], report_to="none", use_cpu=True, bf16=False,
    )  # fmt: skip
    start_rss = _peak_rss()
    began, cpu = time.perf_counter(), _cpu_seconds()
    rows: Any = datasets.load_dataset("json", data_files=job["rows"], split="train", cache_dir=job["cache"])
    trainer: Any = SFTTrainer(model, args=settings, train_dataset=rows, processing_class=tokenizer)
    seconds, cpu = time.perf_counter() - began, _cpu_seconds() - cpu
    peak = _peak_rss()
    packed = trainer.train_dataset
    tokens = sum(len(chunk.values) for chunk in packed.data.column("input_ids").chunks)
    return {
        "seconds": seconds,
        "cpu_seconds": cpu,
        "tokens": tokens,
        "padding_fraction": 1 - tokens / (len(packed) * job["max_length"]),
        "start_rss_bytes": start_rss,
        "peak_rss_bytes": peak,
        "software": {"trl": trl.__version__, "datasets": datasets.__version__},
    }


def _cpu_seconds() -> float:
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


def _peak_rss() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    print(json.dumps(main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))))

"""LLaMA-Factory's supervised fine-tuning, on a data set that is tokenized already (its tokenized_path)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from common import Meter, examples, run


def work(job: dict[str, Any], meter: Meter) -> None:
    from datasets import Dataset, DatasetDict
    from hugging_face import _callback
    from llamafactory.train.tuner import run_exp

    rows = [{**row, "attention_mask": [1] * len(row["input_ids"])} for row in examples(job)]
    tokenized = Path(job["directory"]) / "tokenized"
    DatasetDict({"train": Dataset.from_list(rows)}).save_to_disk(str(tokenized))
    run_exp(_settings(job, tokenized), callbacks=[_callback(meter)])


def _settings(job: dict[str, Any], tokenized: Path) -> dict[str, Any]:
    lora = {
        "lora_rank": job["lora"]["r"],
        "lora_alpha": job["lora"]["lora_alpha"],
        "lora_dropout": job["lora"]["lora_dropout"],
        "lora_target": ",".join(job["lora"]["target_modules"]),
    }
    return {
        "stage": "sft",
        "do_train": True,
        "model_name_or_path": job["model"],
        "template": "empty",
        "dataset": "rows",
        "tokenized_path": str(tokenized),
        "cutoff_len": job["max_length"],
        "finetuning_type": job["method"],
        **(lora if job["method"] == "lora" else {}),
        "output_dir": job["directory"] + "/out",
        "num_train_epochs": 1,
        "per_device_train_batch_size": job["settings"]["batch"],
        "gradient_accumulation_steps": job["settings"]["accumulation"],
        "learning_rate": job["learning_rate"],
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "seed": job["seed"],
        "use_cpu": job["device"] == "cpu",
        "bf16": job["precision"] == "bf16",
        **job["settings"].get("arguments", {}),
    }


if __name__ == "__main__":
    run(work, ("torch", "transformers", "peft", "llamafactory"))

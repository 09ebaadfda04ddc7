"""transformers' Trainer with peft, and TRL's SFTTrainer."""

from __future__ import annotations

from typing import Any

from common import Meter, examples, run


def work(job: dict[str, Any], meter: Meter) -> None:
    import torch
    from datasets import Dataset
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed

    set_seed(job["seed"])
    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    dtype = torch.bfloat16 if job["precision"] == "bf16" and job["method"] == "lora" else torch.float32
    model: Any = AutoModelForCausalLM.from_pretrained(job["model"], dtype=dtype)
    lora = LoraConfig(**job["lora"], task_type="CAUSAL_LM") if job["method"] == "lora" else None
    rows = examples(job)
    if job["settings"]["trainer"] == "trl":
        trainer = _trl(job, model, lora, tokenizer, Dataset.from_list([_masked(row) for row in rows]))
    else:
        model = get_peft_model(model, lora) if lora else model
        trainer = _transformers(job, model, tokenizer, Dataset.from_list(rows))
    trainer.add_callback(_callback(meter))
    trainer.train()
    meter.losses += [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def _arguments(job: dict[str, Any]) -> dict[str, Any]:
    """What both Trainers are told alike; everything else is their default."""
    size = job["settings"]["batch"]
    return {
        "output_dir": job["directory"],
        "num_train_epochs": 1,
        "per_device_train_batch_size": size,
        "gradient_accumulation_steps": job["settings"]["accumulation"],
        "learning_rate": job["learning_rate"],
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "seed": job["seed"],
        "use_cpu": job["device"] == "cpu",
        "bf16": job["precision"] == "bf16",
        **job["settings"].get("arguments", {}),
    }


def _transformers(job: dict[str, Any], model: Any, tokenizer: Any, dataset: Any) -> Any:
    from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments

    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    to_maximum = job["settings"]["padding"] == "max_length"
    collator = DataCollatorForSeq2Seq(
        tokenizer, padding="max_length" if to_maximum else True, max_length=job["max_length"] if to_maximum else None
    )
    arguments = TrainingArguments(**_arguments(job))
    return Trainer(model=model, args=arguments, train_dataset=dataset, data_collator=collator)


def _trl(job: dict[str, Any], model: Any, lora: Any, tokenizer: Any, dataset: Any) -> Any:
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    arguments = SFTConfig(**_arguments(job), max_length=job["max_length"], completion_only_loss=True)
    return SFTTrainer(model, args=arguments, train_dataset=dataset, processing_class=tokenizer, peft_config=lora)


def _masked(row: dict[str, list[int]]) -> dict[str, list[int]]:
    """TRL's own columns for a row that is tokenized already."""
    return {"input_ids": row["input_ids"], "completion_mask": [int(label != -100) for label in row["labels"]]}


def _callback(meter: Meter) -> Any:
    from transformers import TrainerCallback

    class Steps(TrainerCallback):
        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            meter.begin()

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            meter.step()

    return Steps()


if __name__ == "__main__":
    run(work, ("torch", "transformers", "peft", "trl"))

"""The loop of torchtune's single-device recipes (lora_finetune, full_finetune), with torchtune's own parts."""

from __future__ import annotations

from typing import Any

from common import Meter, examples, run


def work(job: dict[str, Any], meter: Meter) -> None:
    import torch
    from torchtune.data import padded_collate_packed, padded_collate_sft
    from torchtune.datasets import PackedDataset
    from torchtune.modules.loss import CEWithChunkedOutputLoss

    torch.manual_seed(job["seed"])
    model = _model(job)
    loss_function = CEWithChunkedOutputLoss()
    model.set_num_output_chunks(loss_function.num_output_chunks)
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=job["learning_rate"], fused=True)
    rows = [{"tokens": row["input_ids"], "labels": row["labels"]} for row in examples(job)]
    packed = job["settings"]["packed"]
    data: Any = PackedDataset(_Rows(rows), max_seq_len=job["max_length"]) if packed else rows
    collate = padded_collate_packed if packed else padded_collate_sft
    loader = torch.utils.data.DataLoader(data, job["settings"]["batch"], shuffle=True, collate_fn=collate)
    accumulation = job["settings"]["accumulation"]
    batches = list(loader)
    meter.begin()
    for start in range(0, len(batches), accumulation):
        meter.losses.append(_step(model, loss_function, optimizer, trainable, batches[start : start + accumulation]))
        meter.step()


class _Rows(list):  # type: ignore[type-arg]
    """PackedDataset asks a data set whether it is streamed by isinstance alone: a list with a name will do."""


def _step(model: Any, loss_function: Any, optimizer: Any, trainable: list[Any], batches: list[Any]) -> float:
    """One optimizer step; returns the mean loss of its labels."""
    import torch

    total, labels_seen = 0.0, 0
    for batch in batches:
        labels = batch["labels"]
        count = int((labels != loss_function.ignore_index).sum())
        shifted = torch.hstack((labels[..., 1:], torch.full_like(labels[..., :1], loss_function.ignore_index)))
        inputs = {name: value for name, value in batch.items() if name in ("tokens", "mask", "input_pos")}
        loss = loss_function(model(**inputs), shifted) * count
        loss.backward()
        total, labels_seen = total + float(loss.detach()), labels_seen + count
    for parameter in trainable:
        if parameter.grad is not None:
            parameter.grad /= labels_seen
    torch.nn.utils.clip_grad_norm_(trainable, 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return total / labels_seen


def _model(job: dict[str, Any]) -> Any:
    """The model's weights in torchtune's own Llama."""
    import json
    from pathlib import Path

    from safetensors.torch import load_file
    from torchtune.models.convert_weights import hf_to_tune
    from torchtune.models.llama3_2 import llama3_2, lora_llama3_2
    from torchtune.modules.peft import get_adapter_params, set_trainable_params

    config = json.loads((Path(job["model"]) / "config.json").read_text(encoding="utf-8"))
    sizes = {
        "vocab_size": config["vocab_size"],
        "num_layers": config["num_hidden_layers"],
        "num_heads": config["num_attention_heads"],
        "num_kv_heads": config["num_key_value_heads"],
        "embed_dim": config["hidden_size"],
        "intermediate_dim": config["intermediate_size"],
        "max_seq_len": job["max_length"],
        "norm_eps": config["rms_norm_eps"],
        "rope_base": int(config["rope_theta"]),
        "scale_factor": 1,
    }
    lora = job["lora"]
    if job["method"] == "lora":
        model = lora_llama3_2(
            lora["target_modules"],
            lora_rank=lora["r"],
            lora_alpha=lora["lora_alpha"],
            lora_dropout=lora["lora_dropout"],
            **sizes,
        )
        set_trainable_params(model, get_adapter_params(model))
    else:
        model = llama3_2(**sizes)
    weights = load_file(str(Path(job["model"]) / "model.safetensors"))
    heads, kv_heads, width = sizes["num_heads"], sizes["num_kv_heads"], sizes["embed_dim"]
    found = model.load_state_dict(hf_to_tune(weights, heads, kv_heads, width), strict=False)
    left = [name for name in found.missing_keys if "lora" not in name and "output" not in name]
    assert not left, f"not loaded: {left[:3]}"
    return model.train()


if __name__ == "__main__":
    run(work, ("torch", "torchtune"))

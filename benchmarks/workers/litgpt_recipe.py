"""The loop of litgpt's finetune/lora.py and finetune/full.py, with litgpt's own parts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from common import Meter, examples, run


def work(job: dict[str, Any], meter: Meter) -> None:
    import torch
    from litgpt.data.base import get_sft_collate_fn
    from litgpt.utils import chunked_cross_entropy

    torch.manual_seed(job["seed"])
    model = _model(job)
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=job["learning_rate"], fused=True)
    counts = {"raw": 0, "raw_plus_prompt_template": 0}
    rows: Any = [
        {name: torch.tensor(ids) for name, ids in row.items()} | {"token_counts": counts} for row in examples(job)
    ]
    collate = get_sft_collate_fn(max_seq_length=job["max_length"], pad_id=job["pad_token_id"])
    model.max_seq_length = max(len(row["input_ids"]) for row in rows)
    loader = torch.utils.data.DataLoader(rows, job["settings"]["batch"], shuffle=True, collate_fn=collate)
    accumulation = job["settings"]["accumulation"]
    meter.begin()
    losses = []
    for number, batch in enumerate(loader, start=1):
        logits = model(batch["input_ids"], lm_head_chunk_size=128)
        logits[-1] = logits[-1][..., :-1, :]
        loss = chunked_cross_entropy(logits, batch["labels"][..., 1:])
        (loss / accumulation).backward()
        losses.append(float(loss.detach()))
        if number % accumulation == 0 or number == len(loader):
            optimizer.step()
            optimizer.zero_grad()
            meter.losses.append(sum(losses) / len(losses))
            losses = []
            meter.step()


def _model(job: dict[str, Any]) -> Any:
    """The model's weights in litgpt's own GPT."""
    from litgpt.scripts.convert_hf_checkpoint import copy_weights_hf_llama
    from safetensors.torch import load_file

    if job["method"] == "lora":
        from litgpt.lora import GPT, Config, mark_only_lora_as_trainable

        lora = job["lora"]
        targets = {"q_proj": "lora_query", "k_proj": "lora_key", "v_proj": "lora_value", "o_proj": "lora_projection"}
        config = Config.from_name(
            "SmolLM2-135M",
            lora_r=lora["r"],
            lora_alpha=lora["lora_alpha"],
            lora_dropout=lora["lora_dropout"],
            **{targets[name]: True for name in lora["target_modules"]},
        )
        model: Any = GPT(config)
        mark_only_lora_as_trainable(model)
    else:
        from litgpt.model import GPT as PlainGPT
        from litgpt.model import Config as PlainConfig

        config = PlainConfig.from_name("SmolLM2-135M")
        model = PlainGPT(config)
    state: dict[str, Any] = {}
    copy_weights_hf_llama(config, {}, state, load_file(str(Path(job["model"]) / "model.safetensors")))
    found = model.load_state_dict(state, strict=False)
    left = [name for name in found.missing_keys if "lora" not in name]
    assert not left, f"not loaded: {left[:3]}"
    return model.train()


if __name__ == "__main__":
    run(work, ("torch", "litgpt"))

"""The proof by logits: base + adapter by peft and the merged model say the same on a few prompts, in fp32.

The bound follows from the rounding. A stored weight may be off by u = eps/2 of its dtype, relatively; so every weight
that was changed or cast is moved by exactly u, up or down at random, and the logits' largest answer to that, S, is the
scale of what rounding can do to this model. Base + adapter and merged model also take different sums in fp32: over L
layers of width K these are off by about u32 * sqrt(K * L) of the largest logit (the probabilistic rounding bound).
Allowed is 4 S + 4 u32 sqrt(K L) max|logits|.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModelForCausalLM

from launcher.errors import TrntuneError
from launcher.host_memory import memory_available
from postprocess.merge.adapter import Adapter
from postprocess.merge.apply import adapted
from postprocess.merge.outputs import Output, Outputs
from postprocess.merge.vocabulary import Vocabulary, resize
from postprocess.safetensors.header import torch_dtype
from trainer.families.choose import plain_attention
from trainer.libraries.transformers_versions import made_of

PROMPTS = (
    "The capital of France is Paris, and the capital of Italy is",
    "def fibonacci(n):\n    if n < 2:\n        return n\n    return",
    "Question: What is 12 times 12? Answer:",
)
_TOKENS = 16  # of a random prompt, where there is no tokenizer
_FACTOR = 4


@dataclass(frozen=True)
class _Prompts:
    texts: list[str]
    ids: list[torch.Tensor]


def prove_by_logits(
    base: Path, adapter: Adapter, merged: Path, outputs: Outputs, resized: Vocabulary | None = None
) -> dict[str, Any]:
    """Compare the logits; returns what was found, or why nothing was compared. Raises TrntuneError beyond the bound."""
    needed, available = memory_needed(outputs), memory_available()
    if needed > available:
        reason = f"needs {needed / 1e9:.1f} GB of memory in float32, {available / 1e9:.1f} GB are available"
        return {"compared": False, "reason": reason}
    prompts = _prompts(merged, base, resized)
    expected, without = _adapted_logits(base, adapter, prompts.ids, resized)
    found, moved, config = _merged_logits(merged, outputs, prompts.ids)
    scale = _largest(expected)
    rounding = _difference(moved, found)
    evaluation = torch.finfo(torch.float32).eps / 2 * math.sqrt(config.hidden_size * config.num_hidden_layers) * scale
    allowed = _FACTOR * (rounding + evaluation)
    difference = _difference(found, expected)
    result = {
        "compared": True,
        "prompts": prompts.texts,
        "positions": sum(len(rows) for rows in expected),
        "max_difference": difference,
        "allowed_difference": allowed,
        "max_logit": scale,
        "max_change_by_adapter": _difference(expected, without),
        "same_top_token": _agreement(found, expected),
    }
    if not difference <= allowed:  # NaN is refused too
        raise TrntuneError(
            f"the merged model's logits differ from base + adapter by {difference:.3g}, allowed is {allowed:.3g}: "
            "nothing was kept; please report this with adapter_config.json"
        )
    return result


def memory_needed(outputs: Outputs) -> int:
    """Bytes for one model in fp32 at a time, and what torch and the prompts' activations take."""
    return int(4.2 * sum(math.prod(output.spec.shape) for output in outputs.tensors)) + 500_000_000


def _prompts(merged: Path, base: Path, resized: Vocabulary | None) -> _Prompts:
    """PROMPTS by the merged model's tokenizer; random tokens where it has no tokenizer.json of the vocabulary. Of a
    resized one the last tokens, which are the new ones, too."""
    size = AutoConfig.from_pretrained(base, trust_remote_code=False, local_files_only=True).get_text_config().vocab_size
    size = min(size, resized.rows) if resized else size
    texts, ids = _texts(merged / "tokenizer.json", size)
    if resized is not None:
        texts.append(f"the last {_TOKENS} tokens")
        ids.append(torch.arange(max(0, resized.rows - _TOKENS), resized.rows)[None])
    return _Prompts(texts, ids)


def _texts(file: Path, size: int) -> tuple[list[str], list[torch.Tensor]]:
    """PROMPTS by a tokenizer.json, or what stands for them, and their tokens."""
    if file.is_file():
        tokenizer = Tokenizer.from_file(str(file))
        ids = [torch.tensor([tokenizer.encode(text).ids]) for text in PROMPTS]
        if all(row.numel() and int(row.max()) < size for row in ids):
            return list(PROMPTS), ids
    generator = torch.Generator().manual_seed(0)
    return [f"{_TOKENS} random tokens"] * len(PROMPTS), [
        torch.randint(0, size, (1, _TOKENS), generator=generator) for _ in PROMPTS
    ]


def _load(directory: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(
        directory,
        dtype=torch.float32,
        attn_implementation=plain_attention(directory),
        use_safetensors=True,
        trust_remote_code=False,
        local_files_only=True,
    ).eval()


def _adapted_logits(
    base: Path, adapter: Adapter, ids: Iterable[torch.Tensor], resized: Vocabulary | None
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Logits with the adapter, and without it."""
    model = _load(base)
    if resized is not None:
        resize(model, resized)
    without = _logits(model, ids)  # first: with trained biases an adapter that is turned off leaves another base
    expected = _logits(adapted(model, adapter), ids)
    del model
    gc.collect()
    return expected, without


def _merged_logits(
    merged: Path, outputs: Outputs, ids: Iterable[torch.Tensor]
) -> tuple[list[torch.Tensor], list[torch.Tensor], Any]:
    """Logits of the merged model, and with each rounded weight moved by its dtype's unit roundoff."""
    model = _load(merged)
    found = _logits(model, ids)
    rounded = {output.spec.name: _unit(output) for output in outputs.tensors if not output.copied}
    made = made_of(model, {output.spec.name: output.spec.shape for output in outputs.tensors})
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            sources = made[name].sources if name in made else ()
            unit = max((rounded.get(source, 0.0) for source in sources), default=0.0)
            if unit:
                sign = torch.randint(0, 2, parameter.shape, generator=generator, dtype=torch.int8)
                parameter.mul_(1 + unit * (2 * sign - 1))
    moved = _logits(model, ids)
    return found, moved, model.config.get_text_config()


def _unit(output: Output) -> float:
    """The unit roundoff of a tensor's dtype."""
    return float(torch.finfo(torch_dtype(output.spec.dtype)).eps / 2)


def _logits(model: Any, ids: Iterable[torch.Tensor]) -> list[torch.Tensor]:
    """fp32, (tokens, vocabulary) for each prompt."""
    with torch.inference_mode():
        return [model(input_ids=row, use_cache=False).logits[0].float() for row in ids]


def _difference(left: list[torch.Tensor], right: list[torch.Tensor]) -> float:
    return max(float((one - other).abs().max()) for one, other in zip(left, right, strict=True))


def _largest(rows: list[torch.Tensor]) -> float:
    return max(float(row.abs().max()) for row in rows)


def _agreement(left: list[torch.Tensor], right: list[torch.Tensor]) -> float:
    """Share of positions whose most likely token is the same."""
    same = torch.cat([one.argmax(-1) == other.argmax(-1) for one, other in zip(left, right, strict=True)])
    return float(same.float().mean())

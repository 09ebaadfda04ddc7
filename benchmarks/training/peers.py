"""Who is compared in benchmarks.training, with which settings, and what of their work is not the same."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

SAMPLES_PER_STEP = 16
ROWS_PER_STEP = 3  # of 1,024 tokens: about 16 samples of 192


@dataclass(frozen=True)
class Case:
    """One framework with one set of settings. ``environment`` None: this project's own."""

    name: str
    worker: str
    environment: str | None
    settings: dict[str, Any] = field(default_factory=dict)
    note: str = ""
    devices: tuple[str, ...] = ("cpu", "cuda")


def _batches(size: int, **more: Any) -> dict[str, Any]:
    """``size`` samples in a forward pass, SAMPLES_PER_STEP in an optimizer step."""
    return {"batch": size, "accumulation": SAMPLES_PER_STEP // size, **more}


def _hugging_face(name: str, size: int, trainer: str, note: str = "", **more: Any) -> Case:
    return Case(name, "hugging_face.py", "hugging_face", _batches(size, trainer=trainer, **more), note)


OURS = "trntune"
REFERENCE = "transformers + peft, dynamic padding"

CASES: tuple[Case, ...] = (
    Case(OURS, "trntune_engine.py", None),
    _hugging_face(REFERENCE, 8, "transformers", padding="longest"),
    _hugging_face(
        "transformers + peft, group_by_length",
        8,
        "transformers",
        padding="longest",
        arguments={"group_by_length": True},
    ),
    _hugging_face("transformers + peft, padded to 1,024", 4, "transformers", padding="max_length"),
    _hugging_face("TRL, its defaults", 8, "trl", "gradient checkpointing is TRL's default"),
    Case(
        "TRL, packing",
        "hugging_face.py",
        "hugging_face",
        {
            "batch": 1,
            "accumulation": ROWS_PER_STEP,
            "trainer": "trl",
            "arguments": {"packing": True, "gradient_checkpointing": False},
        },
        "NOT THE SAME WORK without FlashAttention: samples of a packed row attend to each other",
    ),
    Case(
        "LLaMA-Factory, its defaults",
        "llama_factory.py",
        "llama_factory",
        _batches(8),
        "gradient checkpointing is its default",
    ),
    Case(
        "LLaMA-Factory, no checkpointing",
        "llama_factory.py",
        "llama_factory",
        _batches(8, arguments={"disable_gradient_checkpointing": True}),
    ),
    Case(
        "torchtune, packed",
        "torchtune_recipe.py",
        "torchtune",
        {"batch": 1, "accumulation": ROWS_PER_STEP, "packed": True},
        "rows packed in order of arrival; block mask through SDPA on a CPU",
    ),
    Case(
        "torchtune, dynamic padding",
        "torchtune_recipe.py",
        "torchtune",
        _batches(8, packed=False),
    ),
    Case(
        "litgpt",
        "litgpt_recipe.py",
        "litgpt",
        _batches(8),
        "its loss is the mean of each batch; full: the tied head is trained as a matrix of its own",
    ),
    Case(
        "trntune, compiled layers",
        "trntune_engine.py",
        None,
        {"more": ["training.compile=layers"]},
        "compiling is part of its time",
    ),
)


def trntune_overrides(method: str, precision: str, device: str, model: str, seed: int) -> list[str]:
    """The command line of this project for the same work."""
    return [
        f"model={model}",
        f"method={method}",
        f"accelerator={device}",
        "tracking=none",
        "training.max_steps=null",
        "training.epochs=1",
        "training.max_length=1024",
        f"training.global_batch_size={ROWS_PER_STEP}",
        "training.warmup_steps=0",
        "training.eval_every=null",
        "training.save_every=null",
        f"training.precision={precision}",
        f"seed={seed}",
    ]

"""A published FPFT/PEFT comparison on Trainium, not measured here, corrected from its own figures.

Llama 3 8B on dolly 15k, one ml.trn1.32xlarge. Everything but the raw figures below is computed.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

LABEL = "Published by others, not measured here"
SETUP = (
    "Llama 3 8B, dolly 15k, 3 epochs, one ml.trn1.32xlarge, tensor parallel 8 x data parallel 4, "
    "batch 1, accumulation 3, every sample padded to 1,024 tokens"
)

# Raw figures, as published.
EPOCHS, ROWS, REPLICAS, TENSOR_PARALLEL, PADDED_LENGTH = 3, 15_011, 4, 8, 1024
CLAIMS = "70 % and 50 %"
# The model and the machine, from their own data sheets.
LAYERS, HIDDEN, KEY_VALUE_WIDTH, VOCABULARY, LORA_RANK = 32, 4096, 1024, 128_256, 16
CHIPS, PEAK_FLOPS = 16, 191e12
# An estimate: real tokens of a dolly row.
REAL_LENGTH = 190


@dataclass(frozen=True)
class Raw:
    """One row of the published table."""

    method: str
    trainable_params: int
    samples_per_second: float
    minutes: float


FPFT = Raw("FPFT", 7_570_591_744, 2.083, 90)
PEFT = Raw("PEFT (LoRA r=16, q_proj and v_proj)", 6_815_744, 3.554, 53)


@dataclass(frozen=True)
class Corrected:
    """The same row by the definitions of docs/measurement.md, as far as they can be derived."""

    method: str
    trainable_params: int
    samples_per_second: float
    """all replicas"""
    samples_per_second_per_replica: float
    minutes: float
    minutes_from_rate: float
    """what the rate gives when it is read as per replica"""
    mfu_padded: float
    """all parameters, positions with padding; see derivation()"""


def vocabulary_matrix() -> int:
    """Elements of the embedding, and of the output head, which is not tied to it."""
    return VOCABULARY * HIDDEN


def total_params() -> int:
    """The full model: what was published counted one vocabulary matrix as its local tensor-parallel shard."""
    return FPFT.trainable_params + vocabulary_matrix() * (TENSOR_PARALLEL - 1) // TENSOR_PARALLEL


def lora_params() -> int:
    """Rank 16 on q_proj (hidden x hidden) and v_proj (hidden x key/value width) of every layer."""
    return LAYERS * LORA_RANK * ((HIDDEN + HIDDEN) + (HIDDEN + KEY_VALUE_WIDTH))


def corrected(raw: Raw) -> Corrected:
    """``raw`` with its rate over all replicas and its parameters on the unsharded model."""
    full = raw is FPFT
    samples = raw.samples_per_second * REPLICAS
    seconds = EPOCHS * ROWS / samples
    return Corrected(
        raw.method,
        total_params() if full else lora_params(),
        samples,
        raw.samples_per_second,
        raw.minutes,
        seconds / 60,
        samples * _flops_a_sample(full) / (CHIPS * PEAK_FLOPS),
    )


def _flops_a_sample(full: bool) -> float:
    """6N a position, or 4N and 6 an adapter parameter with a frozen base, and causal attention over the row."""
    linear = 6 * total_params() if full else 4 * total_params() + 6 * lora_params()
    pairs = PADDED_LENGTH * (PADDED_LENGTH + 1) / 2
    return linear * PADDED_LENGTH + 12 * LAYERS * HIDDEN * pairs


def time_saved() -> float:
    """Share of the time, and so of the cost, that PEFT saves."""
    return 1 - PEFT.minutes / FPFT.minutes


def throughput_gained() -> float:
    """How much more PEFT does in the same time."""
    return PEFT.samples_per_second / FPFT.samples_per_second - 1


def padding_fraction() -> float:
    """Share of the computed positions that are padding; an estimate."""
    return 1 - REAL_LENGTH / PADDED_LENGTH


def derivation() -> list[str]:
    """How each corrected figure follows from the published ones, a sentence each."""
    full, lora = corrected(FPFT), corrected(PEFT)
    share = EPOCHS * ROWS / REPLICAS
    return [
        f"{EPOCHS} x {ROWS:,} / {REPLICAS} = {share:,.0f} samples a replica; / {FPFT.samples_per_second} = "
        f"{full.minutes_from_rate:.1f} min and / {PEFT.samples_per_second} = {lora.minutes_from_rate:.1f} min, "
        f"which are the published times. So the published samples/s are per replica: over all {REPLICAS} they are "
        f"{full.samples_per_second:.2f} and {lora.samples_per_second:.2f}.",
        f"The full model has {total_params():,} parameters. The published {FPFT.trainable_params:,} lack "
        f"{TENSOR_PARALLEL - 1}/{TENSOR_PARALLEL} of one vocabulary matrix of {vocabulary_matrix():,} elements: it was "
        f"counted as its 1/{TENSOR_PARALLEL} tensor-parallel shard. {lora_params():,} for PEFT is exact.",
        f"{FPFT.minutes} to {PEFT.minutes} min saves {time_saved() * 100:.0f} % of time and cost. The text's "
        f"{CLAIMS} are not savings: {throughput_gained() * 100:.1f} % is the gain in throughput.",
        f"{CHIPS} chips x {PEAK_FLOPS / 1e12:.0f} TFLOP/s bf16: about {full.mfu_padded * 100:.0f} % MFU (FPFT, 6N) and "
        f"{lora.mfu_padded * 100:.0f} % (PEFT, 4N), with all parameters as N and every position counted.",
        f"About {padding_fraction() * 100:.0f} % of those positions are padding (a row of dolly has about "
        f"{REAL_LENGTH} tokens; an estimate), which this project's own MFU does not count.",
    ]


def as_data() -> dict[str, Any]:
    """Raw and corrected figures for report.json."""
    return {
        "label": LABEL,
        "setup": SETUP,
        "raw": [asdict(FPFT), asdict(PEFT)],
        "corrected": [asdict(corrected(FPFT)), asdict(corrected(PEFT))],
        "time_and_cost_saved": time_saved(),
        "throughput_gained": throughput_gained(),
        "padding_fraction_estimate": padding_fraction(),
        "derivation": derivation(),
    }

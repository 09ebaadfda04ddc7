"""How a stage, or one attempt at training, ended: the words and numbers in a run directory. Imports no torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from enum import Enum
from typing import Any


class RunStatus(str, Enum):
    """``status`` of stages/<stage>.json, and ``outcome`` of attempts.jsonl. A member is its word, also in JSON."""

    FINISHED = "finished"
    EARLY_STOPPED = "early_stopped"
    """evaluation stopped improving; the best weights are kept"""
    INTERRUPTED = "interrupted"
    """ended by Ctrl-C, with what was reached by then"""
    SUSPENDED = "suspended"
    """ended without a result: the last step's checkpoint is saved, and the run can go on"""
    FAILED = "failed"
    DIED = "died"
    """without a word, which the next start writes down"""
    TRACED = "traced"
    """a trial run for the compiler: nothing was executed"""

    __str__ = str.__str__


COMPLETE = (RunStatus.FINISHED, RunStatus.EARLY_STOPPED)
"""The work is done: there is nothing to go on with."""


@dataclass
class TrainResult:
    """stages/train.json: how training ended, and every number of docs/measurement.md, which has their definitions.

    Summed over all replicas; seconds, bytes, US dollars. What was not measured is null. MLflow has the same.
    """

    status: RunStatus
    definitions: int
    """version of the definitions: runs are compared only within one"""
    model: str
    dataset: str
    method: str
    quantized_base: str | None
    seed: int
    total_params: int
    trainable_params: int
    trainable_params_local: int
    """on rank 0"""
    trainable_fraction: float
    instances: int
    steps: int
    best_step: int | None
    train_loss_first: float | None
    train_loss_last: float | None
    measured_steps: int
    measured_seconds: float
    samples_per_second: float | None
    tokens_per_second: float | None
    tokens_per_second_padded: float | None
    tokens_per_second_trained: float | None
    samples_per_second_per_replica: float | None
    padding_fraction: float | None
    step_seconds_p50: float | None
    step_seconds_p95: float | None
    model_flops_per_second: float | None
    mfu: float | None
    load_seconds: float
    data_seconds: float
    compile_seconds: float
    train_seconds: float
    eval_seconds: float
    sample_seconds: float
    save_seconds: float
    cost_usd: float | None
    attempts: int
    lost_steps: int
    lost_seconds: float
    checkpoints: dict[str, Any]
    """saves, failed saves, bytes and seconds"""
    peak_memory_bytes: int
    peak_device_memory_bytes: int | None
    data: dict[str, Any]
    """trainer.data.prepare.DataReport"""
    hardware: dict[str, Any]
    """what runs are only comparable on the same of"""
    libraries: dict[str, str | None]
    """versions of what computed the steps; of several attempts the last one's"""
    eval_loss_before: float
    eval_loss_after: float
    saved: str | None
    """directory of what was trained, in the run's"""
    weights_changed: bool
    graphs: dict[str, Any] = field(default_factory=dict)
    """on Neuron: numbers about compiled graphs, which stand beside the others in the file"""
    wall_seconds: float | None = None
    mlflow: dict[str, Any] | None = None
    """the run's address there, and what failed"""

    def to_json(self) -> dict[str, Any]:
        """What the file holds."""
        values = asdict(self)
        graphs, mlflow, wall = values.pop("graphs"), values.pop("mlflow"), values.pop("wall_seconds")
        values.update(graphs, wall_seconds=wall)
        return values if mlflow is None else {**values, "mlflow": mlflow}

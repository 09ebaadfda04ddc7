"""The typed schema of a run: one dataclass for each Hydra group, registered in Hydra's ConfigStore.

YAML under conf/ only gives values. Every field carries its help text and its limits in the metadata, so that the
check before a run, the error messages and docs/configuration.md come from one place.
"""

# ruff: noqa: RUF009 (setting() makes a dataclass field)

from __future__ import annotations

from dataclasses import dataclass, field

from omegaconf import MISSING

from launcher.config.machine_schema import (
    AcceleratorConfig,
    CalibrationConfig,
    ClusterConfig,
    NeuronConfig,
    ParallelismConfig,
    SmallConfig,
    TorchNeuronConfig,
)
from launcher.config.model_schema import (
    ALL_LINEAR,
    FORMATS,
    ArchitectureConfig,
    ColumnsConfig,
    DatasetConfig,
    LoraConfig,
    MethodConfig,
    ModelConfig,
    WheelConfig,
)
from launcher.config.setting import setting

# The one import for whoever reads a configuration, wherever a class stands.
__all__ = [
    "ALL_LINEAR",
    "FORMATS",
    "PRECISIONS",
    "SCHEDULERS",
    "AcceleratorConfig",
    "ArchitectureConfig",
    "CalibrationConfig",
    "ClusterConfig",
    "ColumnsConfig",
    "Config",
    "DatasetConfig",
    "GenerateConfig",
    "LoraConfig",
    "MergeConfig",
    "MethodConfig",
    "ModelConfig",
    "NeuronConfig",
    "ParallelismConfig",
    "PlanConfig",
    "SmallConfig",
    "TorchNeuronConfig",
    "TrackingConfig",
    "TrainingConfig",
    "WheelConfig",
    "accumulation_steps",
    "compiles_layers",
    "is_sharded",
    "model_processes",
    "offloads",
    "register",
    "setting",
    "world_size",
]

PRECISIONS = ("fp32", "bf16")
SCHEDULERS = ("linear", "cosine", "constant", "constant_with_warmup")


@dataclass
class TrainingConfig:
    """The optimization."""

    epochs: float = setting(1.0, "passes over the training rows, unless max_steps ends it before", gt=0)
    max_steps: int | None = setting(None, "optimizer steps at most; null: by epochs", ge=1)
    max_length: int = setting(512, "positions in a row, tokens", ge=8)
    global_batch_size: int = setting(4, "rows an optimizer step, all replicas together", ge=1)
    micro_batch_size: int = setting(1, "rows a forward pass on one replica; accumulation follows", ge=1)
    learning_rate: float = setting(MISSING, "peak learning rate", gt=0)
    scheduler: str = setting("linear", "learning rate schedule", choices=SCHEDULERS)
    warmup_steps: int = setting(0, "steps of linear warm-up, unless warmup_ratio is given", ge=0)
    warmup_ratio: float | None = setting(
        None, "linear warm-up as a share of the run's steps, rounded up; null: warmup_steps", ge=0, lt=1
    )
    warmup_from_zero: bool = setting(
        False, "warm up from learning rate 0, as transformers does: the first step trains nothing; else from its share"
    )
    weight_decay: float = setting(0.0, "AdamW weight decay", ge=0)
    max_grad_norm: float = setting(1.0, "gradient norm at which it is clipped; 0: never", ge=0)
    precision: str = setting("fp32", "arithmetic of the forward and backward pass", choices=PRECISIONS)
    gradient_checkpointing: bool = setting(False, "recompute activations in the backward pass to save memory")
    compile: str | None = setting(
        None,
        "torch.compile of each decoder layer, by engine torch; null: layers on TorchNeuron, else none",
        choices=("none", "layers"),
    )
    eval_every: int | None = setting(None, "steps between evaluations; null: only before and after", ge=1)
    early_stopping_patience: int | None = setting(
        None, "evaluations without a lower loss after which training stops at the best weights; null: never", ge=1
    )
    early_stopping_min_delta: float = setting(0.0, "smallest fall of the loss that counts as lower, nats", ge=0)
    save_every: int | None = setting(
        200, "steps between checkpoints, and one at the end; null: only when told to stop", ge=1
    )
    keep_checkpoints: int = setting(2, "newest checkpoints that are kept", ge=1)
    allow_config_change: list[str] = setting([], "keys or groups that may differ when a run directory is started again")


@dataclass
class TrackingConfig:
    """What is measured and where it is shown."""

    enabled: bool = setting(True, "log to MLflow; metrics.jsonl is always written")
    uri: str = setting(
        MISSING, "MLflow tracking URI: an SQLite file by default, or any server", may_be_empty=True
    )  # without tracking; else check_tracking has the advice
    experiment: str = setting("trntune", "MLflow experiment")
    run_name: str | None = setting(None, "MLflow run name; null: the run directory's name")
    skip_steps: int = setting(2, "first steps left out of the measured window (warm-up, compilation)", ge=0)
    log_every: int = setting(1, "steps between two lines of metrics.jsonl", ge=1)
    system_metrics: bool = setting(True, "log CPU, memory and network use")
    samples: int = setting(3, "held-out questions answered before and after", ge=0)
    sample_tokens: int = setting(48, "longest answer to them, tokens", ge=1)


@dataclass
class MergeConfig:
    """The adapter and its base as one model directory (stages=[fetch,train,merge])."""

    dtype: str | None = setting(
        None, "dtype of the merged weights; null: the base's", choices=("float32", "bfloat16", "float16")
    )
    shard_size: str = setting("5GB", "most bytes in one file, such as 5GB, 500MB or 2GiB")
    logits: bool = setting(True, "compare logits of base + adapter and of the merged model, where both fit into memory")


@dataclass
class GenerateConfig:
    """Answers of base and tuned model after training (stages=[fetch,train,generate])."""

    questions: int = setting(16, "held-out rows that are asked, at most", ge=1)
    max_new_tokens: int = setting(96, "longest answer, tokens", ge=1)
    temperature: float = setting(0.0, "0: greedy; above: drawn", ge=0, le=10)
    top_p: float = setting(1.0, "draw among the most likely tokens of this mass", gt=0, le=1)
    seed: int = setting(0, "of the drawing", ge=0)
    batch_size: int = setting(8, "questions answered at a time", ge=1)


@dataclass
class PlanConfig:
    """The plan that is made before a run."""

    show: bool = setting(False, "print the plan and start nothing; plan=true is short for it")
    force: bool = setting(False, "start also what the plan says does not fit into memory")
    format: str = setting("text", "how the plan is printed", choices=("text", "json"))


@dataclass
class Config:
    """One run."""

    model: ModelConfig = MISSING
    dataset: DatasetConfig = MISSING
    method: MethodConfig = MISSING
    lora: LoraConfig = MISSING
    parallelism: ParallelismConfig = MISSING
    accelerator: AcceleratorConfig = MISSING
    training: TrainingConfig = MISSING
    tracking: TrackingConfig = MISSING
    cluster: ClusterConfig = MISSING
    plan: PlanConfig = field(default_factory=PlanConfig)
    merge: MergeConfig = field(default_factory=MergeConfig)
    generate: GenerateConfig = field(default_factory=GenerateConfig)
    seed: int = setting(0, "seed of weights, dropout and data order", ge=0)
    output_dir: str = setting("outputs", "where run directories are made")
    stages: list[str] = setting(["fetch", "train"], "stages to run, in this order")
    dry_run: bool = setting(False, "print the batch scripts and their order, and submit nothing (cluster=slurm)")


def register() -> None:
    """Put the schema into Hydra's ConfigStore, under the name that conf/config.yaml starts its defaults with."""
    from hydra.core.config_store import ConfigStore  # Hydra's import is half of what --help takes

    ConfigStore.instance().store(name="schema", node=Config, provider="trntune")


def on_torch_neuron(config: Config) -> bool:
    """Whether the torch engine trains on Trainium (AWS TorchNeuron), where engine neuron would by PyTorch/XLA."""
    return config.accelerator.engine == "torch" and config.accelerator.device == "neuron"


def compiles_layers(config: Config) -> bool:
    """Whether the torch engine trains decoder layers that torch.compile has compiled."""
    if config.training.compile is None:
        return on_torch_neuron(config)
    return config.training.compile == "layers"


def model_processes(config: Config) -> int:
    """Processes that hold one replica together."""
    return config.parallelism.tensor_parallel * config.parallelism.pipeline_parallel


def world_size(config: Config) -> int:
    """Processes of the training stage."""
    return config.parallelism.data_parallel * model_processes(config)


def is_sharded(config: Config) -> bool:
    """Whether the processes of data_parallel share one model (FSDP) instead of having a replica each."""
    return config.parallelism.sharding == "fsdp"


def offloads(config: Config) -> bool:
    """Whether what the processes share (FSDP) lies in host memory, and not on their devices."""
    return is_sharded(config) and config.parallelism.cpu_offload


def accumulation_steps(config: Config) -> int:
    """Forward passes of one replica for an optimizer step. The checks have made sure that it divides."""
    return config.training.global_batch_size // (config.training.micro_batch_size * config.parallelism.data_parallel)

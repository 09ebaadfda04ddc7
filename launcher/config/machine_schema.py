"""Where it is trained: the configuration classes of parallelism, accelerators and clusters."""

# ruff: noqa: RUF009 (setting() makes a dataclass field)

from __future__ import annotations

from dataclasses import dataclass, field

from omegaconf import MISSING

from launcher.config.setting import setting

ANSWERING_DEVICES = ("cpu", "cuda")
"""Devices that stage generate answers on: greedy decoding has another shape for each token, which others compile."""


@dataclass
class ParallelismConfig:
    """How the work is split: world size = data_parallel x tensor_parallel x pipeline_parallel processes."""

    name: str = setting(MISSING, "name of the layout in reports")
    data_parallel: int = setting(1, "replicas; each takes its own rows", ge=1)
    tensor_parallel: int = setting(1, "processes that share every layer of a replica", ge=1)
    pipeline_parallel: int = setting(1, "processes that share the layers of a replica in sequence (neuron)", ge=1)
    sequence_parallel: bool = setting(
        False, "split activations between layers over tensor_parallel; engine torch splits no other way"
    )
    zero_1: bool = setting(False, "split the optimizer state over data_parallel (neuron)")
    sharding: str = setting(
        "ddp",
        "what each process holds (engine torch): ddp: the whole model; fsdp: its part of parameters, gradients and "
        "moments, also of those that tensor_parallel has cut",
        choices=("ddp", "fsdp"),
    )
    cpu_offload: bool = setting(
        False,
        "with sharding=fsdp on cuda: parameters, gradients and moments lie in host memory, where AdamW updates them; a "
        "layer is copied to the device when it is put together",
    )


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
class TorchNeuronConfig:
    """How TorchNeuron compiles and runs: launcher/torch_neuron/variables.py makes the environment of it."""

    cache_dir: str | None = setting(
        None,
        "TORCH_NEURONX_NEFF_CACHE_DIR: where compiled programs are kept, on a file system that all nodes share; null: "
        "torch-neuron below TRNTUNE_CACHE, else /var/tmp/trntune-torch-neuron",
    )
    compiler_flags: list[str] = setting([], "NEURON_CC_FLAGS, without --cache_dir")
    logical_nc: int = setting(2, "NEURON_LOGICAL_NC_CONFIG: physical cores that are one device", ge=1, le=2)
    nki_attention: bool = setting(True, "TORCH_NEURONX_ENABLE_NKI_SDPA: attention by NKI's flash kernels")
    omp_threads: int = setting(2, "OMP_NUM_THREADS of each process", ge=1)
    on_new_graph: str = setting(
        "stop", "what training does when a step after the first ones compiled again", choices=("stop", "warn")
    )
    on_host_operator: str = setting(
        "stop",
        "what training does when an operation has no kernel of the device and is computed by the host",
        choices=("stop", "warn"),
    )


@dataclass
class AcceleratorConfig:
    """The hardware that runs the training stage."""

    name: str = setting(MISSING, "name of the hardware in reports")
    engine: str = setting("torch", "training engine", choices=("torch", "neuron"))
    device: str = setting("cpu", "kind of device", choices=("cpu", "cuda", "neuron"))
    backend: str = setting("gloo", "torch.distributed backend", choices=("gloo", "nccl", "xla", "neuron"))
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
    neuron: NeuronConfig | None = setting(None, "compiler and runtime of Neuron for engine neuron; null: none")
    torch_neuron: TorchNeuronConfig | None = setting(None, "compiler and runtime of TorchNeuron; null: none")
    environment: list[str] = setting([], "NAME=value for the processes of the stages compile and train")
    stages: list[str] = setting(["fetch", "train"], "stages of a run on this hardware, unless stages= names others")


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

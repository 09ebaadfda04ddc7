"""The typed schema of a cluster: what `python -m cluster` is told, by conf/cluster_setup/ and the command line."""

# ruff: noqa: RUF009 (setting() makes a dataclass field)

from __future__ import annotations

from dataclasses import dataclass, field

from omegaconf import MISSING

from launcher.config.schema import setting

SCRIPTS, API = "scripts", "api"


@dataclass
class GroupConfig:
    """An instance group: machines of one type with one task."""

    name: str = setting(MISSING, "name of the instance group, the same in every document")
    instance_type: str = setting(MISSING, "type of instance, such as ml.c5.4xlarge")
    count: int = setting(1, "number of instances", ge=0, le=6758)
    volume_gb: int = setting(500, "volume of each instance beside its root volume, GB", ge=1, le=16384)
    threads_per_core: int = setting(1, "1: no hyper-threads; 2: both", ge=1, le=2)
    price_usd_per_hour: float | None = setting(None, "price of one instance; null: no cost is reported", gt=0)
    price_source: str | None = setting(None, "where the price was read")
    price_date: str | None = setting(None, "when the price was read, YYYY-MM-DD")


@dataclass
class WorkersConfig(GroupConfig):
    """The instances that train."""

    partition: str = setting(MISSING, "Slurm partition that they are in")


@dataclass
class NetworkConfig:
    """One VPC with one subnet for everything: EFA doesn't work across subnets of several zones."""

    availability_zone_id: str | None = setting(
        None, "zone of everything, such as usw2-az4; null: the stack's, else validate lists those that offer the types"
    )
    vpc_cidr: str = setting("10.0.0.0/16", "addresses of the VPC")
    private_cidr: str = setting("10.0.128.0/17", "addresses of nodes and file system, inside the VPC's")
    public_cidr: str = setting("10.0.0.0/24", "addresses of the NAT gateway, inside the VPC's")


@dataclass
class StorageConfig:
    """The FSx for Lustre file system."""

    capacity_gib: int = setting(1200, "size: 1200, or a multiple of 2400, GiB", ge=1200)
    throughput: int = setting(250, "MB/s for each TiB: 125, 250, 500 or 1000", ge=125, le=1000)
    mount_path: str = setting("/fsx", "where the nodes mount it")


@dataclass
class LifecycleConfig:
    """What HyperPod runs on every new node (mode=scripts)."""

    directory: str | None = setting(None, "directory of your own scripts; null: the project's, cluster/lifecycle")
    entry: str = setting("on_create.sh", "the script in it that is started")


@dataclass
class EnvironmentConfig:
    """The Python environment that `python -m cluster env` has a job make."""

    directory: str = setting("/fsx/trntune/venv", "where it is made, on the shared file system")
    python: str = setting("python3.10", "Python on the nodes that it is made with")
    packages: list[str] = setting(
        ["optimum-neuron[training,neuronx]==0.4.5"], "what is installed beside trntune itself; pinned"
    )
    index_url: str | None = setting(None, "package index beside PyPI; Neuron's packages are on AWS's own")
    partition: str | None = setting(None, "partition of the job; null: workers.partition")
    time_limit_min: int = setting(60, "time limit of the job, minutes", ge=1)
    project: bool = setting(True, "install this checkout of trntune, too; it must lie where the nodes see it")
    driver: bool = setting(True, "refuse a node whose Neuron driver is too old for its runtime library")


@dataclass
class SetupConfig:
    """A cluster, and what a command is to do with it."""

    name: str = setting(MISSING, "name of the cluster and of its stack")
    region: str = setting(MISSING, "AWS region")
    mode: str = setting(
        SCRIPTS, "scripts: lifecycle scripts in a bucket set up Slurm; api: HyperPod does it", choices=(SCRIPTS, API)
    )
    node_recovery: str = setting(
        "Automatic", "what HyperPod does with a faulty node: replace it, or nothing", choices=("Automatic", "None")
    )
    slurm_config_strategy: str = setting(
        "Managed",
        "mode=api: whether HyperPod owns partitions, overwrites or merges changes",
        choices=("Managed", "Overwrite", "Merge"),
    )
    controller: GroupConfig = field(default_factory=GroupConfig)
    workers: WorkersConfig = field(default_factory=WorkersConfig)
    login: GroupConfig = field(default_factory=GroupConfig)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    storage: StorageConfig = field(default_factory=StorageConfig)
    lifecycle: LifecycleConfig = field(default_factory=LifecycleConfig)
    environment: EnvironmentConfig = field(default_factory=EnvironmentConfig)
    poll_seconds: float = setting(20.0, "seconds between two questions while waiting", gt=0, le=300)
    timeout_min: float = setting(60.0, "longest wait for the stack, and for the cluster, minutes", gt=0)
    format: str = setting("text", "how plan, validate and status print", choices=("text", "json"))
    output: str | None = setting(None, "plan: directory to write template, documents and scripts to; a new one")
    documents: str | None = setting(
        None, "validate: directory with create_cluster.json and provisioning_parameters.json of your own"
    )
    confirm: bool = setting(False, "deploy, delete: do it")
    keep_fsx: bool = setting(False, "delete: leave the file system and the network that it hangs in")
    node: str | None = setting(None, "ssh: instance group or instance id; null: login, else the controller")
    show: bool = setting(False, "ssh: print the command instead of running it")
    dry_run: bool = setting(False, "env: print the job instead of submitting it")


def register() -> None:
    """Put the schema into Hydra's ConfigStore."""
    from hydra.core.config_store import ConfigStore  # slow to import: --help goes without

    ConfigStore.instance().store(name="setup_schema", node=SetupConfig, provider="trntune")


def has_neuron(instance_type: str) -> bool:
    """Whether instances of the type have Trainium chips. HyperPod has no instances with Inferentia's."""
    return instance_type.startswith("ml.trn")


def groups(config: SetupConfig) -> list[GroupConfig]:
    """The instance groups that have instances: controller, workers, login."""
    return [group for group in (config.controller, config.workers, config.login) if group.count]

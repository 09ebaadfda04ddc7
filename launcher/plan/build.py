"""The plan of one run. ``preflight`` is what every run is checked with; ``make`` also looks at data and machine."""

from __future__ import annotations

import functools
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from launcher import units
from launcher.architecture.attention_pairs import Extent
from launcher.architecture.parameters import Parameters, count
from launcher.config.schema import ArchitectureConfig, Config, accumulation_steps, world_size
from launcher.errors import UsageError
from launcher.jobs.helper_process import NoAnswer, answer
from launcher.jobs.job import Job, instances, jobs
from launcher.jobs.variables import variables
from launcher.model_dir.config_facts import described_by, told_of
from launcher.neuron.checks import planned_only
from launcher.neuron.libraries import fault_here
from launcher.plan import disk, duration, memory, schedule
from launcher.plan.duration import Duration
from launcher.plan.memory import Memory
from launcher.plan.room import Room
from launcher.plan.schedule import Epoch, Schedule
from launcher.plan.steps import check_enough_rows

CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


@dataclass(frozen=True)
class Plan:
    """What a run will need and take. None is what can't be known before the run."""

    config: Config
    parameters: Parameters
    memory: Memory
    epoch: Epoch | None
    schedule: Schedule
    duration: Duration | None
    jobs: tuple[Job, ...]
    tokenizer: Path | None = None
    """a file of the base's tokenizer, where it was looked for and is on this machine"""

    @property
    def train_seconds(self) -> float | None:
        """Estimated time of all optimizer steps."""
        if self.duration is None or self.schedule.steps is None:
            return None
        return self.duration.step_seconds * self.schedule.steps

    @property
    def eval_seconds(self) -> float | None:
        """Estimated time of all evaluations: the forward third of full training's step, or half of LoRA's, a row."""
        if self.duration is None or self.epoch is None or self.schedule.steps is None:
            return None
        share = 1 / 3 if self.config.method.name == "full" else 1 / 2
        rows = self.epoch.eval_rows * schedule.evaluations(self.config, self.schedule.steps)
        return rows / self.config.training.global_batch_size * self.duration.step_seconds * share

    @property
    def wall_seconds(self) -> float | None:
        """Estimated time of steps and evaluations; loading, compiling and answering come on top."""
        if self.train_seconds is None or self.eval_seconds is None:
            return None
        return self.train_seconds + self.eval_seconds

    @property
    def samples_per_second(self) -> float | None:
        """Estimated, over all replicas."""
        if self.duration is None or self.epoch is None or self.schedule.steps_per_epoch is None:
            return None
        return self.epoch.examples / self.schedule.steps_per_epoch / self.duration.step_seconds

    @property
    def instance_hours(self) -> float | None:
        """Estimated machines x hours of steps and evaluations."""
        seconds = self.wall_seconds
        return None if seconds is None else instances(self.config) * seconds / 3600

    @property
    def cost_usd(self) -> float | None:
        """Estimated price of steps and evaluations; None without a configured price."""
        hours, price = self.instance_hours, self.config.accelerator.price_usd_per_hour
        return None if hours is None or price is None else hours * price

    @property
    def room(self) -> Room | None:
        """What the run will have on disk; None where it doesn't train."""
        return disk.estimated_room(self.config, self.parameters, self.schedule.steps)

    @property
    def fits(self) -> bool:
        """Whether memory and, for a run on this machine, its disk are large enough."""
        return self.memory.fits and disk.fault_here(self.config, self.room) is None

    @property
    def notes(self) -> list[str]:
        """What its user should know before it is started."""
        generation = disk.generation_notes(self.config, self.tokenizer)
        faults = {
            "it would be refused": planned_only(self.config),
            "started here it would be refused": fault_here(self.config, self.config.stages),
        }
        memory = self.memory
        if memory.host_available is not None and memory.host > memory.host_available:
            over = f"{units.gigabytes(memory.host)} a process of {units.gigabytes(memory.host_available)}"
            generation = [*generation, f"parts in host memory need more than there is here: about {over}"]
        return [*generation, *(f"{what}: {fault}" for what, fault in faults.items() if fault)]


def known(config: Config) -> tuple[ArchitectureConfig, Parameters]:
    """The architecture and its exact counts: from the facts in the configuration, or from the modules of a local model
    of another family, whose sizes then stand for a Llama's. Raises UsageError where neither is at hand."""
    if config.model.architecture is not None:
        return config.model.architecture, count(config, config.model.architecture)
    found = described(config)
    return ArchitectureConfig(**found["facts"]), Parameters(
        total=found["total"],
        trainable=found["trainable"],
        adapter=found["trainable"] if config.method.name == "lora" else 0,
        matmul=found["matmul"],
        idle=found["idle"],
        local=(found["total"] + (found["trainable"] if config.method.name == "lora" else 0),),
        trainable_local=(found["trainable"],),
        **{
            part: found[part]
            for part in ("low_rank", "saved_matmul", "forward_only", "first_layer", "packed")
            if part in found
        },
    )


def extents(config: Config) -> tuple[Extent, ...]:
    """How far each layer's attention reaches; () for a model whose facts are in the configuration, where all of them
    reach over all of a document."""
    if config.model.architecture is not None:
        return ()
    return tuple(Extent(*extent) for extent in described(config)["extents"])


def described(config: Config) -> dict[str, Any]:
    """trainer.probes.model's description of a model that is here, or known by its config.json. Raises UsageError where
    there is none."""
    model = config.model
    directory = described_by(model)
    if directory is None:
        raise UsageError(
            "model.architecture=null: the plan needs it; give model.architecture={...}, model.config_json={...} or a "
            "local model"
        )
    lora = asdict(config.lora) if config.method.name == "lora" else None
    try:
        found = counted(str(directory), json.dumps(lora))
    except NoAnswer as error:
        found = {"error": f"transformers can't build it: {error}"}
    if "error" in found:
        where = f"model.path={model.path}" if model.path else model.hub_id
        raise UsageError(f"{where}: no plan: {told_of(model, found['error'])}")
    return found


@functools.cache
def counted(path: str, lora: str) -> dict[str, Any]:
    """trainer.probes.model's counts of a local model, once for all runs of a sweep. ``lora``: JSON, null for none."""
    return answer("trainer.probes.model", json.dumps({"path": path, "lora": json.loads(lora)}))


def check_runnable(config: Config) -> None:
    """Raise UsageError for a run that the hardware cannot hold, or that no engine here can train."""
    if config.model.architecture is None or config.plan.force:
        return
    memory = preflight(config, config.model.architecture).memory
    if not memory.fits:
        raise UsageError(
            f"{config.model.name}, {config.method.name}: needs about {units.gigabytes(memory.total)} a process of "
            f"{units.gigabytes(memory.available)}, mostly {memory.largest}; plan=true shows it by part, "
            "plan.force=true starts it all the same"
        )


def room(config: Config) -> Room | None:
    """What a run will have on disk; None where that is not known without building the model, or not to be looked at."""
    if config.model.architecture is None or config.plan.force:
        return None
    return preflight(config, config.model.architecture).room


def preflight_json(config: Config) -> dict[str, Any] | None:
    """The plan that is kept with a run; None for a family whose layers the plan doesn't know."""
    facts = config.model.architecture
    return None if facts is None else to_json(preflight(config, facts))


def make(config: Config) -> Plan:
    """Everything, with the data measured if it is at hand and the machine probed if it is the one that trains.

    Raises UsageError for data that are too few for batch or steps, as training would.
    """
    facts, parameters = known(config)
    reach = extents(config)
    data = schedule.epoch(config, reach)
    if data is not None and data.exact:
        check_enough_rows(config, data.filled)
    return Plan(
        config,
        parameters,
        memory.estimate(config, facts, parameters, machine_bytes()),
        data,
        schedule.schedule(config, data),
        None if data is None else duration.estimate(config, facts, parameters, data),
        tuple(jobs(config)),
        schedule.at_hand(config, reach).tokenizer,
    )


def preflight(config: Config, facts: ArchitectureConfig) -> Plan:
    """What follows from the configuration alone, in milliseconds: parameters, memory and jobs."""
    parameters = count(config, facts)
    needed = memory.estimate(config, facts, parameters, machine_bytes())
    return Plan(config, parameters, needed, None, schedule.schedule(config, None), None, tuple(jobs(config)))


def machine_bytes(limit: Path = CGROUP_LIMIT) -> int:
    """Memory of this machine, or what a container may use of it."""
    import psutil

    total = psutil.virtual_memory().total
    text = limit.read_text(encoding="ascii").strip() if limit.is_file() else ""
    return min(total, int(text)) if text.isdigit() else total


def to_json(plan: Plan) -> dict[str, Any]:
    """The plan as JSON values: parameters, bytes, seconds, dollars."""
    config, parallel = plan.config, plan.config.parallelism
    available = None if plan.memory.available == float("inf") else plan.memory.available
    return {
        "model": config.model.name,
        "method": config.method.name,
        "accelerator": config.accelerator.name,
        "parameters": asdict(plan.parameters),
        "memory_bytes": {**asdict(plan.memory), "available": available, "total": plan.memory.total},
        "disk_bytes": None if plan.room is None else plan.room.most,
        "fits": plan.fits,
        "world_size": world_size(config),
        "data_parallel": parallel.data_parallel,
        "tensor_parallel": parallel.tensor_parallel,
        "pipeline_parallel": parallel.pipeline_parallel,
        "global_batch_size": config.training.global_batch_size,
        "micro_batch_size": config.training.micro_batch_size,
        "accumulation_steps": accumulation_steps(config),
        "epoch": None if plan.epoch is None else _epoch_json(plan),
        **asdict(plan.schedule),
        "duration": None if plan.duration is None else asdict(plan.duration),
        "samples_per_second": plan.samples_per_second,
        "train_seconds": plan.train_seconds,
        "eval_seconds": plan.eval_seconds,
        "wall_seconds": plan.wall_seconds,
        "instances": instances(config),
        "instance_hours": plan.instance_hours,
        "cost_usd": plan.cost_usd,
        "jobs": [_job_json(job) for job in plan.jobs],
        "environment": variables("train", config),
    }


def _job_json(job: Job) -> dict[str, Any]:
    return {"stage": job.stage, "instances": job.nodes, "processes": job.processes, "how": job.how}


def _epoch_json(plan: Plan) -> dict[str, Any]:
    assert plan.epoch is not None
    return {**asdict(plan.epoch), "padding_fraction": plan.epoch.padding_fraction(plan.config.training.max_length)}

"""Pairs of settings that cannot work together: pure functions from a configuration to problems.

Every check yields Problem(key, value, why, remedy). The first one is told to the user, with how many more there are.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from launcher.architecture.adapters import faults, is_all_linear, listed, static_faults
from launcher.architecture.quantized import check_quantized
from launcher.architecture.tensors import linear_layers, modules
from launcher.checks.diagnostic import Check, Diagnostic
from launcher.checks.parallelism import PARALLEL_CHECKS
from launcher.checks.tracking_uri import address_fault, credentials_fault
from launcher.config.fields import error_message, keys, lookup
from launcher.config.schema import Config
from launcher.config.secrets import ADVICE, redact, strings, token_keys, without_credentials
from launcher.data.files import check_files, check_format
from launcher.errors import TrntuneError, UsageError, nearest
from launcher.executors.slurm.checks import check_cluster
from launcher.jobs.run_stage import STAGES
from launcher.model_dir.config_json import read_architecture
from launcher.model_dir.files import tokenizer_fault, weight_files
from launcher.model_dir.generation_config import repair_of
from launcher.model_dir.weights import absent, incomplete, unreadable
from launcher.neuron.checks import check_environment, check_neuron
from launcher.paths import shown
from launcher.plan.steps import step_problems
from launcher.run_dir.config_diff import check_allowed_names
from launcher.run_dir.create import blocked
from launcher.sizes import ADVICE as SIZE_ADVICE
from launcher.sizes import size_fault


def check_values(config: Any) -> Iterator[Diagnostic]:
    """Limits and choices of the schema (``fields.keys``), key by key."""
    for path, key in keys().items():
        value = lookup(config, path)
        why = error_message(key, value)
        if why:
            near = nearest(value, key.choices) if key.choices and isinstance(value, str) else None
            shown_value = listed(value) if isinstance(value, list | dict) else value
            yield Diagnostic(path, shown_value, why, f"did you mean {near}?" if near else "")


def check_tokens(config: Any) -> Iterator[Diagnostic]:
    """Access tokens in any value, also one that came from the environment by an interpolation."""
    for key in token_keys(asdict(config)):
        yield Diagnostic(key, "***", "looks like an access token", ADVICE)


def check_credentials(config: Config) -> Iterator[Diagnostic]:
    """user:password@ or ?token=... in an address; check_tracking has its own advice for tracking.uri."""
    for key, text in strings(asdict(config)):
        if key != "tracking.uri" and without_credentials(text) != text:
            yield Diagnostic(key, redact(text), "holds credentials", ADVICE)


def check_stages(config: Config) -> Iterator[Diagnostic]:
    """Names, repetitions and order of the stages."""
    allowed, given = list(STAGES), config.stages
    if not given:
        yield Diagnostic("stages", "[]", "no stage to run", f"give some of [{','.join(allowed)}]")
    for stage in given:
        if stage not in allowed:
            near = nearest(stage, allowed)
            yield Diagnostic(
                "stages",
                stage,
                f"no such stage: allowed are {', '.join(allowed)}",
                f"did you mean {near}?" if near else "",
            )
    ordered = [stage for stage in allowed if stage in given]
    if given and set(given) <= set(allowed) and given != ordered:
        listed = ",".join(given)
        yield Diagnostic(
            "stages", f"[{listed}]", "each stage once, in their order", f"write stages=[{','.join(ordered)}]"
        )


def check_batch(config: Config) -> Iterator[Diagnostic]:
    """The global batch is whole micro batches on every replica."""
    training, replicas = config.training, config.parallelism.data_parallel
    unit = training.micro_batch_size * replicas
    size = training.global_batch_size
    if size % unit:
        below, above = size // unit * unit, (size // unit + 1) * unit
        best = below if below and size - below <= above - size else above
        why = f"must be a multiple of micro_batch_size*data_parallel = {training.micro_batch_size}*{replicas} = {unit}"
        yield Diagnostic("training.global_batch_size", size, why, f"nearest is {best}")


def check_length(config: Config) -> Iterator[Diagnostic]:
    """A row is no longer than the model's positions."""
    facts = config.model.architecture
    length = config.training.max_length
    if facts and length > facts.max_positions:
        why = f"{config.model.name} was built for at most {facts.max_positions} positions"
        yield Diagnostic("training.max_length", length, why, f"at most {facts.max_positions}")


def check_heads(config: Config) -> Iterator[Diagnostic]:
    """Query heads share key/value heads evenly."""
    facts = config.model.architecture
    if facts and facts.heads % facts.kv_heads:
        why = f"must be divided by kv_heads={facts.kv_heads}"
        yield Diagnostic("model.architecture.heads", facts.heads, why, "correct the architecture facts or config.json")


def check_lora(config: Config) -> Iterator[Diagnostic]:
    """The adapter reaches what its settings name. Other families than the plan knows are looked at by
    launcher.architecture.families."""
    if config.method.name != "lora":
        return
    facts = config.model.architecture
    found = list(static_faults(config.lora))
    yield from found
    if facts is not None and config.lora.target_modules and not found:
        yield from faults(config.lora, modules(facts), facts.family)


def check_steps(config: Config) -> Iterator[Diagnostic]:
    """Warm-up, evaluation and the measured window fit into the run."""
    training, steps = config.training, config.training.max_steps
    if training.early_stopping_patience is not None and training.eval_every is None:
        why = "early stopping needs evaluations during training"
        yield Diagnostic(
            "training.early_stopping_patience", training.early_stopping_patience, why, "set training.eval_every"
        )
    if steps is not None:
        yield from step_problems(config, steps, f"training.max_steps={steps}")


def check_model_source(config: Config) -> Iterator[Diagnostic]:
    """Each source has what it needs, and nothing that it would not read."""
    model = config.model
    if model.source == "local":
        yield from check_model_path(model.path)
    elif model.path is not None:
        yield Diagnostic("model.path", model.path, f"is not read by model.source={model.source}", "use model=local")
    if model.source == "hub" and not model.hub_id:
        yield Diagnostic(
            "model.hub_id", model.hub_id, "model.source=hub needs a repository", "give model.hub_id=OWNER/NAME"
        )
    if model.source == "wheel" and model.wheel is None:
        yield Diagnostic("model.wheel", None, "model.source=wheel needs one", "take model=smollm2_135m as an example")
    if model.source == "builtin" and model.architecture is None:
        yield Diagnostic(
            "model.architecture", None, "model.source=builtin needs one", "take model=tiny_llama as an example"
        )


def check_trust(config: Config) -> Iterator[Diagnostic]:
    """Code of a repository runs only when it is wanted, and only the code that was looked at."""
    model = config.model
    if not model.trust_remote_code:
        return
    if model.source not in ("hub", "local"):
        why = f"model.source={model.source} has no code to trust"
        yield Diagnostic("model.trust_remote_code", "true", why, "leave it out")
    if model.source == "hub" and not re.fullmatch(r"[0-9a-f]{40}", model.revision or ""):
        why = "model.trust_remote_code=true runs code that a branch or tag may change"
        yield Diagnostic("model.revision", model.revision, why, "give the 40 digits of the commit that was looked at")


# Names that become parts of paths, in a run directory, the cache or a report.
_NAMES = (
    "model.name",
    "dataset.name",
    "method.name",
    "lora.name",
    "parallelism.name",
    "accelerator.name",
    "tracking.run_name",
    "tracking.experiment",
)


def check_names(config: Config) -> Iterator[Diagnostic]:
    """Names stay names: no separators, no leading dot, no control characters."""
    for key in _NAMES:
        value = lookup(config, key)
        if value is not None and not re.fullmatch(r"[^\W_][\w .,+=@()-]{0,127}", value):
            why = "a name has letters, digits, spaces and . , + = @ ( ) _ -, begins with a letter or digit, at most 128"
            yield Diagnostic(key, repr(value), why, "give another name")
    if fault := size_fault(config.merge.shard_size):
        yield Diagnostic("merge.shard_size", config.merge.shard_size, fault, SIZE_ADVICE)
    file = config.dataset.hub_file
    if file is not None and (file.startswith("/") or ".." in file.split("/")):
        yield Diagnostic("dataset.hub_file", file, "is not a path inside the repository", "give one without ..")


def check_model_path(path: str | None) -> Iterator[Diagnostic]:
    """model.path names a directory."""
    if not path:
        yield Diagnostic("model.path", path, "model.source=local needs a directory", "give model.path=DIR")
    elif not Path(path).expanduser().is_dir():
        why = "is not a directory" if Path(path).expanduser().exists() else "does not exist"
        yield Diagnostic("model.path", path, why, "give a directory that transformers saved")
    else:
        try:
            repair_of(Path(path).expanduser())
        except TrntuneError as error:
            yield Diagnostic("model.path", path, str(error))


def check_model_files(config: Config) -> Iterator[Diagnostic]:
    """A local model's files can be read and hold what its config.json asks for; where there are only a config.json
    and no weights, that is enough for a plan. Those of the Hub are looked at by stage fetch."""
    directory = local_model(config)
    if directory is not None:
        fault = unreadable(directory) or incomplete(directory)
        if fault is None and weight_files(directory):
            fault = tokenizer_fault(directory)
        if fault is not None:
            yield Diagnostic("model.path", config.model.path, fault)


def local_model(config: Config) -> Path | None:
    """The directory of a local model; None for another, and where there is none."""
    directory = Path(config.model.path or "").expanduser()
    return directory if config.model.source == "local" and config.model.path and directory.is_dir() else None


def refuse_absent(config: Config) -> None:
    """Raise UsageError for a run from a directory that lacks weights, which a plan doesn't need."""
    directory = local_model(config)
    fault = absent(directory) if directory is not None and "fetch" in config.stages else None
    if fault is not None:
        raise UsageError(f"model.path={config.model.path}: {fault}")


def check_dataset_source(config: Config) -> Iterator[Diagnostic]:
    """The rows can be found."""
    dataset = config.dataset
    if dataset.source == "hub" and not dataset.path and not dataset.hub_id:
        remedy = "give dataset.hub_id=OWNER/NAME or dataset.path=FILE"
        yield Diagnostic("dataset.hub_id", None, "dataset.source=hub needs it", remedy)
    own = dataset.eval_path is not None or dataset.eval_split is not None
    if own:
        return
    if dataset.max_samples is not None and dataset.max_samples <= dataset.eval_samples:
        why = f"dataset.eval_samples={dataset.eval_samples} leaves no row to train on"
        yield Diagnostic("dataset.max_samples", dataset.max_samples, why, f"at least {dataset.eval_samples + 1}")


def check_price(config: Config) -> Iterator[Diagnostic]:
    """A price is reported with its source and date, or not at all."""
    yield from price_problems("accelerator", config.accelerator)


def price_problems(group: str, priced: Any) -> Iterator[Diagnostic]:
    """The same for any group with the three keys of a price."""
    names = ("price_usd_per_hour", "price_source", "price_date")
    values = {name: getattr(priced, name) for name in names}
    if any(value is not None for value in values.values()):
        for name, value in values.items():
            if value is None or value == "":
                yield Diagnostic(f"{group}.{name}", value, "a price needs all of " + ", ".join(names), "give it too")
    date = priced.price_date
    if date and not is_date(date):
        yield Diagnostic(f"{group}.price_date", date, "is not a date YYYY-MM-DD", "for example 2025-11-23")


def is_date(text: str) -> bool:
    """True for a day that exists, written YYYY-MM-DD."""
    if not re.fullmatch(r"\d{4}-\d{2}-\d{2}", text):
        return False
    try:
        datetime.date.fromisoformat(text)
    except ValueError:
        return False
    return True


def check_tracking(config: Config) -> Iterator[Diagnostic]:
    """MLflow's address can be one, and holds no password."""
    uri = config.tracking.uri
    fault = credentials_fault(uri) or (address_fault(uri) if config.tracking.enabled else None)
    if fault:
        yield Diagnostic("tracking.uri", without_credentials(uri) or "''", *fault)


def check_output(config: Config) -> Iterator[Diagnostic]:
    """Run directories can be made."""
    if not config.output_dir:
        yield Diagnostic("output_dir", "''", "is empty", "give a directory")
        return
    why = blocked(Path(config.output_dir).expanduser().absolute())
    if why:
        yield Diagnostic(
            "output_dir", config.output_dir, f"cannot be made: {why}", "give a directory that can be written"
        )


CHECKS: tuple[Check, ...] = (
    check_credentials,
    check_stages,
    check_model_source,
    check_model_files,
    check_trust,
    check_names,
    check_dataset_source,
    check_files,
    check_format,
    check_batch,
    check_length,
    check_heads,
    check_lora,
    check_quantized,
    check_steps,
    check_allowed_names,
    *PARALLEL_CHECKS,
    check_neuron,
    check_environment,
    check_cluster,
    check_price,
    check_tracking,
    check_output,
)


def check_unused_lora(config: Config, overrides: Collection[str], swept: Collection[str]) -> Iterator[Diagnostic]:
    """Adapter settings of a full fine-tuning would be silently unused; in a sweep over methods they are not."""
    swept_keys = {line.partition("=")[0] for line in swept}
    if config.method.name != "full" or "method" in swept_keys:
        return
    for line in overrides:
        key, _, value = line.partition("=")
        if key == "lora" or key.startswith("lora."):
            yield Diagnostic(key, value, "is not used with method=full", "leave it out, or take method=lora")


def check_two_warmups(overrides: Collection[str]) -> Iterator[Diagnostic]:
    """A ratio stands in place of the steps that a group of conf/ gives, not of those that are given beside it."""
    given = {key: value for key, _, value in (line.partition("=") for line in overrides)}
    if given.get("training.warmup_steps", "0") != "0" and given.get("training.warmup_ratio", "null") != "null":
        why = f"is not read beside training.warmup_ratio={given['training.warmup_ratio']}"
        yield Diagnostic("training.warmup_steps", given["training.warmup_steps"], why, "leave one of them out")


def fill_architecture(config: Config) -> None:
    """Read the facts of a local model into the configuration, so that checks and records have them; and the names that
    all-linear stands for, where they are known without the model and all of them are meant."""
    model = config.model
    if model.source == "local" and model.architecture is None and model.path:
        directory = Path(model.path).expanduser()
        if directory.is_dir():
            model.architecture = read_architecture(directory)
    lora = config.lora
    if model.architecture is not None and is_all_linear(lora) and not lora.exclude_modules and not lora.modules_to_save:
        lora.target_modules = [linear.name for linear in linear_layers(model.architecture)]


def problems(config: Config, overrides: Collection[str] = (), swept: Collection[str] = ()) -> list[Diagnostic]:
    """Everything that is wrong with a configuration. Limits come first: the other checks rely on them."""
    broken = [*check_tokens(config), *check_values(config)]
    if broken:
        return broken
    fill_architecture(config)
    found = [problem for check in CHECKS for problem in check(config)]
    return [*found, *check_unused_lora(config, overrides, swept), *check_two_warmups(overrides)]


def refuse_problems(config: Config, overrides: Collection[str] = (), swept: Collection[str] = ()) -> None:
    """Raise UsageError with the first problem, and how many more there are."""
    refuse(problems(config, overrides, swept))


def refuse(found: Sequence[Diagnostic]) -> None:
    """Raise UsageError with the first problem, if there is one."""
    if found:
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        raise UsageError(f"{found[0]}{more}")


def check_directory(directory: Path, occupant: str | None) -> None:
    """Raise UsageError when a run directory cannot be made or is taken; ``occupant`` says by what."""
    if occupant:
        raise UsageError(f"{shown(directory)} {occupant}: give another hydra.run.dir, or leave it out")
    if why := blocked(directory):
        raise UsageError(f"{shown(directory)} cannot be made: {why}")

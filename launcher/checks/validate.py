"""Pairs of settings that cannot work together: pure functions from a configuration to problems.

Every check yields Problem(key, value, why, remedy). The first one is told to the user, with how many more there are.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from launcher.architecture.adapters import is_all_linear, listed
from launcher.architecture.quantized import check_quantized
from launcher.architecture.tensors import linear_layers
from launcher.checks.accelerator import check_price
from launcher.checks.diagnostic import Check, Diagnostic
from launcher.checks.parallelism import PARALLEL_CHECKS
from launcher.checks.sources import check_dataset_source, check_model_files, check_model_source, check_trust
from launcher.checks.tracking_uri import address_fault, credentials_fault
from launcher.checks.training import (
    check_batch,
    check_heads,
    check_length,
    check_lora,
    check_steps,
    check_two_warmups,
    check_unused_lora,
)
from launcher.config.fields import error_message, keys, lookup
from launcher.config.schema import Config
from launcher.config.secrets import ADVICE, redact, strings, token_keys, without_credentials
from launcher.data.files import check_files, check_format
from launcher.errors import UsageError, nearest
from launcher.executors.slurm.checks import check_cluster
from launcher.jobs.run_stage import STAGES
from launcher.model_dir.config_json import read_architecture
from launcher.neuron.checks import check_environment, check_neuron
from launcher.paths import shown
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


def check_problems(config: Config, overrides: Collection[str] = (), swept: Collection[str] = ()) -> None:
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

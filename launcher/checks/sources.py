"""Where model and data come from: each source has what it needs, and its files can be read."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from launcher.checks.diagnostic import Diagnostic
from launcher.config.schema import Config
from launcher.errors import TrntuneError, UsageError
from launcher.model_dir.files import tokenizer_fault, weight_files
from launcher.model_dir.generation_config import repair_of
from launcher.model_dir.weights import absent, incomplete, unreadable


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
    if model.config_json and (model.source != "hub" or model.architecture is not None):
        why = "is read of a model on the Hub without model.architecture alone"
        yield Diagnostic("model.config_json", model.config_json, why, "leave it out")
    if model.config_json and not isinstance(model.config_json.get("model_type"), str):
        why = "names no model_type, by which transformers knows the family"
        yield Diagnostic("model.config_json", model.config_json, why, "give its config.json's")
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


def check_sources_exist(config: Config) -> None:
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

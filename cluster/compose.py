"""From the command line to a typed and checked cluster configuration, by the launcher's own machinery."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from hydra.core.override_parser.types import Override
from omegaconf import OmegaConf

from cluster.checks import check_problems
from cluster.schema import SetupConfig, register
from launcher.config.compose import Composer, publish
from launcher.config.error_messages import one_line_errors
from launcher.config.fields import schema_of
from launcher.config.typed import drop_hydra, to_typed
from launcher.errors import UsageError
from launcher.paths import CLUSTER_SETUP


def compose(
    overrides: Sequence[str],
    config_name: str = "config",
    config_dir: str | Path | None = None,
    check: Callable[[SetupConfig], None] = check_problems,
) -> SetupConfig:
    """The configuration that the command line asks for. Raises UsageError with one line, or what ``check`` raises."""
    lines = list(overrides)
    with schema_of(SetupConfig):
        composer = _composer(config_name, config_dir)
        _check_sweeps(composer.parse(lines))
        with one_line_errors():
            cfg = composer.load(lines)
            publish(OmegaConf.masked_copy(cfg, "hydra"))
            config = to_typed(cfg, SetupConfig)
        check(config)
    return config


def as_yaml(overrides: Sequence[str], config_name: str = "config", config_dir: str | Path | None = None) -> str:
    """The composed configuration, unchecked, as YAML that composes again."""
    with schema_of(SetupConfig):
        composer = _composer(config_name, config_dir)
        _check_sweeps(composer.parse(list(overrides)))
        with one_line_errors():
            cfg = composer.load(list(overrides))
            drop_hydra(cfg)
            return OmegaConf.to_yaml(cfg)


def _check_sweeps(overrides: Iterable[Override]) -> None:
    """Raise UsageError for several values of a key."""
    for override in overrides:
        if override.is_sweep_override():
            line, key = override.input_line, override.key_or_group
            raise UsageError(f"{line}: one cluster at a time; for a list write {key}=[a,b], for a comma quote it")


def _composer(config_name: str, config_dir: str | Path | None) -> Composer:
    return Composer(config_name, None if config_dir is None else str(config_dir), CLUSTER_SETUP, register)

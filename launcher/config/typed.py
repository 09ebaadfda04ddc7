"""From Hydra's composed configuration to the dataclasses of a schema."""

from __future__ import annotations

from typing import TypeVar

from omegaconf import DictConfig, OmegaConf, flag_override
from omegaconf.errors import OmegaConfBaseException

from launcher.config.error_messages import first_line
from launcher.config.fields import keys
from launcher.errors import UsageError

T = TypeVar("T")


def drop_hydra(cfg: DictConfig) -> None:
    """Take the hydra node off, in place: a copy would lose the types."""
    with flag_override(cfg, ["struct", "readonly"], False):
        del cfg["hydra"]


def resolve(cfg: DictConfig) -> None:
    """Replace every interpolation by its value. Raises UsageError with the key, which OmegaConf leaves out."""
    try:
        OmegaConf.resolve(cfg)
    except OmegaConfBaseException as error:
        for path in keys():
            if why := unresolvable(cfg, path):
                raise UsageError(why) from error
        raise


def unresolvable(cfg: DictConfig, path: str) -> str | None:
    """The message for a key whose interpolation cannot be resolved, or None."""
    try:
        OmegaConf.select(cfg, path)
    except OmegaConfBaseException as error:
        parent, _, leaf = path.rpartition(".")
        node = OmegaConf.select(cfg, parent) if parent else cfg
        written = OmegaConf.to_container(node, resolve=False)[leaf]  # type: ignore[call-overload,index]
        return f"{path}={written}: cannot be resolved: {first_line(str(error))}"
    return None


def to_typed(cfg: DictConfig, kind: type[T]) -> T:
    """The dataclasses of the composed configuration, interpolations resolved. Raises UsageError for what is missing."""
    drop_hydra(cfg)
    resolve(cfg)
    missing = sorted(OmegaConf.missing_keys(cfg))
    if missing:
        raise UsageError(f"{missing[0]} has no value: give {missing[0]}=...")
    config = OmegaConf.to_object(cfg)
    assert isinstance(config, kind)
    return config

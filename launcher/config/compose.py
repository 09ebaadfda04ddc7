"""From the command line to composed, typed and checked runs, by Hydra's own machinery, with nothing written to disk.

hydra.main is not used to run: it makes directories before anything of ours has looked at the configuration, and it
reports over many lines. Its parts are: the override grammar, the config loader, the basic sweeper's splitting.
"""

from __future__ import annotations

import argparse
import copy
import functools
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, flag_override

from launcher.config import schema
from launcher.config.error_messages import one_line_errors
from launcher.config.fields import keys, node_type, nodes
from launcher.config.loader import make_loader
from launcher.config.overrides import check_arguments, check_override, open_mapping
from launcher.config.schema import Config
from launcher.config.secrets import ADVICE, looks_like_token, token_keys
from launcher.config.sweep import check_sweeps, label, split_sweep
from launcher.config.texts import quote_texts
from launcher.config.typed import to_typed
from launcher.errors import UsageError
from launcher.paths import CLUSTER_SETUP, CONF
from launcher.run_dir.create import subdirectory_name


@dataclass(frozen=True)
class Composed:
    """One configuration of the command line: typed, its interpolations resolved, not yet checked for sense."""

    config: Config
    hydra: DictConfig
    overrides: tuple[str, ...]
    swept: tuple[str, ...]
    directory: Path
    # True where the directory's name was given without a time in it: it is then used as it is, or refused.
    fixed_name: bool


@dataclass(frozen=True)
class Composition:
    """All configurations of one command line; ``sweep_dir`` is None for a single run."""

    runs: tuple[Composed, ...]
    sweep_dir: Path | None = None
    fixed_name: bool = True


class Composer:
    """Composes the configurations of one command line."""

    def __init__(
        self,
        config_name: str = "config",
        config_dir: str | None = None,
        conf: Path = CONF,
        register: Callable[[], None] = schema.register,
    ) -> None:
        self.config_name = config_name.removesuffix(".yaml")
        self._composed: dict[tuple[str, ...], DictConfig] = {}
        with one_line_errors():
            self.loader = make_loader(config_dir, conf, register)
            if not self.loader.repository.config_exists(self.config_name):
                raise UsageError(f"--config-name {config_name}: there is no {self.config_name}.yaml in the search path")

    @functools.cached_property
    def groups(self) -> list[str]:
        """Names of the top-level groups."""
        found = self.loader.repository.get_group_options("", ObjectType.GROUP)
        return [group for group in found if group != CLUSTER_SETUP.name]

    def options(self, group: str) -> list[str]:
        """Choices of a group; empty when there is no such group."""
        of_runs = (group or "").partition("/")[0] != CLUSTER_SETUP.name
        return self.loader.repository.get_group_options(group, ObjectType.CONFIG) if of_runs else []

    def parse(self, lines: list[str]) -> list[Override]:
        """Read overrides, and refuse those whose key, choice or sign cannot be."""
        check_arguments(lines)
        with one_line_errors():
            parsed = OverridesParser.create(self.loader).parse_overrides([quote_texts(line) for line in lines])
            for override in parsed:
                check_override(override, self.groups, self.options)
        return parsed

    def load(self, lines: list[str], mode: RunMode = RunMode.RUN) -> DictConfig:
        """Compose one configuration, the hydra node included."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Hydra's remarks on search paths: the error that follows is enough
            opened = [open_mapping(quote_texts(line)) for line in lines]
            late = self.of_whole_nodes(opened)
            try:
                cfg = self.loader.load_configuration(self.config_name, [x for x in opened if x not in late], mode)
                self.apply(OverridesParser.create().parse_overrides(late), cfg)
            except AssertionError as error:  # OmegaConf's, for a key below a node that is null
                raise UsageError(below_null(lines)) from error
            cfg.hydra.overrides.task += late
            return cfg

    def of_whole_nodes(self, lines: list[str]) -> list[str]:
        """The overrides that give a whole node (accelerator.calibration={...}) or, beside one, a key of it."""
        names = [line.partition("=")[0] for line in lines]
        whole = {name for name in names if name in nodes() - set(self.groups)}
        return [line for line, name in zip(lines, names, strict=True) if {name, name.rpartition(".")[0]} & whole]

    def apply(self, values: list[Override], cfg: DictConfig) -> None:
        """Set keys in a composed configuration. A node that is null and gets keys is made first: OmegaConf has nothing
        to merge them into."""
        for override in values:
            key = override.key_or_group
            if key in nodes() and OmegaConf.select(cfg, key) is None and override.value() is not None:
                OmegaConf.update(cfg, key, OmegaConf.structured(node_type(key)), merge=False)
            self.loader._apply_overrides_to_config([override], cfg)

    def load_in_sweep(self, hydra: list[str], lines: list[str]) -> DictConfig:
        """As load, but each set of group choices is composed once: Hydra applies values after all files are merged."""
        lines = [open_mapping(quote_texts(line)) for line in lines]  # choice() has taken the quotes off
        values = [override for override in OverridesParser.create().parse_overrides(lines) if self.is_value(override)]
        value_lines = [str(override.input_line) for override in values]
        files = (*hydra, *(line for line in lines if line not in value_lines))
        if files not in self._composed:
            self._composed[files] = self.load(list(files))
        cfg = copy.deepcopy(self._composed[files])
        self.apply(values, cfg)
        cfg.hydra.overrides.task = lines
        return cfg

    def is_value(self, override: Override) -> bool:
        """True for an override of a key, false for the choice of a group."""
        return override.key_or_group in keys() or override.key_or_group in nodes() - set(self.groups)

    def compose(self, lines: list[str], multirun: bool) -> Composition:
        """Every configuration that the overrides ask for. Raises UsageError."""
        overrides = self.parse(lines)
        master = self.master(overrides)
        if multirun or master.hydra.mode == RunMode.MULTIRUN:
            return self.sweep(overrides, master)
        check_sweeps(overrides)
        with one_line_errors():
            directory = resolve_path(master, "run.dir")
        run = finish(master, strings(overrides), (), directory, is_fixed(master.hydra.run, "dir"))
        return Composition((run,))

    def master(self, overrides: list[Override]) -> DictConfig:
        """The configuration of everything that is not swept: it says whether and how to sweep."""
        fixed = [str(override.input_line) for override in overrides if not override.is_sweep_override()]
        with one_line_errors():
            return self.load(fixed)

    def sweep(self, overrides: list[Override], master: DictConfig) -> Composition:
        """One configuration for each combination of the swept values."""
        params = [f"{key}={value}" for key, value in (master.hydra.sweeper.params or {}).items()]
        task = [override for override in overrides if not override.is_hydra_override()]
        hydra = [str(override.input_line) for override in overrides if override.is_hydra_override()]
        combinations, swept_keys = split_sweep([*self.parse(params), *task], overrides)
        with one_line_errors():
            base = resolve_path(master, "sweep.dir")
        runs = []
        for number, lines in enumerate(combinations):
            swept = tuple(line for line in lines if line.partition("=")[0] in swept_keys)
            with one_line_errors(f"{label(number, len(combinations), swept)}: "):
                cfg = self.load_in_sweep(hydra, lines)
                OmegaConf.copy_cache(from_config=master, to_config=cfg)
                runs.append(finish_in_sweep(cfg, number, tuple(lines), swept, base))
        return Composition(tuple(runs), base, is_fixed(master.hydra.sweep, "dir"))


def below_null(lines: list[str]) -> str:
    """The message for an override of a key whose parent is null in this configuration."""
    given = [line.partition("=")[0] for line in lines]
    deep = next((key for key in given if key.rpartition(".")[0] in nodes() and key.count(".") > 1), " ".join(given))
    parent = deep.rpartition(".")[0]
    return f"{deep}: {parent} is null here, so that it has no keys; give it whole: {parent}={{...}}"


def strings(overrides: list[Override]) -> tuple[str, ...]:
    """The overrides of our own keys, as they were typed."""
    return tuple(str(override.input_line) for override in overrides if not override.is_hydra_override())


def is_fixed(node: DictConfig, key: str) -> bool:
    """True for a directory name without a time in it."""
    return "now:" not in str(OmegaConf.to_container(node, resolve=False)[key])  # type: ignore[call-overload,index]


def publish(cfg: DictConfig) -> None:
    """Make ``cfg`` what ${hydra:...} reads. HydraConfig.set_config would copy the whole configuration."""
    HydraConfig.instance().cfg = cfg  # type: ignore[assignment]


def resolve_path(cfg: DictConfig, key: str) -> Path:
    """An absolute directory from hydra.<key>."""
    publish(cfg)
    value = OmegaConf.select(cfg.hydra, key)
    if not value:
        raise UsageError(f"hydra.{key} is empty")
    return Path(str(value)).expanduser().absolute()


def finish_in_sweep(
    cfg: DictConfig, number: int, lines: tuple[str, ...], swept: tuple[str, ...], base: Path
) -> Composed:
    """Name a sweep's run after its number and what is swept, and finish it."""
    with flag_override(cfg.hydra, ["readonly", "struct"], False):
        cfg.hydra.mode = RunMode.MULTIRUN
        cfg.hydra.job.num = number
        cfg.hydra.job.id = str(number)
        cfg.hydra.job.override_dirname = ",".join(swept)
    publish(cfg)
    return finish(cfg, lines, swept, base / subdirectory_name(str(cfg.hydra.sweep.subdir)), True)


def finish(cfg: DictConfig, lines: tuple[str, ...], swept: tuple[str, ...], directory: Path, fixed: bool) -> Composed:
    """Resolve and type a composed configuration. The run directory's name is resolved before hydra is taken off."""
    hydra = OmegaConf.masked_copy(cfg, "hydra")
    publish(hydra)
    check_tokens_of_hydra(hydra, directory)
    with one_line_errors():
        config = to_typed(cfg, Config)
    return Composed(config, hydra, lines, swept, directory, fixed)


def check_tokens_of_hydra(hydra: DictConfig, directory: Path) -> None:
    """Raise UsageError for a token in Hydra's own settings, which are written down too, or in the directory's name,
    which an interpolation may have put there."""
    found = token_keys(OmegaConf.to_container(hydra, resolve=False))
    if looks_like_token(str(directory)):
        found = iter(["the run directory's name"])
    for key in found:
        raise UsageError(f"{key} holds what looks like an access token: {ADVICE}")


def compose(arguments: argparse.Namespace) -> Composition:
    """Everything that the command line asks to run."""
    return Composer(arguments.config_name, arguments.config_dir).compose(arguments.overrides, arguments.multirun)

"""From the command line to composed, typed and checked runs, by Hydra's own machinery, with nothing written to disk.

hydra.main is not used to run: it makes directories before anything of ours has looked at the configuration, and it
reports over many lines. Its parts are: the override grammar, the config loader, the basic sweeper's splitting.
"""

from __future__ import annotations

import argparse
import copy
import functools
import logging
import math
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml
from hydra import version
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import CachingConfigRepository, IConfigRepository
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.utils import create_config_search_path
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.default_element import ResultDefault
from hydra.core.hydra_config import HydraConfig
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.utils import JobRuntime, setup_globals
from hydra.errors import HydraException
from hydra.plugins.config_source import ConfigResult
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, flag_override
from omegaconf.errors import OmegaConfBaseException

from launcher.config import schema
from launcher.config.error_messages import error_message, first_line
from launcher.config.fields import keys, node_type, nodes
from launcher.config.overrides import check_override, open_mapping, refuse_tokens, shell_form
from launcher.config.schema import Config
from launcher.config.secrets import ADVICE, looks_like_token, token_keys
from launcher.config.texts import check_texts, quote_texts
from launcher.errors import UsageError
from launcher.paths import CLUSTER_SETUP, CONF
from launcher.run_dir.create import subdirectory_name

T = TypeVar("T")

MAX_RUNS = 2000
COMPOSITION_ERRORS = (HydraException, OmegaConfBaseException, yaml.YAMLError, ValueError, OSError)


class CachedLoader(ConfigLoaderImpl):
    """Hydra's loader, reading each file once for all configurations of a sweep: a third of the time of composing."""

    @functools.cached_property
    def _shared(self) -> CachingConfigRepository:
        return CachingConfigRepository(self.repository)

    def _parse_overrides_and_create_caching_repo(
        self, config_name: str | None, overrides: list[str]
    ) -> tuple[list[Override], CachingConfigRepository]:
        parsed = OverridesParser.create().parse_overrides(overrides=overrides)
        self._process_config_searchpath(config_name, parsed, self._shared)
        return parsed, self._shared

    def _load_single_config(self, default: ResultDefault, repo: IConfigRepository) -> ConfigResult:
        # Composition merges in place, and without copying: what it gets must not be the cached object.
        result = copy.copy(super()._load_single_config(default, repo))
        result.config = copy.deepcopy(result.config)
        if result.path.startswith("file://") and default.config_path is not None:
            file = Path(result.path.removeprefix("file://"), f"{default.config_path.removesuffix('.yaml')}.yaml")
            self._check_texts(file, (default.package or "").removeprefix("_global_"))
        return result

    @functools.cached_property
    def _check_texts(self) -> Callable[[Path, str], None]:
        return functools.cache(check_texts)


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


@contextmanager
def one_line_errors(prefix: str = "") -> Iterator[None]:
    """Turn whatever composition raises into a UsageError of one line."""
    try:
        yield
    except UsageError as error:
        raise UsageError(f"{prefix}{error}") from error
    except COMPOSITION_ERRORS as error:
        raise UsageError(f"{prefix}{error_message(error)}") from error


def make_loader(
    config_dir: str | None = None, conf: Path = CONF, register: Callable[[], None] = schema.register
) -> CachedLoader:
    """A loader over ``conf`` and, when given, the user's own directory beside it. ``register``: puts the schema into
    Hydra's store."""
    register()
    version.setbase("1.3")
    setup_globals()
    JobRuntime().set("name", "launch")
    search_path = create_config_search_path(str(conf))
    if config_dir is not None:
        path = Path(config_dir).absolute()
        if not path.is_dir():
            raise UsageError(f"--config-dir {config_dir}: no such directory")
        search_path.prepend("command-line", f"file://{path}", SearchPathQuery(provider="schema"))
    return CachedLoader(search_path)


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
        refuse_tokens(lines)
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
        refuse_sweeps(overrides)
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


def label(number: int, total: int, swept: tuple[str, ...]) -> str:
    """How one run of a sweep is called: "[1/2] method=lora"."""
    return " ".join([f"[{number + 1}/{total}]", *swept])


def strings(overrides: list[Override]) -> tuple[str, ...]:
    """The overrides of our own keys, as they were typed."""
    return tuple(str(override.input_line) for override in overrides if not override.is_hydra_override())


def refuse_sweeps(overrides: list[Override]) -> None:
    """Raise UsageError for several values without a sweep."""
    for override in overrides:
        if override.is_sweep_override():
            line, key = override.input_line, override.key_or_group
            form = shell_form(str(line))
            comma = "quote it" if form is None else f"type {form}"
            raise UsageError(
                f"{line}: several values need a sweep: add -m; for a list write {key}=[a,b], for a comma {comma}"
            )


def split_sweep(overrides: list[Override], typed: list[Override]) -> tuple[list[list[str]], set[str]]:
    """All combinations of the swept values, and the keys that are swept."""
    for override in typed:
        if override.is_sweep_override() and override.is_hydra_override():
            raise UsageError(f"{override.input_line}: Hydra's own settings cannot be swept")
    final = {override.get_key_element(): override for override in overrides}
    swept = {key: override for key, override in final.items() if override.is_sweep_override()}
    with one_line_errors():
        for override in swept.values():
            if not override.is_discrete_sweep():
                raise UsageError(f"{override.input_line}: an interval has no end of values; use choice() or range()")
        sizes = {key: sum(1 for _ in override.sweep_string_iterator()) for key, override in swept.items()}
        for key, size in sizes.items():
            if size == 0:
                raise UsageError(f"{swept[key].input_line}: the sweep is empty")
        if (total := math.prod(sizes.values())) > MAX_RUNS:
            raise UsageError(f"a sweep of {total} runs: at most {MAX_RUNS} are started by one command")
        return BasicSweeper.split_arguments(overrides, None)[0], set(swept)


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
    refuse_tokens_of_hydra(hydra, directory)
    with one_line_errors():
        config = to_typed(cfg, Config)
    return Composed(config, hydra, lines, swept, directory, fixed)


def refuse_tokens_of_hydra(hydra: DictConfig, directory: Path) -> None:
    """Raise UsageError for a token in Hydra's own settings, which are written down too, or in the directory's name,
    which an interpolation may have put there."""
    found = token_keys(OmegaConf.to_container(hydra, resolve=False))
    if looks_like_token(str(directory)):
        found = iter(["the run directory's name"])
    for key in found:
        raise UsageError(f"{key} holds what looks like an access token: {ADVICE}")


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


def compose(arguments: argparse.Namespace) -> Composition:
    """Everything that the command line asks to run."""
    return Composer(arguments.config_name, arguments.config_dir).compose(arguments.overrides, arguments.multirun)


def show(arguments: argparse.Namespace) -> int:
    """--cfg, --info, --hydra-help and shell completion: Hydra's own output, on our search path."""
    from hydra._internal.hydra import Hydra

    logging.raiseExceptions = False  # Hydra prints through logging: `--info | head` is no reason for tracebacks
    composer = Composer(arguments.config_name, arguments.config_dir)
    app = Hydra(task_name="launch", config_loader=composer.loader)
    if arguments.shell_completion:
        app.shell_completion(composer.config_name, arguments.overrides)
        return 0
    if arguments.hydra_help:
        from hydra._internal.utils import get_args_parser

        parser = get_args_parser()
        app.hydra_help(composer.config_name, parser, parser.parse_args(["--hydra-help"]))
        return 0
    overrides = composer.parse(arguments.overrides)
    refuse_sweeps(overrides)
    with one_line_errors():
        if arguments.info:
            composer.load(arguments.overrides)
            app.show_info(arguments.info, composer.config_name, arguments.overrides)
        else:
            show_config(composer, arguments)
    return 0


def show_config(composer: Composer, arguments: argparse.Namespace) -> None:
    """Print the composed configuration, or one package of it, as YAML that composes again."""
    cfg = composer.load(arguments.overrides)
    publish(OmegaConf.masked_copy(cfg, "hydra"))
    if arguments.cfg == "job":
        drop_hydra(cfg)
    shown = OmegaConf.masked_copy(cfg, "hydra") if arguments.cfg == "hydra" else cfg
    package = arguments.package if arguments.package != "_global_" else None
    selected: Any = shown if package is None else OmegaConf.select(shown, package)
    if selected is None:
        raise UsageError(f"--package {package}: not in this configuration")
    if arguments.resolve and OmegaConf.is_config(selected):
        OmegaConf.resolve(selected)
    header = f"# @package {package}\n" if package else ""
    sys.stdout.write(header + (OmegaConf.to_yaml(selected) if OmegaConf.is_config(selected) else f"{selected}\n"))

"""The values of a sweep: which there are, and which aren't meant as one."""

from __future__ import annotations

import math

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.types import Override

from launcher.config.error_messages import one_line_errors
from launcher.config.overrides import shell_form
from launcher.errors import UsageError

MAX_RUNS = 2000


def label(number: int, total: int, swept: tuple[str, ...]) -> str:
    """How one run of a sweep is called: "[1/2] method=lora"."""
    return " ".join([f"[{number + 1}/{total}]", *swept])


def check_sweeps(overrides: list[Override]) -> None:
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

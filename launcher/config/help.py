"""`launch.py --help`, made from the files under conf/ and the schema, without composing anything."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import yaml

from launcher.architecture.adapters import listed
from launcher.config.fields import keys
from launcher.paths import CLUSTER_SETUP, CONF

WIDTH = 96
COMMON_KEYS = (
    "training.max_steps", "training.epochs", "training.max_length", "training.global_batch_size",
    "training.micro_batch_size", "training.learning_rate", "training.precision", "training.eval_every", "lora.r",
    "lora.target_modules", "dataset.path", "dataset.max_samples", "model.path", "tracking.uri", "seed", "output_dir",
    "plan.show", "stages", "cluster.partition", "cluster.time_limit_min", "dry_run",
)  # fmt: skip
EXAMPLES = (
    ("python launch.py experiment=tiny", "the whole chain in seconds"),
    ("python launch.py method=lora lora.r=8 training.max_steps=40", "LoRA on a laptop CPU"),
    ("python launch.py -m method=lora,full seed=0,1", "four runs, then a comparison"),
    ("python launch.py dataset=jsonl dataset.path=rows.jsonl", "your own rows"),
    ("python launch.py -m method=lora,full plan=true", "what both need and take; starts none"),
    ("python launch.py parallelism=ddp2 --cfg job", "show the configuration, run nothing"),
    ("python launch.py resume=outputs/DIR", "go on with what ended early"),
    ("python launch.py -m method=lora,full cluster=slurm", "submit to a Slurm cluster"),
)
EXIT_CODES = (
    ("0", "everything asked for was done"),
    ("1", "a run failed (or the exit code of its failed stage)"),
    ("2", "the command line or configuration was refused; nothing was created"),
    ("75", "told to leave (SIGTERM, SIGUSR2); a checkpoint is there"),
    ("130", "interrupted; what was finished is on disk"),
)


def description(path: Path) -> str:
    """The first comment of a YAML file that is not Hydra's package directive."""
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("#") and not line.startswith("# @"):
            return line.lstrip("# ").strip()
    return ""


def choices(roots: list[Path]) -> dict[str, dict[str, Path]]:
    """Every group's choices and their files."""
    found: dict[str, dict[str, Path]] = {}
    for path in (path for root in roots for path in sorted(root.glob("*/*.yaml")) if path.parent != CLUSTER_SETUP):
        found.setdefault(path.parent.name, {}).setdefault(path.stem, path)
    return found


def default_choices() -> dict[str, str | None]:
    """Group -> choice, in the order of conf/config.yaml's defaults list."""
    entries = yaml.safe_load((CONF / "config.yaml").read_text(encoding="utf-8"))["defaults"]
    pairs = [item for entry in entries if isinstance(entry, dict) for item in entry.items()]
    return {group: choice for group, choice in pairs if not group.startswith("override ")}


def default_value(path: str, defaults: dict[str, str | None]) -> Any:
    """What a key is when nothing is overridden: from its group's default choice, else from the schema."""
    group, _, name = path.partition(".")
    choice = defaults.get(group)
    values = yaml.safe_load((CONF / group / f"{choice}.yaml").read_text(encoding="utf-8")) if choice else {}
    return values.get(name, keys()[path].default)


def written(value: Any) -> str:
    """A value as it is written in an override."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return listed(value) if isinstance(value, list | dict) else str(value)


def rows(pairs: list[tuple[str, str]], indent: int, column: int) -> list[str]:
    """Two columns; the second one wraps below itself."""
    lines = []
    for left, right in pairs:
        head = " " * indent + left
        pad = max(column, len(head) + 2)
        wrapped = textwrap.wrap(right, max(WIDTH - column, 20)) or [""]
        if pad > column:
            lines.append(head)
            head = ""
        lines.extend((head.ljust(column) if index == 0 else " " * column) + part for index, part in enumerate(wrapped))
    return [line.rstrip() for line in lines]


def group_section(roots: list[Path]) -> list[str]:
    """Groups in the order of the defaults list, the default choice marked."""
    defaults, groups = default_choices(), choices(roots)
    lines = []
    for group in [*defaults, *(group for group in groups if group not in defaults)]:
        lines.append(f"  {group}=")
        pairs = []
        for name, path in groups.get(group, {}).items():
            mark = "*" if defaults.get(group) == name else " "
            pairs.append((f"{mark} {name}", description(path)))
        lines.extend(rows(pairs, 4, 32))
    return lines


def key_section() -> list[str]:
    """The most used keys, with their defaults and meaning."""
    defaults = default_choices()
    pairs = [(f"{path}={written(default_value(path, defaults))}", keys()[path].help) for path in COMMON_KEYS]
    return rows(pairs, 2, 46)


def help_text(config_dir: str | None = None) -> str:
    """The whole help."""
    roots = [*([Path(config_dir)] if config_dir else []), CONF]
    flags = [
        ("-m, --multirun", "run every combination of the comma-separated values, then compare them"),
        ("--cfg job|hydra|all", "print the composed configuration and stop; --resolve fills in references"),
        ("--package KEY", "with --cfg: print only this part"),
        ("--config-dir DIR", "a directory of your own with groups beside conf/, such as experiment/mine.yaml"),
        ("--config-name NAME", "another main configuration than config"),
        ("--info [WHAT]", "how Hydra composed it: defaults, searchpath, ..."),
        ("--version, --hydra-help, --shell-completion", "version; Hydra's own help; completion for bash, zsh, fish"),
    ]
    lines = [
        "Fine-tune a language model with LoRA or in full, and measure what the adapter saves.",
        "",
        "Usage: python launch.py [-m] [group=choice ...] [key=value ...]",
        "",
        "Groups and their choices (* is the default):",
        *group_section(roots),
        "",
        "Most used keys, with their defaults (all keys: docs/configuration.md):",
        *key_section(),
        "  hydra.run.dir, hydra.sweep.dir              directory of the run, or of the sweep",
        "",
        "Flags:",
        *rows(flags, 2, 24),
        "",
        "Examples:",
        *(f"  {command:<62}{note}" for command, note in EXAMPLES),
        "",
        "Exit codes:",
        *(f"  {code:<6}{meaning}" for code, meaning in EXIT_CODES),
        "",
        "Documentation: README.md and docs/. One Ctrl-C stops a run after its step, a second one at once.",
    ]
    return "\n".join(lines) + "\n"

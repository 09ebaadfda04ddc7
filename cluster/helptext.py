"""`python -m cluster --help`, from the files under conf/cluster_setup/ and the schema, without composing anything."""

from __future__ import annotations

from cluster.schema import SetupConfig
from launcher.config.fields import keys, schema_of
from launcher.config.help import choices, description, rows, written
from launcher.paths import CLUSTER_SETUP

_COMMANDS = (
    ("plan", "print all that would be made, sent and paid; asks nobody, needs no credentials"),
    ("validate", "look for everything that can't work, offline and at AWS; exit code 1 when there is something"),
    ("deploy", "validate, then make stack, scripts and cluster, each where it is absent, and wait (confirm=true)"),
    ("status", "stack, cluster, groups, nodes; exit code 0 when the cluster is in service"),
    ("ssh", "a shell on a node (node=GROUP or INSTANCE; show=true prints the command)"),
    ("delete", "take all down and list what is left (confirm=true; keep_fsx=true keeps the file system)"),
    ("env", "on the cluster: submit the job that makes the Python environment (dry_run=true prints it)"),
)
_KEYS = (
    "name", "region", "mode", "workers.count", "workers.partition", "network.availability_zone_id",
    "storage.capacity_gib", "login.count", "lifecycle.directory", "environment.directory", "format", "output",
    "documents",
)  # fmt: skip
_EXAMPLES = (
    "python -m cluster plan workers.count=4",
    "python -m cluster validate network.availability_zone_id=usw2-az4",
    "python -m cluster deploy network.availability_zone_id=usw2-az4 confirm=true",
    "python -m cluster --config-dir ~/clusters --config-name mine status format=json",
    "python -m cluster delete confirm=true",
)
_FLAGS = (
    ("--cfg", "print the composed configuration and stop"),
    ("--config-dir DIR", "a directory of your own with set-ups, such as mine.yaml, and groups, such as workers/"),
    ("--config-name NAME", "another set-up than config"),
)
_EXIT_CODES = (
    ("0", "done; status: in service; validate: no problem"),
    ("1", "AWS refused, something failed, or something is left; validate: there is a problem"),
    ("2", "the command line or configuration was refused; nothing was asked of AWS"),
    ("130", "interrupted; what AWS has begun goes on"),
)


def help_text() -> str:
    """The whole help."""
    with schema_of(SetupConfig):
        pairs = [(f"{path}={_default(path)}", keys()[path].help) for path in _KEYS]
    workers = [(name, description(path)) for name, path in choices([CLUSTER_SETUP])["workers"].items()]
    lines = [
        "The HyperPod cluster itself: AWS's network, file system, bucket, role and instances, from one configuration.",
        "",
        "Usage: python -m cluster COMMAND [workers=CHOICE] [key=value ...]",
        "",
        "Commands:",
        *rows(list(_COMMANDS), 2, 14),
        "",
        "Choices of workers:",
        *rows(workers, 2, 22),
        "",
        "Most used keys, with their defaults (all: docs/cluster.md):",
        *rows(pairs, 2, 46),
        "",
        "Flags:",
        *rows(list(_FLAGS), 2, 24),
        "",
        "Examples:",
        *(f"  {command}" for command in _EXAMPLES),
        "",
        "Exit codes:",
        *rows(list(_EXIT_CODES), 2, 8),
        "",
        "Credentials are AWS's usual ones (AWS_PROFILE, ...), never keys of this configuration.",
    ]
    return "\n".join(lines) + "\n"


def _default(path: str) -> str:
    """What a key is by default: from the main set-up or the default workers, else from the schema."""
    import yaml

    main = yaml.safe_load((CLUSTER_SETUP / "config.yaml").read_text(encoding="utf-8"))
    chosen = next(item["workers"] for item in main["defaults"] if isinstance(item, dict) and "workers" in item)
    main["workers"] = yaml.safe_load((CLUSTER_SETUP / "workers" / f"{chosen}.yaml").read_text(encoding="utf-8"))
    value = main
    for part in path.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return written(keys()[path].default if value is None else value)

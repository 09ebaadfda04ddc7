"""The files that a cluster is made from: the template, and the lifecycle scripts that go to its bucket."""

from __future__ import annotations

from pathlib import Path

from cluster.schema import SetupConfig

_HERE = Path(__file__).resolve().parent
TEMPLATE = _HERE / "stack.yaml"
# Where in the bucket the scripts lie.
PREFIX = "src"


def template() -> str:
    """The CloudFormation template."""
    return TEMPLATE.read_text(encoding="utf-8")


def scripts_directory(config: SetupConfig) -> Path:
    """The directory of the lifecycle scripts: the user's or the project's."""
    given = config.lifecycle.directory
    return _HERE / "lifecycle" if given is None else Path(given).expanduser()


def scripts(config: SetupConfig) -> dict[str, Path]:
    """Name in the bucket, below ``PREFIX``, of every lifecycle script; hidden files stay here."""
    root = scripts_directory(config)
    found = (path for path in sorted(root.rglob("*")) if path.is_file())
    relative = {path.relative_to(root): path for path in found}
    return {str(name): path for name, path in relative.items() if not any(map(_stays, name.parts))}


def _stays(part: str) -> bool:
    return part.startswith(".") or part == "__pycache__"

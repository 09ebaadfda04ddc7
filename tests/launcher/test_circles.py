"""No module needs itself through others, not even by an import inside a function."""

from __future__ import annotations

import ast
import graphlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from launcher.paths import ROOT

PACKAGES = ("launcher", "trainer", "postprocess", "cluster", "benchmarks")


def modules(root: Path) -> dict[str, Path]:
    files = [file for package in PACKAGES for file in sorted((root / package).rglob("*.py"))]
    return {".".join(file.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): file for file in files}


def imports(tree: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """At any depth, but for those that only a type checker sees."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)):
            yield from imports(node)


def needed(file: Path, known: dict[str, Path]) -> set[str]:
    names: set[str] = set()
    for node in imports(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif node.module:
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= (inner & known.keys()) or {node.module}
    return names & known.keys()


def circle(root: Path) -> list[str] | None:
    """Modules of a circle, or None."""
    known = modules(root)
    assert known
    try:
        graphlib.TopologicalSorter({name: needed(file, known) - {name} for name, file in known.items()}).prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return None


def test_there_is_no_circle():
    assert circle(ROOT) is None


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("def f():\n    from trainer.a import g", {"trainer.a", "trainer.b"}),
        ("if TYPE_CHECKING:\n    from trainer.a import g", None),
        ("import trainer.a", {"trainer.a", "trainer.b"}),
    ],
)
def test_a_circle_is_found(line, found, tmp_path):
    (tmp_path / "trainer").mkdir()
    (tmp_path / "trainer" / "a.py").write_text("from trainer import b")
    (tmp_path / "trainer" / "b.py").write_text(line)
    there = circle(tmp_path)
    assert (None if there is None else set(there)) == found

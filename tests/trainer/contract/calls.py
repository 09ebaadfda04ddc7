"""What our engine expects of optimum-neuron, read from its source: imports, calls with their keywords, overridden
methods, and dotted names in strings."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass

from tests.trainer.contract import library


@dataclass(frozen=True)
class Engine:
    """One module of the engine."""

    name: str
    tree: ast.Module

    @property
    def imported(self) -> dict[str, tuple[str, str]]:
        """Local name -> module and name of everything that is imported from the library."""
        found = {}
        for node in ast.walk(self.tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(library.NAME):
                found.update({alias.asname or alias.name: (str(node.module), alias.name) for alias in node.names})
            elif isinstance(node, ast.Import):
                names = [alias for alias in node.names if alias.name.startswith(library.NAME) and alias.asname]
                found.update({str(alias.asname): tuple(alias.name.rsplit(".", 1)) for alias in names})  # type: ignore[misc]
        return found


def error_messages(engine: Engine) -> list[str]:
    """Everything that the installed library doesn't have, a line each."""
    return [
        *_missing_imports(engine), *_unknown_keywords(engine), *_missing_overrides(engine), *_missing_names(engine)
    ]  # fmt: skip


def expectations(engine: Engine) -> int:
    """How much is expected: keywords of calls, the engine's own overrides, imports."""
    calls = sum(len(keywords) for _, _, keywords in _calls(engine))
    return calls + len(engine.imported) + len(list(_overrides(engine)))


def _missing_imports(engine: Engine) -> list[str]:
    return [
        f"{engine.name}: {module} has no {name}"
        for module, name in engine.imported.values()
        if library.find(module, name) is None
    ]


def _calls(engine: Engine) -> list[tuple[str, library.Definition | str | None, list[str]]]:
    """Text, target and keywords of each call of something of the library: a name, or a method of one."""
    found = []
    for node in ast.walk(engine.tree):
        if not isinstance(node, ast.Call):
            continue
        head, _, attribute = ast.unparse(node.func).partition(".")
        if head not in engine.imported or "." in attribute or "(" in attribute:
            continue
        target = library.find(*engine.imported[head])
        if attribute and isinstance(target, library.Definition):
            is_module = isinstance(target.node, ast.Module)
            whole = ".".join(engine.imported[head])
            target = library.find(whole, attribute) if is_module else _method(target, attribute)
        found.append((ast.unparse(node.func), target, [word.arg for word in node.keywords if word.arg]))
    return found


def _method(target: library.Definition, name: str) -> library.Definition | None:
    found = library.method(target, name) if isinstance(target.node, ast.ClassDef) else None
    return found if isinstance(found, library.Definition) else None


def _unknown_keywords(engine: Engine) -> list[str]:
    lines = []
    for text, target, words in [*_calls(engine), *_super_calls(engine)]:
        if target is None:
            lines.append(f"{engine.name}: {text} is not there")
            continue
        allowed = library.keywords(target)
        unknown = [word for word in words if allowed is not None and word not in allowed]
        lines += [f"{engine.name}: {text} takes no {word}" for word in unknown]
    return lines


def _subclasses(engine: Engine) -> list[tuple[ast.ClassDef, library.Definition]]:
    """Our classes that inherit from one of the library's."""
    found = []
    for node in ast.walk(engine.tree):
        for base in node.bases if isinstance(node, ast.ClassDef) else []:
            target = engine.imported.get(ast.unparse(base))
            definition = library.find(*target) if target else None
            if isinstance(definition, library.Definition) and isinstance(node, ast.ClassDef):
                found.append((node, definition))
    return found


def _super_calls(engine: Engine) -> list[tuple[str, library.Definition | str | None, list[str]]]:
    found: list[tuple[str, library.Definition | str | None, list[str]]] = []
    for node, base in _subclasses(engine):
        for call in ast.walk(node):
            if isinstance(call, ast.Call) and (match := re.fullmatch(r"super\(\)\.(\w+)", ast.unparse(call.func))):
                words = [word.arg for word in call.keywords if word.arg]
                found.append((f"{node.name}: {match[0]}", _method(base, match[1]), words))
    return found


def _overrides(engine: Engine) -> list[tuple[str, library.Definition, ast.FunctionDef]]:
    """Methods of ours that the library's loop is meant to call: those that have the name of one of its own."""
    return [
        (f"{node.name}.{method.name}", found, method)
        for node, base in _subclasses(engine)
        for method in node.body
        if isinstance(method, ast.FunctionDef)
        and method.name != "__init__"
        and (found := _method(base, method.name)) is not None
    ]


def _missing_overrides(engine: Engine) -> list[str]:
    """An override takes the parameters that the library's method is called with."""
    lines = []
    for text, theirs, ours in _overrides(engine):
        assert isinstance(theirs.node, ast.FunctionDef)
        if ours.args.vararg or ours.args.kwarg or _is_property(ours):
            continue
        names, wanted = [a.arg for a in ours.args.args], [a.arg for a in theirs.node.args.args]
        lines += [f"{engine.name}: {text} lacks parameter {name}" for name in wanted if name not in names]
    return lines


def _is_property(method: ast.FunctionDef) -> bool:
    return any("property" in ast.unparse(decorator) for decorator in method.decorator_list)


def _missing_names(engine: Engine) -> list[str]:
    """Dotted names in strings, such as those of what is patched."""
    texts = {
        node.value
        for node in ast.walk(engine.tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
        and re.fullmatch(rf"{re.escape(library.NAME)}(\.\w+)+", node.value)
    }  # fmt: skip
    return [f"{engine.name}: {text} is not there" for text in sorted(texts) if not _exists(text)]


def _exists(dotted: str) -> bool:
    parts = dotted.split(".")
    length = next(n for n in range(len(parts), 0, -1) if library.module_file(".".join(parts[:n])))
    module, rest = ".".join(parts[:length]), parts[length:]
    if not rest:
        return True
    found = library.find(module, rest[0])
    if len(rest) == 1 or not isinstance(found, library.Definition) or not isinstance(found.node, ast.ClassDef):
        return found is not None and len(rest) == 1
    return library.method(found, rest[1]) is not None

"""The installed optimum-neuron as source text: it can't be imported without torch_xla, but it can be read."""

from __future__ import annotations

import ast
import dataclasses
import functools
import importlib
import inspect
from dataclasses import dataclass
from pathlib import Path

from tests.library_sets import neuron_source

NAME = "optimum.neuron"
# Methods that hand their keywords on to another class, which they look up by name.
HANDED_ON = {
    "optimum.neuron.models.training.modeling_auto._BaseNeuronModelClass.from_pretrained": (
        "optimum.neuron.models.training.modeling_utils.NeuronModelMixin.from_pretrained"
    )
}


@functools.cache
def root() -> Path:
    """site-packages."""
    return neuron_source("optimum/neuron/version.py").parents[2]


def module_file(module: str) -> Path | None:
    """The file of a module of the library; None where it has no such module."""
    base = root() / module.replace(".", "/")
    return next((path for path in (base.with_suffix(".py"), base / "__init__.py") if path.is_file()), None)


@functools.cache
def tree(module: str) -> ast.Module:
    path = module_file(module)
    assert path is not None, module
    return ast.parse(path.read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Definition:
    """Something that a module of the library defines."""

    module: str
    node: ast.stmt | ast.Module
    """a whole module stands for itself"""

    @property
    def dotted(self) -> str:
        return f"{self.module}.{getattr(self.node, 'name', '')}"


def absolute(module: str, node: ast.ImportFrom) -> str:
    """The module that an import in ``module`` names."""
    if not node.level:
        return node.module or ""
    path = module_file(module)
    is_package = path is not None and path.name == "__init__.py"
    parts = module.split(".")
    base = parts[: len(parts) - node.level + is_package]
    return ".".join([*base, *([node.module] if node.module else [])])


def find(module: str, name: str) -> Definition | str | None:
    """Where ``name`` of ``module`` is defined; its dotted name for what isn't the library's; None: it is nothing."""
    if not module.startswith(NAME):
        return f"{module}.{name}"
    if module_file(module) is None:  # none, or a directory of modules
        return _submodule(module, name)
    return _imported(module, name) or _defined(module, name) or _submodule(module, name)


def _imported(module: str, name: str) -> Definition | str | None:
    """What an import of ``module``, wherever it stands in it, gives this name."""
    for node in ast.walk(tree(module)):
        for alias in node.names if isinstance(node, ast.ImportFrom) else []:
            if (alias.asname or alias.name) == name and isinstance(node, ast.ImportFrom):
                found = find(absolute(module, node), alias.name)
                if found is not None:
                    return found
    return None


def _defined(module: str, name: str) -> Definition | None:
    for node in tree(module).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name:
            return Definition(module, node)
        if isinstance(node, ast.Assign) and name in map(ast.unparse, node.targets):
            return Definition(module, node)
    return None


def _submodule(module: str, name: str) -> Definition | None:
    whole = f"{module}.{name}"
    return Definition(whole, tree(whole)) if module_file(whole) else None


def bases(definition: Definition) -> list[Definition | str]:
    """The classes that a class inherits from."""
    assert isinstance(definition.node, ast.ClassDef)
    names = [ast.unparse(base) for base in definition.node.bases]
    found = [find(definition.module, name) for name in names]
    return [one for one in found if one is not None]


def members(definition: Definition) -> dict[str, ast.stmt]:
    """Methods and annotated attributes of a class's own body, by name."""
    assert isinstance(definition.node, ast.ClassDef)
    found: dict[str, ast.stmt] = {}
    for node in definition.node.body:
        if isinstance(node, ast.FunctionDef):
            found[node.name] = node
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found[node.target.id] = node
        elif isinstance(node, ast.Assign):
            found.update({target.id: node for target in node.targets if isinstance(target, ast.Name)})
    return found


def method(definition: Definition | str, name: str) -> Definition | inspect.Signature | None:
    """The method of a class, its own or inherited."""
    if isinstance(definition, str):
        module, _, attribute = definition.rpartition(".")
        function = getattr(getattr(importlib.import_module(module), attribute, None), name, None)
        return None if function is None or function is getattr(object, name, None) else inspect.signature(function)
    own = members(definition).get(name)
    if isinstance(own, ast.FunctionDef):
        return Definition(definition.dotted, own)
    return next((found for base in bases(definition) if (found := method(base, name)) is not None), None)


def is_dataclass(definition: Definition) -> bool:
    assert isinstance(definition.node, ast.ClassDef)
    return any("dataclass" in ast.unparse(decorator) for decorator in definition.node.decorator_list)


def keywords(definition: Definition | str) -> set[str] | None:
    """Keywords that calling it takes; None where it takes any."""
    if isinstance(definition, str):
        return _imported_keywords(definition)
    node = definition.node
    if isinstance(node, ast.FunctionDef):
        return _of_function(definition)
    if is_dataclass(definition):
        own = {name for name, member in members(definition).items() if isinstance(member, ast.AnnAssign)}
        return own.union(*(keywords(base) or set() for base in bases(definition)))
    constructor = method(definition, "__init__")
    if isinstance(constructor, inspect.Signature):
        return _of_signature(constructor)
    return set() if constructor is None else _of_function(constructor)


def _of_function(definition: Definition) -> set[str] | None:
    """Named parameters, and where there is a ``**kwargs`` what the body takes out of it by name."""
    node = definition.node
    assert isinstance(node, ast.FunctionDef)
    named = {argument.arg for argument in [*node.args.args, *node.args.kwonlyargs]} - {"self", "cls"}
    if node.args.kwarg is None:
        return named
    if (target := HANDED_ON.get(definition.dotted)) is not None:
        owner, _, name = target.rpartition(".")
        module, _, cls = owner.rpartition(".")
        holder = find(module, cls)
        assert holder is not None
        found = method(holder, name)
        assert isinstance(found, Definition)
        return named | (_of_function(found) or set())
    taken = {
        call.args[0].value
        for call in ast.walk(node)
        if isinstance(call, ast.Call)
        and ast.unparse(call.func) in (f"{node.args.kwarg.arg}.pop", f"{node.args.kwarg.arg}.get")
        and isinstance(call.args[0], ast.Constant)
    }
    return named | {str(name) for name in taken} if taken else None


def _of_signature(signature: inspect.Signature) -> set[str] | None:
    kinds = {parameter.kind for parameter in signature.parameters.values()}
    return None if inspect.Parameter.VAR_KEYWORD in kinds else set(signature.parameters) - {"self", "cls"}


def _imported_keywords(dotted: str) -> set[str] | None:
    module, _, name = dotted.rpartition(".")
    found = getattr(importlib.import_module(module), name)
    if dataclasses.is_dataclass(found):
        return {field.name for field in dataclasses.fields(found)}
    return _of_signature(inspect.signature(found))

"""A text stays the text that was written, also where it looks like a number.

Hydra's grammar reads `model.revision=4e10232` as infinity, YAML reads `run_name: 12:30` as 750, and OmegaConf makes a
text of such a number again. On the command line the text is still there, so it is quoted before Hydra reads it. In a
file it is refused, with the line that quotes it: whoever reads the file elsewhere would get the number too.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

import yaml
from antlr4 import CommonTokenStream, InputStream
from hydra.conf import HydraConf
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.overrides_visitor import HydraErrorListener, HydraOverrideVisitor
from hydra.errors import HydraException
from hydra.grammar.gen.OverrideLexer import OverrideLexer
from hydra.grammar.gen.OverrideParser import OverrideParser
from omegaconf import OmegaConf, StringNode
from omegaconf.errors import OmegaConfBaseException

from launcher.config.fields import keys, root
from launcher.errors import UsageError

# Functions of Hydra's grammar that give what they are given; the arguments of the others, such as range, are numbers.
_TRANSPARENT = ("choice", "sort", "shuffle", "tag", "extend_list", "str")
_TEXT_TAGS = ("tag:yaml.org,2002:str", "tag:yaml.org,2002:null")


def is_text(path: str) -> bool:
    """Whether the schema, or Hydra's own, has a text or a list of texts at this dotted path."""
    if path.partition(".")[0] == "hydra":
        return _is_hydras_text(path.partition(".")[2])
    key = keys().get(path)
    return key is not None and (key.type is str or get_args(key.type) == (str,))


def quote_texts(line: str) -> str:
    """An override in which numbers and true or false are quoted where the schema has a text: `a=1e5` is `a='1e5'`.

    null stays null, and what can't be read stays as it is: Hydra says then what is wrong with it.
    """
    return _quote_texts(line, root())


@functools.lru_cache(maxsize=10_000)
def _quote_texts(line: str, schema: type) -> str:
    """A sweep asks for the same lines again and again. ``schema``: what ``is_text`` goes by."""
    try:
        places = _Finder.places(line)
    except HydraException:
        return line
    for begin, end in sorted(places, reverse=True):
        line = f"{line[:begin]}'{line[begin:end].rstrip()}'{line[end:]}"
    return line


def check_texts(file: Path, package: str) -> None:
    """Raise UsageError where a configuration file has a number or true or false at the place of a text."""
    try:
        root = yaml.compose(file.read_text(encoding="utf-8"), Loader=_Loader)
    except (yaml.YAMLError, OSError, UnicodeError):
        return  # Hydra's own error, when it reads the file, is the better one
    for path, name, node in _scalars(root, package):
        if node.tag not in _TEXT_TAGS and is_text(path):
            raise UsageError(
                f"{file}, line {node.start_mark.line + 1}: {path} is a text, and YAML reads {node.value} as "
                f'something else: quote it: {name}"{node.value}"'
            )


class _Loader(yaml.SafeLoader):
    """YAML's, and OmegaConf's own numbers: 1e5 without a dot."""


def _omegaconf_tags() -> None:
    from omegaconf._utils import get_yaml_loader

    _Loader.yaml_implicit_resolvers = get_yaml_loader().yaml_implicit_resolvers


_omegaconf_tags()


def _scalars(node: yaml.Node | None, path: str) -> Iterator[tuple[str, str, yaml.ScalarNode]]:
    """Dotted path of the key, how the line begins, and node of each value in a file; of each element in a list."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            child = f"{path}.{key.value}" if path else str(key.value)
            if isinstance(value, yaml.ScalarNode):
                yield child, f"{key.value}: ", value
            elif isinstance(value, yaml.SequenceNode):
                start = "" if value.flow_style else "- "
                yield from ((child, start, item) for item in value.value if isinstance(item, yaml.ScalarNode))
            else:
                yield from _scalars(value, child)


@functools.cache
def _is_hydras_text(path: str) -> bool:
    try:
        parent, _, leaf = path.rpartition(".")
        node = OmegaConf.select(_hydra(), parent) if parent else _hydra()
        return isinstance(node._get_node(leaf), StringNode)
    except (OmegaConfBaseException, AttributeError):
        return False


@functools.cache
def _hydra() -> Any:
    return OmegaConf.structured(HydraConf)


class _Finder(HydraOverrideVisitor):
    """Finds where in an override the values stand that are to be quoted."""

    def __init__(self) -> None:
        super().__init__(OverridesParser.create().functions)
        self.found: list[tuple[int, int]] = []
        self._path: list[str] = []
        self._numbers = 0

    @classmethod
    def places(cls, line: str) -> list[tuple[int, int]]:
        """Beginning and end of each of them, in characters. Raises HydraException for what is no override."""
        listener = HydraErrorListener()
        lexer = OverrideLexer(InputStream(line))
        parser = OverrideParser(CommonTokenStream(lexer))
        for part in (lexer, parser):
            part.removeErrorListeners()
            part.addErrorListener(listener)
        finder = cls()
        tree = parser.override()
        finder._path = [tree.key().getText()]
        finder.visitOverride(tree)
        return finder.found

    def visitPrimitive(self, ctx: OverrideParser.PrimitiveContext) -> Any:
        value = super().visitPrimitive(ctx)
        if value is not None and isinstance(value, (bool, int, float)) and not self._numbers and is_text(self._dotted):
            self.found.append((ctx.start.start, ctx.stop.stop + 1))  # with a space behind it, if there is one
        return value

    def visitDictKeyValuePair(self, ctx: OverrideParser.DictKeyValuePairContext) -> tuple[str, Any]:
        with self._below(ctx.dictKey().getText()):
            return super().visitDictKeyValuePair(ctx)

    def visitFunction(self, ctx: OverrideParser.FunctionContext) -> Any:
        opaque = ctx.ID().getText() not in _TRANSPARENT
        self._numbers += opaque
        try:
            return super().visitFunction(ctx)
        finally:
            self._numbers -= opaque

    @property
    def _dotted(self) -> str:
        return ".".join(self._path)

    @contextmanager
    def _below(self, name: str) -> Iterator[None]:
        self._path.append(name)
        try:
            yield
        finally:
            self._path.pop()

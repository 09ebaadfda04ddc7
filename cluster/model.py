"""Requests against AWS's own model of them, as botocore brings it: nothing is sent."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from typing import Any

from cluster.findings import PROBLEM, WARNING, Finding

CHECK = "request against AWS's model"


@functools.cache
def _input_shape(operation: str) -> Any:
    from botocore.session import get_session

    return get_session().get_service_model("sagemaker").operation_model(operation).input_shape


def check_request(request: dict[str, Any], operation: str = "CreateCluster") -> list[Finding]:
    """Everything in ``request`` that the model doesn't allow.

    botocore's own validator sees unknown keys, missing ones, types and minimums. Maximums, patterns and choices are
    checked here. A choice that the model lacks is a warning: botocore may be older than the instance type.
    """
    from botocore.validate import ParamValidator

    shape = _input_shape(operation)
    report = ParamValidator().validate(request, shape).generate_report()
    found = [Finding(CHECK, PROBLEM, line) for line in report.splitlines()]
    return [*found, *_walk(request, shape, "")]


def _walk(value: Any, shape: Any, path: str) -> Iterator[Finding]:
    if shape.type_name == "structure" and isinstance(value, dict):
        for key, member in value.items():
            if key in shape.members:
                yield from _walk(member, shape.members[key], f"{path}.{key}" if path else key)
    elif shape.type_name == "list" and isinstance(value, list):
        yield from _size(len(value), shape, path, "entries")
        for index, member in enumerate(value):
            yield from _walk(member, shape.member, f"{path}[{index}]")
    elif isinstance(value, bool) and shape.type_name in ("integer", "long", "float", "double"):
        # To Python, and so to botocore's validator, true is a number.
        yield Finding(CHECK, PROBLEM, f"{path}: {str(value).lower()}, must be a number")
    elif isinstance(value, str):
        yield from _string(value, shape, path)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield from _size(value, shape, path, "")


def _size(value: float, shape: Any, path: str, unit: str) -> Iterator[Finding]:
    limit = shape.metadata.get("max")
    if limit is not None and value > limit:
        yield Finding(CHECK, PROBLEM, f"{path}: {value} {unit}".rstrip() + f", at most {limit}")


def _string(value: str, shape: Any, path: str) -> Iterator[Finding]:
    yield from _size(len(value), shape, path, "characters")
    pattern, choices = shape.metadata.get("pattern"), shape.metadata.get("enum")
    if pattern and not _matches(pattern, value):
        yield Finding(CHECK, PROBLEM, f"{path}={value}: does not match {pattern}")
    if choices and value not in choices:
        yield Finding(CHECK, WARNING, f"{path}={value}: not among the {len(choices)} that this botocore knows")


def _matches(pattern: str, value: str) -> bool:
    r"""AWS's patterns are Java's: \p{L} and its like are no syntax here, and such a pattern is taken to match."""
    try:
        return re.fullmatch(pattern, value) is not None
    except re.error:
        return True

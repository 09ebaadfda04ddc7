"""Turns what Hydra, OmegaConf and PyYAML raise into one line that names the place, the key and a way out."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import yaml
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf.errors import ConfigKeyError, InterpolationResolutionError, OmegaConfBaseException

from launcher.config.fields import keys
from launcher.config.overrides import shell_form, suggestion, unknown_choice, unknown_key
from launcher.errors import UsageError, nearest

COMPOSITION_ERRORS = (HydraException, OmegaConfBaseException, yaml.YAMLError, ValueError, OSError)


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """The exception and what it was raised from."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def first_line(text: str) -> str:
    """The first line that says something."""
    return next((line.strip() for line in text.splitlines() if line.strip()), "")


def yaml_error_message(error: yaml.YAMLError) -> str:
    """The file and line of a YAML error, and the problem."""
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or first_line(str(error))
    return f"{mark.name}, line {mark.line + 1}: {problem}" if mark else f"YAML: {problem}"


def syntax_error_message(error: OverrideParseException) -> str:
    """What is wrong with an override that Hydra's grammar cannot read."""
    line = error.override
    if "=" not in line:
        return f"{line!r} is not key=value" + suggestion(line, (flag for flag in ("--help", "--multirun", "--cfg")))
    form = shell_form(line)
    advice = "" if form is None else f"; to have the value as it stands type {form}"
    if line.count("'") % 2 or line.count('"') % 2:
        return f"{line}: a quote is not closed{advice}"
    if any(line.count(left) != line.count(right) for left, right in ("[]", "{}", "()")):
        return f"{line}: a bracket is not closed{advice}"
    if advice:
        return f"{line}: not readable as an override{advice}"
    detail = re.sub(r"'<EOF>'", "the end", next((row for row in error.message.splitlines()[1:2]), ""))
    return f"{line}: not readable as an override" + (f" ({detail})" if detail.strip(" ^") else "") + "; quote the value"


def missing_choice(error: MissingConfigException) -> str:
    """The group and its choices, for a choice that does not exist."""
    found = re.search(r"Could not find '(.+?)'", str(error))
    if found is None:
        return f"no configuration {error.missing_cfg_file}: {first_line(str(error))}"
    group, _, choice = found.group(1).rpartition("/")
    listed = str(error).partition("Available options")[2].partition("Config search path")[0].splitlines()[1:]
    source = re.match(r"In '(.+?)': ", str(error))
    where = f"{source.group(1)}.yaml: " if source and source.group(1) != "config" else ""
    return where + unknown_choice(group, choice, [option.strip() for option in listed if option.strip()])


def config_error_message(error: OmegaConfBaseException) -> str:
    """The key and what is wrong with it."""
    key = error.full_key or ""
    message = first_line(str(error))
    if isinstance(error, InterpolationResolutionError):
        return f"{key}: cannot be resolved: {message}"
    if isinstance(error, ConfigKeyError) or message.startswith("Key '"):
        if key == "experiment":
            return "keys of an experiment need a first line '# @package _global_'"
        return unknown_key(key, ())
    known = keys().get(key)
    value = re.search(r"Value '(.*)' of type|Invalid value '(.*)',", message)
    wrong_kind = re.match(r"Cannot (merge|assign) ", message)
    if known and (value or wrong_kind or "assigned" in message or "not Optional" in message):
        given = next((group for group in value.groups() if group is not None), "") if value else None
        return f"{key}={given}: must be {known.type_name}" if given is not None else f"{key} must be {known.type_name}"
    merge = re.match(r"Merge error: (\w+) is not a subclass of (\w+)Config. value: (.*)", message)
    if merge:
        return f"{merge.group(2).lower()}={merge.group(3)}: must be a mapping of its keys"
    return f"{key}: {message}" if key else message


def composition_error_message(error: BaseException) -> str:
    """The line for an error of Hydra's composition, in the words of its innermost useful cause."""
    text = first_line(str(error))
    place = re.match(r"In '(.+?)': ", text)
    where = f"{place.group(1)}.yaml: " if place and place.group(1) != "config" else ""
    for cause in causes(error):
        if isinstance(cause, OmegaConfBaseException):
            return where + config_error_message(cause)
    found = re.search(r"Could not override '(.+?)'", text)
    if found:
        group = found.group(1)
        near = nearest(group.split("@")[0], {key.split(".")[0] for key in keys() if "." in key})
        return f"{where}override of an unknown group {group}" + (f"; did you mean {near}?" if near else "")
    return text


def error_message(error: BaseException) -> str:
    """One line for whatever composition raised."""
    if isinstance(error, yaml.YAMLError):
        return yaml_error_message(error)
    if isinstance(error, OverrideParseException):
        return syntax_error_message(error)
    if isinstance(error, MissingConfigException):
        return missing_choice(error)
    return composition_error_message(error)


@contextmanager
def one_line_errors(prefix: str = "") -> Iterator[None]:
    """Turn whatever composition raises into a UsageError of one line."""
    try:
        yield
    except UsageError as error:
        raise UsageError(f"{prefix}{error}") from error
    except COMPOSITION_ERRORS as error:
        raise UsageError(f"{prefix}{error_message(error)}") from error

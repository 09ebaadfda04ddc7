"""Which files a data set's settings name, and what can be said of its settings without reading a row."""

from __future__ import annotations

import glob
import math
import re
import string
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.checks.diagnostic import Diagnostic
from launcher.config.schema import Config, DatasetConfig
from launcher.data.kinds import ENDINGS, KINDS, not_lines
from launcher.model_dir.chat_templates import named_templates

_OF_SAVED_SETS = ("dataset_info.json", "state.json", "dataset_dict.json")
"""Written by datasets' save_to_disk beside the rows."""


def entries(value: Any) -> list[str]:
    """A setting that is a text, a list of texts or null, as a list."""
    if value is None:
        return []
    return [value] if isinstance(value, str) else list(value)


@dataclass(frozen=True)
class HubSet:
    """One split of a set on the Hub, as an entry of dataset.path or eval_path names it."""

    hub_id: str
    config: str | None
    split: str
    revision: str | None


HUB_FORM = "hub:OWNER/NAME, hub:OWNER/NAME:CONFIG:SPLIT or either with @REVISION"
_HUB = re.compile(
    r"hub:(?P<id>[\w.-]+(?:/[\w.-]+)?)(?::(?P<config>[^:@]*))?(?::(?P<split>[^:@]+))?(?:@(?P<revision>[^@]+))?"
)


def hub_set(entry: str) -> HubSet | None:
    """What an entry names on the Hub; None for one of files. Raises ValueError for what is neither."""
    if not entry.startswith("hub:"):
        return None
    found = _HUB.fullmatch(entry)
    if found is None:
        raise ValueError("names no set on the Hub")
    return HubSet(found["id"], found["config"] or None, found["split"] or "train", found["revision"])


def matching(entry: str) -> list[Path]:
    """The files that one entry of dataset.path names, by their names. Raises ValueError that says why there is none."""
    path = Path(entry).expanduser().absolute()
    if path.is_dir():
        return _of_directory(path)
    if path.is_file():
        return [path]
    if not glob.has_magic(entry):
        raise ValueError("is not a file" if path.exists() else "does not exist")
    found = sorted(map(Path, glob.iglob(str(path), recursive=True)))  # noqa: PTH207 (the pattern is absolute)
    files = [file for file in found if file.is_file()]
    if not files:
        raise ValueError("no file has such a name")
    return files


def _of_directory(directory: Path) -> list[Path]:
    if (directory / "dataset_dict.json").is_file():
        raise ValueError("is a set of several splits; give one of them, such as " + str(directory / "train"))
    files = sorted(file for file in directory.rglob("*") if file.suffix in ENDINGS and file.is_file())
    files = [file for file in files if file.name not in _OF_SAVED_SETS and not _hidden(file.relative_to(directory))]
    if not files:
        raise ValueError(f"is a directory without a file that ends in one of {', '.join(ENDINGS)}")
    return files


def _hidden(path: Path) -> bool:
    return any(part.startswith((".", "_")) for part in path.parts)


def template_fields(template: str) -> list[str]:
    """Names of the fields in dataset.prompt_template, each once. Raises ValueError for what is no such template."""
    names: dict[str, None] = {}
    for _, name, form, conversion in string.Formatter().parse(template):
        if name is None:
            continue
        if not name or form or conversion or set(name) & set("[]{"):
            raise ValueError(
                f"{{{name}{'!' + conversion if conversion else ''}{':' + form if form else ''}}} is no name"
            )
        names[name] = None
    return list(names)


def check_files(config: Config) -> Iterator[Diagnostic]:
    """dataset.path, eval_path and weights fit the source, and name something."""
    dataset = config.dataset
    yield from _check_path(dataset)
    yield from _check_weights(dataset)
    if dataset.eval_path is not None and dataset.source in ("python_docs", "hub") and not dataset.path:
        why = f"is read with dataset.path only, not with dataset.source={dataset.source}"
        remedy = "dataset.eval_split=NAME holds out a split of the Hub's" if dataset.source == "hub" else "leave it out"
        yield Diagnostic("dataset.eval_path", shown(dataset.eval_path), why, remedy)
        return
    for key in ("path", "eval_path"):
        named = entries(getattr(dataset, key)) if dataset.source == "files" or key == "eval_path" else []
        found = ((each, _missing(each)) for each in named)
        yield from (Diagnostic(f"dataset.{key}", each, fault, _remedy(each)) for each, fault in found if fault)


def _remedy(entry: str) -> str:
    return f"write {HUB_FORM}" if entry.startswith("hub:") else f"give a file ({KINDS}), a directory or a pattern"


def _missing(entry: str) -> str | None:
    """Why an entry names no file, or None."""
    try:
        if hub_set(entry) is None:
            matching(entry)
    except ValueError as error:
        return str(error)
    return None


def _check_path(dataset: DatasetConfig) -> Iterator[Diagnostic]:
    given = entries(dataset.path)
    if dataset.source == "python_docs" and given:
        why = "is not read by dataset.source=python_docs"
        yield Diagnostic("dataset.path", shown(dataset.path), why, "use dataset=jsonl or dataset=files")
    elif not given and dataset.source in ("jsonl", "files"):
        yield Diagnostic(
            "dataset.path", None, f"dataset.source={dataset.source} needs a file", "give dataset.path=FILE"
        )
    elif dataset.source in ("jsonl", "hub") and len(given) > 1:
        yield Diagnostic(
            "dataset.path", shown(dataset.path), f"dataset.source={dataset.source} reads one", "use dataset=files"
        )
    elif dataset.source in ("jsonl", "hub") and given and not Path(given[0]).expanduser().is_file():
        exists = Path(given[0]).expanduser().exists()
        why, remedy = ("is not a file", "give a JSONL file, or use dataset=files") if exists else ("does not exist", "")
        yield Diagnostic("dataset.path", given[0], why, remedy or "give a JSONL file")
    elif dataset.source in ("jsonl", "hub") and given:
        yield from _check_lines(dataset, Path(given[0]).expanduser())


def _check_lines(dataset: DatasetConfig, path: Path) -> Iterator[Diagnostic]:
    """The one file of rows is lines of JSON."""
    found = not_lines(path)
    if found is not None:
        what, readable = found
        more = f", and dataset.source={dataset.source} reads lines of JSON" if readable else ""
        remedy = f"use dataset=files dataset.path={path}" if readable else ""
        yield Diagnostic("dataset.path", str(path), f"{what}{more}", remedy)


def _check_weights(dataset: DatasetConfig) -> Iterator[Diagnostic]:
    weights = dataset.weights
    if not weights:
        return
    listed = f"[{','.join(f'{weight:g}' for weight in weights)}]"
    count = len(entries(dataset.path))
    if dataset.source != "files":
        yield Diagnostic(
            "dataset.weights", listed, f"are not read by dataset.source={dataset.source}", "use dataset=files"
        )
    elif len(weights) != count:
        yield Diagnostic("dataset.weights", listed, f"dataset.path has {count} entries", "give one weight for each")
    elif not all(math.isfinite(weight) and weight > 0 for weight in weights):
        yield Diagnostic("dataset.weights", listed, "each must be a number above 0", "leave out what is not wanted")


def check_format(config: Config) -> Iterator[Diagnostic]:
    """The settings of prompts and templates can be read, and are of the format that is given."""
    dataset = config.dataset
    if dataset.prompt_template is not None:
        yield from _check_template(dataset)
    yield from _check_chat_template(config)
    hub = {"config": None, "split": "train", "eval_split": None}
    for name, unset in hub.items():
        value = getattr(dataset, name)
        if value != unset and (dataset.source != "hub" or dataset.path or dataset.hub_file):
            why = "is read of a set on the Hub only, and without hub_file and path"
            yield Diagnostic(
                f"dataset.{name}", value, why, "use dataset=hub dataset.hub_id=OWNER/NAME, or leave it out"
            )


def _check_chat_template(config: Config) -> Iterator[Diagnostic]:
    """A file, or the name of one of the model's own templates; those of the Hub are looked at by stage fetch."""
    given, model = config.dataset.chat_template, config.model
    if given is None or is_file(given):
        return
    is_name = given.replace("-", "_").isidentifier()
    names = named_templates(Path(model.path).expanduser()) if model.source == "local" and model.path else []
    if is_name and (model.source == "hub" or given in names):
        return
    remedy = f", or the name of one of the model's ({', '.join(names)})" if names else ""
    yield Diagnostic("dataset.chat_template", given, "is not a file", f"give a file with a Jinja template{remedy}")


def is_file(text: str) -> bool:
    """Whether a setting names a file."""
    try:
        return Path(text).expanduser().is_file()
    except OSError:  # too long for a name: the template itself
        return False


def _check_template(dataset: DatasetConfig) -> Iterator[Diagnostic]:
    key, template = "dataset.prompt_template", dataset.prompt_template or ""
    try:
        fields = template_fields(template)
    except ValueError as error:
        yield Diagnostic(key, repr(template), str(error), "write fields as {name}, and a brace as {{ or }}")
        return
    if not fields:
        yield Diagnostic(key, repr(template), "names no field of the rows", "write a field as {name}")
    if dataset.format in ("messages", "sharegpt", "text"):
        why = f"is not read with dataset.format={dataset.format}, whose rows have no single prompt"
        yield Diagnostic(key, repr(template), why, "leave it out")


def shown(value: Any) -> str:
    """A path or a list of paths as it is written on the command line."""
    return value if isinstance(value, str) else f"[{','.join(value)}]"

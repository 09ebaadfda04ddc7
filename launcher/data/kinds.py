"""What a file of rows is, by its name and its first bytes; and what is said of one that is something else."""

from __future__ import annotations

import csv
import gzip
import json
import zlib
from pathlib import Path

ENDINGS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
}
"""What a file is by its name. JSON is an array or lines, which its first bytes say."""
KINDS = "JSONL, JSON array, CSV, TSV, Parquet or Arrow"
NAMES = {
    "json": "a JSON array",
    "csv": "a CSV file",
    "tsv": "a TSV file",
    "parquet": "a Parquet file",
    "arrow": "an Arrow file",
    "jsonl": "JSON lines",
}
_BOM = b"\xef\xbb\xbf"
_GZIP = b"\x1f\x8b"
_HEAD = 1 << 14
DAMAGED = (EOFError, zlib.error)
"""What gzip raises, beside OSError, for a file that isn't whole."""
_UNPACK = "unpack it first"
# First bytes of what is never read, what it is, and what to do.
_OTHERS = (
    (b"PK\x03\x04", "a zip archive (as .xlsx and .npz are, too)", f"{_UNPACK}, or save the sheet as CSV"),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd", f"{_UNPACK}: zstd -d FILE"),
    (b"\xfd7zXZ", "compressed by xz", f"{_UNPACK}: xz -d FILE"),
    (b"BZh", "compressed by bzip2", f"{_UNPACK}: bzip2 -d FILE"),
    (b"\xff\xfe", "text in UTF-16", "write it in UTF-8: iconv -f UTF-16 -t UTF-8 FILE"),
    (b"\xfe\xff", "text in UTF-16", "write it in UTF-8: iconv -f UTF-16 -t UTF-8 FILE"),
    (b"version https://git-lfs", "a pointer of Git LFS, not the data", "get the data: git lfs pull"),
    (b"<", "HTML or XML, as of a page that a download gave instead of the data", "download the file itself"),
)


class Foreign(ValueError):
    """What a file is, where it can't be read, and what to do, as "is a zip archive ...; unpack it first"."""


def kind_of(path: Path) -> str | None:
    """jsonl, json, csv, tsv, parquet or arrow; None where neither name nor first bytes say. Raises Foreign for a file
    that is something else, and OSError for one that can't be read."""
    ending = ENDINGS.get((path.with_suffix("") if path.suffix == ".gz" else path).suffix.lower())
    with path.open("rb") as stream:
        start = stream.read(_HEAD)
    packed = start.startswith(_GZIP)
    if packed and path.suffix != ".gz":
        raise Foreign(f"is compressed by gzip, and its name doesn't say so; name it {path.name}.gz, or {_UNPACK}")
    if path.suffix == ".gz":
        try:
            with gzip.open(path, "rb") as unpacked:
                start = unpacked.read(_HEAD)
        except DAMAGED as error:
            raise Foreign(f"is damaged ({error}); get it again") from None
    found = _by_content(start, ending)
    if packed and found in ("parquet", "arrow"):
        raise Foreign(f"is {NAMES[found]} that is compressed by gzip; {_UNPACK}: gunzip FILE")
    return found


def _by_content(start: bytes, ending: str | None) -> str | None:
    if start.startswith(b"PAR1"):
        return "parquet"
    if start.startswith((b"ARROW1", b"\xff\xff\xff\xff")):
        return "arrow"
    text = start.removeprefix(_BOM).lstrip()
    for first, what, remedy in _OTHERS:
        if (text if first == b"<" else start).startswith(first) and ending not in ("csv", "tsv"):
            raise Foreign(f"is {what}; {remedy}")
    if ending not in (None, "json", "jsonl"):
        return ending
    if text.startswith(b"[") and not _lines_of_arrays(text):
        return "json"
    if text.partition(b"\n")[0].strip() == b"{":
        raise Foreign("is JSON over several lines, not a row a line; write it so: jq -c . FILE")
    return "jsonl" if text.startswith(b"{") or ending else None


def _lines_of_arrays(text: bytes) -> bool:
    """Whether the first line is one whole array and another follows: lines of JSON, which are no rows."""
    first, _, rest = text.partition(b"\n")
    try:
        json.loads(first)
    except ValueError:
        return False
    return rest.lstrip().startswith((b"{", b"["))


def not_lines(path: Path) -> tuple[str, bool] | None:
    """What a file is that isn't lines of JSON, in words that follow its name, and whether dataset=files reads it. None
    for JSON lines, and for what only its rows can tell."""
    try:
        kind = kind_of(path)
        if kind in (None, "jsonl") and path.suffix != ".gz" and (table := _table(path)) is not None:
            return f"looks like {NAMES[table]}; name it {path.stem}.{table} and use dataset=files", False
    except Foreign as error:
        return str(error), False
    except OSError:
        return None  # whoever reads it says so
    if path.suffix == ".gz":
        return f"is {NAMES[kind or 'jsonl']} compressed by gzip", True
    return (f"is {NAMES[kind]}", True) if kind not in (None, "jsonl") else None


def _table(path: Path) -> str | None:
    """csv or tsv where the first two lines have as many cells, at least two, and are no JSON."""
    with path.open("rb") as stream:
        start = stream.read(_HEAD).removeprefix(_BOM)
    if start.lstrip().startswith((b"{", b"[")):
        return None
    lines = start.decode("utf-8", errors="replace").splitlines()[:2]
    for kind, delimiter in (("csv", ","), ("tsv", "\t")):
        try:
            counts = {len(cells) for cells in csv.reader(lines, delimiter=delimiter)}
        except csv.Error:  # a NUL, for Python 3.10
            return None
        if len(lines) == 2 and len(counts) == 1 and counts.pop() > 1 and not lines[1].lstrip().startswith("{"):
            return kind
    return None

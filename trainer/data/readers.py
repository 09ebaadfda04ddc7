"""Files of every kind as lines of JSON, a row each, in memory that doesn't grow with the file.

Values stay what they are in the file: everything in a CSV is text, and a text that looks like a date or a number stays
one. Lines of a JSONL file are passed on as they stand there, blank ones included, so that its line numbers stay.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from launcher.data import kinds as file_kinds
from launcher.errors import TrntuneError

BROKEN = "\0broken"
"""The one key of a line that stands for a row which can't be read; its value says why, for trainer.data.json_lines."""
_BOM = b"\xef\xbb\xbf"
_PIECE = 1 << 20
_BATCH = 1000


def kind_of(path: Path) -> str:
    """jsonl, json, csv, tsv, parquet or arrow. Raises TrntuneError."""
    try:
        found = file_kinds.kind_of(path)
    except file_kinds.Foreign as what:
        raise TrntuneError(f"{path}: {what}") from None
    except OSError as error:
        raise unreadable(path, error) from None
    if found is None:
        raise TrntuneError(
            f"{path}: neither its name nor its first bytes are those of {file_kinds.KINDS}; rename it, or convert it"
        )
    return found


def opened(path: Path) -> IO[bytes]:
    """The file's bytes, unpacked where its name ends in .gz."""
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")  # type: ignore[return-value]


def lines(path: Path) -> Iterator[bytes]:
    """The rows of a file, each as one line of JSON without its end; what is broken in one row is told in its place
    (``BROKEN``). Raises TrntuneError with the row for what makes the rest unreadable."""
    read = READERS[kind_of(path)]
    try:
        yield from read(path)
    except OSError as error:
        raise unreadable(path, error) from None
    except file_kinds.DAMAGED as error:
        raise TrntuneError(f"{path}: is damaged ({error}); get it again") from None


def unit(path: Path) -> str:
    """How a row of the file is told of: FILE:3 or FILE, row 3."""
    return ":" if kind_of(path) == "jsonl" else ", row "


def unreadable(path: Path, error: OSError) -> TrntuneError:
    return TrntuneError(f"{path}: can't be read: {error.strerror or error}; set dataset.path to a file that can")


def _jsonl(path: Path) -> Iterator[bytes]:
    with opened(path) as stream:
        for number, line in enumerate(stream, start=1):
            yield (line.removeprefix(_BOM) if number == 1 else line).rstrip(b"\r\n")


def _json(path: Path) -> Iterator[bytes]:
    """The elements of one array, decoded one after another."""
    decode = json.JSONDecoder().raw_decode
    with opened(path) as stream:
        text = _Text(io.TextIOWrapper(stream, encoding="utf-8-sig"), path)
        text.take("[")
        number = 0
        while not text.at("]"):
            number += 1
            if number > 1:
                text.take(",", number)
            yield written(text.value(decode, number))
        text.take("]")
        if text.rest():
            raise TrntuneError(f"{path}: something follows the array's end; one array of objects is wanted")


class _Text:
    """A window on a text that is read piece by piece."""

    def __init__(self, stream: IO[str], path: Path) -> None:
        self.stream, self.path = stream, path
        self.buffer, self.place = "", 0

    def _more(self, size: int = _PIECE) -> bool:
        try:
            piece = self.stream.read(size)
        except UnicodeDecodeError as error:
            raise TrntuneError(f"{self.path}: not UTF-8 ({error.reason}); save it as UTF-8") from None
        self.buffer, self.place = self.buffer[self.place :] + piece, 0
        return bool(piece)

    def rest(self) -> str:
        """The next character that is not space, or nothing at the end."""
        while True:
            while self.place < len(self.buffer) and self.buffer[self.place] in " \t\r\n":
                self.place += 1
            if self.place < len(self.buffer) or not self._more():
                return self.buffer[self.place : self.place + 1]

    def at(self, sign: str) -> bool:
        return self.rest() == sign

    def take(self, sign: str, number: int = 1) -> None:
        found = self.rest()
        if found != sign:
            what = repr(found) if found else "the file's end"
            raise TrntuneError(f"{self.path}, row {number}: not JSON: {sign!r} is wanted, not {what}; fix the file")
        self.place += 1

    def value(self, decode: Callable[[str, int], tuple[Any, int]], number: int) -> Any:
        """The element that begins here. One that the window cuts is tried again with twice as much, so that even a
        large one costs its size."""
        self.rest()
        size = _PIECE
        while True:
            start, problem = self.place, None
            try:
                value, end = decode(self.buffer, start)
                if end < len(self.buffer):  # else a number may go on in what isn't read yet
                    self.place = end
                    return value
            except (ValueError, RecursionError) as error:
                problem = error
            if not self._more(size):
                if problem is not None:
                    raise TrntuneError(f"{self.path}, row {number}: not JSON ({problem}); fix the file") from None
                self.place = end - start
                return value
            size *= 2


def _csv(path: Path, delimiter: str = ",") -> Iterator[bytes]:
    """Every cell is text."""
    csv.field_size_limit(1 << 31)
    with opened(path) as stream:
        reader = csv.reader(
            io.TextIOWrapper(stream, encoding="utf-8-sig", newline=""), delimiter=delimiter, strict=True
        )
        number = 0
        try:
            header = next(reader, [])
            _check_header(path, header)
            for cells in filter(None, reader):
                number += 1
                yield _csv_row(header, cells)
        except (csv.Error, UnicodeDecodeError) as error:
            raise TrntuneError(f"{path}, row {number + 1}: not CSV ({error}); save it as CSV in UTF-8") from None


def _check_header(path: Path, header: list[str]) -> None:
    if len(set(header)) < len(header):
        twice = next(name for name in header if header.count(name) > 1)
        raise TrntuneError(f"{path}: its first line names the column {twice!r} twice; give each a name of its own")
    if len(header) == 1 and (";" in header[0] or "\t" in header[0]):
        raise TrntuneError(f"{path}: its first line has one column, {header[0]!r}; separate by commas, or name it .tsv")


def _csv_row(header: list[str], cells: list[str]) -> bytes:
    if len(cells) != len(header):
        return written({BROKEN: f"{len(cells)} fields, the first line of the file names {len(header)}"})
    return written(dict(zip(header, cells, strict=True)))


def _tsv(path: Path) -> Iterator[bytes]:
    return _csv(path, "\t")


def _parquet(path: Path) -> Iterator[bytes]:
    import pyarrow as pa
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=_BATCH):
                for row in batch.to_pylist():
                    number += 1
                    yield written(row)
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise _not_arrow(path, "Parquet", number, error) from None


def _arrow(path: Path) -> Iterator[bytes]:
    """The file format, or the stream that datasets writes."""
    import pyarrow as pa

    number = 0
    try:
        with pa.memory_map(str(path)) as source:
            for batch in _arrow_batches(source):
                for start in range(0, batch.num_rows, _BATCH):
                    for row in batch.slice(start, _BATCH).to_pylist():
                        number += 1
                        yield written(row)
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise _not_arrow(path, "Arrow", number, error) from None


def _arrow_batches(source: Any) -> Iterator[Any]:
    import pyarrow as pa

    if source.read(6) == b"ARROW1":
        file = pa.ipc.open_file(source)
        yield from (file.get_batch(number) for number in range(file.num_record_batches))
        return
    source.seek(0)
    yield from pa.ipc.open_stream(source)


def _not_arrow(path: Path, kind: str, number: int, error: Exception) -> TrntuneError:
    reason = str(error).strip().partition("\n")[0]
    return TrntuneError(f"{path}, after row {number}: not {kind} ({reason}); write the file again")


READERS: dict[str, Callable[[Path], Iterator[bytes]]] = {
    "jsonl": _jsonl,
    "json": _json,
    "csv": _csv,
    "tsv": _tsv,
    "parquet": _parquet,
    "arrow": _arrow,
}


def written(row: Any) -> bytes:
    """A row as a line of JSON. What JSON has no type for, such as a timestamp, is no text and becomes none."""
    text = json.dumps(row, ensure_ascii=False, default=_typed)
    try:
        return text.encode()
    except UnicodeEncodeError:  # half a surrogate pair, which the reader of rows tells of
        return json.dumps(row, default=_typed).encode()


def _typed(value: Any) -> dict[str, str]:
    return {"type": type(value).__name__, "value": str(value)}

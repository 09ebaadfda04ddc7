"""The same rows in every kind of file that is read."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet

from tests.trainer.models.conftest import composed
from trainer.data.prepare import PreparedData, prepare
from trainer.fetch.sources import fetch_dataset

ROWS = [
    {
        "instruction": f"question {i}",
        "response": ("2024-01-31", "007", "1e5", "true", "null", 'a "b",\nc', "é 🦙")[i % 7],
    }
    for i in range(50)
]
"""Answers that readers take for dates, numbers and the like."""


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_json(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text(json.dumps(rows, indent=1, ensure_ascii=False))


def write_csv(path: Path, rows: list[dict[str, Any]], delimiter: str = ",") -> None:
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)


def write_tsv(path: Path, rows: list[dict[str, Any]]) -> None:
    write_csv(path, rows, "\t")


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    pyarrow.parquet.write_table(pa.Table.from_pylist(rows), path, row_group_size=7)


def write_arrow(path: Path, rows: list[dict[str, Any]]) -> None:
    table = pa.Table.from_pylist(rows)
    with pa.ipc.new_file(path, table.schema) as out:
        out.write_table(table, max_chunksize=9)


def write_stream(path: Path, rows: list[dict[str, Any]]) -> None:
    """As datasets writes it."""
    table = pa.Table.from_pylist(rows)
    with pa.ipc.new_stream(path, table.schema) as out:
        out.write_table(table, max_chunksize=9)


def write_gz(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))


KINDS: dict[str, Callable[[Path, list[dict[str, Any]]], None]] = {
    "rows.jsonl": write_jsonl,
    "rows.json": write_json,
    "lines.json": write_jsonl,
    "rows.csv": write_csv,
    "rows.tsv": write_tsv,
    "rows.parquet": write_parquet,
    "rows.arrow": write_arrow,
    "stream.arrow": write_stream,
    "rows.jsonl.gz": write_gz,
    "array-without-ending": write_json,
    "parquet-without-ending": write_parquet,
}


def prepared(tokenizer: Any, path: Any, *more: str) -> PreparedData:
    """As a run does it."""
    written = path if isinstance(path, str | Path) else f"[{','.join(map(str, path))}]"
    config = composed(
        "dataset=files", f"dataset.path={written}", "dataset.eval_samples=7", "training.max_length=256",
        "training.global_batch_size=4", *more,
    )  # fmt: skip
    return prepare(config, fetch_dataset(config.dataset), tokenizer)

"""Which questions are asked: those given, or held-out rows of the data that the model was trained on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from launcher.errors import TrntuneError
from launcher.rundir import RunDir
from launcher.schema import ColumnsConfig, Config
from trainer.data.held_out import held_out_rows
from trainer.data.rows import InstructionRow, read_jsonl
from trainer.data.source import Source


@dataclass(frozen=True)
class Question:
    """One prompt; ``reference`` is None where nobody has said what the right answer is."""

    row: InstructionRow
    reference: str | None


def typed(texts: list[str], context: str) -> list[Question]:
    """Questions from the command line."""
    empty = [number for number, text in enumerate(texts, start=1) if not text.strip()]
    if empty:
        raise TrntuneError(f"question {empty[0]} is empty")
    return [Question(InstructionRow(text, context, ""), None) for text in texts]


def from_file(path: Path, count: int | None) -> list[Question]:
    """The first ``count`` rows of a JSONL file with instruction, context and response."""
    rows, _ = read_jsonl(path, ColumnsConfig(), "stop")
    return [Question(row, row.response) for row in rows[:count]]


def held_out(run_dir: RunDir, count: int | None) -> list[Question]:
    """The first ``count`` rows that the run has held out: it was trained on none of them."""
    config: Config = run_dir.load_config()
    fetched = run_dir.stage_result("fetch")
    if fetched is None:
        raise TrntuneError(f"{run_dir.path}: its stage fetch has not finished, so its data is not known")
    source = Source.of(config, Path(fetched["dataset_path"]))
    return [Question(row, row.response) for row in held_out_rows(source, config.dataset, count)]

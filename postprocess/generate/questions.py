"""Which questions are asked: those given, or held-out rows of the data that the model was trained on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from launcher.config.schema import ColumnsConfig, Config, DatasetConfig
from launcher.errors import TrntuneError
from launcher.run_dir.layout import RunDir
from trainer.data.conversations import ChatRow
from trainer.data.held_out import held_out_rows
from trainer.data.rows import InstructionRow, Row, Uses
from trainer.data.source import Source
from trainer.fetch.sources import fetch_dataset
from trainer.models.load import run_tokenizer


@dataclass(frozen=True)
class Question:
    """One prompt; ``reference`` is None where nobody has said what the right answer is."""

    row: Row
    reference: str | None


def typed(texts: list[str], context: str) -> list[Question]:
    """Questions from the command line."""
    empty = [number for number, text in enumerate(texts, start=1) if not text.strip()]
    if empty:
        raise TrntuneError(f"question {empty[0]} is empty")
    return [Question(InstructionRow(text, context, ""), None) for text in texts]


# What the settings of a run are called on this command's line.
_CALLED = (
    ("; fix the row, or leave such rows out with dataset.on_bad_row=skip", "; fix the row"),
    ("dataset.columns.", "--column "),
    ("dataset.format=", "--format "),
    ("dataset.path", "--file"),
)


def from_file(
    path: Path, count: int | None, columns: ColumnsConfig | None = None, format_: str | None = None
) -> list[Question]:
    """The first ``count`` rows of a file that a run could be trained on, all but texts. Raises TrntuneError."""
    dataset = DatasetConfig(name="file", source="jsonl", path=str(path), format=format_)
    dataset.columns = columns or dataset.columns
    try:
        source = _source(dataset)
        rows = [row for _, row in source.lines()]  # all: what is wrong with a file is told, wherever it is
    except TrntuneError as error:
        text = str(error)
        for key, called in _CALLED:
            text = text.replace(key, called)
        raise TrntuneError(text) from None
    return [Question(row, row.response) for row in rows[:count]]


def _source(dataset: DatasetConfig) -> Source:
    source = Source.of_dataset(dataset, fetch_dataset(replace(dataset, source="files")))
    if source.found.format == "text":
        raise TrntuneError(f"{dataset.path}: texts ask nothing: give rows with a question and its right answer")
    # No prompt is written here that could take up a field which looks like a context.
    return replace(source, uses=Uses(source.uses.names)) if source.found.format == "prompt_completion" else source


def as_conversations(questions: list[Question], run_dir: RunDir) -> list[Question]:
    """Questions as the first turn of conversations, for a run that was trained on such: the template writes them and
    says what ends an answer. As they are for other runs."""
    config: Config = run_dir.load_config()
    fetched = run_dir.stage_result("fetch") or {}
    if not Source.of(config, Path(fetched["dataset_path"])).found.conversational:
        return questions
    return [
        each if isinstance(each.row, ChatRow) else replace(each, row=_conversation(each.row, config.dataset.thinking))
        for each in questions
    ]


def _conversation(row: Row, thinking: bool | None) -> ChatRow:
    asked = f"{row.instruction}\n\n{row.context}" if row.context.strip() else row.instruction
    turns = ({"role": "user", "content": asked}, {"role": "assistant", "content": row.response})
    return ChatRow(turns, (1,), thinking, row.line)


def held_out(run_dir: RunDir, count: int | None) -> list[Question]:
    """The first ``count`` rows that the run has held out: it was trained on none of them."""
    config: Config = run_dir.load_config()
    fetched = run_dir.stage_result("fetch")
    if fetched is None:
        raise TrntuneError(f"{run_dir.path}: its stage fetch has not finished, so its data is not known")
    source = Source.of(config, Path(fetched["dataset_path"]))
    if source.found.format == "text":
        raise TrntuneError(f"{run_dir.path}: texts ask nothing: give --ask or --file, or leave generate out of stages")
    encoder = source.encoder(run_tokenizer(config, Path(fetched["model_dir"]))) if _left_out(source) else None
    return [Question(row, row.response) for row in held_out_rows(source, config.dataset, count, encoder)]


def _left_out(source: Source) -> bool:
    """Whether rows that could be read may have been left out, since they could not be encoded."""
    return source.on_bad_row == "skip" and (source.found.conversational or source.control_tokens is None)

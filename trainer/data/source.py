"""What the rows of a run are read from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from launcher.config.schema import ColumnsConfig, Config, DatasetConfig
from trainer.data import imports
from trainer.data.encoder import Encoder
from trainer.data.formats import SAMPLE, Found, find, nested
from trainer.data.imports import Origins
from trainer.data.json_lines import JsonLines, first_records, read_at
from trainer.data.parsers import parser, uses_of
from trainer.data.rows import Parse, Row, Uses


@dataclass(frozen=True)
class Source:
    """A file and how it is read: what a corpus is made of, the tokenizer apart. Lengths, packing, loss and the run's
    seed are not among it."""

    path: Path
    columns: ColumnsConfig
    on_bad_row: str
    prompt: str
    split_seed: int
    found: Found
    thinking: bool | None
    prompt_template: str | None
    control_tokens: str | None
    origins: Origins | None
    """of the file's lines, where it was put together from others"""
    nested: tuple[str, ...]
    """as for trainer.data.json_lines.lifted"""
    parse: Parse = field(compare=False, repr=False)
    uses: Uses

    @classmethod
    def of(cls, config: Config, path: Path) -> Source:
        """The rows of a run. Raises TrntuneError for rows of no format, or of two."""
        return cls.of_dataset(config.dataset, path)

    @classmethod
    def of_dataset(cls, dataset: DatasetConfig, path: Path) -> Source:
        """Raises TrntuneError for rows of no format, or of two."""
        # The files that fetch makes or downloads have the schema's own names.
        columns = dataset.columns if dataset.source != "python_docs" and _is_own(dataset) else ColumnsConfig()
        origins, paths = imports.origins_of(path), nested(dataset)
        where = _named(path, origins)
        found = find(first_records(path, SAMPLE, paths), dataset, where)
        verbatim = found.format == "text" or (found.format == "prompt_completion" and not dataset.prompt_template)
        return cls(
            path,
            columns,
            dataset.on_bad_row,
            "plain" if verbatim else dataset.prompt,
            dataset.split_seed,
            found,
            dataset.thinking,
            dataset.prompt_template,
            dataset.control_tokens,
            origins,
            paths,
            parser(found, dataset, columns),
            uses_of(found, dataset, columns),
        )

    @property
    def border(self) -> int | None:
        """The first line that is held out, where a set of one's own is."""
        return None if self.origins is None else self.origins.eval_line

    def facts(self) -> dict[str, Any]:
        """What the tokens depend on, the file's bytes and the tokenizer apart."""
        settings = {name: getattr(self, name) for name in ("on_bad_row", "prompt", "split_seed", "thinking")}
        more = {"control_tokens": self.control_tokens, "prompt_template": self.prompt_template, "border": self.border}
        return {**settings, **more, "columns": asdict(self.columns), "found": asdict(self.found)}

    def encoder(self, tokenizer: Any) -> Encoder:
        """Rows to ids. Raises TrntuneError for a tokenizer that can't write them."""
        if self.found.conversational:
            from trainer.data.chat_encoder import ChatEncoder

            return ChatEncoder(tokenizer, self.thinking)
        return Encoder(tokenizer, self.prompt, self.control_tokens)

    def lines(self, encoder: Encoder | None = None) -> JsonLines:
        """The rows; with ``encoder`` those that can be encoded."""

        def parse(record: dict[str, Any], line: int) -> Row:
            row = self.parse(record, line)
            return row if encoder is None else encoder.prepared(row)

        named = _named(self.path, self.origins)
        return JsonLines(self.path, self.columns, self.on_bad_row, parse, self.uses, self.place, named, self.nested)

    def read_at(self, places: Sequence[tuple[int, int]]) -> list[Row]:
        """The rows at (byte offset, line)."""
        return read_at(self.path, self.parse, places, self.nested)

    def place(self, line: int) -> str:
        """Where a line comes from, in words for the user."""
        return f"{self.path}:{line}" if self.origins is None else self.origins.place(line)


def _named(path: Path, origins: Origins | None) -> str:
    """What the rows are read from, in words for the user."""
    return str(path) if origins is None else origins.named


def _is_own(dataset: DatasetConfig) -> bool:
    """Whether the rows have the names of whoever wrote them."""
    return dataset.source in ("jsonl", "files") or bool(dataset.path) or dataset.hub_file is None

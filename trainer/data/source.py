"""What the rows of a run are read from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from launcher.schema import ColumnsConfig, Config


@dataclass(frozen=True)
class Source:
    """A file and how it is read: what a corpus is made of, the tokenizer apart. Lengths, packing, loss and the run's
    seed are not among it."""

    path: Path
    columns: ColumnsConfig
    on_bad_row: str
    prompt: str
    split_seed: int

    @classmethod
    def of(cls, config: Config, path: Path) -> Source:
        dataset = config.dataset
        # The files that fetch makes or downloads have the schema's own names.
        columns = dataset.columns if dataset.source == "jsonl" or dataset.path else ColumnsConfig()
        return cls(path, columns, dataset.on_bad_row, dataset.prompt, dataset.split_seed)

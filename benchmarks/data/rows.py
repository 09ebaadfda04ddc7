"""The rows that are prepared: of Python's docstrings, the same every time."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterator
from pathlib import Path

from launcher.config.schema import ColumnsConfig
from trainer.data.rows import InstructionRow


def write_rows(file: Path, rows: int, words: int) -> None:
    """Instruction rows of ``words`` words on average, half to one and a half times as long, drawn from docstrings."""
    texts = _texts(rows, words)
    with file.open("w", encoding="utf-8") as stream:
        for number in range(rows):
            asked, answer = next(texts)
            stream.write(json.dumps({"instruction": f"{number}: {asked}", "response": answer}) + "\n")


def write_chats(file: Path, rows: int, words: int) -> None:
    """Conversations of 1 to 4 such rows."""
    texts, draw = _texts(rows, words), random.Random(-rows)
    with file.open("w", encoding="utf-8") as stream:
        for number in range(rows):
            said = []
            for asked, answer in itertools.islice(texts, draw.randint(1, 4)):
                said += [{"role": "user", "content": f"{number}: {asked}"}, {"role": "assistant", "content": answer}]
            stream.write(json.dumps({"messages": said}) + "\n")


def _texts(seed: int, words: int) -> Iterator[tuple[str, str]]:
    """Questions and answers without end."""
    from trainer.fetch.python_docs import build_rows

    known = [word for row in build_rows() for word in f"{row.instruction} {row.context} {row.response}".split()]
    draw = random.Random(seed)
    while True:
        count = draw.randint(words // 2, words + words // 2)
        start = draw.randrange(len(known) - 2 * words)
        text = known[start : start + count]
        yield " ".join(text[: count // 3]), " ".join(text[count // 3 :])


def write_pairs(file: Path, pairs: Path) -> None:
    """The same texts as peers take them: prompts written, so that they need not."""
    from trainer.data.json_lines import JsonLines
    from trainer.data.prompts import plain

    with pairs.open("w", encoding="utf-8") as stream:
        for _, row in JsonLines(file, ColumnsConfig(), "stop"):
            assert isinstance(row, InstructionRow)
            prompt, answer = plain(row)
            stream.write(json.dumps({"prompt": prompt, "completion": answer}) + "\n")

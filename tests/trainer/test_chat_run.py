"""A run on conversations, from files of two kinds to answers."""

from __future__ import annotations

import json
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet
import pytest

from launcher.paths import ROOT
from tests.limits import PATIENCE

TEMPLATE = (
    "{% for turn in messages %}<|im_start|>{{ turn.role }}: {{ turn.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant: {% endif %}"
)


def rows(begin: int, end: int) -> list[dict[str, object]]:
    turns = (("user", "What is {}?"), ("assistant", "It is {}."), ("user", "And then?"), ("assistant", "{} more."))
    return [
        {"messages": [{"role": role, "content": text.format(number)} for role, text in turns]}
        for number in range(begin, end)
    ]


def test_a_run_on_conversations_trains_asks_and_records_by_one_template(run_tiny, tmp_path):
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(0, 20)))
    pyarrow.parquet.write_table(pa.Table.from_pylist(rows(20, 40)), tmp_path / "b.parquet")
    (tmp_path / "own.jinja").write_text(TEMPLATE)
    run = run_tiny(
        "chats", "dataset=files", "dataset.path=[a.jsonl,*.parquet]", "dataset.eval_samples=6",
        "dataset.max_samples=null", "dataset.chat_template=own.jinja", "generate.questions=6",
        "generate.max_new_tokens=4", "stages=[fetch,train,generate]",
    )  # fmt: skip
    assert run.process.returncode == 0, run.process.stderr
    assert "data: 40 rows, format messages, found from the columns messages" in run.process.stderr
    data = run.result["data"]
    assert (data["format"], data["train_examples"], data["eval_examples"]) == ("messages", 34, 6)
    assert [(each["kind"], each["rows"]) for each in data["files"]] == [("jsonl", 20), ("parquet", 20)]
    assert (run.directory / "adapter" / "chat_template.jinja").read_text() == TEMPLATE
    # The stage generate computes the loss by plain transformers, on the rows and answers of the held-out conversations.
    scores = json.loads((run.directory / "generate" / "scores.json").read_text())["summary"]
    assert scores["base"]["reference_loss"] == pytest.approx(run.result["eval_loss_before"], rel=1e-4)
    assert scores["tuned"]["reference_loss"] == pytest.approx(run.result["eval_loss_after"], rel=1e-4)
    samples = [json.loads(line) for line in (run.directory / "generate" / "samples.jsonl").read_text().splitlines()]
    assert {sample["instruction"] for sample in samples} == {"And then?"}
    asked = ("--ask", "What is 5?", "--max-new-tokens", "2")
    done = subprocess.run(
        [sys.executable, "-m", "postprocess.generate", str(run.directory), *asked],
        cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr

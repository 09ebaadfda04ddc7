"""Sets of the Hub by configuration and split, from a Hub on the loopback interface."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

from launcher.paths import ROOT
from tests.limits import PATIENCE
from tests.trainer.fetch.hub_server import COMMIT, serving

CARD = """---
configs:
- config_name: talks
  data_files:
  - split: train
    path: talks/*.parquet
  - split: test
    path: held_out/*.parquet
- config_name: dates
  default: true
  data_files: dates/*.jsonl
---
"""
FETCH = """
import json, sys
from launcher.errors import TrntuneError
from tests.launcher.conftest import single
from trainer.data.source import Source
from trainer.fetch.sources import dataset_at_hand, fetch_dataset
def found(how, arguments):
    config = single(*arguments).config
    try:
        path = (dataset_at_hand if how == "hand" else fetch_dataset)(config.dataset)
        source = None if path is None else Source.of(config, path)
    except TrntuneError as error:
        return str(error)
    return None if source is None else {
        "rows": [json.loads(line) if line else None for line in path.read_text().splitlines()],
        "format": str(source.found), "place": source.place(1), "border": source.border,
    }
for line in sys.stdin:
    print(json.dumps(found(*json.loads(line))))
"""


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    root = tmp_path / "repository"
    (root / "talks").mkdir(parents=True)
    (root / "dates").mkdir()
    (root / "README.md").write_text(CARD)
    pyarrow.parquet.write_table(pa.Table.from_pylist([talk(0), talk(1)]), root / "talks" / "a.parquet")
    pyarrow.parquet.write_table(pa.Table.from_pylist([talk(2)]), root / "talks" / "b.parquet")
    (root / "held_out").mkdir()
    pyarrow.parquet.write_table(pa.Table.from_pylist([talk(9)]), root / "held_out" / "a.parquet")
    dates = [{"instruction": f"day {i}", "context": None, "response": "2024-01-31T00:00:00Z"} for i in range(3)]
    (root / "dates" / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in dates))
    (root / "dates" / "b.jsonl").write_text(
        '{"instruction": "x", "context": "2024", "response": "007", "own": {"a": 1}}\n'
    )
    return root


def talk(number: int) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": f"{number}?"}, {"role": "assistant", "content": f"{number}."}]}


HAND = "hand"
"""before the arguments of what is only looked for, not fetched"""


def fetched(tmp_path: Path, endpoint: str, *cases: tuple[str, ...], token: str | None = None) -> list[Any]:
    """What a process of its own gets in each case, one after the other: huggingface_hub reads its settings when it is
    imported."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment = {
        **kept,
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(tmp_path / "home"),
        "TRNTUNE_CACHE": str(tmp_path / "cache"),
        "HF_HUB_ETAG_TIMEOUT": "2",
        **({"HF_TOKEN": token} if token else {}),
    }
    asked = []
    for case in cases:
        how, arguments = (HAND, case[1:]) if case[:1] == (HAND,) else ("fetch", case)
        hub = () if "dataset=files" in arguments else ("dataset=hub", "dataset.hub_id=owner/name")
        asked.append(json.dumps([how, [*hub, *arguments]]) + "\n")
    done = subprocess.run(
        [sys.executable, "-c", FETCH], input="".join(asked),
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=PATIENCE,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_split_is_its_files_with_every_value_what_it_was(tmp_path, repository):
    """datasets itself would make timestamps of the dates, and give all rows the keys of one."""
    talks = ("dataset.config=talks", "dataset.eval_split=test")
    with serving(repository) as (hub, endpoint):
        dates, found = fetched(tmp_path, endpoint, (), talks, token="hf_mine")
    assert dates["rows"][0] == {"instruction": "day 0", "context": None, "response": "2024-01-31T00:00:00Z"}
    assert dates["rows"][3] == {"instruction": "x", "context": "2024", "response": "007", "own": {"a": 1}}
    assert dates["place"] == f"owner/name@{COMMIT[:12]}/dates/a.jsonl:1"
    assert hub.tokens == {"Bearer hf_mine"}
    assert found["rows"] == [talk(0), talk(1), talk(2), talk(9)]
    assert found["border"] == 4
    assert found["format"] == "format messages, found from the columns messages"
    # The Hub is gone: what was fetched serves, and what was not is told.
    cases = (talks, (HAND, *talks), ("dataset.revision=other",), (HAND, "dataset.revision=other"))
    again, at_hand, other, no_other = fetched(tmp_path, endpoint, *cases)
    assert again == at_hand == found
    assert other.startswith("data set owner/name: the Hub can't be reached")
    assert "dataset=files" in other
    assert no_other is None


def test_what_the_hub_does_not_have_is_one_line(tmp_path, repository):
    cases = {
        ("dataset.config=talk",): "talks",
        ("dataset.config=talks", "dataset.split=tset"): (
            "has no split 'tset' (there are: train, test); did you mean test?"
        ),
        ("dataset.hub_id=owner/other",): "the Hub knows no such set",
    }
    with serving(repository) as (_, endpoint):
        found = fetched(tmp_path, endpoint, *cases)
    assert len(found) == len(cases)
    for line, says in zip(found, cases.values(), strict=True):
        assert says in line
        assert "\n" not in line


def test_sets_of_the_hub_are_members_of_a_mixture(tmp_path, repository):
    own = tmp_path / "own.jsonl"
    own.write_text("".join(json.dumps(talk(number)) + "\n" for number in range(20, 24)))
    mixed = (
        "dataset=files", f"dataset.path=[{own},hub:owner/name:talks]", "dataset.weights=[2,1]",
        "dataset.eval_path=hub:owner/name:talks:test",
    )  # fmt: skip
    single = ("dataset=files", "dataset.path=hub:owner/name")
    with serving(repository) as (_, endpoint):
        nothing, found, alone, absent = fetched(
            tmp_path, endpoint, (HAND, *mixed), mixed, single,
            ("dataset=files", f"dataset.path=[{own},hub:owner/other]"),
        )  # fmt: skip
    assert nothing is None
    # Of 4 and 3 rows, two to one: 4 and 2; the test split is held out.
    rows = [row for row in found["rows"] if row is not None]
    assert rows[:4] == [talk(number) for number in range(20, 24)]
    assert len([row for row in rows if row in (talk(0), talk(1), talk(2))]) == 2
    assert (rows[-1], len(rows), found["border"]) == (talk(9), 7, 8)
    assert alone["place"] == f"owner/name@{COMMIT[:12]}/dates/a.jsonl:1"
    assert absent.startswith("data set owner/other: the Hub knows no such set")
    # Without a way to the Hub what was fetched serves, and what was not is told.
    again, at_hand, other = fetched(
        tmp_path, endpoint, mixed, (HAND, *mixed), ("dataset=files", f"dataset.path=[{own},hub:owner/name@other]")
    )
    assert again == at_hand == found
    assert other.startswith("data set owner/name: the Hub can't be reached")
    assert "\n" not in other

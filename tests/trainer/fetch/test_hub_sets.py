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
config = single(*sys.argv[2:]).config
try:
    path = (dataset_at_hand if sys.argv[1] == "hand" else fetch_dataset)(config.dataset)
    source = None if path is None else Source.of(config, path)
    print(json.dumps(None if source is None else {
        "rows": [json.loads(line) if line else None for line in path.read_text().splitlines()],
        "format": str(source.found), "place": source.place(1), "border": source.border,
    }))
except TrntuneError as error:
    print(json.dumps(str(error)))
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


def fetched(tmp_path: Path, endpoint: str, *arguments: str, how: str = "fetch", token: str | None = None) -> Any:
    """What a process of its own gets: huggingface_hub reads its settings when it is imported."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment = {
        **kept,
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(tmp_path / "home"),
        "TRNTUNE_CACHE": str(tmp_path / "cache"),
        "HF_HUB_ETAG_TIMEOUT": "2",
        **({"HF_TOKEN": token} if token else {}),
    }
    hub = () if "dataset=files" in arguments else ("dataset=hub", "dataset.hub_id=owner/name")
    done = subprocess.run(
        [sys.executable, "-c", FETCH, how, *hub, *arguments],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=PATIENCE,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_split_is_its_files_with_every_value_what_it_was(tmp_path, repository):
    """datasets itself would make timestamps of the dates, and give all rows the keys of one."""
    with serving(repository) as (hub, endpoint):
        found = fetched(tmp_path, endpoint, token="hf_mine")
        assert found["rows"][0] == {"instruction": "day 0", "context": None, "response": "2024-01-31T00:00:00Z"}
        assert found["rows"][3] == {"instruction": "x", "context": "2024", "response": "007", "own": {"a": 1}}
        assert found["place"] == f"owner/name@{COMMIT[:12]}/dates/a.jsonl:1"
        assert hub.tokens == {"Bearer hf_mine"}
        talks = ("dataset.config=talks", "dataset.eval_split=test")
        found = fetched(tmp_path, endpoint, *talks)
        assert found["rows"] == [talk(0), talk(1), talk(2), talk(9)]
        assert found["border"] == 4
        assert found["format"] == "format messages, found from the columns messages"
    # The Hub is gone: what was fetched serves, and what was not is told.
    assert fetched(tmp_path, endpoint, *talks) == found
    assert fetched(tmp_path, endpoint, *talks, how="hand") == found
    other = fetched(tmp_path, endpoint, "dataset.revision=other")
    assert other.startswith("data set owner/name: the Hub can't be reached")
    assert "dataset=files" in other
    assert fetched(tmp_path, endpoint, "dataset.revision=other", how="hand") is None


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["dataset.config=talk"], "talks"),
        (
            ["dataset.config=talks", "dataset.split=tset"],
            "has no split 'tset' (there are: train, test); did you mean test?",
        ),
        (["dataset.hub_id=owner/other"], "the Hub knows no such set"),
    ],
)
def test_what_the_hub_does_not_have_is_one_line(tmp_path, repository, arguments, says):
    with serving(repository) as (_, endpoint):
        found = fetched(tmp_path, endpoint, *arguments)
    assert says in found
    assert "\n" not in found


def test_sets_of_the_hub_are_members_of_a_mixture(tmp_path, repository):
    own = tmp_path / "own.jsonl"
    own.write_text("".join(json.dumps(talk(number)) + "\n" for number in range(20, 24)))
    mixed = (
        "dataset=files", f"dataset.path=[{own},hub:owner/name:talks]", "dataset.weights=[2,1]",
        "dataset.eval_path=hub:owner/name:talks:test",
    )  # fmt: skip
    with serving(repository) as (_, endpoint):
        assert fetched(tmp_path, endpoint, *mixed, how="hand") is None
        found = fetched(tmp_path, endpoint, *mixed)
        alone = fetched(tmp_path, endpoint, "dataset=files", "dataset.path=hub:owner/name")
        absent = fetched(tmp_path, endpoint, "dataset=files", f"dataset.path=[{own},hub:owner/other]")
    # Of 4 and 3 rows, two to one: 4 and 2; the test split is held out.
    rows = [row for row in found["rows"] if row is not None]
    assert rows[:4] == [talk(number) for number in range(20, 24)]
    assert len([row for row in rows if row in (talk(0), talk(1), talk(2))]) == 2
    assert (rows[-1], len(rows), found["border"]) == (talk(9), 7, 8)
    assert alone["place"] == f"owner/name@{COMMIT[:12]}/dates/a.jsonl:1"
    assert absent.startswith("data set owner/other: the Hub knows no such set")
    # Without a way to the Hub what was fetched serves, and what was not is told.
    assert fetched(tmp_path, endpoint, *mixed) == fetched(tmp_path, endpoint, *mixed, how="hand") == found
    other = fetched(tmp_path, endpoint, "dataset=files", f"dataset.path=[{own},hub:owner/name@other]")
    assert other.startswith("data set owner/name: the Hub can't be reached")
    assert "\n" not in other

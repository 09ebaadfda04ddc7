"""A data set is tokenized once, whoever asks how often, and is the same from the disk, from memory, and made anew."""

from __future__ import annotations

import json
import multiprocessing
import os
import threading
from pathlib import Path

import pytest

from launcher.errors import TrntuneError
from tests.launcher.conftest import single
from tests.limits import PATIENCE
from tests.trainer.data.conftest import config_for, settings_for
from trainer.data import build, groups
from trainer.data.encoder import Encoder
from trainer.data.prepare import PreparedData, prepare
from trainer.data.tokenize import tokenize
from trainer.fetch.tiny_llama import byte_tokenizer
from trainer.probes.dataset import PlainTokenizer, shape_of


@pytest.fixture
def rows_file(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    records = [{"instruction": f"question {i}", "response": "é" * (i % 50 + 1)} for i in range(2600)]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def contents(data: PreparedData):
    """Everything that a run sees of its data."""
    everything = list(range(len(data.train)))
    return list(data.train), list(data.eval), list(data.held_out), data.report, data.digests(), data.lines(everything)


@pytest.fixture
def encoded(monkeypatch) -> list[int]:
    """How many rows the tokenizer was given, call by call."""
    calls: list[int] = []
    start = Encoder.start

    def counted(self, prompts, answers):
        calls.append(len(prompts))
        return start(self, prompts, answers)

    monkeypatch.setattr(Encoder, "start", counted)
    return calls


def test_what_is_tokenized_once_serves_every_later_run_on_the_same_rows(rows_file, tokenizer, encoded, tmp_path):
    first = prepare(config_for(rows_file), rows_file, tokenizer)
    assert sum(encoded) == 2600
    other_name = tmp_path / "copy.jsonl"
    other_name.write_bytes(rows_file.read_bytes())
    again = prepare(config_for(other_name), other_name, byte_tokenizer(4096))
    settings = ("seed=3", "training.max_length=128", "dataset.loss_on=all", "dataset.packing=false")
    prepare(config_for(rows_file, *settings, "dataset.max_samples=100"), rows_file, tokenizer)
    assert sum(encoded) == 2600
    assert contents(again) == contents(first)


@pytest.mark.parametrize(
    "change", ["dataset.prompt=chat", "dataset.split_seed=1", "dataset.on_bad_row=skip", "tokenizer", "rows"]
)
def test_whatever_changes_the_tokens_has_them_made_anew(rows_file, tokenizer, encoded, change):
    prepare(config_for(rows_file), rows_file, tokenizer)
    arguments = [change] if change.startswith("dataset.") else []
    if change == "tokenizer":
        tokenizer = byte_tokenizer(4096)
        tokenizer.add_tokens(["question"])
    if change == "rows":
        rows_file.write_text(rows_file.read_text().replace("question 7", "question 8", 1))
    data = prepare(config_for(rows_file, *arguments), rows_file, tokenizer)
    assert sum(encoded) == 5200
    text = tokenizer.decode(data.eval[0][0].input_ids)
    assert ("<|im_start|>user" in text) == (change == "dataset.prompt=chat")


@pytest.mark.parametrize("packing", [True, False])
def test_streaming_trains_on_the_same_rows_and_keeps_no_tokens(rows_file, tokenizer, cache, packing):
    streamed = prepare(
        config_for(rows_file, "dataset.streaming=true", f"dataset.packing={packing}"), rows_file, tokenizer
    )
    found = contents(streamed)
    assert not list(cache.rglob("tokens.bin"))
    stored = prepare(config_for(rows_file, f"dataset.packing={packing}"), rows_file, tokenizer)
    assert list(cache.rglob("tokens.bin"))
    assert found == contents(stored)


def test_a_file_that_changes_under_a_streaming_run_stops_it(rows_file, tokenizer):
    data = prepare(config_for(rows_file, "dataset.streaming=true"), rows_file, tokenizer)
    rows_file.write_text(rows_file.read_text().replace("question", "Question longer", 5))
    with pytest.raises(TrntuneError, match=r"rows\.jsonl was changed while it was in use"):
        list(data.train)


def test_many_processes_that_come_at_once_tokenize_once(rows_file, tokenizer, tmp_path):
    """As the ranks of a run do."""
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    file = tmp_path / "tokenizer" / "tokenizer.json"
    together = multiprocessing.get_context("forkserver")
    # Imported once for the three; another test's server may run already, and has imported less.
    together.set_forkserver_preload([__name__])
    barrier, told = together.Barrier(3), together.Queue()
    arguments = (barrier, told, dict(os.environ), rows_file, file, settings_for(rows_file))
    ranks = [together.Process(target=tokenize_with_others, args=arguments) for _ in range(3)]
    for rank in ranks:
        rank.start()
    lines = [told.get(timeout=PATIENCE) for _ in range(4)]
    for rank in ranks:
        rank.join(PATIENCE)
    assert [rank.exitcode for rank in ranks] == [0, 0, 0]
    assert lines.count("tokenizes") == 1
    assert set(lines) == {"tokenizes", prepare(config_for(rows_file), rows_file, tokenizer).digests()}
    assert told.empty()


def tokenize_with_others(barrier, told, environment, rows, tokenizer, settings) -> None:
    """One rank of those that come at once; tells the digest, and that it tokenizes if it is the one that does."""
    os.environ.update(environment)
    write = build.write

    def telling(*arguments) -> None:
        told.put("tokenizes")
        write(*arguments)

    build.write = telling
    barrier.wait(PATIENCE)
    told.put(prepare(single(*settings).config, rows, PlainTokenizer(tokenizer)).digests())


def test_a_broken_row_leaves_nothing_behind(rows_file, tokenizer, cache):
    with rows_file.open("a") as stream:
        stream.write('{"instruction": "half')
    with pytest.raises(TrntuneError, match=r"rows\.jsonl:2601: not JSON"):
        prepare(config_for(rows_file), rows_file, tokenizer)
    assert not [entry for entry in cache.iterdir() if entry.is_dir()]
    assert threading.active_count() < 5
    data = prepare(config_for(rows_file, "dataset.on_bad_row=skip"), rows_file, tokenizer)
    assert (data.report.rows_read, data.report.rows_skipped) == (2600, 1)


def test_the_rows_are_those_that_tokenize_gives_one_by_one(rows_file, tokenizer):
    data = prepare(config_for(rows_file, "dataset.packing=false"), rows_file, tokenizer)
    for row in data.train[:50]:
        [text] = data.train.corpus.texts([row[0].line - 1])
        assert row == tokenize([text], "plain", "response", 256, tokenizer).examples
        assert row[0].line == text.line


def test_windows_of_a_large_set_are_packed_apart_with_every_row_once(rows_file, tokenizer, monkeypatch):
    whole = prepare(config_for(rows_file), rows_file, tokenizer)
    monkeypatch.setattr(groups, "WINDOW", 500)
    monkeypatch.setattr(groups, "_FORMAT", -1)
    data = prepare(config_for(rows_file), rows_file, tokenizer)
    lines = [line for row in range(len(data.train)) for line in data.lines([row])]
    assert sorted(lines) == sorted(line for row in range(len(whole.train)) for line in whole.lines([row]))
    assert list(data.eval) == list(whole.eval)
    assert data.report.train_tokens == whole.report.train_tokens
    assert len(whole.train) <= len(data.train) <= len(whole.train) + 2 * 6 + 4
    assert data.digests() != whole.digests()


def test_the_plan_sees_all_of_a_set_that_a_run_has_tokenized(rows_file, tokenizer, monkeypatch, encoded):
    monkeypatch.setattr("trainer.probes.dataset._MAX_ROWS", 500)
    config = config_for(rows_file)
    guessed = shape_of(config, rows_file, tokenizer)
    assert (guessed.measured, guessed.available) == (507, 2600)
    data = prepare(config, rows_file, tokenizer)
    before = sum(encoded)
    known = shape_of(config, rows_file, tokenizer)
    assert sum(encoded) == before
    assert (known.measured, known.rows, known.tokens) == (2600, len(data.train), data.report.train_tokens)
    trained = sum(label != -100 for row in data.train for example in row for label in example.labels[1:])
    assert known.trained == trained
    assert guessed.tokens == pytest.approx(known.tokens, rel=0.05)
    assert guessed.rows == pytest.approx(known.rows, rel=0.05)


def test_the_tokenizer_is_not_waited_for_by_more_than_a_few_batches(tokenizer):
    """Memory stays what it is however long the file: rows are read as they are used up."""
    from trainer.data.rows import InstructionRow

    read = 0

    def endless():
        nonlocal read
        while True:
            read += 1
            yield 0, InstructionRow(str(read), "", "x")

    batches = build.tokenized(endless(), Encoder(tokenizer, "plain"))
    for used in range(1, 6):
        next(batches)
        assert read <= (used + 3) * build.BATCH
    batches.close()

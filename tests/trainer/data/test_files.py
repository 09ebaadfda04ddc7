"""Files of every kind: the same rows, whatever they are kept in, and every value what it was."""

from __future__ import annotations

import datetime
import gzip
import json

import pytest

from launcher.errors import TrntuneError
from tests.trainer.data.files import (
    KINDS,
    ROWS,
    prepared,
    write_arrow,
    write_csv,
    write_json,
    write_jsonl,
    write_parquet,
)
from tests.trainer.models.conftest import composed
from trainer.data import readers
from trainer.data.content import file_sha256
from trainer.data.prepare import data_notes, prepare
from trainer.fetch.sources import dataset_at_hand, fetch_dataset
from trainer.probes.dataset import shape_of


@pytest.mark.parametrize("name", KINDS)
def test_the_same_rows_give_the_same_tokens_from_every_kind_of_file(tmp_path, tokenizer, expected, name):
    path = tmp_path / name
    KINDS[name](path, ROWS)
    data = prepared(tokenizer, path)
    assert data.digests() == expected.digests()
    assert [list(rows) for rows in (data.train, data.eval)] == [list(rows) for rows in (expected.train, expected.eval)]
    assert list(data.held_out) == list(expected.held_out)
    assert {row.response for row in data.held_out} <= {row["response"] for row in ROWS}


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0)])
def test_neither_how_rows_are_shared_among_files_nor_their_order_changes_a_token(tmp_path, tokenizer, expected, order):
    """The first file's context is null in all rows, which datasets would take for the type of the column."""
    (tmp_path / "parts").mkdir()
    names = ("a.parquet", "b.jsonl", "c.csv")
    for number, (name, write) in enumerate(zip(names, (write_parquet, write_jsonl, write_csv), strict=True)):
        part = [{"context": None, **row} if name == "a.parquet" else row for row in ROWS[number::3]]
        write(tmp_path / "parts" / name, part)
    data = prepared(tokenizer, [tmp_path / "parts" / names[number] for number in order])
    assert data.digests() == expected.digests()
    assert prepared(tokenizer, tmp_path / "parts").digests() == expected.digests()
    assert prepared(tokenizer, tmp_path / "*" / "?.*").digests() == expected.digests()
    assert [each["path"].rpartition("/")[2] for each in data.report.files] == [names[number] for number in order]
    assert sum(each["rows"] for each in data.report.files) == 50
    assert {each["sha256"] for each in data.report.files} == {file_sha256(tmp_path / "parts" / name) for name in names}


def test_a_turn_has_its_own_keys_only(tmp_path, tokenizer):
    """A table has every key in every turn, null where a turn has none of it: templates ask whether it is there."""
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"question {i}"},
                {"role": "assistant", "content": "2024-01-31", **({"reasoning_content": "Hm."} if i % 2 else {})},
            ]
        }
        for i in range(20)
    ]
    digests = set()
    template = (
        "{% for t in messages %}<|im_start|>{{ t.role }}\n{% if t.reasoning_content is defined %}"
        "({{ t.reasoning_content }}){% endif %}{{ t.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    tokenizer = type(tokenizer)(
        tokenizer_object=tokenizer.backend_tokenizer, eos_token="<|im_end|>", chat_template=template
    )
    for name in ("rows.jsonl", "rows.json", "rows.parquet", "stream.arrow"):
        KINDS[name](tmp_path / name, rows)
        data = prepared(tokenizer, tmp_path / name)
        texts = {tokenizer.decode(example.input_ids) for row in data.train for example in row}
        assert not [text for text in texts if "None" in text]
        assert any("(Hm.)" in text for text in texts)
        digests.add(data.digests())
    assert len(digests) == 1


def test_a_timestamp_is_no_text(tmp_path, tokenizer):
    path = tmp_path / "rows.parquet"
    write_parquet(path, [{"instruction": "a", "response": datetime.datetime(2024, 1, 31)}] * 3)
    with pytest.raises(
        TrntuneError, match=r"fit no format; nearest is instruction, whose .*response are of another kind"
    ):
        prepared(tokenizer, path)
    with pytest.raises(TrntuneError, match=r"rows\.parquet, row 1: field 'response' must be text, not dict"):
        prepared(tokenizer, path, "dataset.format=instruction")


def test_what_is_read_is_put_together_once(tmp_path, tokenizer, monkeypatch):
    write_parquet(tmp_path / "a.parquet", ROWS[:25])
    write_csv(tmp_path / "b.csv", ROWS[25:])
    first = prepared(tokenizer, [tmp_path / "a.parquet", tmp_path / "b.csv"])
    monkeypatch.setattr(readers, "lines", lambda path: pytest.fail("it is read again"))
    monkeypatch.setattr("trainer.data.imports.lines", lambda path: pytest.fail("it is read again"))
    again = prepared(tokenizer, [tmp_path / "a.parquet", tmp_path / "b.csv"], "seed=3", "dataset.streaming=true")
    assert again.report.sha256 == first.report.sha256
    assert list(again.eval) == list(first.eval)


def test_a_broken_row_is_named_by_its_own_file_and_row(tmp_path, tokenizer):
    write_csv(tmp_path / "a.csv", ROWS[:10])
    with (tmp_path / "a.csv").open("a") as stream:
        stream.write("only one\r\n")
    with pytest.raises(TrntuneError, match=r"a\.csv, row 11: 1 fields, the first line of the file names 2"):
        prepared(tokenizer, tmp_path / "a.csv")
    (tmp_path / "b.jsonl").write_text('{"instruction": "x", "response": "y"}\n\n{"instruction": 3}\n')
    data = prepared(tokenizer, tmp_path / "a.csv", "dataset.on_bad_row=skip")
    assert (data.report.rows_read, data.report.rows_skipped) == (10, 1)
    with pytest.raises(TrntuneError, match=r"b\.jsonl:3: no field|b\.jsonl:3: field 'instruction' must be text"):
        prepared(tokenizer, [tmp_path / "b.jsonl", tmp_path / "a.csv"], "dataset.format=instruction")
    write_json(tmp_path / "c.json", [*ROWS[:12], {"instruction": "a", "response": ""}])
    with pytest.raises(TrntuneError, match=r"c\.json, row 13: field 'response' is empty"):
        prepared(tokenizer, [tmp_path / "c.json", tmp_path / "c.json"])


LINES = b"".join(b'{"instruction": "%x", "response": "b"}\n' % (number**9) for number in range(9000))
UNREADABLE = [
    ("a.json", b'[{"a": 1}, {"a": 2', r"a\.json, row 2: not JSON"),
    ("a.json", b'[{"a": 1} {"a": 2}]', r"a\.json, row 2: not JSON: ',' is wanted, not '\{'"),
    ("a.json", b'[{"a": 1}] []', "something follows the array's end"),
    ("a.json", b'[{"a": "\xff"}]', "not UTF-8"),
    ("a.csv", b"a,a\n1,2\n", "names the column 'a' twice"),
    ("a.csv", b"instruction;response\nx;y\n", "its first line has one column, 'instruction;response'"),
    ("a.csv", b'a,b\n"x"y,2\n', r"a\.csv, row 1: not CSV"),
    ("a.csv", b"a,b\n\xff,2\n", "not CSV .*UTF-8"),
    ("a.parquet", b"PAR1 and no more", "a.parquet, after row 0: not Parquet"),
    ("a.arrow", b"ARROW1 and no more, as it seems", "a.arrow, after row 0: not Arrow"),
    ("a.bin", b"\x00\x01", "neither its name nor its first bytes"),
    ("a.jsonl.gz", b"not packed", "can't be read"),
    ("b.jsonl.gz", gzip.compress(LINES)[:-30_000], r"b\.jsonl\.gz: is damaged \(.*\); get it again"),
    ("a.jsonl.gz", gzip.compress(b'{"a": 1}\n' * 9)[:20], r"a\.jsonl\.gz: is damaged \(.*\); get it again"),
    ("a.json", b"[]", "no usable row"),
]


@pytest.mark.parametrize(("name", "content", "says"), UNREADABLE, ids=[says for *_, says in UNREADABLE])
def test_a_file_that_cannot_be_read_is_one_line_and_leaves_nothing(tmp_path, tokenizer, cache, name, content, says):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(TrntuneError, match=says) as caught:
        prepared(tokenizer, tmp_path / name, "dataset.format=instruction")
    assert "\n" not in str(caught.value)
    assert not [entry for entry in cache.glob("tokens-*") if entry.is_dir()]


def test_a_large_element_of_an_array_is_read_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "_PIECE", 16)
    rows = [*ROWS[:5], {"instruction": "x" * 1000, "response": "1" * 300}, 12345678901234567890, *ROWS[5:]]
    write_json(tmp_path / "rows.json", rows)  # type: ignore[arg-type]
    assert [json.loads(line) for line in readers.lines(tmp_path / "rows.json")] == rows


def test_a_saved_set_is_its_rows_and_one_of_splits_is_refused(tmp_path, tokenizer, expected):
    from datasets import Dataset, DatasetDict

    Dataset.from_list(ROWS).save_to_disk(str(tmp_path / "saved"))
    assert prepared(tokenizer, tmp_path / "saved").digests() == expected.digests()
    DatasetDict({"train": Dataset.from_list(ROWS)}).save_to_disk(str(tmp_path / "splits"))
    with pytest.raises(TrntuneError, match=r"is a set of several splits; give one of them, such as .*splits/train"):
        prepared(tokenizer, tmp_path / "splits")
    assert prepared(tokenizer, tmp_path / "splits" / "train").digests() == expected.digests()


def test_a_mixture_has_the_shares_that_were_asked_for_and_no_row_twice(tmp_path, tokenizer):
    write_jsonl(tmp_path / "a.jsonl", [{"instruction": f"a {i}", "response": "x"} for i in range(100)])
    write_csv(tmp_path / "b.csv", [{"instruction": f"b {i}", "response": "y"} for i in range(60)])
    both = [tmp_path / "a.jsonl", tmp_path / "b.csv"]
    data = prepared(tokenizer, both, "dataset.weights=[1,2]", "dataset.packing=false")
    rows = data.train.corpus.texts(range(len(data.train.corpus.rows)))
    questions = [row.instruction for row in rows]
    assert len(set(questions)) == len(questions) == 90
    assert [sum(each.startswith(name) for each in questions) for name in "ab"] == [30, 60]
    assert [data.train.corpus.source.place(row.line).rpartition("/")[2] for row in rows][-1] == "b.csv, row 60"
    assert data_notes(data.report)[-2:] == [
        f"30 rows of {both[0]} ({both[0]})",
        f"60 rows of {both[1]} ({both[1]})",
    ]
    other = prepared(tokenizer, both, "dataset.weights=[1,2]", "dataset.split_seed=1")
    assert {row.instruction for row in other.train.corpus.texts(range(90))} != set(questions)


def test_a_held_out_set_of_ones_own_is_all_that_is_held_out_and_twins_are_told(tmp_path, tokenizer, monkeypatch):
    write_jsonl(tmp_path / "train.jsonl", ROWS)
    held_out = [{"instruction": f"new {i}", "response": "x"} for i in range(9)]
    write_csv(tmp_path / "eval.csv", [*held_out, ROWS[3], ROWS[8]])
    own = f"dataset.eval_path={tmp_path / 'eval.csv'}"
    data = prepared(tokenizer, tmp_path / "train.jsonl", own)
    assert {row.instruction for row in data.held_out} == {row["instruction"] for row in [*held_out, ROWS[3], ROWS[8]]}
    assert data.report.train_examples == 50
    assert data.report.eval_examples == 11
    assert data.report.eval_in_train == 2
    assert "2 held-out rows stand among the training rows too, so their loss says less" in data_notes(data.report)
    with monkeypatch.context() as patch:  # the cache says how many, to every later process
        patch.setattr("trainer.data.groups.twins", None)
        patch.setattr("trainer.data.corpus.Corpus.texts", None)  # and rows are read when they are asked for
        assert prepared(tokenizer, tmp_path / "train.jsonl", own).report == data.report
    few = prepared(tokenizer, tmp_path / "train.jsonl", own, "dataset.max_samples=20")
    assert (few.report.train_examples, few.report.eval_examples) == (20, 11)
    config = composed("dataset=jsonl", f"dataset.path={tmp_path / 'train.jsonl'}", own, "training.max_length=256")
    same = prepare(config, fetch_dataset(config.dataset), tokenizer)
    assert list(same.held_out) == list(data.held_out)
    write_csv(tmp_path / "eval.csv", held_out)
    other = prepared(tokenizer, tmp_path / "train.jsonl", own)
    encoder = data.train.corpus.encoder.identity
    assert other.train.digest(encoder) == data.train.digest(encoder)
    assert other.digests() != data.digests()
    (tmp_path / "eval.csv").write_text("instruction,response\n")
    with pytest.raises(TrntuneError, match="the held-out set has no row that can be used"):
        prepared(tokenizer, tmp_path / "train.jsonl", own)


@pytest.mark.parametrize("own", [False, True])
def test_the_plan_sees_what_the_run_will_have(tmp_path, tokenizer, own):
    write_parquet(tmp_path / "train.parquet", ROWS)
    write_jsonl(tmp_path / "eval.jsonl", ROWS[:12])
    arguments = [f"dataset.eval_path={tmp_path / 'eval.jsonl'}"] if own else []
    config = composed(
        "dataset=files", f"dataset.path={tmp_path / 'train.parquet'}", "dataset.eval_samples=7",
        "training.max_length=256", "training.global_batch_size=4", *arguments,
    )  # fmt: skip
    path = dataset_at_hand(config.dataset)
    assert path is not None
    planned = shape_of(config, path, tokenizer)
    data = prepare(config, path, tokenizer)
    assert (planned.rows, planned.tokens, planned.eval_rows) == (
        len(data.train),
        data.report.train_tokens,
        len(data.eval),
    )
    assert planned == shape_of(config, path, tokenizer)


def test_too_long_rows_are_left_out_or_stop_the_run(tmp_path, tokenizer):
    rows = [*ROWS, *({"instruction": f"long {i}", "response": "x" * 500} for i in range(3))]
    rows.append({"instruction": "y" * 400, "response": "x"})
    write_csv(tmp_path / "rows.csv", rows)
    data = prepared(tokenizer, tmp_path / "rows.csv", "dataset.too_long=drop")
    assert (data.report.truncated, data.report.left_out, data.report.dropped) == (0, 3, 1)
    assert data.report.train_examples + data.report.eval_examples == 50
    assert max(len(example.input_ids) for row in data.train for example in row) < 256
    with pytest.raises(TrntuneError, match=r"rows\.csv, row \d+: \d+ tokens are more than training\.max_length=256"):
        prepared(tokenizer, tmp_path / "rows.csv", "dataset.too_long=error")


def test_content_goes_before_an_ending_that_says_something_else(tmp_path, tokenizer, expected):
    for name, write in (("array.jsonl", write_json), ("parquet.jsonl", write_parquet), ("arrow.csv", write_arrow)):
        write(tmp_path / name, ROWS)
        assert prepared(tokenizer, tmp_path / name).digests() == expected.digests()


FOREIGN = [
    (b"PK\x03\x04rest", "is a zip archive"),
    (b"\x28\xb5\x2f\xfdrest", "is compressed by zstd; unpack it first"),
    (b"\xff\xfe{\x00", "is text in UTF-16; write it in UTF-8"),
    (
        b"version https://git-lfs.github.com/spec/v1\n",
        "is a pointer of Git LFS, not the data; get the data: git lfs pull",
    ),
    (b"<!DOCTYPE html>\n", "is HTML or XML"),
    (b'{\n  "data": [\n', "is JSON over several lines, not a row a line"),
    (gzip.compress(b"{}\n"), r"is compressed by gzip, and its name doesn't say so; name it a\.jsonl\.gz"),
]


@pytest.mark.parametrize(("content", "says"), FOREIGN, ids=[says for _, says in FOREIGN])
def test_a_file_that_nobody_reads_says_what_it_is(tmp_path, tokenizer, content, says):
    (tmp_path / "a.jsonl").write_bytes(content)
    with pytest.raises(TrntuneError, match=rf"a\.jsonl: {says}"):
        prepared(tokenizer, tmp_path / "a.jsonl")

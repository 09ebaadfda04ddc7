"""ROUGE-L in every script, and of how many questions each score is."""

from __future__ import annotations

import io
import json
import random
import unicodedata
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenizers import DefaultTokenizer

from launcher.config.schema import ColumnsConfig
from postprocess.generate import run, show, words
from postprocess.generate.answer import Answer, Sampling
from postprocess.generate.questions import Question
from postprocess.generate.score import rouge_l, summary
from tests.launcher.conftest import single
from trainer.data.json_lines import read_jsonl
from trainer.data.rows import InstructionRow
from trainer.fetch.sources import fetch_dataset

WORDS = {
    "cyrillic": ("Привет, МИР! п'ять", ["привет", "мир", "п", "ять"]),
    "greek": ("Ὀδυσσεύς", ["ὀδυσσεύσ"]),
    "accents": ("Déjà-vu naïve", ["déjà", "vu", "naïve"]),
    "vietnamese": ("tiếng Việt", ["tiếng", "việt"]),
    "sharp s": ("Straße STRASSE", ["strasse", "strasse"]),
    "devanagari": ("हिन्दी में लिखा।", ["हिन्दी", "में", "लिखा"]),
    "tamil": ("தமிழ் மொழி", ["தமிழ்", "மொழி"]),
    "arabic": ("مَرْحَبًا، عالم", ["مَرْحَبًا", "عالم"]),
    "persian, with and without a joiner": ("می\u200cروم میروم", ["میروم", "میروم"]),
    "hebrew": ("שָׁלוֹם עולם", ["שָׁלוֹם", "עולם"]),
    "korean": ("한국어를 배운다", ["한국어를", "배운다"]),
    "han": ("2024年,北京", ["2024", "年", "北", "京"]),
    "kana": ("データを東京へ", ["デ", "ー", "タ", "を", "東", "京", "へ"]),
    "full width": ("\uff12\uff10\uff12\uff14\uff21\uff22 \uff76\uff9e", ["2024ab", "ガ"]),
    "thai": ("ศักดิ์ ๒๕๖๗", ["ศั", "ก", "ดิ์", "๒๕๖๗"]),
    "lao": ("ພາສາ", ["ພ", "າ", "ສ", "າ"]),
    "khmer": ("ភាសា", ["ភា", "សា"]),
    "myanmar": ("ဘာသာ", ["ဘာ", "သာ"]),
    "tibetan": ("བོད་སྐད", ["བོད", "སྐད"]),
    "symbols": ("Foo™ bar😀baz\u200bqux", ["foo", "bar", "baz", "qux"]),
    "soft hyphen": ("hy\u00adphen", ["hyphen"]),
}


@pytest.mark.parametrize("script", WORDS)
def test_words_of_every_script_however_they_are_composed(script):
    text, expected = WORDS[script]
    normal = [unicodedata.normalize("NFKC", word) for word in expected]
    assert words.words(text) == normal
    assert words.words(unicodedata.normalize("NFD", text)) == normal


def test_ascii_text_has_exactly_the_words_of_rouge_scores_own_tokenizer():
    theirs, ours = DefaultTokenizer(use_stemmer=True), words.UnicodeWords()
    generator = random.Random(0)
    noise = ["".join(chr(generator.randrange(128)) for _ in range(80)) for _ in range(500)]
    rows, _ = read_jsonl(fetch_dataset(single("dataset=python_docs").config.dataset), ColumnsConfig(), "stop")
    english = [text for row in rows[:300] for text in (row.instruction, row.response) if text.isascii()]
    assert len(english) > 300
    for text in noise + english:
        assert ours.tokenize(text) == theirs.tokenize(text)


def test_english_scores_are_bit_for_bit_the_librarys():
    references = ["The runner's 3 dogs were running, quickly_ranging.", "Keys are hashable", "a-b c"]
    answers = ["He ran: three dogs run quickly (ranges)", "Hashing the keys", "A b, C!"]
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    expected = [scorer.score(*pair)["rougeL"].fmeasure for pair in zip(references, answers, strict=True)]
    assert rouge_l(references, answers) == expected


@pytest.mark.parametrize(
    ("reference", "answer", "expected"),
    [
        ("Привет, мир", "привет мир!", 1.0),
        ("Он читает книгу", "Она читает книгу", 2 / 3),
        ("2024年北京", "2024年上海", 2 * 0.5 * 0.5 / (0.5 + 0.5)),  # 2024 and 年 of four
        ("2024北京", "2024上海", 1 / 3),
        ("हिन्दी भाषा", "हन्द भष", 0.0),
        ("ก็", "ก", 0.0),
    ],
)
def test_scores_by_hand(reference, answer, expected):
    assert rouge_l([reference], [answer]) == [pytest.approx(expected)]


def outcome() -> run.Outcome:
    """Three questions, two with a right answer, one of which left no room for its loss."""
    rows = [Question(InstructionRow("a", "", text), text or None) for text in ("да", "нет", "")]
    answers = [Answer("да", 2, True), Answer("да", 2, True), Answer("?", 1, False)]
    found = summary(rows, answers, [(3.0, 2)], rouge_l(["да", "нет"], ["да", "да"]))
    return run.Outcome(rows, {"tuned": answers}, {"tuned": [(3.0, 2)]}, {"tuned": [1.0, 0.0, None]}, {"tuned": found})


def test_the_table_says_of_how_many_questions_a_score_is_and_which_words_it_counts():
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(show.scores(outcome()))
    lines = [line.split() for line in console.export_text().splitlines()]
    text = [" ".join(line) for line in lines]
    assert any("loss of the right answers, 1 of 3 │ 1.5000" in line for line in text)
    assert any("ROUGE-L, 2 of 3 │ 0.500" in line for line in text)
    assert any("mean answer, tokens │ 1.7" in line for line in text)
    assert any(words.NAME in line for line in text)


def test_the_files_say_which_words_were_counted(tmp_path):
    run.write(outcome(), run.Options(Sampling(1, 0.0, 1.0, 0)), tmp_path)
    scores = json.loads((tmp_path / "scores.json").read_text(encoding="utf-8"))
    assert scores["rouge_l"]["tokenizer"] == "unicode-words-1"
    assert scores["summary"]["tuned"]["rouge_l_scored"] == 2
    samples = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [sample["tuned_rouge_l"] for sample in samples] == [1.0, 0.0, None]


def test_questions_without_a_right_answer_are_left_out_of_the_scores(monkeypatch):
    given = [Answer("да", 1, True)] * 3
    monkeypatch.setattr(run, "answer", lambda *_: given)
    scored = []
    monkeypatch.setattr(run, "reference_losses", lambda _m, _t, asked, *_: scored.extend(asked) or [(1.0, 1), (1.0, 1)])
    found = run.Outcome(outcome().questions, {}, {}, {}, {})
    answerers: Any = SimpleNamespace(tokenizer=None, place=SimpleNamespace(prompt="plain"), way=lambda name: None)
    run._ask("tuned", None, answerers, run.Options(Sampling(1, 0.0, 1.0, 0)), found)
    assert [question.reference for question in scored] == ["да", "нет"]
    assert found.rouge["tuned"] == [1.0, 0.0, None]
    assert found.summary["tuned"]["rouge_l"] == 0.5

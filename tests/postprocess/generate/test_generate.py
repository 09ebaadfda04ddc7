"""Questions asked of base and tuned model, on a real run of two random layers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from launcher.paths import ROOT
from postprocess.generate.answer import Sampling, answer
from postprocess.generate.models import Answerers, locate
from postprocess.generate.questions import from_file, held_out, typed
from postprocess.generate.run import Options, generate, records
from postprocess.generate.score import rouge_l
from tests.conftest import TINY, environment, launch
from tests.limits import PATIENCE
from trainer.data.tokenize import prompt_ids

GREEDY = Sampling(max_new_tokens=12, temperature=0.0, top_p=1.0, seed=0)


@pytest.fixture(scope="module", params=["lora", "full"])
def run(request, tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("generate")
    settings = (
        f"method={request.param}",
        "tracking=none",
        "training.learning_rate=0.02",
        f"hydra.run.dir={directory}/run",
    )
    process = launch(directory, *TINY, *settings)
    assert process.returncode == 0, process.stderr
    return directory / "run"


def test_losses_of_the_right_answers_are_those_that_training_reported(run):
    """Two implementations of one number: packed rows there, padded batches of plain transformers here."""
    place = locate(run, None, None)
    questions = held_out(place.run, None)
    assert len(questions) == 8
    outcome = generate(place, questions, Options(GREEDY, batch_size=3))
    train = json.loads((run / "stages" / "train.json").read_text())
    assert outcome.summary["base"]["reference_loss"] == pytest.approx(train["eval_loss_before"], rel=1e-5)
    assert outcome.summary["tuned"]["reference_loss"] == pytest.approx(train["eval_loss_after"], rel=1e-5)
    assert outcome.summary["base"]["reference_loss"] != outcome.summary["tuned"]["reference_loss"]
    record = records(outcome)[0]
    assert {"instruction", "reference", "base", "tuned", "tuned_rouge_l", "tuned_ended"} <= record.keys()


def test_a_batch_gives_the_answers_of_each_question_alone(run):
    place = locate(run, None, None)
    questions = held_out(place.run, 5)
    answerers = Answerers(place, torch.float32, "cpu")
    with answerers.model("tuned") as model:
        together = answer(model, answerers.tokenizer, questions, "plain", GREEDY, batch_size=5)
        for question, found in zip(questions, together, strict=True):
            ids = torch.tensor([prompt_ids(question.row, "plain", answerers.tokenizer)])
            alone = greedy_by_hand(model, ids, GREEDY.max_new_tokens, answerers.tokenizer.eos_token_id)
            assert found.text == answerers.tokenizer.decode(alone, skip_special_tokens=True).strip()
            assert found.tokens == len(alone)


def greedy_by_hand(model, ids: torch.Tensor, steps: int, eos: int) -> list[int]:
    found: list[int] = []
    with torch.no_grad():
        for _ in range(steps):
            following = int(model(ids).logits[0, -1].argmax())
            if following == eos:
                break
            found.append(following)
            ids = torch.cat([ids, torch.tensor([[following]])], dim=1)
    return found


def test_an_answer_ends_at_eos(run):
    place = locate(run, None, None)
    answerers = Answerers(place, torch.float32, "cpu")
    questions = held_out(place.run, 1)
    prompt = torch.tensor([prompt_ids(questions[0].row, "plain", answerers.tokenizer)])
    with answerers.model("tuned") as model:
        ids = greedy_by_hand(model, prompt, 12, -1)
        # Whatever the model says fourth is made the end of a sequence.
        fourth = ids[3]
        answerers.tokenizer.eos_token = answerers.tokenizer.convert_ids_to_tokens(fourth)
        [found] = answer(model, answerers.tokenizer, questions, "plain", GREEDY, 1)
    assert found.ended
    assert found.tokens == ids.index(fourth)


def test_drawn_answers_depend_on_the_seed_alone(run):
    place = locate(run, None, None)
    questions = typed(["What is it?", "And that?"], "")

    def texts(seed: int) -> list[str]:
        outcome = generate(place, questions, Options(Sampling(12, 1.0, 0.9, seed)))
        return [each.text for each in outcome.generations["tuned"]]

    assert texts(1) == texts(1)
    assert texts(1) != texts(2)


def test_rouge_l_by_hand():
    """The longest common subsequence of the second pair is its answer, 4 of 6 words: 2 * 1 * (4/6) / (1 + 4/6)."""
    assert rouge_l(["the cat sat on the mat"] * 3, ["the cat sat on the mat", "the cat on mat", "dogs"]) == [
        1.0,
        pytest.approx(0.8),
        0.0,
    ]


def command(cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "postprocess.generate", *arguments],
        cwd=cwd,
        env={**environment(), "PYTHONPATH": str(ROOT), "HOME": str(cwd)},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )


def test_the_command_writes_answers_and_scores_and_prints_them(run):
    done = command(run.parent, str(run), "--questions", "2", "--max-new-tokens", "4")
    assert done.returncode == 0, done.stderr
    for piece in ("Question 2", "reference", "base", "tuned", "ROUGE-L", "written to run/generate"):
        assert piece in done.stdout
    lines = (run / "generate" / "samples.jsonl").read_text().splitlines()
    assert len(lines) == 2
    assert set(json.loads((run / "generate" / "scores.json").read_text())["summary"]) == {"base", "tuned"}


def test_the_command_cuts_the_rows_as_the_training_did(tmp_path):
    """Where some are too long for a row their loss is not that of the whole answers."""
    short = ("training.max_length=160", "tracking=none", "hydra.run.dir=run")
    process = launch(tmp_path, *TINY, *short)
    assert process.returncode == 0, process.stderr
    done = command(tmp_path, "run", "--max-new-tokens", "1")
    assert done.returncode == 0, done.stderr
    scores = json.loads((tmp_path / "run" / "generate" / "scores.json").read_text())["summary"]
    train = json.loads((tmp_path / "run" / "stages" / "train.json").read_text())
    assert scores["tuned"]["reference_loss"] == pytest.approx(train["eval_loss_after"], rel=1e-5)
    assert scores["tuned"]["references_scored"] == train["data"]["eval_examples"]


def test_a_model_directory_alone_answers_what_it_is_asked(run, tmp_path):
    if not (run / "model").is_dir():
        pytest.skip("a LoRA run has no model directory")
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"instruction": "a", "response": "b"}\n' * 3)
    done = command(tmp_path, str(run / "model"), "--file", "rows.jsonl", "--questions", "2", "--max-new-tokens", "4")
    assert done.returncode == 0, done.stderr
    assert len(from_file(rows, None)) == 3
    assert len((tmp_path / "answers" / "samples.jsonl").read_text().splitlines()) == 2
    assert "base" not in json.loads((tmp_path / "answers" / "scores.json").read_text())["summary"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["nowhere", "--ask", "x"], 1, "nowhere is not a directory"),
        ([".", "--ask", "x"], 1, "holds no run, no adapter_config.json and no config.json"),
        ([".", "--temperature", "-1"], 2, "must be between 0 and 10"),
        ([".", "--ask", "x", "--file", "y"], 2, "cannot be given together"),
        ([], 2, "the following arguments are required"),
    ],
)
def test_what_cannot_be_done_is_one_line(arguments, code, message, tmp_path):
    done = command(tmp_path, *arguments)
    assert done.returncode == code
    [line] = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert list(tmp_path.iterdir()) == []

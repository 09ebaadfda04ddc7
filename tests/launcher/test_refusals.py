"""Every refusal: one line on stderr, exit code 2, no traceback, nothing on disk. Real processes."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from launcher import app
from launcher.config.overrides import shell_form
from tests.launcher.conftest import single

TOKEN = "hf_" + "aB3dE6gH9" * 3

REFUSALS = [
    (["traning.max_steps=5"], ["unknown key traning.max_steps", "training.max_steps?"]),
    (["training.max_stepz=5"], ["unknown key training.max_stepz", "training.max_steps?"]),
    (["max_steps=5"], ["unknown key max_steps", "training.max_steps?"]),
    (["method=lara"], ["method=lara", "full, lora", "did you mean lora?"]),
    (["modle=tiny_llama"], ["unknown key modle", "model?"]),
    (["training=null"], ["training=null", "epochs3, quick"]),
    (["+foo=1"], ["+foo=1", "cannot be added"]),
    (["+training.max_steps=9"], ["without the plus"]),
    (["~model"], ["~model", "cannot be deleted"]),
    (["training.max_steps=abc"], ["training.max_steps=abc", "must be an integer or null"]),
    (["training.max_steps=2.5"], ["training.max_steps=2.5", "must be an integer"]),
    (["training.max_steps="], ["training.max_steps=", "must be an integer"]),
    (["seed=null"], ["seed", "must be an integer"]),
    (["tracking.enabled=5"], ["tracking.enabled=5", "true or false"]),
    (["lora.target_modules=q_proj"], ["lora.target_modules", "a list such as [a,b]"]),
    (["training.max_steps=0"], ["training.max_steps=0", ">= 1"]),
    (["lora.dropout=1"], ["lora.dropout=1", ">= 0 and < 1"]),
    (["training.learning_rate=nan"], ["training.learning_rate=nan", "finite"]),
    (["training.learning_rate=inf"], ["training.learning_rate=inf", "finite"]),
    (["training.precision=bf61"], ["fp32, bf16", "did you mean bf16?"]),
    (["training.max_steps='5"], ["a quote is not closed"]),
    (["lora.target_modules=[q_proj"], ["a bracket is not closed"]),
    (
        ["dataset.columns.response=Answer (checked)"],
        ["not readable as an override", "type 'dataset.columns.response=\"Answer (checked)\"'"],
    ),
    (["dataset.columns.response=a,b"], ["for a comma type 'dataset.columns.response=\"a,b\"'"]),
    (["training.max_steps"], ["is not key=value"]),
    (["dataset=jsonl"], ["dataset.path=null", "dataset.path=FILE"]),
    (["--mutirun"], ["unknown flag --mutirun", "--multirun?"]),
    (["--cfg", "jop"], ["--cfg", "jop"]),
    (["--resolve"], ["--cfg"]),
    (["-m", "--cfg", "job"], ["cannot be given together"]),
    (["--config-dir", "nowhere"], ["nowhere", "no such directory"]),
    (["--config-name", "nowhere"], ["nowhere.yaml"]),
    (["training.learning_rate=${foo.bar}"], ["training.learning_rate=${foo.bar}", "foo.bar"]),
    (["model.revision=${oc.env:TRNTUNE_NOT_SET}"], ["model.revision", "TRNTUNE_NOT_SET"]),
    (["stages=[fetch,trian]"], ["trian", "fetch, compile, train, consolidate, merge, generate", "did you mean train?"]),
    (["stages=[]"], ["stages=[]", "no stage"]),
    (["stages=[train,fetch]"], ["stages=[fetch,train]"]),
    (["method=lora,full"], ["method=lora,full", "add -m"]),
    (["-m", "seed=range(3,3)"], ["the sweep is empty"]),
    (["-m", "seed=range(0,99999)"], ["99999 runs", "at most"]),
    (["-m", "seed=interval(0,1)"], ["interval"]),
    (["-m", "hydra.run.dir=a,b"], ["cannot be swept"]),
    (["-m", "training.global_batch_size=2,3", "training.micro_batch_size=2"], ["[2/2]", "batch_size=3"]),
    (["-m", "method=lora,full", "training.max_steps=0"], ["[1/2] method=lora", "training.max_steps=0"]),
    (["hydra.run.dirr=x"], ["hydra.run.dirr"]),
    (["model=local", "model.architecture.heads=4"], ["model.architecture is null"]),
]


@pytest.mark.parametrize(("arguments", "pieces"), REFUSALS, ids=lambda value: " ".join(value)[:60])
def test_one_line_refusal(arguments, pieces, cwd, capsys):
    assert app.main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert captured.out == ""
    for piece in pieces:
        assert piece in captured.err
    assert list(cwd.iterdir()) == []


@pytest.mark.parametrize("index", [0, 3, 9, 20, 24])
def test_refusal_of_the_real_command(index, launch, cwd):
    arguments, pieces = REFUSALS[index]
    done = launch(*arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert all(piece in done.stderr for piece in pieces)
    assert list(cwd.iterdir()) == []


@pytest.mark.parametrize("argument", [f"model.revision={TOKEN}", TOKEN, f"x={TOKEN}'", f"{TOKEN}=1"])
def test_a_token_is_refused_and_never_echoed(argument, cwd, capsys):
    assert app.main([argument]) == 2
    assert TOKEN not in capsys.readouterr().err


def test_a_token_out_of_the_environment_is_refused(cwd, capsys, monkeypatch):
    monkeypatch.setenv("MY_TOKEN", TOKEN)
    assert app.main(["model.revision=${oc.env:MY_TOKEN}"]) == 2
    error = capsys.readouterr().err
    assert "model.revision" in error
    assert TOKEN not in error


def test_a_password_in_the_tracking_address_is_not_echoed(cwd, capsys):
    assert app.main(["tracking.uri=http://anna:geheim@host"]) == 2
    error = capsys.readouterr().err
    assert "MLFLOW_TRACKING_PASSWORD" in error
    assert "geheim" not in error


PACKAGE = "# @package _global_\n"
EXPERIMENTS = [
    (PACKAGE + "training:\n  max_stepz: 5\n", ["experiment/mine.yaml", "training.max_stepz", "training.max_steps?"]),
    (PACKAGE + "training:\n  max_steps: abc\n", ["experiment/mine.yaml", "training.max_steps=abc", "integer"]),
    (PACKAGE + "training:\n  max_steps: [5\nseed: 1\n", ["mine.yaml, line 4"]),
    (PACKAGE + "seed: 1\nseed: 2\n", ["mine.yaml, line 3", "duplicate key seed"]),
    (PACKAGE + "training: 5\n", ["experiment/mine.yaml", "training=5"]),
    (PACKAGE + "defaults:\n  - override /method: fool\n", ["method=fool", "full, lora"]),
    (PACKAGE + "defaults:\n  - override /metod: full\n", ["experiment/mine.yaml", "metod", "method?"]),
    ("training:\n  max_steps: 5\n", ["experiment/mine.yaml", "# @package _global_"]),
]


@pytest.mark.parametrize(("text", "pieces"), EXPERIMENTS)
def test_an_error_in_the_users_experiment_names_file_and_key(text, pieces, cwd, tmp_path, capsys):
    folder = tmp_path / "mine" / "experiment"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text(text)
    assert app.main(["--config-dir", str(folder.parent), "experiment=mine"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert all(piece in error for piece in pieces), error
    assert list(cwd.iterdir()) == []


def test_an_explicit_run_directory_that_holds_a_run_is_refused(cwd: Path, capsys):
    (cwd / "mine" / ".hydra").mkdir(parents=True)
    (cwd / "mine" / ".hydra" / "overrides.yaml").write_text("[]")
    assert app.main(["hydra.run.dir=mine"]) == 2
    assert "mine holds a run already" in capsys.readouterr().err


HARD = [
    "Answer (checked)",
    "User's answer",
    'say "hi"',
    "a\\",
    'a\\"b',
    "q & a",
    "{question}: ",
    "Antwort geprüft",
    "a,b",
    "x=y",
]


@pytest.mark.parametrize("value", HARD)
def test_the_form_that_is_told_gives_the_value_as_it_stands(value, cwd):
    form = shell_form(f"dataset.columns.response={value}")
    assert form is not None
    [line] = shlex.split(form)
    assert single(line).config.dataset.columns.response == value


@pytest.mark.parametrize(
    "line", ["training.max_steps=(1)", "lora.target_modules=a b", "nothing=a b", "dataset.path=[a (1)]"]
)
def test_only_texts_have_such_a_form(line):
    assert shell_form(line) is None

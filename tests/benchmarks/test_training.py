"""The benchmarks of training on a tiny model: what they measure is not looked at, only that it is the same work."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from benchmarks import environments, means
from benchmarks.training import __main__ as training
from launcher.errors import TrntuneError


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """Instruction data of 300 to 700 bytes, which are tokens for tiny_llama."""
    file = tmp_path / "rows.jsonl"
    lines = [{"instruction": f"Count to {n}.", "context": "", "response": "1 2 3 " * (30 + 3 * n)} for n in range(20)]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def test_a_case_is_measured_and_one_without_its_packages_says_why(tmp_path, rows, monkeypatch, capsys):
    def refuse(name: str, directory: Path) -> str:
        raise TrntuneError(f"{name} can't be installed: no network")

    monkeypatch.setattr(environments, "python_of", refuse)
    arguments = ["--model", "tiny_llama", "--cases", "0,10", "--samples", "20", "--repeats", "1", "--threads", "1"]
    assert training.main([*arguments, "--data", str(rows), "--directory", str(tmp_path / "out")]) == 0
    [file] = (tmp_path / "out").iterdir()
    content = json.loads(file.read_text())
    assert content["failures"] == {"litgpt": "litgpt can't be installed: no network"}
    found = content["summaries"]["trntune"]
    assert found["samples_per_second"] == pytest.approx(
        found["tokens_per_second"] * content["data"]["samples"] / content["data"]["tokens"]
    )
    assert 0 < found["share_of_ceiling"] < 1
    assert 3 < found["mean_loss"] < 8  # nats, of random weights and 264 tokens
    assert "could not run: litgpt: litgpt can't be installed: no network" in capsys.readouterr().out


def test_every_means_has_its_row(tmp_path, rows, capsys):
    arguments = ["--model", "tiny_llama", "--rows", "1", "--repeats", "2", "--data", str(rows)]
    assert means.main([*arguments, "--directory", str(tmp_path)]) == 0
    times = json.loads((tmp_path / "means_lora.json").read_text())["cpu_seconds_a_token"]
    assert len(times) == 6
    assert all(len(each) == 2 and min(each) > 0 for each in times.values())
    assert "LoRA as one node" in capsys.readouterr().out


def test_the_environment_that_pip_refuses_is_told_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(environments.REQUIREMENTS, "litgpt", ["./no-such-directory"])
    with pytest.raises(TrntuneError, match=r"^litgpt can't be installed: ERROR: .*no-such-directory"):
        environments.python_of("litgpt", tmp_path)
    assert not (tmp_path / "litgpt" / "complete").exists()


@pytest.mark.parametrize("wrong", [["--cases", "99"], ["--repeats", "0"], ["--samples", "1"]])
def test_usage(wrong, rows, tmp_path, capsys):
    arguments = ["--model", "tiny_llama", "--cases", "0", "--data", str(rows), "--directory", str(tmp_path)]
    assert training.main([*arguments, *wrong]) == 2
    assert capsys.readouterr().err.startswith("error: --")


def test_peers_run_without_this_project():
    """A worker is started by another environment's Python: it must find nothing of ours missing."""
    workers = Path(environments.__file__).parent / "workers"
    modules = ", ".join(file.stem for file in sorted(workers.glob("*.py")) if file.stem != "__init__")
    assert "hugging_face" in modules
    subprocess.run(
        ["python3", "-I", "-S", "-c", f"import sys; sys.path.insert(0, '.'); import {modules}"], cwd=workers, check=True
    )

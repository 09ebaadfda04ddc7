"""Training ends and its result is there: what a save would fail at is put right, or refused before the first step."""

from __future__ import annotations

import errno
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from launcher.errors import TrntuneError
from launcher.paths import ROOT
from launcher.plan.room import SLACK, Sizes, room_of
from launcher.run_dir.layout import RunDir
from postprocess.consolidate.__main__ import main as consolidate
from postprocess.merge.stage import rehearse as rehearse_merge
from tests.conftest import TINY, Run, command, environment
from tests.limits import PATIENCE
from tests.trainer.models.conftest import composed
from tests.trainer.rehearsal.conftest import SAMPLED, generation_of, local, size
from trainer import rehearsal
from trainer.checkpoints.manifest import Manifest, Position, World
from trainer.checkpoints.peers import SingleProcess
from trainer.checkpoints.writer import Snapshot, write_files
from trainer.engines.torch.engine import TorchEngine
from trainer.engines.torch.state import config_document, live_weights
from trainer.models.load import load_tokenizer


def test_full_training_of_a_base_that_transformers_would_not_save(base, run_tiny, tmp_path: Path) -> None:
    faulty = base(generation_config=SAMPLED)
    run: Run = run_tiny("run", "method=full", *local(faulty))
    assert run.process.returncode == 0, run.process.stderr
    [note] = [line for line in run.process.stderr.splitlines() if "do_sample" in line]
    assert note.startswith(f"note: {faulty}/generation_config.json gives temperature=0.6, top_p=0.9 without do_sample")
    AutoTokenizer.from_pretrained(run.directory / "model")
    assert generation_of(run.directory / "model", tmp_path / "again") == {**SAMPLED, "do_sample": True}
    assert not list(run.directory.glob(".rehearsal*"))

    # The checkpoint's config is another file; the base's is what it is completed with.
    assert consolidate([str(run.directory / "checkpoints" / "step-6"), str(tmp_path / "of_step")]) == 0
    assert generation_of(tmp_path / "of_step", tmp_path / "again2") == {**SAMPLED, "do_sample": True}
    assert json.loads((faulty / "generation_config.json").read_text()) == SAMPLED

    # What was planned is what is there: two checkpoints, the model.
    planned = json.loads((run.directory / "plan.json").read_text())["disk_bytes"] - SLACK
    weights = run.directory / "model" / "model.safetensors"
    there = size(run.directory / "checkpoints") + weights.stat().st_size
    assert planned == pytest.approx(there, rel=0.05)


def test_lora_merges_into_such_a_base(base, run_tiny, tmp_path: Path) -> None:
    faulty = base(generation_config={**SAMPLED, "do_sample": False})
    run: Run = run_tiny("run", "method=lora", "stages=[fetch,train,merge,generate]", *local(faulty))
    assert run.process.returncode == 0, run.process.stderr
    # What isn't the default is written: that is false in transformers 4.57, and since 5 that nothing is said.
    stated = {} if GenerationConfig().do_sample is False else {"do_sample": False}
    expected = {"eos_token_id": 2, "pad_token_id": 0, **stated}
    assert generation_of(run.directory / "merged", tmp_path / "again") == expected
    [note] = json.loads((run.directory / "merged" / "merge.json").read_text())["repaired"]
    assert "temperature=0.6, top_p=0.9, to no effect" in note
    assert note in run.process.stderr


def test_a_save_that_fails_says_how_to_get_what_was_trained(base, tmp_path: Path, monkeypatch) -> None:
    directory = tmp_path / "run"
    fault = {"op": "mkdir", "path": r"model\.tmp$", "from": 1, "errno": errno.ENOSPC}
    env = environment() | {"TRNTUNE_FAULT": json.dumps(fault), "PYTHONPATH": str(ROOT / "tests" / "faults")}
    done = subprocess.run(
        command(*TINY, "tracking=none", "method=full", f"hydra.run.dir={directory}"),
        cwd=tmp_path, env=env, capture_output=True, text=True, timeout=PATIENCE,
    )  # fmt: skip
    assert done.returncode == 1
    [line] = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    step = "run/checkpoints/step-6"
    assert f"{directory / 'model'} can't be written: [Errno 28]" in line
    assert line.endswith(f"python -m postprocess.consolidate {step} OUT makes the model of step 6")
    monkeypatch.chdir(tmp_path)
    assert consolidate([step, "OUT"]) == 0
    AutoModelForCausalLM.from_pretrained("OUT")


def prepared(directory: Path, run_dir: Path, *overrides: str) -> tuple[TorchEngine, RunDir]:
    """An engine with its model, in a run of which stage fetch is over."""
    config = composed("experiment=tiny", *local(directory), *overrides)
    engine = TorchEngine(config)
    engine.load(directory, load_tokenizer(directory))
    run = RunDir(run_dir)
    (run_dir / "stages").mkdir(parents=True)
    run.stage_file("fetch").write_text(json.dumps({"model_dir": str(directory)}))
    return engine, run


def rehearse(engine: TorchEngine, run: RunDir, steps: int = 6) -> str | None:
    place = Path(engine.config.model.path or "")
    beside = rehearsal.rehearse(engine.config, run, engine, SingleProcess(), engine.tokenizer, place)
    return rehearsal.check_room(engine.config, run, engine, SingleProcess(), place, steps, beside)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_everything_but_the_weights_is_written_as_it_will_be(tiny: Path, tmp_path: Path, method: str) -> None:
    engine, run = prepared(tiny, tmp_path / "run", f"method={method}")
    state = torch.random.get_rng_state()
    assert rehearse(engine, run) is None
    assert torch.equal(state, torch.random.get_rng_state())
    assert [path.name for path in run.path.iterdir()] == ["stages"]
    engine.rehearse(tmp_path / "tried")
    engine.save(tmp_path / "saved")
    texts = [
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir() if path.suffix in (".json", ".jinja")}
        for name in ("tried", "saved")
    ]
    assert texts[0] == texts[1]
    assert size(tmp_path / "tried") - sum(map(len, texts[0].values())) < 200_000
    weights, checkpoint = engine.saved_bytes()
    [file] = (tmp_path / "saved").glob("*.safetensors")
    assert weights == pytest.approx(file.stat().st_size, rel=0.05)
    assert checkpoint == 3 * weights


def biased(tiny: Path, directory: Path) -> Path:
    """The tiny model with biases in its attention."""
    shutil.copytree(tiny, directory, ignore=shutil.ignore_patterns("*.safetensors", "config.json"))
    config = AutoConfig.from_pretrained(tiny, attention_bias=True)
    AutoModelForCausalLM.from_config(config).save_pretrained(directory)
    return directory


def test_all_that_an_adapter_trains_is_in_the_rehearsed_save_and_merges(tiny: Path, tmp_path: Path) -> None:
    options = ("lora.bias=lora_only", "lora.modules_to_save=[model.norm]", "lora.trainable_token_indices=[65,66]")
    engine, run = prepared(biased(tiny, tmp_path / "base"), tmp_path / "run", "stages=[fetch,train,merge]", *options)
    assert rehearse(engine, run) is None
    engine.rehearse(tmp_path / "tried")
    engine.save(tmp_path / "saved")
    tried, saved = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("tried", "saved"))
    assert tried.keys() == saved.keys() == live_weights(engine.model).keys()
    for part in ("q_proj.base_layer.bias", "model.norm.weight", "trainable_tokens_delta"):
        assert any(part in name for name in tried), part
    assert engine.saved_bytes()[0] == sum(tensor.nbytes for tensor in saved.values())
    rehearse_merge(engine.config, run, tmp_path / "tried")


def test_weights_that_transformers_cannot_save_are_found_before_training(tiny: Path, tmp_path: Path) -> None:
    """Two layers that share a weight without the model's saying so: save_pretrained would lose one of them."""
    engine, run = prepared(tiny, tmp_path / "run", "method=full")
    assert not isinstance(engine.model, PeftModel)
    first, second = engine.model.model.layers
    second.mlp.up_proj.weight = first.mlp.up_proj.weight
    with pytest.raises(TrntuneError, match=r"can't be saved, so nothing is trained: The weights trying to be saved"):
        rehearse(engine, run)
    assert [path.name for path in run.path.iterdir()] == ["stages"]


def test_a_tokenizer_that_changes_as_it_is_saved_is_found_before_training(tiny: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(tiny)
    tokenizer.save_pretrained(tmp_path)
    rehearsal.try_tokenizer(tokenizer, rehearsal.QUESTION, "plain", tmp_path, False)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**settings, "eos_token": "<|endoftext|>"}))
    with pytest.raises(TrntuneError, match="saved and read again, makes other ids"):
        rehearsal.try_tokenizer(tokenizer, rehearsal.QUESTION, "plain", tmp_path, False)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(TrntuneError, match="the tokenizer can't be saved and read again, so nothing is trained"):
        rehearsal.try_tokenizer(tokenizer, rehearsal.QUESTION, "plain", tmp_path, False)


@pytest.mark.parametrize("name", ["adapter.tmp", "checkpoints", "merged", "merged.tmp", "generate"])
def test_what_is_in_the_way_of_a_result_is_found_before_training(tiny: Path, tmp_path: Path, name: str) -> None:
    engine, run = prepared(tiny, tmp_path / "run", "stages=[fetch,train,merge,generate]")
    (run.path / name).write_text("mine")
    with pytest.raises(TrntuneError, match=rf"{name}\b.*(in the way|there is a file)"):
        rehearse(engine, run)
    assert (run.path / name).read_text() == "mine"


def test_a_merge_that_would_be_refused_is_found_before_training(base, tmp_path: Path) -> None:
    directory = base()
    engine, run = prepared(directory, tmp_path / "run", "stages=[fetch,train,merge]")
    engine.rehearse(tmp_path / "tried")
    rehearse_merge(engine.config, run, tmp_path / "tried")
    [file] = directory.glob("*.safetensors")
    file.unlink()
    with pytest.raises(TrntuneError, match=r"stage merge could not do its work, so nothing is trained: .* neither"):
        rehearse(engine, run)


def test_too_little_room_is_refused_and_with_force_only_told(tiny: Path, tmp_path: Path) -> None:
    many = ("training.save_every=1", "training.keep_checkpoints=1000000000")
    engine, run = prepared(tiny, tmp_path / "run", *many)
    with pytest.raises(TrntuneError, match=r"nothing is trained: .*needs about .*lower training\.keep_checkpoints"):
        rehearse(engine, run, steps=10**9)
    engine.config.plan.force = True
    assert "needs about" in str(rehearse(engine, run, steps=10**9))
    assert rehearse(engine, run) is None


def test_what_a_run_has_written_already_is_not_counted_again(tiny: Path, tmp_path: Path) -> None:
    """Of checkpoints of which all but one are there, one more is needed: sparse files take no room."""
    engine, run = prepared(tiny, tmp_path / "run", "training.save_every=1", "training.keep_checkpoints=1000000000")
    needed = room_of(engine.config, Sizes(*engine.saved_bytes()), 10**9).most
    (run.checkpoints / "step-1").mkdir(parents=True)
    with (run.checkpoints / "step-1" / "optimizer.safetensors").open("wb") as stream:
        stream.truncate(min(needed, 2**43))
    steps = min(needed, 2**43) // engine.saved_bytes()[1]
    assert rehearse(engine, run, steps=steps) is None


class Recorded:
    """Rank 0 of two, with what the other one has said."""

    rank = 0

    def __init__(self, other: Any) -> None:
        self.other = other

    def all_gather(self, value: Any) -> list[Any]:
        return [value, self.other]


def test_one_rank_that_fails_stops_all() -> None:
    assert rehearsal.agreed(Recorded((2, None)), lambda: 1) == [1, 2]
    with pytest.raises(TrntuneError, match="theirs"):
        rehearsal.agreed(Recorded((None, "theirs")), lambda: 1)


def test_an_infinite_limit_in_a_models_config_costs_no_checkpoint(tiny: Path, tmp_path: Path) -> None:
    """As Mamba's time_step_limit: transformers writes and reads it, though JSON has no such number."""
    engine, run = prepared(tiny, tmp_path / "run", "method=full")
    engine.model.config.time_step_limit = [0.0, float("inf")]
    assert rehearse(engine, run) is None
    name, document = config_document(engine.model, engine.replica.base_config)
    manifest = Manifest(1, 0.1, Position(0, 1), World(1, 1, 1, 1), {}, "", {}, "", {})
    write_files(Snapshot(manifest, {}, {name: document}), tmp_path / "step")
    assert AutoConfig.from_pretrained(tmp_path / "step" / name).time_step_limit == [0.0, float("inf")]

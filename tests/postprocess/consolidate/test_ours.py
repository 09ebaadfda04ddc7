"""Shards of the neuron engine: optimum-neuron's layout in safetensors, alone or in a checkpoint with a manifest."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load_file, save_file

from launcher.config.schema import Config
from launcher.errors import TrntuneError
from launcher.io import write_json
from launcher.run_dir.layout import RunDir
from postprocess.consolidate import stage
from postprocess.consolidate.run import consolidate
from postprocess.consolidate.shards import RankShard
from tests.postprocess.consolidate.neuron_shards import DATA, SHARDS
from trainer.checkpoints.manifest import Manifest, Position, World
from trainer.checkpoints.peers import SingleProcess
from trainer.checkpoints.store import Store
from trainer.checkpoints.writer import Snapshot, write
from trainer.models.fingerprint import fingerprint

Tensors = dict[str, torch.Tensor]


def rank_tensors(name: str) -> dict[str, Tensors]:
    """The fixture's weights by the names that the neuron engine gives its files."""
    found = {}
    for path in sorted((DATA / name / SHARDS[name] / "model").glob("dp_rank_*.pt")):
        if not path.name.endswith(".info.pt"):
            shard = RankShard(path)
            tensors = {tensor: shard.load(tensor).clone() for tensor in shard.tensors}
            found[f"{SHARDS[name]}/model/{path.stem}.safetensors"] = tensors
    return found


def documents(name: str) -> dict[str, Any]:
    home = DATA / name
    files = [*home.glob("config.json"), *home.glob("*/adapter_config.json"), *home.rglob("mp_metadata_*.json")]
    return {str(path.relative_to(home)): json.loads(path.read_text()) for path in files}


def whole(directory: Path) -> Tensors:
    return {name: tensor for file in directory.glob("*.safetensors") for name, tensor in load_file(file).items()}


def assert_same(one: Path, other: Path) -> None:
    mine, theirs = whole(one), whole(other)
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


@pytest.fixture(params=sorted(SHARDS))
def sharded(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path]:
    """A run directory with sharded/ as training leaves it."""
    directory = tmp_path / "run" / "sharded"
    for name, tensors in rank_tensors(request.param).items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, directory / name)
    for name, document in documents(request.param).items():
        (directory / name).write_text(json.dumps(document))
    return request.param, directory


def test_safetensors_shards_give_what_optimum_neurons_own_give(sharded: tuple[str, Path], tmp_path: Path) -> None:
    name, directory = sharded
    consolidate(DATA / name, tmp_path / "expected")
    consolidate(directory.parent, tmp_path / "found")
    assert_same(tmp_path / "found", tmp_path / "expected")


def test_a_truncated_shard_is_named(sharded: tuple[str, Path], tmp_path: Path) -> None:
    _, directory = sharded
    shard = max(directory.rglob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(TrntuneError, match=f"{shard.name} is truncated"):
        consolidate(directory, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_replicas_that_differ_are_refused(tmp_path: Path, sharded: tuple[str, Path]) -> None:
    _, directory = sharded
    shard = max(directory.rglob("*.safetensors"))
    tensors = load_file(shard)
    replicated = next(
        key for key in tensors if key.endswith(("norm.weight", "q_proj.lora_A.weight", "qkv_proj.lora_A.weight"))
    )
    tensors[replicated] = tensors[replicated] + 1
    save_file(tensors, shard)
    with pytest.raises(TrntuneError, match="differ"):
        consolidate(directory, tmp_path / "out")


def checkpoint(root: Path, name: str, identity: dict[str, Any] | None = None) -> Path:
    manifest = Manifest(4, 0.5, Position(0, 4), World(2, 1, 2, 1), identity or {}, "0", {}, "", {})
    snapshot = Snapshot(manifest, rank_tensors(name), documents(name))
    outcome = write(snapshot, Store(root), SingleProcess(), keep=1)
    assert outcome.failure is None
    return root / "step-4"


@pytest.mark.parametrize("name", sorted(SHARDS))
def test_a_checkpoint_of_a_run_is_verified_and_consolidated(name: str, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    step = checkpoint(tmp_path / "run" / "checkpoints", name)
    consolidate(DATA / name, tmp_path / "expected")
    consolidate(tmp_path / "run", tmp_path / "found")
    assert_same(tmp_path / "found", tmp_path / "expected")
    shutil.rmtree(tmp_path / "found")
    shard = max(step.rglob("*.safetensors"))
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    with pytest.raises(TrntuneError, match="is damaged: its SHA-256 is another one"):
        consolidate(step, tmp_path / "found")


def base_of(adapter: Path) -> Any:
    return json.loads((adapter / "base.json").read_text())


def test_an_adapter_of_a_checkpoint_says_which_base_it_is_of(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    step = checkpoint(tmp_path / "run" / "checkpoints", "lora_gqa", {"base": "scheme:1", "model.name": "llama"})
    consolidate(step, tmp_path / "out")
    assert base_of(tmp_path / "out") == {"fingerprint": "scheme:1", "model": "llama"}


def lora_run(directory: Path) -> RunDir:
    """A run directory as training with the neuron engine leaves it, without checkpoints."""
    for name, tensors in rank_tensors("lora_gqa").items():
        (directory / "sharded" / name).parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, directory / "sharded" / name)
    for name, document in documents("lora_gqa").items():
        (directory / "sharded" / name).write_text(json.dumps(document))
    base = directory.parent / "base"
    base.mkdir()
    save_file({"weight": torch.ones(3)}, base / "model.safetensors")
    shutil.copyfile(DATA / "full_gqa" / "config.json", base / "config.json")
    run_dir = RunDir(directory)
    write_json(run_dir.stage_file("fetch"), {"model_dir": str(base)})
    write_json(run_dir.stage_file("train"), {"saved": "sharded"})
    run_dir.config_file.parent.mkdir()
    run_dir.config_file.write_text("model: {name: llama}")
    return run_dir


def test_an_adapter_of_a_run_says_which_base_it_is_of(tmp_path: Path) -> None:
    run_dir = lora_run(tmp_path / "run")
    expected = {"fingerprint": fingerprint(tmp_path / "base"), "model": "llama"}
    consolidate(run_dir.path, tmp_path / "fetched")
    assert base_of(tmp_path / "fetched") == expected
    shutil.rmtree(tmp_path / "base")
    consolidate(run_dir.path, tmp_path / "unknown")
    assert not (tmp_path / "unknown" / "base.json").exists()
    checkpoint(run_dir.checkpoints, "lora_gqa", {"base": expected["fingerprint"], "model.name": "llama"})
    consolidate(run_dir.path, tmp_path / "kept")
    assert base_of(tmp_path / "kept") == expected


def test_a_stage_that_was_killed_while_it_removed_the_last_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = lora_run(tmp_path / "run")
    config = cast(Config, SimpleNamespace(method=SimpleNamespace(name="lora")))
    assert stage.run(config, run_dir)["saved"] == "adapter"
    assert base_of(run_dir.adapter)["model"] == "llama"

    def killed(directory: Path) -> None:
        (directory / "consolidate.json").unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            stage.run(config, run_dir)
    assert not run_dir.adapter.exists()
    stage.run(config, run_dir)
    assert (run_dir.adapter / "consolidate.json").is_file()
    assert not list(run_dir.path.glob(".*discarded"))

"""Shards of the neuron engine: optimum-neuron's layout in safetensors, alone or in a checkpoint with a manifest."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from launcher.errors import TrntuneError
from postprocess.consolidate.run import consolidate
from postprocess.consolidate.shards import RankShard
from tests.postprocess.neuron_shards import DATA, SHARDS
from trainer.checkpoints.manifest import Manifest, Position, World
from trainer.checkpoints.peers import Alone
from trainer.checkpoints.store import Store
from trainer.checkpoints.writer import Snapshot, write

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


def checkpoint(root: Path, name: str) -> Path:
    manifest = Manifest(4, 0.5, Position(0, 4), World(2, 1, 2, 1), {}, "0", {}, "", {})
    snapshot = Snapshot(manifest, rank_tensors(name), documents(name))
    outcome = write(snapshot, Store(root), Alone(), keep=1)
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

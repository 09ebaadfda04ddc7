"""Bases that lie there as pickles or without an index, written anew: whole, equal, and without running what is in
them."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from launcher.errors import TrntuneError, UsageError
from launcher.model_dir.weights import check_fit
from postprocess.convert import convert
from postprocess.convert.__main__ import main
from postprocess.safetensors.header import source_tensors
from postprocess.safetensors.writer import ShardedWriter
from tests.pickled import pickle_shards
from tests.postprocess.merge.models import make_base

Tensors = dict[str, torch.Tensor]
PICKLE = "pytorch_model.bin"
SIZE = 1 << 30


def pickle(directory: Path, change: Callable[[Tensors], Any] = lambda tensors: tensors, **options: Any) -> Path:
    """Have a model directory be one of before safetensors, with both names of what is tied, as torch saves them."""
    model = AutoModelForCausalLM.from_pretrained(directory)
    (directory / "model.safetensors").unlink()
    torch.save(change(dict(model.state_dict())), directory / PICKLE, **options)
    return directory


def bits(tensors: Tensors) -> dict[str, tuple[torch.dtype, tuple[int, ...], bytes]]:
    return {
        name: (tensor.dtype, tuple(tensor.shape), bytes(tensor.contiguous().reshape(-1).view(torch.uint8).tolist()))
        for name, tensor in tensors.items()
    }


def stored(directory: Path) -> Tensors:
    return {name: tensor for file in directory.glob("*.safetensors") for name, tensor in load_file(file).items()}


@pytest.mark.parametrize("kind", ["llama", "llama_tied", "gpt2"])
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before 1.6"])
def test_a_pickle_becomes_the_same_model(kind, zipped, tmp_path, capsys):
    base = pickle(make_base(tmp_path / "base", kind), _use_new_zipfile_serialization=zipped)
    (base / "README.md").write_text("a card")
    (base / "training_args.bin").write_bytes(b"not for me")
    expected = AutoModelForCausalLM.from_pretrained(base, use_safetensors=False).state_dict()
    assert main([str(base), str(tmp_path / "out")]) == 0
    out = tmp_path / "out"
    check_fit(out)
    found, report = AutoModelForCausalLM.from_pretrained(out, use_safetensors=True, output_loading_info=True)
    assert not any(report.values())
    assert bits(dict(found.state_dict())) == bits(dict(expected))
    names = {file.name for file in out.iterdir()}
    assert names == {"README.md", "config.json", "generation_config.json", "convert.json", "model.safetensors"}
    left = {"llama": {}, "llama_tied": {"lm_head.weight": "model.embed_tokens.weight"}}
    left["gpt2"] = {"lm_head.weight": "transformer.wte.weight"}
    record = json.loads((out / "convert.json").read_text())
    assert record["left"] == left[kind]
    assert record["tensors"] == len(stored(out)) == len(expected) - len(left[kind])
    assert record["from"] == {PICKLE: (base / PICKLE).stat().st_size}
    said = capsys.readouterr()
    assert f"{record['tensors']} tensors" in said.out
    assert said.err == "".join(
        f"note: {name} is {kept} once more and is not written\n" for name, kept in left[kind].items()
    )


def test_a_tied_head_with_other_values_is_kept(tmp_path):
    def differ(tensors: Tensors) -> Tensors:
        return {**tensors, "lm_head.weight": tensors["lm_head.weight"] + 1}

    base = pickle(make_base(tmp_path / "base", "llama_tied"), differ)
    assert convert(base, tmp_path / "out", SIZE)["left"] == {}
    assert "lm_head.weight" in stored(tmp_path / "out")


def test_every_kind_of_tensor_keeps_its_bytes(tmp_path):
    """Views of one storage, transposed ones, half precision, whole numbers, none at all, and NaN."""
    shared = torch.arange(60.0).reshape(6, 10)
    odd: Tensors = {
        "one": shared[:3],
        "other": shared[3:],
        "same": shared[:3],
        "turned": shared.T,
        "repeated": torch.ones(1, 4).expand(5, 4),
        "bf16": torch.randn(7).bfloat16(),
        "fp16": torch.randn(2, 2).half(),
        "nan": torch.tensor([float("nan"), -0.0]),
        "ids": torch.arange(5),
        "flag": torch.tensor(True),
        "none": torch.zeros(0, 3),
        "weight": torch.nn.Parameter(torch.ones(2)),
    }
    base = pickle(make_base(tmp_path / "base", "llama"), lambda tensors: {**tensors, **odd})
    given = torch.load(base / PICKLE, weights_only=True)
    convert(base, tmp_path / "out", SIZE)
    found = stored(tmp_path / "out")
    assert bits(found) == bits({name: tensor.detach() for name, tensor in given.items()})
    assert (tmp_path / "out" / "model.safetensors").stat().st_size > 4096


@pytest.mark.parametrize("index", [True, False], ids=["index", "no index"])
@pytest.mark.parametrize("safe", [True, False], ids=["safetensors", "pickles"])
def test_shards_become_the_same_model(index, safe, tmp_path):
    base = make_base(tmp_path / "base", "llama")
    expected = load_file(base / "model.safetensors")
    model = AutoModelForCausalLM.from_pretrained(base)
    (base / "model.safetensors").unlink()
    model.save_pretrained(base, max_shard_size="40KB")
    if not safe:
        pickle_shards(base)
    [listing] = base.glob("*.index.json")
    if not index:
        listing.unlink()
    if index and safe:
        with pytest.raises(UsageError, match=r"has model\.safetensors\.index\.json already: it can be used as it is"):
            convert(base, tmp_path / "out", SIZE)
        return
    convert(base, tmp_path / "out", 50_000)
    assert bits(stored(tmp_path / "out")) == bits(expected)
    assert set(source_tensors(tmp_path / "out")) == set(expected)
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) > 2


class Runs:
    """What runs when it is unpickled."""

    def __init__(self, made: Path) -> None:
        self.made = made

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.made),)


def test_nothing_that_a_pickle_holds_is_run(tmp_path):
    base = pickle(make_base(tmp_path / "base", "llama"), lambda tensors: {**tensors, "x": Runs(tmp_path / "made")})
    with pytest.raises(TrntuneError, match=r"pytorch_model\.bin is truncated or holds more than tensors"):
        convert(base, tmp_path / "out", SIZE)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base"]


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "a state_dict inside": (
        lambda base: pickle(base, lambda tensors: {"state_dict": tensors, "epoch": 3}),
        r"pytorch_model\.bin holds no model's weights: state_dict, epoch in it is no tensor",
    ),
    "a list": (lambda base: pickle(base, lambda tensors: list(tensors.values())), "it is no dict of tensors"),
    "cut off": (
        lambda base: os.truncate(pickle(base) / PICKLE, 5000),
        r"pytorch_model\.bin is truncated or holds more than tensors",
    ),
    "no config.json": (lambda base: (pickle(base) / "config.json").unlink(), "has no config.json: copy it"),
    "quantized": (
        lambda base: (pickle(base) / "config.json").write_text('{"quantization_config": {"quant_method": "gptq"}}'),
        r"its weights are quantized \(GPTQ\)",
    ),
    "nothing": (lambda base: (base / "model.safetensors").unlink(), "there is nothing to convert"),
    "a lost shard": (
        lambda base: torch.save({"a": torch.ones(2)}, pickle(base).joinpath(PICKLE).rename(base / "x-1-of-3.bin")),
        r"2 of its 3 files are missing: x-2-of-3\.bin, x-3-of-3\.bin",
    ),
    "a name in two files": (
        lambda base: [torch.save({"a": torch.ones(2)}, base / f"x-{number}-of-2.bin") for number in (1, 2)],
        r"x-2-of-2\.bin: a is in another file, too",
    ),
    "an index of other tensors": (
        lambda base: [
            *(torch.save({f"a{number}": torch.ones(2)}, base / f"x-{number}-of-2.bin") for number in (1, 2)),
            (base / f"{PICKLE}.index.json").write_text(
                '{"weight_map": {"a1": "x-1-of-2.bin", "a2": "x-2-of-2.bin", "a3": "x-2-of-2.bin"}}'
            ),
        ],
        r"pytorch_model\.bin\.index\.json names tensors that no file has: a3",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_can_not_be_converted_leaves_nothing(kind, tmp_path, capsys):
    change, says = REFUSED[kind]
    base = make_base(tmp_path / "base", "llama")
    change(base)
    if not (base / PICKLE).is_file():
        (base / "model.safetensors").unlink(missing_ok=True)
    with pytest.raises(TrntuneError, match=says):
        convert(base, tmp_path / "out", SIZE)
    assert main([str(base), str(tmp_path / "out")]) in (1, 2)
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base"]


def test_a_directory_that_is_taken_and_one_within_the_input(tmp_path):
    base = pickle(make_base(tmp_path / "base", "llama"))
    shutil.copytree(base, tmp_path / "taken")
    with pytest.raises(UsageError, match="taken exists: remove it"):
        convert(base, tmp_path / "taken", SIZE)
    with pytest.raises(UsageError, match="overlaps the input"):
        convert(base, base / "out", SIZE)
    assert main([str(base), str(tmp_path / "out"), "--shard-size", "five"]) == 2


def test_what_was_written_wrong_is_not_kept(tmp_path, monkeypatch):
    base = pickle(make_base(tmp_path / "base", "llama"))
    write = ShardedWriter.write
    monkeypatch.setattr(ShardedWriter, "write", lambda self, name, tensor: write(self, name, tensor + 1e-6))
    with pytest.raises(TrntuneError, match="was written wrong: it differs from the original"):
        convert(base, tmp_path / "out", SIZE)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base"]


def test_a_full_disk_is_known_before(tmp_path, monkeypatch):
    base = pickle(make_base(tmp_path / "base", "llama"))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 9, 1))
    with pytest.raises(TrntuneError, match=r"the converted model needs 0\.00 GB, but only 0\.00 GB are free"):
        convert(base, tmp_path / "out", SIZE)


def test_a_safetensors_shard_that_is_damaged(tmp_path):
    base = make_base(tmp_path / "base", "llama")
    (base / "model.safetensors").rename(base / "model-1-of-2.safetensors")
    save_file({"a": torch.ones(2)}, base / "model-2-of-2.safetensors")
    os.truncate(base / "model-1-of-2.safetensors", 9000)
    with pytest.raises(TrntuneError, match=r"model-1-of-2\.safetensors is truncated or no safetensors file"):
        convert(base, tmp_path / "out", SIZE)

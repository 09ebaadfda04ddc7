"""Shards written tensor by tensor are what the safetensors library and transformers read."""

from __future__ import annotations

import errno
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from launcher.errors import TrntuneError
from postprocess import page_cache
from postprocess.safetensors import writer as stream
from postprocess.safetensors.header import TensorSpec, dtype_code, itemsize, source_tensors
from postprocess.safetensors.shards import plan_shards
from postprocess.safetensors.writer import ShardedWriter

TENSORS = {
    "flags": torch.tensor([True, False, True]),
    "bytes": torch.arange(5, dtype=torch.uint8),
    "half": torch.randn(3, 5).bfloat16(),
    "scalar": torch.tensor(2.5),
    "empty": torch.empty(0, 4),
    "wide": torch.randn(7, 3, dtype=torch.float64),
    "transposed": torch.randn(6, 2).T,
    "long": torch.arange(9),
}


def specs_of(tensors: dict[str, torch.Tensor]) -> list[TensorSpec]:
    return [TensorSpec(name, dtype_code(t.dtype), tuple(t.shape)) for name, t in tensors.items()]


def read_back(directory: Path) -> dict[str, torch.Tensor]:
    found = {}
    for file in {source.file for source in source_tensors(directory).values()}:
        found.update(load_file(file))
    return found


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("shard_bytes", [10**6, 100, 1])
def test_written_tensors_are_read_by_the_library(tmp_path: Path, shard_bytes: int) -> None:
    with ShardedWriter(tmp_path, specs_of(TENSORS), shard_bytes) as writer:
        for name in reversed(TENSORS):
            writer.write(name, TENSORS[name])
    assert_same(read_back(tmp_path), TENSORS)
    files = sorted(tmp_path.glob("*.safetensors"))
    assert (len(files) == 1) == (shard_bytes == 10**6)
    for file in files:
        with safe_open(file, framework="pt") as opened:
            assert opened.metadata() == {"format": "pt"}


def test_one_shard_is_model_safetensors_and_more_have_an_index(tmp_path: Path) -> None:
    one, more = plan_shards(specs_of(TENSORS), 10**6), plan_shards(specs_of(TENSORS), 250)
    assert [shard.filename for shard in one] == ["model.safetensors"]
    assert [shard.filename for shard in more] == [f"model-0000{n}-of-0000{len(more)}.safetensors" for n in (1, 2)]
    with ShardedWriter(tmp_path, specs_of(TENSORS), 250) as writer:
        for name, tensor in TENSORS.items():
            writer.write(name, tensor)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(t.numel() * t.element_size() for t in TENSORS.values())
    assert index["weight_map"].keys() == TENSORS.keys()


def test_shards_keep_the_order_and_the_limit() -> None:
    specs = [TensorSpec(f"layer.{n}", "F32", (size,)) for n, size in enumerate((10, 20, 30, 100, 5, 5))]
    shards = plan_shards(specs, 240)
    assert [[spec.name for spec in shard.specs] for shard in shards] == [
        ["layer.0", "layer.1", "layer.2"],
        ["layer.3"],  # larger than a shard: alone
        ["layer.4", "layer.5"],
    ]


def test_every_tensor_is_aligned_for_its_elements(tmp_path: Path) -> None:
    for shard in plan_shards(specs_of(TENSORS), 10**6):
        for spec in shard.specs:
            assert shard.begins[spec.name] % itemsize(spec.dtype) == 0
        assert shard.begins[shard.specs[0].name] % 4096 == 0


@pytest.mark.parametrize("refused", [(), ("_copy_file_range",), ("_copy_file_range", "_sendfile")])
def test_copied_tensors_are_the_source_bytes_whatever_the_kernel_offers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: tuple[str, ...]
) -> None:
    def refuse(*_: Any) -> int:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    ways = ("_copy_file_range", "_sendfile", "_copy_chunk")
    monkeypatch.setattr(stream, "_COPIERS", tuple(refuse if w in refused else getattr(stream, w) for w in ways))
    monkeypatch.setattr(stream, "_CHUNK", 16)
    tensors = {name: t.contiguous() for name, t in TENSORS.items()}
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "out").mkdir()
    with ShardedWriter(tmp_path / "out", specs_of(tensors), 100) as writer:
        for name, source in source_tensors(tmp_path).items():
            writer.copy(name, source.file, source.begin)
    assert_same(read_back(tmp_path / "out"), tensors)


def test_a_source_that_ends_too_early_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "short").write_bytes(b"12345")
    (tmp_path / "out").mkdir()
    with pytest.raises(TrntuneError, match="ends within w"):
        with ShardedWriter(tmp_path / "out", [TensorSpec("w", "F32", (4,))], 100) as writer:
            writer.copy("w", tmp_path / "short", 0)


def test_a_tensor_can_be_written_by_blocks_of_rows(tmp_path: Path) -> None:
    tensor = torch.randn(7, 3)
    with ShardedWriter(tmp_path, [TensorSpec("w", "F32", (7, 3))], 100) as writer:
        writer.write_rows("w", tensor.split(2))
    assert_same(read_back(tmp_path), {"w": tensor})
    for rows in (6, 8):
        with pytest.raises(ValueError, match="planned as"):
            ShardedWriter(tmp_path, [TensorSpec("w", "F32", (7, 3))], 100).write_rows(
                "w", torch.zeros(rows, 3).split(2)
            )


def test_each_tensor_is_written_exactly_once_and_as_planned(tmp_path: Path) -> None:
    specs = [TensorSpec("a", "F32", (2,)), TensorSpec("b", "F32", (2,))]
    writer = ShardedWriter(tmp_path, specs, 100)
    writer.write("a", torch.zeros(2))
    with pytest.raises(ValueError, match="before"):
        writer.write("a", torch.zeros(2))
    with pytest.raises(ValueError, match="not planned"):
        writer.write("c", torch.zeros(2))
    with pytest.raises(ValueError, match="never written: b"):
        writer.close()
    with pytest.raises(ValueError, match="planned as"):
        writer.write("b", torch.zeros(3))


def test_a_plan_needs_distinct_names_and_room() -> None:
    spec = TensorSpec("a", "F32", (2,))
    for specs, size in (([spec, spec], 10), ([], 10), ([spec], 0)):
        with pytest.raises(ValueError, match="distinct"):
            plan_shards(specs, size)


def cached_bytes(file: Path) -> int:
    """Of a file, in the page cache."""
    command = ["fincore", "--bytes", "--noheadings", "--output", "RES", str(file)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.parametrize("small", [True, False], ids=["memory too small", "memory large enough"])
def test_a_model_larger_than_memory_does_not_stay_in_the_page_cache(tmp_path, monkeypatch, small):
    size = 8 << 20
    save_file({"w": torch.arange(size // 4, dtype=torch.int32)}, tmp_path / "model.safetensors")
    [source] = source_tensors(tmp_path).values()
    out = tmp_path / "out"
    out.mkdir()
    monkeypatch.setattr(page_cache, "_SHARE", 1e-6 if small else 0.5)
    with ShardedWriter(out, [source.spec], size * 2) as writer:
        writer.copy("w", source.file, source.begin)
        if cached_bytes(out / "model.safetensors") == 0:
            pytest.skip("this file system has no page cache")
        assert writer.settle("w") == small
    kept = cached_bytes(out / "model.safetensors")
    assert kept < 100_000 if small else kept >= size
    assert_same(read_back(out), read_back(tmp_path))

"""What model directories hold, by the headers of their files; and what is damaged there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from launcher.errors import TrntuneError
from postprocess.safetensors.header import TensorSpec, read_header, source_tensors
from postprocess.safetensors.writer import ShardedWriter


def test_headers_say_where_the_bytes_are(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    save_file({"a": torch.arange(4, dtype=torch.float32), "b": torch.ones(2, 2).bfloat16()}, file)
    header = read_header(file)
    dtype, shape, begin, end = header["a"]
    assert (dtype, shape) == ("F32", (4,))
    assert torch.frombuffer(bytearray(file.read_bytes()[begin:end]), dtype=torch.float32).tolist() == [0, 1, 2, 3]
    assert header["b"].end - header["b"].begin == 8


def damage(file: Path, how: str) -> None:
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + length]
    damaged = {
        "truncated": data[:-3],
        "empty": b"",
        "no header": b"\xff" * 64,
        "not json": data[:8] + b"?" * length + data[8 + length :],
        "no offsets": data[:8] + header.replace(b"data_offsets", b"data_offsetz") + data[8 + length :],
        "wrong shape": data[:8] + header.replace(b"[4]", b"[5]") + data[8 + length :],
        "strange dtype": data[:8] + header.replace(b"F32", b"Q32") + data[8 + length :],
    }
    file.write_bytes(damaged[how])


@pytest.mark.parametrize(
    "how", ["truncated", "empty", "no header", "not json", "no offsets", "wrong shape", "strange dtype"]
)
def test_damaged_files_are_refused_in_a_line(tmp_path: Path, how: str) -> None:
    file = tmp_path / "model.safetensors"
    save_file({"a": torch.arange(4, dtype=torch.float32)}, file)
    damage(file, how)
    with pytest.raises(TrntuneError, match=r"damaged|not supported") as caught:
        read_header(file)
    assert "\n" not in str(caught.value)


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    with ShardedWriter(tmp_path, [TensorSpec(name, "F32", (4,)) for name in "abc"], 16) as writer:
        for name in "abc":
            writer.write(name, torch.ones(4))
    return tmp_path


def test_missing_shards_are_listed(sharded: Path) -> None:
    (sharded / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(TrntuneError, match="names are missing: model-00002-of-00003"):
        source_tensors(sharded)


def test_an_index_has_to_agree_with_its_shards(sharded: Path) -> None:
    index = sharded / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    extra = {**content["weight_map"], "d": "model-00001-of-00003.safetensors"}
    index.write_text(json.dumps({**content, "weight_map": extra}))
    with pytest.raises(TrntuneError, match="its shards don't have: d"):
        source_tensors(sharded)
    save_file({"a": torch.ones(4), "e": torch.ones(1)}, sharded / "model-00001-of-00003.safetensors")
    index.write_text(json.dumps(content))
    with pytest.raises(TrntuneError, match="doesn't name: e"):
        source_tensors(sharded)
    index.write_text("{}")
    with pytest.raises(TrntuneError, match="no weight_map"):
        source_tensors(sharded)


def test_a_directory_without_safetensors_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrntuneError, match="neither"):
        source_tensors(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(TrntuneError, match=r"only weights are pytorch_model\.bin, pickles, .* postprocess\.convert"):
        source_tensors(tmp_path)
    with pytest.raises(TrntuneError, match="not a directory"):
        source_tensors(tmp_path / "nowhere")

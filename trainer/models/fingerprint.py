"""What a model's weights are, told by a few kilobytes of every tensor: an adapter belongs to one base."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from launcher.io import write_atomic
from launcher.model_dir.files import weight_files
from launcher.model_dir.safetensors_header import read_json_header

SCHEME = "sampled-sha256-v1"
BASE_FILE = "base.json"  # within an adapter's directory: which base it was trained on
_BLOCK = 4096
_BLOCKS = 16


def fingerprint(model_dir: Path) -> str:
    """``sampled-sha256-v1:<hex>`` of a directory's safetensors files, the same however the tensors are sharded.

    Hashed are each tensor's name, dtype, shape and up to 16 blocks of 4 KiB of its bytes, evenly spread. Training
    changes nearly every element, so other weights give another value, while a model of 16 GB is read in well under a
    second. Raises FileNotFoundError for a directory without safetensors.
    """
    files = weight_files(model_dir) or sorted(model_dir.glob("*.safetensors"))
    if not files:
        raise FileNotFoundError(f"{model_dir} has no .safetensors file")
    tensors: dict[str, str] = {}
    for file in files:
        tensors.update(_tensor_digests(file))
    return f"{SCHEME}:{hashlib.sha256(json.dumps(sorted(tensors.items())).encode()).hexdigest()}"


def write_base(adapter_dir: Path, model_dir: Path, model: str) -> None:
    """Have an adapter's directory say which base it belongs to: its fingerprint, and the model's configured name."""
    write_atomic(adapter_dir / BASE_FILE, base_text(fingerprint(model_dir), model))


def base_text(found: str, model: str | None) -> str:
    """The content of base.json: a base's fingerprint, and its configured name where that is known."""
    return json.dumps({"fingerprint": found, "model": model}, indent=2, ensure_ascii=False) + "\n"


def _tensor_digests(file: Path) -> dict[str, str]:
    """A digest of each tensor in a safetensors file."""
    found = {}
    header, data = read_json_header(file)
    header.pop("__metadata__", None)
    with file.open("rb") as stream:
        for name, entry in header.items():
            begin, end = entry["data_offsets"]
            digest = hashlib.sha256(json.dumps([entry["dtype"], entry["shape"]]).encode())
            for offset in _offsets(end - begin):
                stream.seek(data + begin + offset)
                digest.update(stream.read(min(_BLOCK, end - begin - offset)))
            found[name] = digest.hexdigest()
    return found


def _offsets(size: int) -> list[int]:
    """Where the sampled blocks of ``size`` bytes begin; all of them when there are few."""
    if size <= _BLOCK * _BLOCKS:
        return list(range(0, size, _BLOCK))
    return [(size - _BLOCK) * number // (_BLOCKS - 1) for number in range(_BLOCKS)]

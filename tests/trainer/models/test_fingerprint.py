"""The fingerprint of a model's weights."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from trainer.models.fingerprint import fingerprint


def weights() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(300, 200, generator=generator) for name in ("a", "b")}


def directory(path, *files):
    path.mkdir()
    for number, tensors in enumerate(files):
        save_file(tensors, path / f"model-{number}.safetensors")
    return path


def test_sharding_changes_nothing(tmp_path):
    tensors = weights()
    one = directory(tmp_path / "one", tensors)
    two = directory(tmp_path / "two", {"b": tensors["b"]}, {"a": tensors["a"]})
    assert fingerprint(one) == fingerprint(two)
    assert fingerprint(one).startswith("sampled-sha256-v1:")


@pytest.mark.parametrize(
    "change",
    [
        lambda t: {**t, "a": t["a"] + 1e-3},
        lambda t: {**t, "a": t["a"].T.contiguous()},
        lambda t: {**t, "a": t["a"].half()},
        lambda t: {"c": t["a"], "b": t["b"]},
        lambda t: {"a": t["b"], "b": t["a"]},
        lambda t: {"a": t["a"]},
    ],
    ids=["values", "shape", "dtype", "name", "swapped", "fewer"],
)
def test_other_weights_give_another_one(tmp_path, change):
    tensors = weights()
    same, other = directory(tmp_path / "same", tensors), directory(tmp_path / "other", change(tensors))
    assert fingerprint(same) != fingerprint(other)


def test_every_byte_of_a_small_tensor_counts(tmp_path):
    tensors = {"a": torch.zeros(10_000)}
    before = fingerprint(directory(tmp_path / "before", tensors))
    tensors["a"][9_999] = 1
    assert fingerprint(directory(tmp_path / "after", tensors)) != before


def test_a_directory_without_weights_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="safetensors"):
        fingerprint(tmp_path)

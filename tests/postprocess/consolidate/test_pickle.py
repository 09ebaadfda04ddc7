"""Files that would run something when unpickled are refused, and nothing runs."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from launcher.errors import TrntuneError
from postprocess.consolidate.__main__ import main
from postprocess.consolidate.references import is_reference_file, read_references
from tests.postprocess.consolidate.neuron_shards import copied

RANK = "dp_rank_00_tp_rank_01_pp_rank_00.pt"
REFERENCE = b"ctorch_xla.utils.serialization\nTensorReference\n"


class Touch:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self.path),)


def archive(path: Path, pickled: bytes, compression: int = zipfile.ZIP_STORED) -> Path:
    """A file as torch.save lays it out, with this pickle in it."""
    with zipfile.ZipFile(path, "w", compression) as stream:
        stream.writestr(f"{path.stem}/data.pkl", pickled)
        stream.writestr(f"{path.stem}/version", "3")
    return path


@pytest.mark.parametrize("where", ["references", "info", "tensor", "tensors"])
def test_a_pickle_that_runs_code_is_refused_and_does_not_run(
    where: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, trap = copied("full_gqa", tmp_path), tmp_path / "it_ran"
    model = run / "shards" / "model"
    value = {"model.embed_tokens.weight": Touch(trap)}
    if where == "references":
        archive(model / RANK, pickle.dumps(value, protocol=2))
    else:
        names = {"info": f"{RANK}.info.pt", "tensor": f"{RANK}.tensors/tensor_0.pt", "tensors": RANK}
        torch.save({**value, "tensor": torch.ones(9999)}, model / names[where])
    assert main([str(run), str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert ("refused: " if where == "references" else "holds more than tensors") in error
    assert not trap.exists()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("pickled", "message"),
    [
        (b"cbuiltins\neval\n(S'1'\ntR.", "it names builtins.eval"),
        (b"ctorch_xla.utils.serialization\nToXlaTensorArena\n.", "it names torch_xla.utils.serialization.ToXla"),
        (b"\x80\x04\x8c\x02os\x8c\x06system\x93.", "it names os.system"),
        (b"(dS'a'\nP1\ns.", "it names a stored object"),
        (b"\x80\x02]q\x00.", "not a dict"),
        (b"\x80\x02}q\x00(X\x01\x00\x00\x00aK\x01u.", "not a dict"),
        (b"(dS'a'\n" + REFERENCE + b"s.", "not a dict"),
        (b"(dS'a'\n" + REFERENCE + b"(tR(dS'tid'\nS'../../x'\nsbs.", "another state"),
        (b"(dS'a'\n" + REFERENCE + b"(tR(dS'tid'\nI-1\nsbs.", "another state"),
        (b"(dS'a'\n" + REFERENCE + b"(tR(dS'tid'\nI1\nsS'b'\nI2\nsbs.", "another state"),
        (b"(dS'a'\n" + REFERENCE + b"(tRs.", "not a dict"),
        (b"(dS'a'\n" + REFERENCE + b"(I1\ntRs.", "TypeError"),
        (b"", "EOFError"),
        (b"\x80\x02}q", "not a file of tensor references"),
    ],
)
def test_only_references_are_read(pickled: bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(TrntuneError, match=f"refused: .*{message}"):
        read_references(archive(tmp_path / "a.pt", pickled))


def test_references_are_read(tmp_path: Path) -> None:
    pickled = b"(dS'a'\n" + REFERENCE + b"(tR(dS'tid'\nI12\nsbs."
    path = archive(tmp_path / "a.pt", pickled)
    assert is_reference_file(path)
    assert read_references(path) == {"a": 12}


def test_a_compressed_pickle_is_refused(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.pt", b"0" * (1 << 20), zipfile.ZIP_DEFLATED)
    with pytest.raises(TrntuneError, match="is compressed or over 64 MiB"):
        read_references(path)


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    with zipfile.ZipFile(path, "w") as stream:
        stream.writestr("readme", "no pickle")
    with pytest.raises(TrntuneError, match=r"not written by torch\.save"):
        read_references(path)
    buffer = io.BytesIO()
    torch.save({"a": torch.ones(2)}, buffer, _use_new_zipfile_serialization=False)
    path.write_bytes(buffer.getvalue())
    with pytest.raises(TrntuneError, match=r"truncated or not written by torch\.save"):
        is_reference_file(path)

"""Reading an xser reference file without running anything that it says.

With xser, `dp_rank_00_tp_rank_XX_pp_rank_XX.pt` holds no tensors but a pickled dict of names to
`torch_xla.utils.serialization.TensorReference` objects, whose one attribute ``tid`` names the file
`<file>.tensors/tensor_<tid>.pt`. A pickle can call any function that it can name; this unpickler lets it name that one
class, and gives a stand-in of its own for it, so that neither torch_xla nor trust in the file is needed.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

from launcher.errors import TrntuneError

# A reference takes about 60 bytes: enough for a million tensors, and a bound on what a hostile file makes us read.
_MAX_PICKLE_BYTES = 64 << 20
_CLASS = ("torch_xla.utils.serialization", "TensorReference")


class TensorReference:
    """Stands in for torch_xla's class. ``tid`` is the number in the tensor file's name."""

    __slots__ = ("tid",)

    tid: int

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, dict) or list(state) != ["tid"] or type(state["tid"]) is not int or state["tid"] < 0:
            raise pickle.UnpicklingError("a TensorReference with another state than a tensor number")
        self.tid = state["tid"]


class _ReferenceUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) != _CLASS:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return TensorReference

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError("it names a stored object")


def is_reference_file(path: Path) -> bool:
    """Whether a `.pt` file has no tensors of its own: its zip archive has no storage records (`<name>/data/<n>`).

    Raises TrntuneError when the file is no whole zip archive, which is what torch.save writes.
    """
    return not any("/data/" in name for name in _names(path))


def read_references(path: Path) -> dict[str, int]:
    """Tensor names to the numbers of their files. Raises TrntuneError for a file that is anything else."""
    try:
        value = _ReferenceUnpickler(io.BytesIO(_pickle_bytes(path))).load()
    except TrntuneError:
        raise
    except Exception as error:  # a broken or hostile pickle fails in as many ways as there are opcodes
        reason = f"{error}" if isinstance(error, pickle.UnpicklingError) else type(error).__name__
        raise TrntuneError(f"{path}: refused: not a file of tensor references ({reason})") from None
    if not isinstance(value, dict) or not all(_is_entry(item) for item in value.items()):
        raise TrntuneError(f"{path}: refused: not a dict of tensor names and tensor references")
    return {name: reference.tid for name, reference in value.items()}


def _is_entry(item: tuple[Any, Any]) -> bool:
    name, reference = item
    return type(name) is str and type(reference) is TensorReference and hasattr(reference, "tid")


def _names(path: Path) -> list[str]:
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    except FileNotFoundError:
        raise TrntuneError(f"{path} is missing") from None
    except (zipfile.BadZipFile, OSError) as error:
        raise TrntuneError(f"{path} is truncated or not written by torch.save ({error}): copy it again") from None


def _pickle_bytes(path: Path) -> bytes:
    records = [name for name in _names(path) if name.endswith("/data.pkl")]
    if len(records) != 1:
        raise TrntuneError(f"{path} is not written by torch.save: it has {len(records)} data.pkl records")
    with zipfile.ZipFile(path) as archive:
        record = archive.getinfo(records[0])
        if record.compress_type != zipfile.ZIP_STORED or record.file_size > _MAX_PICKLE_BYTES:
            raise TrntuneError(f"{path}: refused: its data.pkl is compressed or over {_MAX_PICKLE_BYTES >> 20} MiB")
        return archive.read(record)

"""The header of a safetensors file: 8 bytes of length (little-endian), then JSON, then the tensors' bytes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from launcher.errors import TrntuneError

_MAX_HEADER = 100_000_000  # the library's own limit


def read_json_header(file: Path) -> tuple[Any, int]:
    """The header as it is written, and the byte at which the tensors begin. Raises TrntuneError for a damaged file."""
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if size < 8 or not 2 <= length <= min(size - 8, _MAX_HEADER):
                raise TrntuneError(f"{file} is damaged: no safetensors header in its {size:,} bytes; copy it again")
            return json.loads(stream.read(length)), 8 + length
    except OSError as error:
        raise TrntuneError(f"{file} can't be read: {error.strerror}") from None
    except ValueError:  # neither UTF-8 nor JSON
        raise TrntuneError(f"{file} is damaged: its safetensors header is not JSON; copy it again") from None

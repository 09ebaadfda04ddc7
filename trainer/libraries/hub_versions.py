"""Where versions of huggingface_hub differ in what this project leans on: by which library they ask.

Before 1.0 it was requests, whose errors are OSErrors; since then httpx, then httpx2, whose errors are not.
"""

from __future__ import annotations

import importlib
from typing import Any

from huggingface_hub.errors import HfHubHTTPError


def _unreachable() -> tuple[type[Exception], ...]:
    """The errors of the library whose HTTPError the Hub's own errors are."""
    names = [base.__module__.partition(".")[0] for base in HfHubHTTPError.__mro__ if base.__name__ == "HTTPError"]
    library: Any = importlib.import_module(names[0])
    if hasattr(library, "TransportError"):
        return (library.TransportError,)
    return (library.exceptions.ConnectionError, library.exceptions.Timeout)


UNREACHABLE: tuple[type[Exception], ...] = (ConnectionError, TimeoutError, *_unreachable())
"""Raised where the Hub did not answer."""

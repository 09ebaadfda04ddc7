"""Keeps transformers from importing packages that are there for others: a quarter of the time of its import.

MLflow brings scikit-learn, SciPy and pandas, and trl brings datasets; transformers imports whichever it finds, for
assisted generation, for losses of object detection and for data sets of that kind, which nothing here uses. accelerate,
which transformers imports, imports boto3 for a dialogue about SageMaker. Imported before transformers' models are.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from transformers.utils import import_utils


@contextmanager
def hidden(package: str) -> Iterator[None]:
    """Inside, whoever looks for this package doesn't find it; one that is imported already stays."""
    if package in sys.modules:
        yield
        return
    sys.modules[package] = None  # type: ignore[assignment]  # as importlib has it: neither found nor imported
    try:
        yield
    finally:
        del sys.modules[package]


for _package in ("sklearn", "scipy", "datasets"):
    if hasattr(import_utils, _flag := f"_{_package}_available"):  # transformers 4.57 has looked by now
        setattr(import_utils, _flag, False)
    else:  # 5 looks when it is first asked, and keeps the answer
        _is_available = getattr(import_utils, f"is_{_package}_available")
        _is_available.cache_clear()
        with hidden(_package):
            _is_available()

with hidden("boto3"):
    import accelerate  # noqa: F401

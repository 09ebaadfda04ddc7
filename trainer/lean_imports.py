"""Keeps transformers from importing packages that are there for others: a quarter of the time of its import.

MLflow brings scikit-learn, SciPy and pandas, and trl brings datasets; transformers imports whichever it finds, for
assisted generation, for losses of object detection and for data sets of that kind, which nothing here uses. Imported
before transformers' models are.
"""

from __future__ import annotations

from transformers.utils import import_utils

import_utils._sklearn_available = False
import_utils._scipy_available = False
import_utils._datasets_available = False

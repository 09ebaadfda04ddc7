"""`python -m trainer.families`: writes the table of docs/models.md to standard output; a minute of one CPU."""

from __future__ import annotations

import sys
import warnings

from transformers.utils import logging

from trainer.families.table import page

if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    logging.set_verbosity_error()
    sys.stdout.write(page())

#!/usr/bin/env bash
# datasets 5.2.0: whether several JSON files can be read depends on which is named first, where one has a column of nulls only.
#
# The first file's columns become those of the set. A field that is null in all of its rows ("context": null, in rows without one)
# has the type null there, and the texts of the next file don't fit it. The same files in the other order are read.
#
# Seen:
#   without.jsonl, with.jsonl: DatasetGenerationError, caused by TypeError: Couldn't cast array of type string to null
#   with.jsonl, without.jsonl: ['a text', None]
# Exit code 0: still so. 1: the order has no effect, or another version was installed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check datasets==5.2.0
cat >"$work/order.py" <<'PYTHON'
import sys
from pathlib import Path

import datasets
from datasets.exceptions import DatasetGenerationError

datasets.disable_progress_bars()
Path("without.jsonl").write_text('{"question": "a", "context": null}\n')
Path("with.jsonl").write_text('{"question": "b", "context": "a text"}\n')


def contexts(*files):
    try:
        found = datasets.load_dataset("json", data_files=list(files), split="train", cache_dir=f"cache-{files[0]}")
        said = list(found["context"])
    except DatasetGenerationError as error:
        cause = error.__cause__
        said = f"{type(error).__name__}, caused by {type(cause).__name__}: {cause}"
    print(f"{', '.join(files)}: {said}")
    return said


print(f"datasets {datasets.__version__}")
refused, read = contexts("without.jsonl", "with.jsonl"), contexts("with.jsonl", "without.jsonl")
sys.exit(0 if "string to null" in refused and read == ["a text", None] else 1)
PYTHON
cd "$work"
HF_HUB_OFFLINE=1 HF_HOME="$work/home" venv/bin/python order.py 2>/dev/null

#!/usr/bin/env bash
# datasets 5.2.0: a JSON column of texts that all look like days is read as timestamps; one other text in it, and all stay text.
#
# A set of questions about days so loses its answers as they were written: load_dataset("json") gives datetime objects, whose text
# has a time of day that the file never had. One row more, without a day, changes the values of all the other rows.
#
# Seen:
#   two days: timestamp[s], first value datetime.datetime(2024, 1, 31, 0, 0), as text 2024-01-31 00:00:00
#   with a third row that is no day: string, first value '2024-01-31', as text 2024-01-31
# Exit code 0: still so. 1: texts stay texts, or another version was installed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check datasets==5.2.0
cat >"$work/days.py" <<'PYTHON'
import json
import sys
from pathlib import Path

import datasets

datasets.disable_progress_bars()


def column(name, answers):
    rows = [{"question": "When?", "answer": answer} for answer in answers]
    Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = datasets.load_dataset("json", data_files=f"{name}.jsonl", split="train", cache_dir=f"cache-{name}")
    return found.features["answer"].dtype, found[0]["answer"]


print(f"datasets {datasets.__version__}")
days = ["2024-01-31", "2024-02-01"]
kind, value = column("days", days)
print(f"two days: {kind}, first value {value!r}, as text {value}")
mixed_kind, mixed_value = column("mixed", [*days, "last spring"])
print(f"with a third row that is no day: {mixed_kind}, first value {mixed_value!r}, as text {mixed_value}")
sys.exit(0 if kind.startswith("timestamp") and str(value) != days[0] and mixed_value == days[0] else 1)
PYTHON
cd "$work"
HF_HUB_OFFLINE=1 HF_HOME="$work/home" venv/bin/python days.py 2>/dev/null

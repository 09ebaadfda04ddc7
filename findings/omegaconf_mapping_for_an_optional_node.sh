#!/usr/bin/env bash
# omegaconf 2.3.1: an optional dataclass that is None takes no mapping by update: AttributeError, or "dict is not a subclass".
#
# OmegaConf.update is what Hydra sets `key={a: 1}` with. For a field of type `Part | None` merging a mapping into None raises an
# AttributeError from inside the library, which no handler of OmegaConfBaseException catches; not merging refuses every mapping.
# OmegaConf.merge takes the same mapping. An instance of the dataclass has to be put there first.
#
# Seen:
#   update, merge=True: AttributeError: 'NoneType' object has no attribute 'get'
#   update, merge=False: ValidationError: Invalid type assigned: dict is not a subclass of Part. value: {'low': 0.5}
#   merge: {'low': 0.5, 'high': 2.0}
# Exit code 0: still so. 1: update takes the mapping, or another version was installed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check omegaconf==2.3.1
cat >"$work/optional.py" <<'PYTHON'
import sys
from dataclasses import dataclass
from importlib.metadata import version

from omegaconf import OmegaConf


@dataclass
class Part:
    low: float = 1.0
    high: float = 2.0


@dataclass
class Whole:
    part: Part | None = None


def updated(merge):
    config = OmegaConf.structured(Whole)
    try:
        OmegaConf.update(config, "part", {"low": 0.5}, merge=merge)
        said = str(config.part)
    except Exception as error:
        said = f"{type(error).__name__}: {str(error).splitlines()[0]}"
    print(f"update, merge={merge}: {said}")
    return said


print(f"omegaconf {version('omegaconf')}")
found = [updated(merge) for merge in (True, False)]
merged = OmegaConf.merge(OmegaConf.structured(Whole), {"part": {"low": 0.5}})
print(f"merge: {merged.part}")
sys.exit(0 if found[0].startswith("AttributeError") and found[1].startswith("ValidationError") else 1)
PYTHON
"$work/venv/bin/python" "$work/optional.py"

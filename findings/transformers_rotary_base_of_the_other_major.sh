#!/usr/bin/env bash
# transformers 5.24.0 writes a model's rotary settings under a key of config.json that 4.57.6 doesn't read: there the model gets its
# family's default base, without a word, and every position is another one.
#
# 5 reads rope_theta and rope_scaling, but writes rope_parameters alone. A Llama 3 or Qwen3 that was fine-tuned and saved under 5 has
# base 10,000 in place of 500,000 or 1,000,000 for whoever serves or trains it with 4, and no long-context scaling; its weights load
# whole. The other way round is read.
#
# Seen:
#   llama, base 500000.0, written by 5.24.0, read by 4.57.6: base 10000.0, scaling None, warnings 0
#   llama, base 500000.0, written by 4.57.6, read by 5.24.0: base 500000.0, scaling llama3, warnings 0
#   qwen3, base 1000000.0, written by 5.24.0, read by 4.57.6: base 10000.0, scaling None, warnings 0
# Exit code 0: still so. 1: 4.57.6 reads what 5.24.0 has written, or another version was installed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
for version in 5.24.0 4.57.6; do
    python3 -m venv "$work/$version"
    "$work/$version/bin/pip" install --quiet --disable-pip-version-check "transformers==$version"
done
cat >"$work/config.py" <<'PYTHON'
import contextlib
import io
import sys
import warnings

import transformers
from transformers import AutoConfig, LlamaConfig, Qwen3Config

action, family, directory = sys.argv[1:]
llama3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
if action == "write":
    kinds = {
        "llama": lambda: LlamaConfig(rope_theta=500000.0, rope_scaling=llama3, max_position_embeddings=65536),
        "qwen3": lambda: Qwen3Config(rope_theta=1000000.0),
    }
    kinds[family]().save_pretrained(directory)
else:
    transformers.logging.set_verbosity_warning()
    said = io.StringIO()
    with contextlib.redirect_stderr(said), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        config = AutoConfig.from_pretrained(directory)
    # 4 keeps a key that it doesn't know as an attribute; its models look at the two others.
    if transformers.__version__.startswith("4."):
        base, scaling = config.rope_theta, (config.rope_scaling or {}).get("rope_type")
    else:
        base, scaling = config.rope_parameters["rope_theta"], config.rope_parameters["rope_type"]
    of_rope = [each for each in caught if "rope" in str(each.message)]
    print(f"base {base}, scaling {scaling}, warnings {len(of_rope) + said.getvalue().count('rope')}")
PYTHON
cd "$work"
told() { # FAMILY WRITER READER
    "$2/bin/python" config.py write "$1" "$1-$2" 2>/dev/null
    local found
    found=$("$3/bin/python" config.py read "$1" "$1-$2" 2>/dev/null)
    echo "$1, written by $2, read by $3: $found" >&2
    echo "$found"
}
lost=$(told llama 5.24.0 4.57.6)
kept=$(told llama 4.57.6 5.24.0)
also=$(told qwen3 5.24.0 4.57.6)
[ "$lost" = "base 10000.0, scaling None, warnings 0" ] && [ "$also" = "$lost" ] &&
    [ "$kept" = "base 500000.0, scaling llama3, warnings 0" ]

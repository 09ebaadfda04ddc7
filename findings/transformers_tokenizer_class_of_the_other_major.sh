#!/usr/bin/env bash
# A tokenizer that transformers 4.57.6 has saved, and 5.24.0 has saved again, can't be loaded by 4.57.6 any more.
#
# 5 writes the class PreTrainedTokenizerFast by its new name, TokenizersBackend, which 4.57 doesn't know, and special tokens without a
# role as a list under extra_special_tokens, where 4.57 expects a mapping. tokenizer.json is the same. So an adapter or a model that
# was trained under 5 has a tokenizer that no server on 4 loads. With the old name, and the list under additional_special_tokens,
# both load it.
#
# Seen:
#   saved by 5.24.0, loaded by 5.24.0: [3, 4, 1]
#   saved by 5.24.0, loaded by 4.57.6: ValueError: Tokenizer class TokenizersBackend does not exist or is not currently imported.
#   both renamed, loaded by 4.57.6: [3, 4, 1]
#   both renamed, loaded by 5.24.0: [3, 4, 1]
# Exit code 0: still so. 1: 4.57.6 loads what 5.24.0 has saved, or another version was installed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
for version in 5.24.0 4.57.6; do
    python3 -m venv "$work/$version"
    "$work/$version/bin/pip" install --quiet --disable-pip-version-check "transformers==$version"
done
cat >"$work/make.py" <<'PYTHON'
import sys

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

vocabulary = {"<unk>": 0, "<extra>": 1, "<eos>": 2, "hello": 3, "world": 4}
backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
tokenizer = PreTrainedTokenizerFast(
    tokenizer_object=backend, unk_token="<unk>", eos_token="<eos>", additional_special_tokens=["<extra>"]
)
tokenizer.save_pretrained(sys.argv[1])
PYTHON
cat >"$work/load.py" <<'PYTHON'
import sys

from transformers import AutoTokenizer

try:
    tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
    if len(sys.argv) > 2:
        tokenizer.save_pretrained(sys.argv[2])
    print(tokenizer("hello world <extra>")["input_ids"])
except Exception as error:
    print(f"{type(error).__name__}: {str(error).splitlines()[0]}")
PYTHON
cat >"$work/rename.py" <<'PYTHON'
import json
import pathlib
import shutil
import sys

source, target = sys.argv[1:]
shutil.copytree(source, target)
path = pathlib.Path(target) / "tokenizer_config.json"
settings = json.loads(path.read_text())
settings["tokenizer_class"] = "PreTrainedTokenizerFast"
settings["additional_special_tokens"] = settings.pop("extra_special_tokens")
path.write_text(json.dumps(settings))
PYTHON
cd "$work"
told() { # WORDS VERSION ARGUMENT...
    local found
    found=$("$2/bin/python" load.py "${@:3}" 2>/dev/null)
    echo "$1, loaded by $2: $found" >&2
    echo "$found"
}
4.57.6/bin/python make.py by-4 2>/dev/null
5.24.0/bin/python load.py by-4 by-5 >/dev/null 2>&1
same=$(told "saved by 5.24.0" 5.24.0 by-5)
older=$(told "saved by 5.24.0" 4.57.6 by-5)
python3 rename.py by-5 mended
mended=$(told "both renamed" 4.57.6 mended)
both=$(told "both renamed" 5.24.0 mended)
[ "$same" = "[3, 4, 1]" ] && [ "$mended" = "$same" ] && [ "$both" = "$same" ] &&
    [[ "$older" == "ValueError: Tokenizer class TokenizersBackend"* ]]

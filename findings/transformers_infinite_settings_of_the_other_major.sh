#!/usr/bin/env bash
# transformers 5.24.0 writes an infinite setting of config.json in a way that 4.57.6 reads as something else.
#
# Mamba 2's time_step_limit is (0, infinity) by default. 4.57 writes Infinity, which is no JSON but what Python's reader takes; 5
# writes the mapping {"__float__": "Infinity"} and turns it back when it reads. 4.57 takes the mapping for the setting: loading says
# nothing, and the first forward pass fails in torch.clamp. The other way round is read.
#
# Seen:
#   written by 5.24.0, read by 5.24.0: [0.0, inf]
#   written by 5.24.0, read by 4.57.6: [0.0, {'__float__': 'Infinity'}]
#   written by 4.57.6, read by 5.24.0: [0.0, inf]
# Exit code 0: still so. 1: all three are the same, or another version was installed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
for version in 5.24.0 4.57.6; do
    python3 -m venv "$work/$version"
    "$work/$version/bin/pip" install --quiet --disable-pip-version-check "transformers==$version"
done
cat >"$work/config.py" <<'PYTHON'
import sys

from transformers import AutoConfig, Mamba2Config

action, directory = sys.argv[1:]
if action == "write":
    Mamba2Config().save_pretrained(directory)
else:
    print(list(AutoConfig.from_pretrained(directory).time_step_limit))
PYTHON
cd "$work"
for version in 5.24.0 4.57.6; do
    "$version/bin/python" config.py write "by-$version" 2>/dev/null
done
told() {
    local found
    found=$("$2/bin/python" config.py read "by-$1" 2>/dev/null)
    echo "written by $1, read by $2: $found" >&2
    echo "$found"
}
same=$(told 5.24.0 5.24.0)
older=$(told 5.24.0 4.57.6)
newer=$(told 4.57.6 5.24.0)
[ "$same" = "[0.0, inf]" ] && [ "$newer" = "[0.0, inf]" ] && [ "$older" != "[0.0, inf]" ]

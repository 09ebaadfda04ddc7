#!/usr/bin/env bash
# submitit 1.5.4 and absl-py 2.5.1 (which rouge-score brings): importing submitit closes a stream that absl has seen.
#
# absl.logging makes a handler when it is imported, whether it is used or not, on what sys.stderr is at that moment. submitit
# calls logging.config.dictConfig when it is imported, and that closes every handler of the process. Closing absl's closes
# its stream, unless that is sys.stderr or sys.stdout by then. So where standard error was replaced for a while when absl was
# imported, or is when submitit is (contextlib.redirect_stderr, a notebook, pytest's capsys), the other stream is gone for
# good: each later write to it is "ValueError: I/O operation on closed file". Under pytest all later tests of the process
# end in that error. Importing submitit first avoids it.
#
# Seen:
#   absl, then submitit under redirect_stderr: the first stream is closed: True
#   submitit, then absl: the first stream is closed: False
# Exit code 0: still so. 1: the first stream stays open, or another version was installed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check submitit==1.5.4 absl-py==2.5.1
cat >"$work/streams.py" <<'PYTHON'
import contextlib
import io
import sys

first, second = io.StringIO(), io.StringIO()
if sys.argv[1] == "early":
    import submitit
with contextlib.redirect_stderr(first):
    import absl.logging
with contextlib.redirect_stderr(second):
    import submitit
print(first.closed)
PYTHON
cd "$work"
closed=$(venv/bin/python streams.py late)
open=$(venv/bin/python streams.py early)
echo "absl, then submitit under redirect_stderr: the first stream is closed: $closed"
echo "submitit, then absl: the first stream is closed: $open"
[ "$closed" = True ] && [ "$open" = False ]

"""What commands and stages exit with."""

from __future__ import annotations

FAILED = 1
REFUSED = 2
SUSPENDED = 75  # EX_TEMPFAIL of sysexits.h: it was told to leave, left a checkpoint, and can be started again
INTERRUPTED = 130  # 128 + SIGINT, as shells report Ctrl-C

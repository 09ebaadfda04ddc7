"""The SHA-256 of a data set's file, computed once for a large file that doesn't change."""

from __future__ import annotations

import functools
import hashlib
import json
from pathlib import Path

from launcher.io import sha256, write_json
from trainer.fetch import cache

_WORTH_KEEPING = 64 << 20


def file_sha256(path: Path) -> str:
    """Hex digest of the file's bytes. Of a large one it is remembered with path, size, inode and time of change, so
    that the ranks of a run, and later runs, don't read it again."""
    stat = path.stat()
    facts = [str(path.absolute()), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]
    return _digest(path, json.dumps(facts), stat.st_size >= _WORTH_KEEPING)


@functools.lru_cache(maxsize=16)
def _digest(path: Path, facts: str, keep: bool) -> str:
    memo = cache.root() / "digests" / f"{hashlib.sha256(facts.encode()).hexdigest()[:16]}.json"
    if keep and memo.is_file():
        return str(json.loads(memo.read_text(encoding="utf-8"))["sha256"])
    found = sha256(path)
    if keep:
        memo.parent.mkdir(parents=True, exist_ok=True)
        write_json(memo, {"sha256": found, "path": str(path)})
    return found

"""The code that queued jobs run: a copy of the project as it was when they were submitted.

A job may start hours later, when the checkout has been edited or another branch is out; its processes then still
import what was submitted. The copy is named by a hash of its content and shared by the runs of a sweep.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from pathlib import Path

from launcher.paths import ROOT
from launcher.run_dir.create import make_private

PARTS = ("launch.py", "launcher", "trainer", "postprocess", "conf")
KINDS = (".py", ".yaml", ".j2", ".json")


def files(root: Path = ROOT) -> list[Path]:
    """What belongs to the code, relative to ``root``, sorted."""
    found = []
    for part in PARTS:
        path = root / part
        inside = path.rglob("*") if path.is_dir() else [path]
        found += [file for file in inside if file.is_file() and file.suffix in KINDS]
    return sorted(file.relative_to(root) for file in found)


def digest(root: Path = ROOT) -> str:
    """Hash of names and contents, 12 digits."""
    total = hashlib.sha256()
    for name in files(root):
        content = (root / name).read_bytes()
        total.update(f"{name} {len(content)}\n".encode() + content)
    return total.hexdigest()[:12]


def take(parent: Path, root: Path = ROOT) -> Path:
    """Copy the code to ``parent``/<its hash>, read-only, unless it is there already. Returns the copy's directory."""
    name = digest(root)
    target = parent / name
    if target.is_dir() and digest(target) == name:
        return target
    make_private(parent)
    with tempfile.TemporaryDirectory(dir=parent, prefix=".code-") as scratch:
        copy = Path(scratch) / name
        for file in files(root):
            (copy / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(root / file, copy / file)
            (copy / file).chmod(0o444)
        if target.exists():  # someone has changed it
            target.rename(Path(scratch) / "changed")
        copy.replace(target)
    return target

"""The trained weights are on the disk before they get their name."""

from __future__ import annotations

import os
from pathlib import Path

from launcher.atomic_directory import replace_directory


def test_everything_is_on_the_disk_before_it_is_named_and_the_name_after_it(tmp_path, monkeypatch):
    temporary, final = tmp_path / "adapter.tmp", tmp_path / "adapter"
    for directory, content in ((final, "old"), (temporary, "new")):
        (directory / "inner").mkdir(parents=True)
        (directory / "adapter_model.safetensors").write_text(content)
        (directory / "inner" / "vocab.json").write_text(content)
    done: list[str] = []
    sync, rename = os.fsync, Path.rename

    def synced(handle: int) -> None:
        done.append(str(Path(f"/proc/self/fd/{handle}").readlink().relative_to(tmp_path)))
        sync(handle)

    def renamed(path: Path, target: Path) -> Path:
        done.append(f"{path.name} -> {target.name}")
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "rename", renamed)
    replace_directory(temporary, final)
    named = done.index("adapter.tmp -> adapter")
    inside = {"adapter.tmp/adapter_model.safetensors", "adapter.tmp/inner/vocab.json", "adapter.tmp/inner"}
    assert inside | {"adapter.tmp"} <= set(done[:named])
    assert "." in done[named:]
    assert (final / "inner" / "vocab.json").read_text() == "new"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter"]

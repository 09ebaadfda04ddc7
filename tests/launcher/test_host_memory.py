"""What a process may still take is the least that its machine, its control groups and its job leave."""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher.host_memory import memory_available

GROUPS = {
    "version 2": ("0::/job/step\n", "job", "memory.max", "memory.current"),
    "version 2, a container's own": ("0::/docker/abc\n", ".", "memory.max", "memory.current"),
    "version 1": ("4:memory:/job/step\n1:cpu:/\n", "memory/job", "memory.limit_in_bytes", "memory.usage_in_bytes"),
}


@pytest.mark.parametrize("kind", GROUPS)
def test_a_limit_of_a_group_above_counts(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("SLURM_MEM_PER_NODE", raising=False)
    own, place, limit, used = GROUPS[kind]
    (tmp_path / "own").write_text(own)
    group = tmp_path / "groups" / place
    (group / "step").mkdir(parents=True)
    for directory, most in ((group, "5000"), (group / "step", "max")):
        (directory / limit).write_text(most)
        (directory / used).write_text("2000")
    assert memory_available(tmp_path / "groups", tmp_path / "own") == 3000
    (group / used).write_text("6000")
    assert memory_available(tmp_path / "groups", tmp_path / "own") == 0


def test_a_jobs_memory_counts_where_no_group_has_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("SLURM_MEM_PER_NODE", raising=False)
    assert memory_available(tmp_path, tmp_path / "missing") > 10 << 20
    monkeypatch.setenv("SLURM_MEM_PER_NODE", "10")
    assert memory_available(tmp_path, tmp_path / "missing") == 10 << 20

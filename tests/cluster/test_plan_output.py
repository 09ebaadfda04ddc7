"""plan output=DIR: all files or none, and one line where the directory takes none."""

from __future__ import annotations

import pytest

from cluster import plan
from cluster.__main__ import main


@pytest.mark.parametrize("output", ["file/x", "file", "/proc/x", "a" * 300 + "/x", "''", "gone"])
def test_an_output_that_takes_no_files_is_one_line(output, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("mine")
    (tmp_path / "gone").symlink_to("nowhere")
    before = sorted(tmp_path.iterdir())
    assert main(["plan", f"output={output}"]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith("error: output=")
    assert ("must not be empty" if output == "''" else "give a new directory") in err
    assert sorted(tmp_path.iterdir()) == before


def test_a_disk_that_is_full_leaves_nothing_half_written(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as patch:
        files = {"a": b"a", "b/c": b"c", "b/c/d": b"under a file"}
        patch.setattr(plan, "_files", lambda config: files)
        assert main(["plan", "output=new/x"]) == 2
        (tmp_path / "empty").mkdir()
        assert main(["plan", "output=empty"]) == 2
    assert "output=empty: cannot be written" in capsys.readouterr().err
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")] == ["empty"]

"""Consolidating what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from postprocess.consolidate.__main__ import main
from tests.postprocess.consolidate.refusing import Refused


@pytest.fixture
def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Refused:
    """Consolidates by the command, and gives the one line that it ends with."""

    def run(source: Path, *arguments: str, code: int = 1) -> str:
        assert main([str(source), str(tmp_path / "out"), *arguments]) == code
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert error.count("\n") == 1
        assert not (tmp_path / "out").exists()
        assert not (tmp_path / "out.tmp").exists()
        return error

    return run

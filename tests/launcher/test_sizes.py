"""A size means the same in the configuration, for a merge and for a consolidation."""

from __future__ import annotations

import pytest

from launcher import app
from launcher.errors import UsageError
from launcher.sizes import parse_size

SIZES = {
    "5GB": 5 * 10**9, "100KB": 10**5, "500 mb": 5 * 10**8, "2GiB": 2**31, "1.5k": 1500, "4096": 4096, "1000": 1000,
    "5TB": 5 * 10**12, "1TiB": 2**40, "1.5MB": 1_500_000,
}  # fmt: skip
NO_SIZES = ["", "GB", "5 parsecs", "-5GB", "0GB", "10", "0.9K", "1e9", "5iB", "inf"]


def test_sizes() -> None:
    assert {text: parse_size(text, "x") for text in SIZES} == SIZES


@pytest.mark.parametrize("text", NO_SIZES)
def test_no_sizes(text: str) -> None:
    with pytest.raises(UsageError, match=rf"--shard-size={text}: .*write 5GB"):
        parse_size(text, "--shard-size")


@pytest.mark.parametrize("text", ["0GB", "5 parsecs", "999"])
def test_a_run_that_could_not_merge_at_its_end_does_not_begin(text, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert app.main(["experiment=tiny", f"merge.shard_size={text}"]) == 2
    assert "merge.shard_size" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []

"""When it is no use to try again."""

from __future__ import annotations

import pytest

from launcher.attempts import Attempts, verdict, without_progress


@pytest.fixture
def attempts(tmp_path):
    return Attempts(tmp_path / "attempts.jsonl")


def play(attempts: Attempts, *ends: tuple[str, int]) -> str | None:
    for outcome, step in ends:
        attempts.end(attempts.start(), outcome, step, "why" if outcome == "failed" else None)
    return verdict(attempts.read(), attempts.path)


@pytest.mark.parametrize(
    "ends",
    [
        [("died", 7), ("died", 7)],
        [("died", 7), ("died", 7), ("died", 8)],
        [("suspended", 10), ("suspended", 20), ("suspended", 30), ("suspended", 40)],
        [("died", 7), ("died", 7), ("interrupted", 7), ("died", 7), ("died", 7)],
        [("finished", 12), ("died", 12), ("died", 12)],
        [],
    ],
)
def test_it_is_tried_again_while_there_is_progress(attempts, ends):
    assert play(attempts, *ends) is None


@pytest.mark.parametrize(
    ("ends", "step"),
    [
        ([("died", 7), ("died", 7), ("died", 7)], 7),
        ([("failed", 0), ("died", 0), ("died", 0)], 0),
        ([("died", 7), ("died", 8), ("died", 7), ("died", 8)], 8),
        ([("suspended", 5), ("suspended", 5), ("suspended", 5)], 5),
    ],
)
def test_three_that_get_no_further_are_enough(attempts, ends, step):
    reason = play(attempts, *ends)
    assert reason is not None
    assert f"3 attempts in a row got no further than step {step}" in reason
    assert str(attempts.path) in reason


def test_a_changed_configuration_is_another_attempt(attempts):
    play(attempts, ("failed", 3), ("failed", 3), ("failed", 3))
    attempts.changed()
    assert verdict(attempts.read(), attempts.path) is None
    assert play(attempts, ("failed", 3), ("failed", 3)) is None
    assert play(attempts, ("failed", 3)) is not None


def test_the_reason_of_the_last_one_is_told(attempts):
    assert "the last one failed: why" in (play(attempts, *[("failed", 3)] * 3) or "")


def test_a_line_that_a_crash_cut_off_is_left_out_and_the_next_one_is_whole(attempts):
    attempts.start()
    with attempts.path.open("ab") as stream:
        stream.write(b'{"number": 1, "event": "en')
    attempts.end(1, "died", 4)
    attempts.lose(1, 2, 0.5)
    [attempt] = attempts.read()
    assert (attempt.outcome, attempt.step, attempt.lost_steps, attempt.lost_seconds) == ("died", 4, 2, 0.5)
    assert without_progress(attempts.read()) == (1, 4)

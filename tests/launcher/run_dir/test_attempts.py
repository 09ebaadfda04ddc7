"""When it is no use to try again."""

from __future__ import annotations

import pytest

from launcher.errors import TrntuneError
from launcher.run_dir.attempts import ATTEMPT, Attempts, counted, launch, verdict, without_progress
from launcher.run_dir.layout import RunDir


@pytest.fixture
def attempts(tmp_path):
    return Attempts(tmp_path / "attempts.jsonl")


def play(attempts: Attempts, *ends: tuple[str, int]) -> str | None:
    for outcome, step in ends:
        number = attempts.launch()
        attempts.start(number)
        attempts.end(number, outcome, step, "why" if outcome == "failed" else None)
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
    attempts.start(attempts.launch())
    with attempts.path.open("ab") as stream:
        stream.write(b'{"number": 1, "event": "en')
    attempts.end(1, "died", 4)
    attempts.lose(1, 2, 0.5)
    [attempt] = attempts.read()
    assert (attempt.outcome, attempt.step, attempt.lost_steps, attempt.lost_seconds) == ("died", 4, 2, 0.5)
    assert without_progress(attempts.read()) == (1, 4)


def test_starts_that_end_before_they_can_say_so_count(tmp_path, monkeypatch):
    """A failing import, a driver that isn't there, nodes that don't meet, a node that takes all of its processes along:
    Slurm would start some of these for ever."""
    run_dir = RunDir(tmp_path)
    attempts = Attempts(run_dir.attempts)
    assert counted(run_dir, lambda more: 1) == 1
    with pytest.raises(TrntuneError, match="nodes"):
        counted(run_dir, _nowhere)
    launch(run_dir)  # killed with whoever started it
    with pytest.raises(TrntuneError, match="3 attempts in a row got no further than step 0"):
        counted(run_dir, lambda more: 0)
    assert [(a.outcome, a.begun) for a in attempts.read()] == [("failed", False)] * 2 + [("died", False)]
    assert "exit code 1" in (attempts.read()[0].reason or "")
    assert attempts.read()[1].reason == "the nodes don't meet"


def _nowhere(more):
    raise TrntuneError("the nodes don't meet")


def test_what_is_started_takes_its_number_over(tmp_path, monkeypatch):
    run_dir = RunDir(tmp_path)
    attempts = Attempts(run_dir.attempts)

    def train(more):
        monkeypatch.setenv(ATTEMPT, more[ATTEMPT])
        number = attempts.handed_over()
        assert number == 1
        attempts.start(number)
        assert attempts.handed_over() is None  # it has begun: another process can't be it
        attempts.end(number, "failed", 4, "its own word")
        return 1

    counted(run_dir, train)
    assert [(a.outcome, a.step, a.reason) for a in attempts.read()] == [("failed", 4, "its own word")]


def test_told_to_end_before_it_began_is_no_failure(tmp_path):
    run_dir = RunDir(tmp_path)
    for _ in range(4):
        assert counted(run_dir, lambda more: 130) == 130  # Ctrl-C: the user's
    assert {attempt.outcome for attempt in Attempts(run_dir.attempts).read()} == {"interrupted"}
    for _ in range(3):
        counted(run_dir, lambda more: 75)
    with pytest.raises(TrntuneError, match="the last one suspended"):
        launch(run_dir)

"""Processes that the launcher asks: what it says of one that does not answer."""

from __future__ import annotations

import pytest

from launcher.app import main
from launcher.errors import UsageError
from launcher.jobs import helper_process
from launcher.plan import schedule
from launcher.plan.build import known
from launcher.sweep.parent_run import ParentRun, finish
from tests.launcher.conftest import single

TOKEN = "hf_abcdefghijklmnopqrstuv"
# The size of its data is known without looking at them.
SIZED = ("experiment=tiny", "dataset=dolly15k")


@pytest.fixture
def ask(tmp_path, monkeypatch):
    """Asks a helper of the given text; its place on the path is a directory of the test."""
    monkeypatch.setattr(helper_process, "ROOT", tmp_path)

    def run(program: str, **options):
        (tmp_path / "helper.py").write_text(program)
        return helper_process.run_module("helper", "{}", "the plan has no time", **options)

    return run


@pytest.fixture
def helper(monkeypatch):
    """Puts a Python program in the place of every helper."""
    helper_process.ask.cache_clear()
    monkeypatch.setattr(schedule, "_measured", {})

    def put(program: str) -> None:
        monkeypatch.setattr(helper_process, "python_module", lambda *_: [helper_process.sys.executable, "-c", program])

    yield put
    helper_process.ask.cache_clear()


@pytest.mark.parametrize("answer", ['{"rate": 1}', "{}"])
def test_the_answer_is_the_last_line(ask, capfd, answer):
    found = ask(f"import sys; print('a library'); print('noise', file=sys.stderr); print('{answer}')")
    assert found == helper_process.json.loads(answer)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("program", "told"),
    [
        ("import sys; print('first', file=sys.stderr); sys.exit('second  line\\n\\n')", "(exit code 1): second line"),
        (f"raise SystemExit('no access with {TOKEN}')", "(exit code 1): no access with ***"),
        ("1 / 0", "(exit code 1): ZeroDivisionError: division by zero"),
        ("import os; os.kill(os.getpid(), 9)", "(killed by SIGKILL)"),
        ("import os; os.kill(os.getpid(), 40)", "(killed by signal 40)"),
        ("pass", "(no answer in its output)"),
        ("print('done')", "(no answer in its output)"),
        ("print('[1]')", "(no answer in its output)"),
    ],
)
def test_a_failure_is_one_line_that_says_what_is_missing(ask, capfd, program, told):
    assert ask(program) is None
    assert capfd.readouterr().err == f"warning: the plan has no time: helper failed {told}\n"


def test_one_that_takes_too_long_is_ended(ask, capfd, monkeypatch):
    monkeypatch.setattr(helper_process, "SECONDS", 0.5)
    assert ask("import time; time.sleep(600)") is None
    assert capfd.readouterr().err == "warning: the plan has no time: helper failed (no answer within 0.5 s)\n"


def test_what_it_shows_itself_is_not_repeated(ask, capfd):
    assert ask("raise SystemExit('shown')", stderr=None) is None
    assert capfd.readouterr().err == "shown\nwarning: the plan has no time: helper failed (exit code 1)\n"


def test_a_machine_without_room_for_a_process(ask, capfd, monkeypatch):
    def refuse(*_, **__):
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(helper_process.subprocess, "run", refuse)
    assert ask("") is None
    assert "helper failed (not started: Resource temporarily unavailable)" in capfd.readouterr().err


def test_a_plan_whose_measurement_fails_is_still_a_plan(helper, cwd, capfd):
    helper("import os; os.kill(os.getpid(), 15)")
    assert main([*SIZED, "plan=true"]) == 0
    shown = capfd.readouterr()
    assert shown.err.splitlines() == [
        "warning: the plan doesn't look at the data: trainer.probes.dataset failed (killed by SIGTERM)",
        "warning: the plan has no time: trainer.probes.device failed (killed by SIGTERM)",
    ]
    assert "not estimated: no cpu device could be measured here" in " ".join(shown.out.split())


def test_a_sweep_is_told_once(helper, cwd, capfd):
    helper("raise SystemExit(3)")
    assert main(["-m", *SIZED, "method=lora,full", "plan=true"]) == 0
    assert capfd.readouterr().err.splitlines() == [
        "warning: the plan doesn't look at the data: trainer.probes.dataset failed (exit code 3)",
        "warning: the plan has no time: trainer.probes.device failed (exit code 3)",
    ]


def test_a_local_model_that_cannot_be_counted_is_refused_with_the_reason(helper, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "other"}')
    config = single("model=local", f"model.path={tmp_path}").config
    helper("raise SystemExit('ImportError: no module')")
    with pytest.raises(UsageError, match=r"no plan: .*trainer.probes.model failed \(exit code 1\): ImportError: no"):
        known(config)


def test_a_sweeps_parent_that_is_not_ended_is_told(helper, tmp_path, capfd):
    helper("raise SystemExit('ImportError: mlflow')")
    finish(ParentRun("sqlite:///x.db", "e", "1"), "FINISHED", tmp_path)
    assert capfd.readouterr().err.splitlines() == [
        "ImportError: mlflow",
        "warning: the sweep's parent run in MLflow is not complete: trainer.tracking.sweep failed (exit code 1)",
    ]


@pytest.mark.parametrize(
    ("program", "told"),
    [
        ("print('shown')", ""),
        ("raise SystemExit(3)", "warning: no summary: postprocess.summary failed (exit code 3)\n"),
    ],
)
def test_what_a_process_shows_is_shown_and_its_failure_told(helper, tmp_path, capfd, program, told):
    helper(program)
    assert helper_process.show("postprocess.summary", tmp_path, "no summary") == 0
    shown = capfd.readouterr()
    assert (shown.out, shown.err) == ("" if told else "shown\n", told)


@pytest.mark.parametrize("code", [1, 2])
def test_a_process_that_has_told_its_failure_decides_the_exit_code(helper, tmp_path, capfd, code):
    helper(f"import sys; print('error: no room', file=sys.stderr); sys.exit({code})")
    assert helper_process.show("postprocess.summary", tmp_path, "no summary") == code
    assert capfd.readouterr().err == "error: no room\n"

"""What is said of jobs that were submitted: Slurm's states, what the jobs have noted, and how a person sees it."""

from __future__ import annotations

import io
import json
import os
import shlex
import subprocess
import sys
from dataclasses import replace

import pytest
from rich.console import Console

from launcher.errors import TrntuneError, UsageError
from launcher.executors.slurm import checks, commands, progress, sending, snapshot, states, task
from launcher.executors.slurm.asking import NoAnswer
from launcher.executors.slurm.graph import plan_jobs
from launcher.executors.slurm.ledger import Job, Ledger, RunJobs, read
from launcher.executors.slurm.rendezvous import Step
from launcher.executors.slurm.states import State
from launcher.executors.slurm.task import frozen
from launcher.io import write_json
from tests.launcher.conftest import composition, slurm_commands


def test_states_of_accounting_and_of_the_controller_together(tmp_path, monkeypatch):
    slurm_commands(
        tmp_path, monkeypatch,
        sacct="echo '1|COMPLETED|0:0|trn1'; echo '2|CANCELLED by 1000|0:15|None assigned'; echo '3|RUNNING|0:0|trn2';"
              "echo '5|NODE_FAIL|1:0|trn1'; echo '5|FAILED|75:0|trn2'",
        squeue="echo '3|RUNNING|trn2|None'; echo '4|PENDING||Dependency'",
    )  # fmt: skip
    found = states.states(["1", "2", "3", "4", "5", "6"])
    assert found["1"] == State("COMPLETED", 0, None, "trn1")
    assert (found["2"].name, found["2"].signal, found["2"].ended) == ("CANCELLED", 15, True)
    assert (found["3"].name, found["3"].ended) == ("RUNNING", False)
    assert found["4"].reason == "Dependency"
    assert (found["5"].name, found["5"].exit_code) == ("FAILED", 75)
    assert found["6"].name == states.FORGOTTEN


def test_a_job_that_is_queued_again_has_not_ended(tmp_path, monkeypatch):
    """For some seconds accounting only knows how the start before ended: seen with Slurm 22.05."""
    slurm_commands(
        tmp_path, monkeypatch,
        sacct="echo '1|PREEMPTED|0:0|trn1'; echo '2|NODE_FAIL|1:0|trn1'; echo '3|FAILED|7:0|trn1'",
        squeue="echo '1|PENDING||BeginTime'; echo '2|COMPLETED|trn2|None'; echo '3|FAILED|trn1|NonZeroExitCode'",
    )  # fmt: skip
    found = states.states(["1", "2", "3"])
    assert (found["1"].ended, found["1"].reason) == (False, "BeginTime")
    assert found["2"].succeeded
    assert (found["3"].name, found["3"].exit_code) == ("FAILED", 7)


def test_a_sweep_that_slurm_has_forgotten_is_known_by_what_its_jobs_noted(tmp_path, monkeypatch, capsys):
    (tmp_path / "bin").mkdir()
    slurm_commands(tmp_path / "bin", monkeypatch, sacct="exit 1", squeue="exit 0")
    run = RunJobs(tmp_path / "0_a", [], [Job("train", "5", "c")], stages=["train"])
    Ledger(tmp_path, [], [run], False, Job("report", "9", "c")).write()
    write_json(tmp_path / "0_a" / "logs" / "5.end.json", {"exit_code": 0})
    write_json(tmp_path / "logs" / "9.end.json", {"exit_code": 0})
    assert commands.wait(tmp_path, 1) == 0
    # A title as wide as the table: a long directory's name breaks it into lines.
    assert "1 done; report completed" in " ".join(capsys.readouterr().out.split())
    write_json(tmp_path / "logs" / "9.end.json", {"exit_code": 1})
    assert commands.wait(tmp_path, 1) == 1


def test_a_report_keeps_what_was_submitted_while_it_was_made(tmp_path):
    before = Ledger(tmp_path, [], [RunJobs(tmp_path / n, [], [Job("train", n, "c")]) for n in ("1", "2")], False)
    now = Ledger(tmp_path, [], [RunJobs(run.directory, [], list(run.jobs)) for run in before.runs], False)
    now.runs[1].jobs.append(Job("train", "3", "c"))
    commands._note(now, before, [0, 1])
    written = read(tmp_path)
    assert [run.exit_code for run in written.runs] == [0, None]
    assert written.ids() == ["1", "3"]


@pytest.mark.parametrize("width", [80, 100])
def test_names_are_whole_on_a_narrow_terminal(width, tmp_path):
    names = [f"{number}_method=lora,parallelism=ddp2,training.learning_rate={number}e-4" for number in (1, 2)]
    runs = [RunJobs(tmp_path / name, [], [Job("train", "11947037", "c")]) for name in names]
    for run in runs:
        (run.directory / "logs").mkdir(parents=True)
        (run.directory / "logs" / "11947037_0_log.out").touch()
    found = [progress.progress(run, {"11947037": State("RUNNING", nodes="trn[1-2]")}) for run in runs]
    console = Console(width=width, file=io.StringIO())
    console.print(commands.table(Ledger(tmp_path, [], runs, False), found, None))
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    head = next(line for line in lines if "tokens/s" in line)
    columns = [head.index(name) for name in ("run", "state", "log")]
    first_column = "".join(line[columns[0] : columns[1]].strip() for line in lines[3:])
    last_column = "".join(line[columns[2] :].strip() for line in lines[3:])
    assert all(name in first_column for name in names)
    assert last_column.count("logs/11947037_0_log.out") == 2


def test_slurm_is_asked_two_questions_about_any_number_of_runs(tmp_path, monkeypatch):
    asked = shlex.quote(str(tmp_path / "asked"))
    slurm_commands(tmp_path, monkeypatch, sacct=f"echo sacct >> {asked}", squeue=f"echo squeue >> {asked}")
    runs = [
        RunJobs(tmp_path / f"{n}", [], [Job("fetch", f"{n}1", "c"), Job("train", f"{n}2", "c")]) for n in range(200)
    ]
    found, _ = commands.look(Ledger(tmp_path, [], runs, False))
    assert len(found) == 200
    assert (tmp_path / "asked").read_text().split() == ["sacct", "squeue"]


def test_a_scheduler_that_does_not_answer_is_no_end_of_a_run(tmp_path, monkeypatch):
    slurm_commands(
        tmp_path, monkeypatch, sacct="exit 1", squeue="echo 'Unable to contact slurm controller' >&2; exit 1"
    )
    with pytest.raises(NoAnswer, match="Unable to contact"):
        states.states(["1"])


def test_a_command_of_slurm_that_hangs_is_one_line(tmp_path, monkeypatch):
    """By a controller that takes requests and does not answer them."""
    hangs = "exec sleep 600"
    slurm_commands(tmp_path, monkeypatch, squeue=hangs, scancel=hangs, sbatch=hangs, sacct=hangs)
    for module in (states, checks, sending):
        name = "_SECONDS" if module is states else "SUBMISSION_SECONDS"
        monkeypatch.setattr(module, name, 0.2)
    for command, call in (
        ("squeue", lambda: states.states(["1"])),
        ("scancel", lambda: states.cancel(["1"])),
        ("sbatch", lambda: checks.ask_slurm(["#!/bin/sh\n"])),
        ("sbatch", lambda: sending.hand_in(tmp_path / "env.sbatch")),
    ):
        with pytest.raises(NoAnswer, match=f"^{command} failed: no answer within 0.2 s") as raised:
            call()
        assert raised.value.exit_code == 1
        assert "\n" not in str(raised.value)


def test_jobs_that_cannot_be_taken_back_are_named(tmp_path, monkeypatch, cwd):
    """Else nobody would know of them: they are in no record."""
    submitted = composition("cluster=slurm", "tracking=none", "stages=[fetch,train]")
    run = submitted.runs[0]
    jobs = plan_jobs([(run.directory.name, run.config, ["fetch", "train"])], None, None)
    numbers = iter(["17"])

    def sbatch(*_):
        if (number := next(numbers, None)) is None:
            raise TrntuneError("refused")
        return number

    def scancel(_):
        raise NoAnswer("no answer")

    monkeypatch.setattr(sending, "_sbatch", sbatch)
    monkeypatch.setattr(sending, "cancel", scancel)
    target = sending.Target(tmp_path, tmp_path / "code", sweep=False)
    with pytest.raises(TrntuneError, match=r"refused; and its first jobs stay in the queue \(no answer\): scancel 17"):
        sending._submit_chain(jobs, submitted, target, {}, frozen())


def test_a_controller_that_is_restarted_while_a_job_leaves_is_asked_again(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(task, "_PAUSES", (0.0, 0.0))
    count = shlex.quote(str(tmp_path / "count"))
    for times, says in ((2, "requeued job 7"), (9, "job 7 is not requeued (Unable to contact slurm controller)")):
        slurm_commands(tmp_path, monkeypatch, scontrol=f"printf x >> {count}; [ $(wc -c < {count}) -gt {times} ] || "
                       "{ echo Unable to contact slurm controller >&2; exit 1; }")  # fmt: skip
        assert task.leave(Step("7", 0, "0", 0, "trn1")) == 75
        assert says in capsys.readouterr().err
        (tmp_path / "count").unlink()


def test_what_a_job_noted_stands_in_for_what_slurm_has_forgotten(tmp_path):
    run = RunJobs(tmp_path, [], [Job("fetch", "1", "c"), Job("train", "2", "c")])
    (tmp_path / "logs").mkdir()
    forgotten = {"1": State("COMPLETED"), "2": State(states.FORGOTTEN)}
    assert progress.progress(run, forgotten).state == progress.FAILED
    (tmp_path / "logs" / "2.end.json").write_text('{"exit_code": 0}')
    assert progress.progress(run, forgotten).state == progress.DONE
    (tmp_path / "logs" / "2.end.json").write_text('{"exit_code": 1}')
    found = progress.progress(run, forgotten)
    assert (found.state, found.stage, found.detail) == (progress.FAILED, "train", "FAILED, exit code 1")


def test_a_run_stands_as_its_first_unfinished_stage_does(tmp_path):
    run = RunJobs(tmp_path, [], [Job("fetch", "1", "c"), Job("train", "2", "c"), Job("train", "3", "d")])
    known = {"1": State("COMPLETED"), "2": State("FAILED"), "3": State("PENDING", reason="Resources")}
    found = progress.progress(run, known)
    assert (found.state, found.stage, found.detail) == (progress.WAITING, "train", "Resources")
    (tmp_path / "metrics.jsonl").write_text(
        '{"event": "train", "step": 4, "loss": 2.5, "tokens_per_second": 100.0}\n{"event": "eval", "step": 4}\n{"ev'
    )
    (tmp_path / "plan.json").write_text('{"steps": 16}')
    broken_off = replace(run, stages=["train", "merge"])
    found = progress.progress(broken_off, {**known, "3": State("COMPLETED")})
    assert (found.state, found.detail, found.ended) == (progress.INCOMPLETE, "merge was not submitted", True)
    assert progress.progress(replace(run, stages=["train"]), {**known, "3": State("COMPLETED")}).state == progress.DONE
    found = progress.progress(run, {**known, "3": State("RUNNING", nodes="trn[1-2]")})
    assert (found.step, found.loss, found.tokens_per_second, found.nodes) == ("4/16", 2.5, 100.0, "trn[1-2]")


def test_what_is_done_is_done_however_its_job_ended(tmp_path):
    """Also elsewhere, by a run on one machine, and where a stage isn't wanted any more."""
    run = RunJobs(tmp_path, [], [Job("fetch", "1", "c"), Job("train", "2", "c")], stages=["fetch", "train"])
    known = {"1": State("FAILED", 7), "2": State("CANCELLED")}
    assert progress.progress(run, known).state == progress.FAILED
    run.plan(["fetch", "train"], ["train"])
    assert (run.stages, run.done) == (["train"], ["fetch"])
    assert progress.progress(run, {**known, "2": State("RUNNING")}).state == progress.RUNNING
    assert progress.progress(run, {**known, "2": State("COMPLETED")}).state == progress.DONE
    run.plan(["fetch"], [])
    assert progress.progress(run, known).state == progress.DONE
    Ledger(tmp_path, [], [run], single=True).write()
    assert read(tmp_path).runs == [run]
    nowhere_submitted = RunJobs(tmp_path, [])
    assert progress.progress(nowhere_submitted, {}).state == progress.INCOMPLETE
    nowhere_submitted.plan(["fetch"], [])
    assert progress.progress(nowhere_submitted, {}).state == progress.DONE


def test_a_run_that_goes_on_has_no_exit_code_yet(tmp_path):
    """`launcher report` may be called at any time."""
    run = RunJobs(tmp_path, [], [Job("train", "1", "c")])
    for state, code in ((State("RUNNING"), None), (State("FAILED", 7), 7), (State("CANCELLED"), 1),
                        (State("COMPLETED"), 0)):  # fmt: skip
        known = {"1": state}
        assert commands._exit_code(run, progress.progress(run, known), known) == code


def test_the_record_of_a_submission_is_read_as_it_was_written(tmp_path):
    (tmp_path / "0_a").mkdir()
    runs = [RunJobs(tmp_path / "0_a", ["seed=1"], [Job("train", "5", "ab")])]
    ledger = Ledger(tmp_path, ["seed=1,2"], runs, False, Job("report", "9", "ab"), None)
    ledger.write()
    assert read(tmp_path) == ledger
    assert ledger.ids() == ["5", "9"]
    (tmp_path / "sweep.json").write_text("{}")
    with pytest.raises(UsageError, match="not a record of submissions"):
        read(tmp_path)


@pytest.mark.parametrize(
    "arguments",
    [
        ["status", "nowhere"],
        ["wait", ".", "--every", "0"],
        ["wait", ".", "--every", "nan"],
        ["stauts", "."],
        [],
    ],
)
def test_commands_refuse_in_one_line(arguments, cwd):
    command = [sys.executable, "-m", "launcher", *arguments]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False,
                          env={**os.environ, "PYTHONPATH": str(snapshot.ROOT)})  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1, shlex.join(arguments)


def test_local_sweeps_are_told_apart(tmp_path):
    (tmp_path / "sweep.json").write_text(json.dumps({"overrides": [], "runs": [], "mlflow": None}))
    assert read(tmp_path).ids() == []

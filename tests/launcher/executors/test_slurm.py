"""What is submitted to Slurm, as pure functions of the configuration: no Slurm is needed."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from omegaconf import OmegaConf

from launcher.errors import TrntuneError, UsageError
from launcher.executors.local import Interrupts
from launcher.executors.slurm import checks, commands, rendezvous, snapshot
from launcher.executors.slurm.checks import check_cluster, not_shared, refuse_composition
from launcher.executors.slurm.environment import submission_environment
from launcher.executors.slurm.graph import describe, plan_jobs
from launcher.executors.slurm.ledger import read
from launcher.executors.slurm.resources import batch_script, dependency, nodes_of_training, parameters, resources
from launcher.executors.slurm.sending import Target
from launcher.executors.slurm.sending import script as script_of
from launcher.executors.slurm.task import StageTask, frozen, frozen_of
from launcher.io import write_atomic, write_json
from launcher.jobs.variables import variables
from launcher.neuron.graphs import directory_name
from launcher.plan import build
from launcher.run_dir.attempts import Attempts
from launcher.run_dir.layout import RunDir
from launcher.run_dir.lock import LockHeldError, RunLock, runs
from tests.launcher.conftest import composition, single, slurm_commands
from tests.launcher.run_dir.test_lock import hold
from tests.limits import PATIENCE, until

NEURON = ("accelerator=trn1_32xlarge", "model=llama3_8b", "parallelism=trn1_tp8_dp16_4nodes")


def script(stage: str, *arguments: str, waits: str | None = None) -> str:
    config = single(*arguments).config
    code, configured = Path("/fsx/my runs/code/ab"), variables(stage, config)
    options = parameters(f"{stage}.r", resources(stage, config), configured, config.cluster, code, waits)
    return batch_script("/fsx/venv/bin/python", Path("/fsx/my runs/logs"), options)


GOLDEN_TRAIN = """\
#!/bin/bash

# Parameters
#SBATCH --account=research
#SBATCH --dependency=afterok:12
#SBATCH --exclusive
#SBATCH --job-name=train.r
#SBATCH --kill-on-invalid-dep=yes
#SBATCH --mem=0G
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output='/fsx/my runs/logs/%j_0_log.out'
#SBATCH --partition=trn
#SBATCH --qos=high
#SBATCH --requeue
#SBATCH --reservation=mine
#SBATCH --signal=USR2@180
#SBATCH --time=600

# setup
export PYTHONSAFEPATH=1
export TRNTUNE_CACHE=/fsx/trntune/cache
export HF_HOME=/fsx/trntune/huggingface
export NEURON_CC_FLAGS='--model-type=transformer --retry_failed_compilation --cache_dir={graphs}'
export NEURON_COMPILE_CACHE_URL={graphs}
export NEURON_FUSE_SOFTMAX=1
export NEURON_RT_ASYNC_EXEC_MAX_INFLIGHT_REQUESTS=3
export MALLOC_ARENA_MAX=64
export FI_PROVIDER=efa
export FI_EFA_USE_DEVICE_RDMA=1
export FI_EFA_FORK_SAFE=1
export PYTHONPATH='/fsx/my runs/code/ab'${PYTHONPATH:+:$PYTHONPATH}
ulimit -n 65536

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output '/fsx/my runs/logs/%j_%t_log.out' --kill-on-bad-exit=1 --export=ALL \
'--chdir=/fsx/my runs/code/ab' --auto-resume=1 /fsx/venv/bin/python -u -m submitit.core._submit '/fsx/my runs/logs'
"""

GOLDEN_FETCH = """\
#!/bin/bash

# Parameters
#SBATCH --cpus-per-task=2
#SBATCH --job-name=fetch.r
#SBATCH --mem=8G
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output='/fsx/my runs/logs/%j_0_log.out'
#SBATCH --partition=cpu
#SBATCH --requeue
#SBATCH --signal=USR2@180
#SBATCH --time=120

# setup
export PYTHONSAFEPATH=1
export PYTHONPATH='/fsx/my runs/code/ab'${PYTHONPATH:+:$PYTHONPATH}

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output '/fsx/my runs/logs/%j_%t_log.out' --kill-on-bad-exit=1 --export=ALL \
'--chdir=/fsx/my runs/code/ab' --cpus-per-task=2 /fsx/venv/bin/python -u -m submitit.core._submit \
'/fsx/my runs/logs'
"""


def test_the_batch_script_of_training_on_hyperpod(cwd):
    config = single(*NEURON, "cluster=hyperpod").config
    graphs = f"/fsx/trntune/cache/neuron/{directory_name(config)}"
    text = script(
        "train", *NEURON, "cluster=hyperpod", "cluster.partition=trn", "cluster.account=research", "cluster.qos=high",
        "cluster.time_limit_min=600", "cluster.setup=['ulimit -n 65536']", "cluster.sbatch_args=['--reservation=mine']",
        waits="afterok:12",
    )  # fmt: skip
    assert text == GOLDEN_TRAIN.replace("{graphs}", graphs)


def test_compiling_has_the_nodes_of_training_and_a_time_limit_of_its_own(cwd):
    config = single(*NEURON, "cluster=slurm", "cluster.time_limit_min=600").config
    train, compiling = resources("train", config), resources("compile", config)
    assert compiling == replace(train, time_limit_min=240)
    names = [job.name for job in plan_jobs([("r", config, config.stages)], None, None)]
    assert names == ["fetch.r", "compile.r", "train.r"]
    assert plan_jobs([("r", config, config.stages)], None, None)[2].after_success == [("r", "compile")]


def test_only_stages_on_the_accelerator_get_its_variables(cwd):
    assert "NEURON" not in script("merge", *NEURON, "cluster=hyperpod")
    assert script("compile", *NEURON, "cluster=hyperpod").count("NEURON_CC_FLAGS") == 1


def test_the_batch_script_of_a_small_stage(cwd):
    text = script(
        "fetch", *NEURON, "cluster=slurm", "cluster.partition=trn", "cluster.small.partition=cpu",
        "cluster.small.cpus=2", "cluster.small.memory_gb=8",
    )  # fmt: skip
    assert text == GOLDEN_FETCH


def test_what_a_user_adds_takes_nothing_of_hyperpods_away(cwd):
    own = ("cluster.srun_args=['--cpu-bind=none']", "cluster.environment=['A=1']")
    text = script("train", *NEURON, "cluster=hyperpod", *own)
    assert "--auto-resume=1 --cpu-bind=none" in text
    for line in ("A=1", "TRNTUNE_CACHE=/fsx/trntune/cache", "HF_HOME=/fsx/trntune/huggingface"):
        assert f"export {line}\n" in text
    assert "NEURON_COMPILE_CACHE_URL=/fsx/trntune/cache/neuron/" in text


@pytest.mark.parametrize(
    ("configured", "found"),
    [
        ("", "/fsx/my runs/code/ab:/home/modules"),
        ("cluster.environment=['PYTHONPATH=/fsx/mine:/fsx/their modules']",
         "/fsx/my runs/code/ab:/fsx/mine:/fsx/their modules"),
        ("cluster.environment=['PYTHONPATH=']", "/fsx/my runs/code/ab"),
    ],
)  # fmt: skip
def test_modules_of_the_user_come_after_what_was_submitted(configured, found, cwd):
    """Those of the shell that submits, unless the configuration names others."""
    text = script("fetch", "cluster=slurm", *filter(None, [configured]))
    [line] = [line for line in text.splitlines() if "PYTHONPATH" in line]
    shell = {"PATH": os.environ["PATH"], "PYTHONPATH": "/home/modules"}
    command = ["bash", "-c", f'{line}; printf %s "$PYTHONPATH"']
    done = subprocess.run(command, env=shell, capture_output=True, text=True, check=True)
    assert done.stdout == found


def test_scripts_are_shell_that_bash_takes(cwd):
    text = script("train", "cluster=hyperpod", "cluster.environment=['A=it is \"5\"; $HOME']")
    assert subprocess.run(["bash", "-n"], input=text, text=True, check=False).returncode == 0
    exports = [line for line in text.splitlines() if line.startswith("export A=")]
    done = subprocess.run(["bash", "-c", f'{exports[0]}; printf %s "$A"'], capture_output=True, text=True, check=True)
    assert done.stdout == 'it is "5"; $HOME'


@pytest.mark.parametrize(
    ("arguments", "nodes", "each"),
    [
        ((), 1, 1),
        (("parallelism=ddp2",), 1, 2),
        (("parallelism=ddp2", "cluster.processes_per_node=1"), 2, 1),
        (("parallelism=ddp2", "cluster.processes_per_node=8"), 1, 2),
        (NEURON, 4, 32),
        ((*NEURON[:2], "parallelism=trn1_tp8_dp4"), 1, 32),
    ],
)
def test_nodes_follow_from_the_parallelism(arguments, nodes, each, cwd):
    config = single("cluster=slurm", *arguments).config
    asked = resources("train", config)
    assert (asked.nodes, asked.processes_per_node) == (nodes, each) == (nodes_of_training(config), each)
    assert resources("merge", config).nodes == 1


def test_whole_nodes_have_all_of_their_memory_and_shared_ones_the_default(cwd):
    whole = resources("train", single("cluster=slurm").config)
    shared = resources("train", single("cluster=slurm", "cluster.exclusive=false").config)
    assert (whole.exclusive, whole.memory_gb) == (True, 0)
    assert (shared.exclusive, shared.memory_gb) == (False, None)


def test_gpus_are_asked_for_on_a_gpu(cwd):
    config = single("cluster=slurm", "accelerator=cuda", "parallelism=ddp2", "cluster.processes_per_node=2").config
    assert resources("train", config).gpus_per_node == 2
    assert resources("fetch", config).gpus_per_node is None


def test_the_signal_never_comes_before_half_of_the_time(cwd):
    assert "--signal=USR2@30\n" in script("train", "cluster=slurm", "cluster.time_limit_min=1")


def test_the_order_of_a_sweep(cwd):
    config = single("cluster=slurm").config
    work = [(f"r{n}", config, ["fetch", "train"]) for n in range(4)]
    jobs = {job.key: job for job in plan_jobs(work, 2, config)}
    assert jobs["r0", "train"].after_success == [("r0", "fetch")]
    assert jobs["r1", "fetch"].after_end == []
    assert jobs["r2", "fetch"].after_end == [("r0", "train")]
    assert jobs["r3", "fetch"].after_end == [("r1", "train")]
    assert jobs["r3", "train"].after_end == []
    assert jobs["report", "report"].after_end == [(f"r{n}", "train") for n in range(4)]
    assert describe(list(jobs.values()))[2:] == [
        "r2: fetch (1 node) -> train (1 node), after the end of r0",
        "r3: fetch (1 node) -> train (1 node), after the end of r1",
        "report: after the end of all 4 runs, good or bad",
    ]


def test_runs_that_are_in_the_queue_already_count(cwd):
    """Those that are submitted again wait for them, and so does the comparison."""
    config = single("cluster=slurm").config
    jobs = plan_jobs([(name, config, ["train"]) for name in "cd"], 2, config, [("a", "train"), ("b", "train")])
    assert [job.after_end for job in jobs] == [[("a", "train")], [("b", "train")], [(n, "train") for n in "abcd"]]


def test_finished_runs_have_no_jobs_and_hold_up_none(cwd):
    config = single("cluster=slurm").config
    jobs = plan_jobs([("a", config, []), ("b", config, ["train"]), ("c", config, ["train"])], 1, config)
    assert [(job.key, job.after_end) for job in jobs[:2]] == [(("b", "train"), []), (("c", "train"), [("b", "train")])]
    assert plan_jobs([("a", config, [])], None, config) == []


def test_dependencies():
    assert dependency([], []) is None
    assert dependency(["1"], ["2", "3"]) == "afterok:1,afterany:2:3"


@pytest.mark.parametrize(
    ("arguments", "piece"),
    [
        (("cluster=slurm", "cluster.environment=[FOO]"), "cluster.environment=FOO: is not NAME=value"),
        (("cluster=slurm", "cluster.srun_args=[auto-resume]"), "cluster.srun_args=auto-resume: is not --name"),
        (("cluster=slurm", "cluster.sbatch_args=['--x=1; y']", "cluster.name=elsewhere"), "cluster.name=elsewhere"),
        (("cluster=slurm", "parallelism=ddp2", "parallelism.data_parallel=6", "training.global_batch_size=6",
          "cluster.processes_per_node=4"), "nearest is 3"),
        (("cluster=slurm", "tracking=none", "hydra.run.dir='a:b'"), "PYTHONPATH gives ':' a meaning"),
        (("dry_run=true",), "cluster=local submits nothing"),
        (("cluster=slurm", 'cluster.sbatch_args=["--nodes=8"]'), "--nodes=8: is the launcher's own to set"),
        (("cluster=slurm", 'cluster.srun_args=["--chdir=/tmp"]'), "--chdir=/tmp: is the launcher's own to set"),
        (("cluster=slurm", "cluster.srun_args=[--version]"), "--version: is the launcher's own to set"),
        (("cluster=slurm", "cluster.sbatch_args=[--parsable]"), "--parsable: is the launcher's own to set"),
        (("cluster=slurm", "cluster.max_parallel=0"), "cluster.max_parallel=0: must be >= 1"),
        (("cluster=slurm", "cluster.partiton=x"), "did you mean cluster.partition?"),
    ],
)  # fmt: skip
def test_refusals_of_the_configuration(arguments, piece, answer, cwd):
    done = answer("experiment=tiny", *arguments)
    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    assert piece in line
    assert list(cwd.iterdir()) == []


def test_how_many_gpus_a_node_has_is_not_guessed(cwd):
    many = ("cluster=slurm", "accelerator=cuda", "parallelism.data_parallel=16", "training.global_batch_size=16")
    [problem] = check_cluster(single(*many).config)
    assert str(problem) == (
        "accelerator.devices_per_instance=null: 16 processes of training would all be on one node; give the GPUs that "
        "a node has, or cluster.processes_per_node"
    )
    for enough in ("accelerator.devices_per_instance=8", "cluster.processes_per_node=8"):
        config = single(*many, enough).config
        assert list(check_cluster(config)) == []
        assert (nodes_of_training(config), resources("train", config).gpus_per_node) == (2, 8)
    assert list(check_cluster(single(*many[:2]).config)) == []  # one process, one GPU
    assert list(check_cluster(single("cluster=slurm", *many[2:]).config)) == []  # a CPU takes as many as one likes


def test_a_node_has_no_more_processes_than_devices(cwd):
    config = single(*NEURON, "cluster=slurm", "cluster.processes_per_node=64").config
    [problem] = check_cluster(config)
    assert "cluster.processes_per_node=64: a node of trn1_32xlarge has 32 devices; nearest is 32" in str(problem)


def test_without_slurm_it_says_where_to_go(answer, cwd, monkeypatch):
    monkeypatch.setenv("PATH", str(cwd))
    done = answer("experiment=tiny", "cluster=slurm", "tracking=none")
    assert done.returncode == 2
    assert (
        done.stderr == "error: cluster=slurm: no sbatch here: submit from a node of the cluster, or use cluster=local\n"
    )
    assert list(cwd.iterdir()) == []


def test_dry_run_prints_every_script_and_the_order_and_makes_nothing(answer, cwd, monkeypatch):
    monkeypatch.setenv("PATH", str(cwd))  # no Slurm either
    done = answer("experiment=tiny", "cluster=hyperpod", "tracking=none", "dry_run=true", "-m", "method=lora,full")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("#!/bin/bash") == 5
    assert "--dependency=afterok:JOBID_fetch.0_method=lora\n" in done.stdout
    assert "afterany:JOBID_train.0_method=lora:JOBID_train.1_method=full" in done.stdout
    assert "# 0_method=lora: fetch (1 node) -> train (1 node)" in done.stdout
    assert "is not below cluster.shared_root=/fsx" in done.stderr
    assert list(cwd.iterdir()) == []


def test_what_does_not_lie_on_the_shared_file_system(cwd, tmp_path):
    cluster = single("cluster=hyperpod", f"cluster.shared_root={tmp_path}").config.cluster
    found = not_shared(cluster, Path("/elsewhere/run"))
    assert len(found) == 2
    assert found[0].startswith("the run directory /elsewhere/run is not below")
    assert found[1].startswith("Python ")
    assert not_shared(replace(cluster, python=f"{tmp_path}/venv/bin/python"), cwd / "run") == []
    link = tmp_path / "link"
    link.symlink_to("/var")
    assert "link" in not_shared(replace(cluster, python=f"{tmp_path}/python"), link / "run")[0]
    mount = tmp_path / "mount"
    mount.mkdir()
    root = tmp_path / "fsx"
    root.symlink_to(mount)
    linked = replace(cluster, shared_root=str(root), python=f"{root}/python")
    assert [line.split()[:3] for line in not_shared(linked, root / "run")] == [["the", "working", "directory"]]


def test_what_the_nodes_would_not_find_is_refused_before_anything_is_made(launch, cwd, tmp_path, monkeypatch):
    """Each of the places in turn, by the command itself; Slurm isn't asked."""
    here = dict.fromkeys(("sbatch", "srun", "squeue", "scancel", "scontrol"), "exit 1")
    slurm_commands(tmp_path, monkeypatch, **here)
    shared = ("experiment=tiny", "cluster=hyperpod", f"cluster.shared_root={tmp_path}", f"cluster.python={tmp_path}/py")
    cached = f"cluster.cache_dir={tmp_path}/cache"
    for arguments, what in (
        (("hydra.run.dir=/var/tmp/run", cached), "the run directory /var/tmp/run"),
        ((cached, "cluster.python=/usr/bin/python3"), "Python /usr/bin/python3"),
        ((), "cluster.cache_dir: /fsx/trntune"),
        ((cached, "tracking.uri=sqlite:////var/tmp/mlflow.db"), "the file of tracking.uri, /var/tmp/mlflow.db"),
        ((cached, "dataset=jsonl", f"dataset.path={__file__}"), f"dataset.path: {__file__}"),
    ):
        done = launch(*shared[: 3 if "cluster.python" in str(arguments) else 4], *arguments)
        assert done.returncode == 2
        [line] = done.stderr.splitlines()
        assert line.startswith(f"error: {what} is not below cluster.shared_root={tmp_path}"), line
        assert list(cwd.iterdir()) == []


def test_runs_of_one_sweep_go_to_one_cluster(cwd):
    with pytest.raises(UsageError, match="cluster differs"):
        refuse_composition(composition("-m", "cluster=local,slurm", "tracking=none"))
    for place in ("100%j", "a\\\\b", "two\nlines"):
        with pytest.raises(UsageError, match="in the names of logs"):
            refuse_composition(composition("cluster=slurm", f"hydra.run.dir='{place}'"))


def test_a_snapshot_is_the_code_and_is_shared_by_equal_ones(tmp_path):
    root = tmp_path / "root"
    (root / "launcher").mkdir(parents=True)
    (root / "launch.py").write_text("1")
    (root / "launcher" / "a.py").write_text("2")
    (root / "launcher" / "a.pyc").write_text("compiled")
    first = snapshot.take(tmp_path / "code", root)
    assert [str(file) for file in snapshot.files(first)] == ["launch.py", "launcher/a.py"]
    assert snapshot.take(tmp_path / "code", root) == first
    (root / "launcher" / "a.py").write_text("3")
    second = snapshot.take(tmp_path / "code", root)
    assert second != first
    assert (first / "launcher" / "a.py").read_text() == "2"
    (second / "launcher" / "a.py").chmod(0o644)
    (second / "launcher" / "a.py").write_text("tampered")
    assert (snapshot.take(tmp_path / "code", root) / "launcher" / "a.py").read_text() == "3"


def test_a_changed_environment_is_refused():
    now = frozen()
    now.check()
    packages = tuple((name, "0.0" if name == "peft" else version) for name, version in now.packages)
    with pytest.raises(TrntuneError, match=r"peft was 0\.0"):
        replace(now, packages=packages).check()


def test_the_environment_is_that_of_the_python_that_jobs_run_in(tmp_path, capfd):
    other = tmp_path / "python"
    other.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n')
    other.chmod(0o755)
    assert frozen_of(str(other)) == frozen_of(None) == frozen()
    other.write_text('#!/bin/sh\necho \'["3.10.1", [["torch", "2.8.0"]]]\'\n')
    elsewhere = frozen_of(str(other))
    with pytest.raises(TrntuneError, match=r"Python was 3\.10\.1"):
        elsewhere.check()
    assert capfd.readouterr().err == ""
    frozen_of(str(tmp_path / "on the nodes only")).check()
    assert "does not run here" in capfd.readouterr().err


def test_a_stage_whose_starts_all_end_with_the_node_is_given_up(tmp_path):
    task = StageTask("fetch", str(tmp_path), str(tmp_path), 1, 1, frozen())
    with pytest.raises(TrntuneError, match="stage fetch was started 3 times without an end"):
        task._run(rendezvous.Step("1", 3, "0", 0, "trn1"), Interrupts())


def test_starts_of_training_that_never_begin_are_given_up_too(tmp_path, monkeypatch):
    """Slurm starts the job again each time, as when the driver takes the node along."""
    task = StageTask("train", str(tmp_path), str(tmp_path), 2, 1, frozen())
    monkeypatch.setattr("launcher.executors.slurm.task.run_stage", lambda *_: 1)
    monkeypatch.setattr(StageTask, "_torchrun_options", lambda *_: [])
    for restarts in range(3):
        for node in (0, 1):
            assert task._run(rendezvous.Step("1", restarts, "0", node, "trn[1-2]"), Interrupts()) == 1
    with pytest.raises(TrntuneError, match="3 attempts in a row got no further than step 0"):
        task._run(rendezvous.Step("1", 3, "0", 0, "trn[1-2]"), Interrupts())


def test_a_start_that_another_process_keeps_out_is_no_attempt(tmp_path, monkeypatch):
    """Nor does it end the attempt of the one that is at work."""
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)  # which would have it wait
    monkeypatch.setattr("launcher.executors.slurm.task.run_stage", lambda *_: pytest.fail("it was started"))
    attempts = Attempts(tmp_path / "attempts.jsonl")
    attempts.start(attempts.launch())
    hold(tmp_path, host="trn7")
    task = StageTask("train", str(tmp_path), str(tmp_path), 1, 1, frozen())
    for restarts in range(4):
        with pytest.raises(LockHeldError, match="on trn7"):
            task._run(rendezvous.Step("1", restarts, "0", 0, "trn1"), Interrupts())
    assert [(attempt.number, attempt.outcome) for attempt in attempts.read()] == [(1, None)]


def test_a_job_that_is_told_to_leave_does_not_wait_for_its_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "9")
    monkeypatch.setattr("launcher.run_dir.lock.time.sleep", lambda _: pytest.fail("it waits"))
    monkeypatch.setattr("launcher.executors.slurm.task.run_stage", lambda *_: pytest.fail("it was started"))
    hold(tmp_path, host="trn7", slurm_job_id="8")
    interrupts = Interrupts(patient=True)
    interrupts(signal.SIGTERM, None)
    with pytest.raises(LockHeldError):
        StageTask("train", str(tmp_path), str(tmp_path), 1, 1, frozen())._run(
            rendezvous.Step("9", 0, "0", 0, "trn1"), interrupts
        )


@pytest.mark.parametrize(
    ("status", "started"), [("finished", False), ("early_stopped", False), ("interrupted", True), (None, True)]
)
def test_what_a_start_before_has_finished_is_not_done_again(status, started, tmp_path, cwd, monkeypatch, capsys):
    """Its node was lost, or the job requeued, after the result was written; all nodes leave it at that."""
    ran = []
    monkeypatch.setattr("launcher.executors.slurm.task.run_stage", lambda *_: ran.append(1) or 0)
    monkeypatch.setattr(rendezvous, "address_of", lambda _: "10.0.0.7")
    monkeypatch.setattr(rendezvous, "first_node", lambda _: "trn1")
    write_atomic(RunDir(tmp_path).config_file, OmegaConf.to_yaml(OmegaConf.structured(single("cluster=slurm").config)))
    if status is not None:
        write_json(RunDir(tmp_path).stage_file("train"), {"status": status})
    task = StageTask("train", str(tmp_path), str(tmp_path), 2, 1, frozen())
    # The eighth start: what is finished is not given up either.
    for node in (0, 1):
        assert task._run(rendezvous.Step("1", 7, "0", node, "trn[1-2]"), Interrupts()) == 0
    assert len(ran) == (2 if started else 0)
    assert len(Attempts(tmp_path / "attempts.jsonl").read()) == (1 if started else 0)
    assert ("stage train has finished already" in capsys.readouterr().err) is not started


def test_a_submission_that_is_refused_changes_nothing_for_what_is_in_the_queue(answer, cwd, tmp_path, monkeypatch):
    """A queued job reads the configuration from the run's directory when it starts."""
    submits = {"sbatch": "echo Submitted batch job 17", "squeue": "echo '17|PENDING||None'", "sacct": "exit 1"}
    slurm_commands(tmp_path, monkeypatch, srun="exit 1", scancel="exit 1", scontrol="exit 1", **submits)
    run = ("experiment=tiny", "tracking=none", "cluster=slurm", "hydra.run.dir=r", "stages=[fetch]")
    assert answer(*run).returncode == 0
    before = RunDir(cwd / "r").config_file.read_bytes()
    done = answer(*run, "merge.dtype=float16")
    assert done.returncode == 1
    assert done.stderr == ("error: r: its jobs are still in the queue: wait for them, or python -m launcher cancel r\n")
    assert RunDir(cwd / "r").config_file.read_bytes() == before


def test_retry_knows_the_runs_that_were_added_to_a_sweep(answer, cwd, tmp_path, monkeypatch):
    count = shlex.quote(str(tmp_path / "count"))
    submits = {"sbatch": f"printf x >> {count}; echo Submitted batch job $(wc -c < {count})", "squeue": "exit 0"}
    slurm_commands(tmp_path, monkeypatch, srun="exit 1", scancel="exit 0", scontrol="exit 1", sacct="exit 1", **submits)
    sweep = ("experiment=tiny", "tracking=none", "cluster=slurm", "stages=[fetch]", "hydra.sweep.dir=s", "-m")
    for seeds in ("0,1", "0,1,2"):
        done = answer(*sweep, f"seed={seeds}")
        assert done.returncode == 0, done.stderr
    assert [len(run.jobs) for run in read(cwd / "s").runs] == [2, 2, 1]  # Slurm has forgotten the first: not finished
    for times in (1, 2):
        assert commands.retry(cwd / "s", ["cluster.time_limit_min=7"]) == 0
        assert [len(run.jobs) for run in read(cwd / "s").runs] == [2 + times, 2 + times, 1 + times]
    # A smaller sweep is a part of it, and what is given with a retry is for that one.
    assert answer(*sweep, "seed=0").returncode == 0
    overrides = read(cwd / "s").overrides
    assert "seed=0,1,2" in overrides
    assert "cluster=slurm" in overrides
    assert not any("time_limit" in line for line in overrides)


@pytest.mark.parametrize(
    ("stage", "key"), [("compile", "cluster.compile_time_limit_min"), ("merge", "cluster.small.time_limit_min")]
)
def test_a_stage_that_reaches_its_time_limit_says_what_gives_it_more(stage, key, tmp_path, monkeypatch, capsys):
    task = StageTask(stage, str(tmp_path), str(tmp_path), 1, 1, frozen())
    monkeypatch.setattr("launcher.executors.slurm.task.run_stage", lambda *_: 75)
    interrupts = Interrupts(patient=True)
    interrupts(signal.SIGUSR2, None)
    assert task._run(rendezvous.Step("1", 0, "0", 0, "trn1"), interrupts) == 1
    assert f"retry SWEEP {key}=MINUTES" in capsys.readouterr().err


def test_nodes_meet_where_the_first_one_says(tmp_path, monkeypatch):
    monkeypatch.setattr(rendezvous, "_scontrol", lambda *words: "trn3\ntrn4\n" if "hostnames" in words else
                        "NodeName=trn3 Arch=x NodeAddr=10.0.0.7 NodeHostName=trn3 ")  # fmt: skip
    monkeypatch.setattr(rendezvous.socket, "getaddrinfo", _unknown_name)
    step = rendezvous.Step("77", 0, "0", 0, "trn[3-4]")
    first = rendezvous.agree(step, tmp_path, None, None)
    assert first[:3] == ["--rdzv-backend=static", "--node-rank=0", "--master-addr=10.0.0.7"]
    second = rendezvous.agree(replace(step, node=1), tmp_path, None, None)
    assert second[1] == "--node-rank=1"
    assert second[2:] == first[2:]
    with monkeypatch.context() as on_the_first:  # it knows itself by a name that means nothing to the second
        on_the_first.setattr(rendezvous.socket, "getaddrinfo", lambda *_: [])
        named = rendezvous.agree(replace(step, step_id="1"), tmp_path, None, None)
    assert named[2] == "--master-addr=trn3"
    assert rendezvous.agree(replace(step, step_id="1", node=1), tmp_path, None, None)[2:] == [first[2], named[3]]
    with pytest.raises(TrntuneError, match="has not written it"):  # another start of the job: the old word is stale
        rendezvous.agree(replace(step, node=1, restarts=1), tmp_path, None, None, seconds=0.3)
    own = rendezvous.agree(step, tmp_path, "10.1.1.1", 4444)
    assert own[2:] == ["--master-addr=10.1.1.1", "--master-port=4444"]


def _unknown_name(*_):
    raise OSError


def test_ports_are_free_and_not_those_of_outgoing_connections():
    ports = {rendezvous.free_port() for _ in range(20)}
    assert len(ports) > 10
    assert all(15000 <= port < 30000 for port in ports)


def test_jobs_inherit_nothing_of_a_job_that_submits_them(monkeypatch):
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "3")
    monkeypatch.setenv("RANK", "5")
    monkeypatch.setenv("SLURM_CONF", "/etc/slurm.conf")
    monkeypatch.setenv("SBATCH_ACCOUNT", "mine")
    kept = submission_environment()
    assert not {"SLURM_CPUS_PER_TASK", "RANK"} & set(kept)
    assert (kept["SLURM_CONF"], kept["SBATCH_ACCOUNT"]) == ("/etc/slurm.conf", "mine")


def test_slurm_is_asked_once_for_runs_that_want_the_same(tmp_path, monkeypatch, cwd):
    slurm_commands(tmp_path, monkeypatch, sbatch=f'echo "$@" >> {shlex.quote(str(tmp_path / "asked"))}')
    submitted = composition("-m", "cluster=slurm", "seed=range(5)", "tracking=none")
    jobs = plan_jobs([(run.directory.name, run.config, ["fetch", "train"]) for run in submitted.runs], None, None)
    target = Target(tmp_path, tmp_path / "code", sweep=True)
    checks.ask_slurm([script_of(job, submitted, target, {}) for job in jobs])
    asked = (tmp_path / "asked").read_text().splitlines()
    assert len(asked) == 2
    assert all(line.startswith("--test-only") for line in asked)


def test_srun_is_asked_about_its_options_before_anything_is_made(answer, cwd, tmp_path, monkeypatch):
    """As srun answers in Slurm 22.05; sbatch, which reads none of them, takes everything."""
    unknown = (
        """[ "$1" != --foo ] || { echo "srun: unrecognized option '$1'" >&2; echo Try srun --help >&2; exit 255; }"""
    )
    others = dict.fromkeys(("squeue", "scancel", "scontrol"), "exit 1")
    slurm_commands(tmp_path, monkeypatch, srun=unknown, sbatch="exit 0", **others)
    done = answer("experiment=tiny", "tracking=none", "cluster=slurm", "cluster.srun_args=[--foo]")
    assert done.returncode == 1
    assert done.stderr == (
        "error: srun would not take cluster.srun_args=--foo: srun: unrecognized option '--foo'; nothing was submitted\n"
    )
    assert list(cwd.iterdir()) == []
    checks.ask_srun(["--cpu-bind=none"])


def test_the_plan_of_a_cluster_does_not_judge_by_this_machine(cwd):
    def planned(*arguments: str):
        config = single("cluster=slurm", "parallelism=ddp2", "model=llama3_8b", *arguments).config
        return build.preflight(config, config.model.architecture)

    assert planned().memory.available == float("inf")
    found = planned("cluster.memory_gb=64", "cluster.processes_per_node=2")
    assert found.memory.available == 32e9
    assert [job.instances for job in planned("cluster.processes_per_node=1").jobs] == [1, 2]


def test_a_rank_that_was_cut_off_ends_when_the_run_is_taken_over(tmp_path, monkeypatch):
    """A node that Slurm took for dead may be alive: two writers of the same checkpoints would lose both. What it has
    started ends with it, at once: told to leave, it would save."""
    program = (
        "import socket, subprocess; from pathlib import Path; from launcher.run_dir import lock\n"
        "lock.HEARTBEAT_SECONDS = 0.2\n"
        "socket.gethostname = lambda: 'a-node-that-is-gone'\n"
        f"child = subprocess.Popen(['sleep', '{PATIENCE}'], start_new_session=True)\n"
        f"with lock.RunLock(Path({str(tmp_path)!r}), 'job of stage train'): print(child.pid, flush=True); child.wait()"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                          env={**submission_environment(), "SLURM_JOB_ID": "7"}) as cut_off:  # fmt: skip
        assert cut_off.stdout is not None
        child = psutil.Process(int(cut_off.stdout.readline()))
        started = child.create_time()
        monkeypatch.setenv("SLURM_JOB_ID", "7")
        with RunLock(tmp_path, "stage train"):
            assert cut_off.wait(PATIENCE) == 1
        assert cut_off.stderr is not None
        assert "taken over by another start of the job" in cut_off.stderr.read()
        until(lambda: not runs(child.pid, started))

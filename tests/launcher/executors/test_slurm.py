"""What is refused before anything is submitted, and submissions with stand-ins for Slurm's commands."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from launcher.app import dispatch
from launcher.errors import UsageError
from launcher.executors.slurm import checks, commands, snapshot
from launcher.executors.slurm.checks import check_cluster, check_composition, not_shared
from launcher.executors.slurm.environment import submission_environment
from launcher.executors.slurm.graph import plan_jobs
from launcher.executors.slurm.ledger import read
from launcher.executors.slurm.sending import Target
from launcher.executors.slurm.sending import script as script_of
from launcher.jobs.job import instances, job_of
from launcher.plan import build
from launcher.run_dir.layout import RunDir
from tests.launcher.conftest import composition, single, slurm_commands
from tests.launcher.executors.test_slurm_scripts import NEURON


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
        assert (instances(config), job_of("train", config).resources.gpus_per_node) == (2, 8)
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
        check_composition(composition("-m", "cluster=local,slurm", "tracking=none"))
    for place in ("100%j", "a\\\\b", "two\nlines"):
        with pytest.raises(UsageError, match="in the names of logs"):
            check_composition(composition("cluster=slurm", f"hydra.run.dir='{place}'"))


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
        assert dispatch(commands.retry(cwd / "s", ["cluster.time_limit_min=7"])) == 0
        assert [len(run.jobs) for run in read(cwd / "s").runs] == [2 + times, 2 + times, 1 + times]
    # A smaller sweep is a part of it, and what is given with a retry is for that one.
    assert answer(*sweep, "seed=0").returncode == 0
    overrides = read(cwd / "s").overrides
    assert "seed=0,1,2" in overrides
    assert "cluster=slurm" in overrides
    assert not any("time_limit" in line for line in overrides)


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
    assert [job.nodes for job in planned("cluster.processes_per_node=1").jobs] == [1, 2]

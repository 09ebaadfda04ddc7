"""The batch scripts and the order of jobs, as pure functions of the configuration: no Slurm is needed."""

from __future__ import annotations

import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from launcher.executors.slurm.graph import describe, plan_jobs
from launcher.executors.slurm.resources import batch_script, dependency, parameters
from launcher.jobs.job import instances, job_of
from launcher.jobs.variables import variables
from launcher.neuron.graphs import directory_name
from tests.launcher.conftest import single

NEURON = ("accelerator=trn1_32xlarge", "model=llama3_8b", "parallelism=trn1_tp8_dp16_4nodes")


def script(stage: str, *arguments: str, waits: str | None = None) -> str:
    config = single(*arguments).config
    code, configured = Path("/fsx/my runs/code/ab"), variables(stage, config)
    options = parameters(f"{stage}.r", job_of(stage, config), configured, config.cluster, code, waits)
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
    train, compiling = job_of("train", config), job_of("compile", config)
    assert (compiling.nodes, compiling.processes) == (train.nodes, train.processes)
    assert compiling.resources == replace(train.resources, time_limit_min=240)
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
    asked = job_of("train", config)
    assert (asked.nodes, asked.processes_per_node) == (nodes, each) == (instances(config), each)
    assert job_of("merge", config).nodes == 1


def test_whole_nodes_have_all_of_their_memory_and_shared_ones_the_default(cwd):
    whole = job_of("train", single("cluster=slurm").config).resources
    shared = job_of("train", single("cluster=slurm", "cluster.exclusive=false").config).resources
    assert (whole.exclusive, whole.memory_gb) == (True, 0)
    assert (shared.exclusive, shared.memory_gb) == (False, None)


def test_gpus_are_asked_for_on_a_gpu(cwd):
    config = single("cluster=slurm", "accelerator=cuda", "parallelism=ddp2", "cluster.processes_per_node=2").config
    assert job_of("train", config).resources.gpus_per_node == 2
    assert job_of("fetch", config).resources.gpus_per_node is None


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

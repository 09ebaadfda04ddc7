"""What the daemons of the tests' cluster are told; what makes that work is said where it is set."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil


def slurm_conf(
    here: Path, names: Sequence[str], ports: Sequence[int], min_job_age: int, accounting: bool
) -> Iterator[str]:
    """The lines of slurm.conf. ``ports``: the controller's, slurmdbd's, its database's, then one for each node."""
    user = psutil.Process().username()
    yield from (
        "ClusterName=tests",
        # submitit's files are named by job id: a stale one must not be taken for this cluster's.
        f"FirstJobId={random.randrange(1, 60_000_000)}",
        "SlurmctldHost=localhost(127.0.0.1)",
        f"SlurmctldPort={ports[0]}",
        f"SlurmUser={user}",
        f"SlurmdUser={user}",
        "AuthType=auth/munge",
        # A job that is requeued waits until its old credentials have expired.
        f"AuthInfo=socket={here / 'sock'},cred_expire=5",
        "CredType=cred/munge",
        "CommunicationParameters=NoInAddrAny,NoCtldInAddrAny",  # loopback only
        f"StateSaveLocation={here / 'state'}",
        f"SlurmdSpoolDir={here / 'spool'}/%n",
        f"SlurmctldPidFile={here / 'slurmctld.pid'}",
        f"SlurmdPidFile={here}/slurmd.%n.pid",
        f"SlurmctldLogFile={here / 'log' / 'slurmctld.log'}",
        f"SlurmdLogFile={here / 'log'}/slurmd.%n.log",
        "ProctrackType=proctrack/linuxproc",
        "TaskPlugin=task/none",
        "JobAcctGatherType=jobacct_gather/none",
        "SwitchType=switch/none",
        "MpiDefault=none",
        "SelectType=select/cons_tres",
        "SelectTypeParameters=CR_CPU",
        "SlurmdParameters=config_overrides",  # a machine of 2 CPUs poses as one of 128
        "SchedulerParameters=batch_sched_delay=0,sched_min_interval=0,sched_interval=1,bf_interval=1",
        "SlurmdTimeout=8",  # seconds until a node that doesn't answer is lost; a loaded machine's answers are late
        "MessageTimeout=4",
        "KillWait=30",  # Slurm's default: what is told to leave has time to save, also on a loaded machine
        "UnkillableStepTimeout=20",
        "CompleteWait=0",
        "InactiveLimit=0",
        "ReturnToService=2",
        "PreemptType=preempt/partition_prio",
        "PreemptMode=REQUEUE",
        f"MinJobAge={min_job_age}",
    )
    if accounting:
        yield "AccountingStorageType=accounting_storage/slurmdbd"
        yield "AccountingStorageHost=127.0.0.1"
        yield f"AccountingStoragePort={ports[1]}"
        yield f"AccountingStoragePass={here / 'sock'}"
    for name, port in zip(names, ports[3:], strict=True):
        yield (
            f"NodeName={name} NodeHostname=localhost NodeAddr=127.0.0.1 Port={port} CPUs=128 RealMemory=500000 "
            "State=UNKNOWN"
        )
    yield "PartitionName=dev Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=REQUEUE"
    yield "PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF"


def slurmdbd_conf(here: Path, ports: Sequence[int]) -> str:
    """The text of slurmdbd.conf, of the same ports."""
    user = psutil.Process().username()
    settings = {
        "AuthType": "auth/munge", "AuthInfo": f"socket={here / 'sock'}", "DbdHost": "localhost",
        "DbdAddr": "127.0.0.1", "DbdPort": ports[1], "SlurmUser": user, "PidFile": here / "slurmdbd.pid",
        "LogFile": here / "log" / "slurmdbd.log", "StorageType": "accounting_storage/mysql",
        "StorageHost": "127.0.0.1", "StoragePort": ports[2], "StorageUser": "slurm", "StoragePass": "tests",
        "StorageLoc": "slurm_acct_db",
    }  # fmt: skip
    return "".join(f"{key}={value}\n" for key, value in settings.items())

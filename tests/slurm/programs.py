"""Slurm's programs on this machine, an srun as HyperPod's, and ports that are free."""

from __future__ import annotations

import os
import random
import shutil
import socket
from contextlib import suppress

DAEMONS = ("munged", "slurmctld", "slurmd", "sbatch", "srun")
ACCOUNTING_DAEMONS = ("slurmdbd", "mariadbd", "mariadb-install-db")
PORTS = (10000, 15000)
WORKERS = 10
# HyperPod's srun has an option --auto-resume, by a plugin: a step that failed while a node had a hardware fault is run
# again in the same allocation, on a replaced node. Here a node has a fault while a file faults/NODE exists.
SRUN = r"""#!/usr/bin/env python3
import os, pathlib, subprocess, sys
here = pathlib.Path(__file__).resolve().parent
path = [part for part in os.environ["PATH"].split(":") if pathlib.Path(part).resolve() != here]
environment = {**os.environ, "PATH": ":".join(path)}
wanted = "--auto-resume=1" in sys.argv
command = ["srun", *[word for word in sys.argv[1:] if word != "--auto-resume=1"]]
while True:
    code = subprocess.call(command, env=environment)
    faulty = list((here.parent / "faults").iterdir())
    if not (wanted and code and faulty):
        sys.exit(code)
    for node in faulty:
        print(f"auto-resume: node {node.name} is replaced, the step is run again", file=sys.stderr, flush=True)
        node.unlink()
"""


def sbin() -> str:
    """PATH with the places of daemons, which a user's has not."""
    return os.pathsep.join([os.environ["PATH"], "/usr/sbin", "/sbin"])


def missing(accounting: bool = False) -> list[str]:
    """Programs that aren't installed."""
    wanted = (*DAEMONS, *ACCOUNTING_DAEMONS) if accounting else DAEMONS
    return [name for name in wanted if shutil.which(name, path=sbin()) is None]


def free_ports(count: int) -> list[int]:
    """Below the range that Linux takes for outgoing connections; each worker of pytest-xdist has a range of its own,
    as a port that is free now and bound later could be another's in between."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % WORKERS
    width = (PORTS[1] - PORTS[0]) // WORKERS
    first = PORTS[0] + worker * width
    found: list[int] = []
    while len(found) < count:
        port = random.randrange(first, first + width)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            if port not in found:
                found.append(port)
    return found

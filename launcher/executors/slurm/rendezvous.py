"""Where the processes of a step on several nodes meet: an address of its first node, and a port that is free there."""

from __future__ import annotations

import json
import os
import random
import re
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from launcher.errors import TrntuneError
from launcher.io import write_json

# Below what Linux takes for outgoing connections (from 32768 on), above what services listen on.
PORTS = (15000, 30000)
WAIT_SECONDS = 300.0


@dataclass(frozen=True)
class Step:
    """What Slurm says of the step at hand, on this node."""

    job_id: str
    restarts: int
    """of the job: a requeue counts"""
    step_id: str
    """an in-place retry is a new step of the same start of the job"""
    node: int
    """number of this node in the step"""
    nodes: str
    """their names in Slurm's short form: trn[1-4]"""

    @property
    def name(self) -> str:
        """Unique among all starts of all jobs."""
        return f"{self.job_id}-{self.restarts}-{self.step_id}"


def this_step() -> Step:
    """The step that this process belongs to."""
    env = os.environ
    nodes = env.get("SLURM_STEP_NODELIST") or env["SLURM_JOB_NODELIST"]
    restarts = int(env.get("SLURM_RESTART_COUNT", "0"))
    return Step(env["SLURM_JOB_ID"], restarts, env.get("SLURM_STEP_ID", "0"), int(env.get("SLURM_NODEID", "0")), nodes)


def first_node(nodes: str) -> str:
    """The first name of Slurm's short form; scontrol knows all of its rules."""
    done = _scontrol("show", "hostnames", nodes)
    return done.split()[0]


def address_of(node: str) -> str:
    """Its name where that resolves, else the address that Slurm itself uses. Raises TrntuneError."""
    try:
        socket.getaddrinfo(node, None)
        return node
    except OSError:
        pass
    found = re.search(r"NodeAddr=(\S+)", _scontrol("show", "node", node))
    if found is None:
        raise TrntuneError(f"node {node} has no address that resolves: give cluster.rendezvous_address")
    return found.group(1)


def free_port() -> int:
    """A port that nothing on this node listens on, drawn at random: jobs that share the node draw others."""
    for port in random.sample(range(*PORTS), 200):
        with socket.socket() as probe:
            try:
                probe.bind(("", port))
            except OSError:
                continue
            return port
    raise TrntuneError(f"none of 200 ports between {PORTS[0]} and {PORTS[1]} is free: give cluster.rendezvous_port")


def agree(
    step: Step, folder: Path, address: str | None, port: int | None, seconds: float = WAIT_SECONDS
) -> list[str] | None:
    """torchrun's options for the meeting: the first node writes its choice of a port to ``folder``, the others read it.
    None where the first node has found that there is nothing to do.

    ``address`` and ``port`` are the user's. Every node looks the first one's address up by itself: a name that a node
    knows for its own may mean nothing to the others. Ranks follow Slurm's order of the nodes, so that a start on the
    same nodes sums gradients in the same order. Raises TrntuneError when the first node says nothing.
    """
    file = _word(step, folder)
    if step.node == 0:
        chosen: dict[str, int | None] = {"port": port or free_port()}
        write_json(file, chosen)
    else:
        chosen = _read(file, seconds)
    if chosen["port"] is None:
        return None
    return [
        "--rdzv-backend=static",
        f"--node-rank={step.node}",
        f"--master-addr={address or address_of(first_node(step.nodes))}",
        f"--master-port={chosen['port']}",
    ]


def call_off(step: Step, folder: Path) -> None:
    """The first node's word to the others that there is nothing to do."""
    write_json(_word(step, folder), {"port": None})


def _word(step: Step, folder: Path) -> Path:
    return folder / f"rendezvous-{step.name}.json"


def _read(file: Path, seconds: float) -> dict[str, int | None]:
    end = time.monotonic() + seconds
    while not file.exists():
        if time.monotonic() > end:
            raise TrntuneError(
                f"{file}: the first node has not written it in {seconds:.0f} s: is the run directory on a file "
                "system that all nodes share?"
            )
        os.scandir(file.parent).close()  # a network file system then asks its server again
        time.sleep(0.2)
    read: dict[str, int | None] = json.loads(file.read_text(encoding="utf-8"))
    return read


def _scontrol(*arguments: str) -> str:
    try:
        done = subprocess.run(["scontrol", *arguments], capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        raise TrntuneError(f"scontrol {' '.join(arguments)} failed: {error}; give cluster.rendezvous_address") from None
    return done.stdout

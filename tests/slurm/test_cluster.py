"""The tests' own Slurm: a daemon that ends while the cluster is started costs a second start, not the tests."""

from __future__ import annotations

import socket
import tempfile
from pathlib import Path

import pytest

from tests.slurm import cluster
from tests.slurm.conftest import require


@pytest.mark.parametrize("taken", [0, 3], ids=["slurmctld", "slurmd"])
def test_a_port_that_was_taken_in_between_is_another_at_the_next_start(taken, monkeypatch):
    require()
    drawn: list[list[int]] = []
    free_ports = cluster.free_ports

    def ports(count: int) -> list[int]:
        drawn.append(free_ports(count))
        if len(drawn) == 1:
            drawn[0][taken] = listener.getsockname()[1]
        return drawn[-1]

    monkeypatch.setattr(cluster, "free_ports", ports)
    with socket.create_server(("127.0.0.1", 0)) as listener, tempfile.TemporaryDirectory(prefix="slurm-") as directory:
        with cluster.Slurm(Path(directory) / "c", 1) as slurm:
            assert slurm.idle() == {"trn1"}
    assert len(drawn) == 2


def test_a_cluster_that_never_comes_up_names_the_daemon_and_what_it_said(monkeypatch):
    require()
    with socket.create_server(("127.0.0.1", 0)) as listener, tempfile.TemporaryDirectory(prefix="slurm-") as directory:
        monkeypatch.setattr(cluster, "free_ports", lambda count: [listener.getsockname()[1]] * count)
        monkeypatch.setattr(cluster, "STARTS", 1)
        with pytest.raises(cluster.DaemonEnded, match=r"slurm(ctld|d) ended with 1: .*[Aa]ddress already in use"):
            cluster.Slurm(Path(directory) / "c", 1).__enter__()

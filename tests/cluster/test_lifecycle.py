"""The lifecycle scripts: shellcheck, and their run as far as a machine without HyperPod lets them."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from launcher.paths import ROOT
from tests.limits import PATIENCE, until
from tests.slurm.conftest import require
from tests.slurm.programs import free_ports, sbin

# What a container can't do, or shall not: recorded instead.
RECORDED = ("systemctl", "modprobe", "mount")


@pytest.mark.parametrize("folder", ["cluster/lifecycle", "cluster/jobs"])
def test_shellcheck_finds_nothing(folder):
    if shutil.which("shellcheck") is None:
        if os.environ.get("CI"):
            pytest.fail("no shellcheck: apt-get install shellcheck")
        pytest.skip("no shellcheck")
    files = sorted(str(path) for path in (ROOT / folder).glob("*.sh"))
    done = subprocess.run(["shellcheck", "--severity=style", *files], capture_output=True, text=True, check=False)
    assert files
    assert done.returncode == 0, done.stdout
    assert [path for path in files if not os.access(path, os.X_OK)] == []


# --- a node that only records what is asked of it ---------------------------------------------------------------------


class Node:
    """A directory as the node's /etc and /sys, and commands that note how they were called."""

    def __init__(self, scripts: Path, root: Path) -> None:
        self.scripts, self.root, self.calls = scripts, root, root / "calls"
        (root / "bin").mkdir(parents=True)
        self.calls.touch()
        for name in RECORDED:
            self.command(name, f'echo "{name} $*" >>"{self.calls}"')
        self.command("mountpoint", f'grep -qs "^mount ${{@: -1}}$" "{self.calls}"')
        self.command("getent", "exit 0")
        self.fsx = root / "fsx"
        (scripts / "trntune.env").write_text(f"MOUNT_PATH={self.fsx}\n")
        self.driver("2.24.7.0")

    def command(self, name: str, body: str) -> None:
        path = self.root / "bin" / name
        path.write_text(f"#!/bin/bash\n{body}\n")
        path.chmod(0o755)

    def driver(self, version: str) -> None:
        (self.root / "sys/module/neuron").mkdir(parents=True, exist_ok=True)
        (self.root / "sys/module/neuron/version").write_text(f"{version}\n")

    def run(self, addresses: str, **more: str) -> subprocess.CompletedProcess[str]:
        settings = {
            "PATH": f"{self.root / 'bin'}:{os.environ['PATH']}",
            "SAGEMAKER_RESOURCE_CONFIG_PATH": str(self.scripts / "resource_config.json"),
            "NODE_ADDRESSES": addresses,
            "FSTAB": str(self.root / "fstab"),
            "ETC": str(self.root / "etc"),
            "SYS": str(self.root / "sys"),
            "UNITS": str(self.root / "units"),
            "SLURM_CONF": str(self.root / "slurm" / "slurm.conf"),
            "SLURM_CONF_SECONDS": "1",
            "MOUNT_ATTEMPTS": "2",
            "MOUNT_PAUSE": "0",
            **more,
        }
        (self.root / "fstab").touch()
        return subprocess.run(
            ["bash", str(self.scripts / "on_create.sh")],
            cwd="/", env=settings, capture_output=True, text=True, timeout=PATIENCE, check=False,
        )  # fmt: skip

    @property
    def called(self) -> list[str]:
        return self.calls.read_text().splitlines()


@pytest.fixture
def node(scripts: Path, tmp_path: Path) -> Node:
    return Node(scripts, tmp_path / "node")


def test_a_controller_mounts_the_file_system_writes_slurm_conf_and_starts_slurmctld(node):
    done = node.run("172.17.0.1 127.0.0.1")
    assert done.returncode == 0, done.stdout + done.stderr
    line = f"fs-00000000.fsx.us-west-2.amazonaws.com@tcp:/PLACEHLD {node.fsx} lustre "
    assert (node.root / "fstab").read_text().startswith(line)
    assert [call for call in node.called if "slurmd" not in call] == [
        "modprobe lustre", f"mount {node.fsx}", "systemctl enable --now slurmctld"
    ]  # fmt: skip
    written = (node.root / "slurm" / "slurm.conf").read_text()
    assert f"SlurmctldHost={socket.gethostname().partition('.')[0]}(127.0.0.1)" in written
    assert "NodeName=ip-127-0-0-3 NodeAddr=127.0.0.3" in written
    assert "PartitionName=trn1 Nodes=ip-127-0-0-2,ip-127-0-0-3 Default=YES" in written


def test_a_second_run_changes_nothing(node):
    assert node.run("127.0.0.1").returncode == 0
    before = (node.root / "fstab").read_text()
    assert node.run("127.0.0.1").returncode == 0
    assert (node.root / "fstab").read_text() == before
    assert node.called.count(f"mount {node.fsx}") == 1


def test_a_run_with_another_mount_name_mounts_that(node):
    document = node.scripts / "provisioning_parameters.json"
    right = document.read_text()
    document.write_text(right.replace("PLACEHLD", "wrong"))
    assert node.run("127.0.0.1").returncode == 0
    document.write_text(right)
    node.calls.write_text("")
    assert node.run("127.0.0.1").returncode == 0
    [line] = (node.root / "fstab").read_text().splitlines()
    assert "@tcp:/PLACEHLD " in line


def test_an_instance_type_of_unknown_size_is_no_node_of_one_core(node):
    resources = node.scripts / "resource_config.json"
    resources.write_text(resources.read_text().replace("ml.trn1.32xlarge", "ml.trn9.48xlarge"))
    done = node.run("127.0.0.1")
    assert done.returncode != 0
    assert "worker-group-1: cores and memory of ml.trn9.48xlarge are not known here" in done.stderr
    assert not (node.root / "slurm" / "slurm.conf").exists()
    assert not [call for call in node.called if "slurmctld" in call]


def test_hyperpods_own_slurm_conf_is_left_alone(node):
    own = node.root / "slurm" / "slurm.conf"
    own.parent.mkdir()
    own.write_text("SlurmctldHost=ip-127-0-0-1(127.0.0.1)\n")
    done = node.run("127.0.0.1")
    assert "is HyperPod's own" in done.stdout
    assert own.read_text() == "SlurmctldHost=ip-127-0-0-1(127.0.0.1)\n"


def test_a_worker_gets_the_neuron_environment_and_asks_the_controller_for_its_configuration(node):
    done = node.run("127.0.0.3")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Neuron driver 2.24.7.0" in done.stdout
    unit = (node.root / "units/slurmd.service.d/trntune.conf").read_text()
    assert 'Environment="SLURMD_OPTIONS=--conf-server 127.0.0.1"' in unit
    assert node.called[-1] == "systemctl enable --now slurmd"
    shell = f'source "{node.root}/etc/profile.d/trntune.sh"; echo "$NEURON_COMPILE_CACHE_URL $PATH"'
    said = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, check=True).stdout
    assert said.startswith(f"{node.fsx}/trntune/neuron_cache /opt/aws/neuron/bin:")
    assert (node.fsx / "trntune").stat().st_mode & 0o7777 == 0o1777
    assert not (node.root / "slurm").exists()


@pytest.mark.parametrize(
    ("break_it", "says"),
    [
        (lambda node: node.command("getent", "exit 2"), "does not resolve: is fsx_dns_name"),
        (lambda node: node.command("mount", "exit 32"), "is fsx_mountname right"),
        (lambda node: (node.root / "sys/module/neuron/version").unlink(), "the Neuron driver is not loaded"),
        (lambda node: (node.scripts / "resource_config.json").unlink(), "resource_config.json"),
    ],
)
def test_what_goes_wrong_is_said_in_the_log_and_fails_the_node(node, break_it: Callable[[Node], None], says: str):
    break_it(node)
    done = node.run("127.0.0.3")
    assert done.returncode != 0
    assert says in done.stdout + done.stderr
    assert "failed at line" in done.stdout
    assert not [call for call in node.called if "enable --now slurmd" in call]


def test_a_node_that_is_not_listed_and_a_group_without_a_task_are_said(node):
    done = node.run("10.9.9.9")
    assert "no instance in resource_config.json has one of this node's addresses: 10.9.9.9" in done.stderr
    other = json.loads((node.scripts / "provisioning_parameters.json").read_text())
    other["worker_groups"][0]["instance_group_name"] = "workers"
    (node.scripts / "provisioning_parameters.json").write_text(json.dumps(other))
    done = node.run("127.0.0.3")
    assert done.returncode != 0
    assert "instance group worker-group-1 has no task" in done.stderr


# --- a real Slurm on the configuration that is written ----------------------------------------------------------------


@pytest.fixture
def daemons() -> Iterator[Callable[..., None]]:
    """Starts programs, and ends them."""
    started: list[subprocess.Popen[bytes]] = []

    def start(*command: str, **more: str) -> None:
        program = shutil.which(command[0], path=sbin())
        assert program is not None
        with Path(more.pop("LOG")).open("ab") as log:
            environment = {**os.environ, "PATH": sbin(), **more}
            started.append(
                subprocess.Popen(
                    [program, *command[1:]], env=environment, stdout=log, stderr=log, start_new_session=True
                )
            )

    yield start
    for process in reversed(started):
        with suppress(psutil.Error):
            for child in psutil.Process(process.pid).children(recursive=True):
                child.kill()
        process.kill()
        process.wait()


def test_slurm_runs_a_job_on_the_written_configuration(scripts, daemons):
    require()
    with tempfile.TemporaryDirectory(prefix="life-", dir="/tmp", ignore_cleanup_errors=True) as name:
        here = Path(name)
        for folder in ("state", "spool", "log", "munge"):
            (here / folder).mkdir()
        (here / "munge").chmod(0o700)
        here.chmod(0o755)
        (here / "munge/key").write_bytes(os.urandom(1024))
        (here / "munge/key").chmod(0o400)
        daemons(
            "munged", "--foreground", "--force", f"--key-file={here}/munge/key", f"--socket={here}/sock",
            f"--pid-file={here}/munge/pid", f"--log-file={here}/munge/log", f"--seed-file={here}/munge/seed",
            LOG=str(here / "log/munged"),
        )  # fmt: skip
        until((here / "sock").exists)
        controller, worker = free_ports(2)
        user = psutil.Process().username()
        extra = (
            f"SlurmdUser={user}\nAuthInfo=socket={here}/sock\n"
            "CommunicationParameters=NoCtldInAddrAny\nSwitchType=switch/none\n"
            "JobAcctGatherType=jobacct_gather/none"
        )
        settings = {
            "SLURM_USER": user, "SLURM_STATE": f"{here}/state", "SLURM_SPOOL": f"{here}/spool",
            "SLURM_LOGS": f"{here}/log", "SLURM_RUN": str(here), "SLURMCTLD_PORT": str(controller),
            "SLURMD_PORT": str(worker), "SLURM_EXTRA": extra,
        }  # fmt: skip
        command = ["bash", str(scripts / "write_slurm_conf.sh"), "127.0.0.1", str(scripts / "resource_config.json")]
        written = subprocess.run(command, env={**os.environ, **settings}, capture_output=True, text=True, check=True)
        conf = here / "slurm.conf"
        conf.write_text(written.stdout)
        daemons("slurmctld", "-D", "-f", str(conf), LOG=str(here / "log/ctld.out"), SLURM_CONF=str(conf))

        def slurm(*words: str) -> str:
            environment = {**os.environ, "SLURM_CONF": str(conf), "PATH": sbin()}
            done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False)
            return done.stdout + done.stderr

        until(lambda: "UP" in slurm("scontrol", "ping"))
        # A node would ask the controller for it (--conf-server), which needs munge at its usual place.
        daemons(
            "slurmd", "-D", "-N", "ip-127-0-0-2", "-f", str(conf),
            LOG=str(here / "log/slurmd.out"), SLURM_CONF=str(conf),
        )  # fmt: skip
        until(lambda: (here / "log/slurmctld.log").exists())
        until(lambda: "idle" in slurm("sinfo", "-h", "-n", "ip-127-0-0-2", "-o", "%t"))
        assert slurm("sinfo", "-h", "-n", "ip-127-0-0-2", "-o", "%P %c %m").strip() == "trn1* 64 498074"
        ran = slurm("srun", "-p", "trn1", "-w", "ip-127-0-0-2", "-n1", "bash", "-c", "echo on $SLURMD_NODENAME")
        assert "on ip-127-0-0-2" in ran

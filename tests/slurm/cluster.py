"""A private Slurm on this machine for the tests: munged, slurmctld, a slurmd for each node, and slurmdbd if wanted.

Everything lies in one directory and listens on the loopback interface; no root, systemd or cgroups are needed. A node
is a slurmd with a port of its own.
"""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from launcher.jobs.parent_death import die_with_parent
from tests.limits import PATIENCE, until
from tests.slurm.configuration import slurm_conf, slurmdbd_conf
from tests.slurm.programs import SRUN, free_ports, sbin

STARTS = 4
"""times that a cluster is started before the tests give up on it"""


class DaemonEnded(Exception):
    """A daemon of a cluster that is being started is gone."""


def _name(process: subprocess.Popen[bytes]) -> str:
    """The program that a daemon runs."""
    return Path(str(process.args[0])).name  # type: ignore[index]


@dataclass
class Slurm:
    """A running cluster: use as a context manager."""

    directory: Path
    nodes: int = 4
    accounting: bool = False
    min_job_age: int = 3600
    """seconds that the controller remembers a job"""

    def __enter__(self) -> Slurm:
        # A port may be taken between the look at it and the daemon's bind, and slurmctld ends when slurmdbd, which has
        # just begun, doesn't answer it in time: such a cluster never comes up, a new one does.
        for start in range(1, STARTS + 1):
            try:
                self._set_up()
                self._start()
                return self
            except DaemonEnded as ended:
                self.__exit__()
                if start == STARTS:
                    raise
                print(f"{ended}: the cluster is started anew", flush=True)
                shutil.rmtree(self.directory)
            except BaseException:
                self.__exit__()
                raise
        raise AssertionError("no start was made")

    def _set_up(self) -> None:
        self._processes: list[subprocess.Popen[bytes]] = []
        for name in ("state", "spool", "log", "munge", "bin", "faults", "db"):
            (self.directory / name).mkdir(parents=True)
        self.directory.chmod(0o755)
        (self.directory / "munge").chmod(0o700)
        srun = self.directory / "bin" / "srun"
        srun.write_text(SRUN)
        srun.chmod(srun.stat().st_mode | stat.S_IXUSR)
        self._ports = free_ports(self.nodes + 3)

    def __exit__(self, *_: object) -> None:
        # Without a controller the command would try for twelve seconds.
        controlled = any(_name(process) == "slurmctld" and process.poll() is None for process in self._processes)
        with suppress(OSError, subprocess.SubprocessError):
            if controlled:
                self.run("scancel", "--user", str(os.getuid()), "--signal=KILL", check=False)
        for process in [*self._of_jobs(), *self._steps(""), *reversed(self._daemons())]:
            with suppress(psutil.Error):
                process.kill()
        for process in self._processes:
            process.wait()

    # --- use ---------------------------------------------------------------------------------------------------------

    @property
    def names(self) -> list[str]:
        return [f"trn{number}" for number in range(1, self.nodes + 1)]

    @property
    def environment(self) -> dict[str, str]:
        """For commands of Slurm, and for launch.py."""
        path = f"{self.directory / 'bin'}{os.pathsep}{sbin()}"
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "TRNTUNE_"))}
        return {**kept, "SLURM_CONF": str(self.directory / "slurm.conf"), "PATH": path}

    def run(self, *command: str, check: bool = True) -> str:
        """The output of one of Slurm's commands."""
        done = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=PATIENCE, check=False
        )
        assert not check or done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout

    def state(self, job: str) -> str:
        return self.run("squeue", "-h", "-t", "all", "-j", job, "-o", "%T").strip()

    def field(self, job: str, name: str) -> str:
        """Of scontrol show job: NumNodes, Restarts, ExitCode, ..."""
        text = self.run("scontrol", "show", "job", job)
        return next(word.partition("=")[2] for word in text.split() if word.startswith(f"{name}="))

    def wait_for(self, job: str, *states: str, seconds: float = PATIENCE) -> str:
        until(lambda: self.state(job) in states, seconds, 0.2)
        return self.state(job)

    def idle(self) -> set[str]:
        """Nodes that could take a job."""
        return set(self.run("sinfo", "-h", "-N", "-t", "idle", "-o", "%N", check=False).split())

    def kill_node(self, name: str) -> None:
        """As if its power was cut: the daemon, the steps and everything that runs in them, none of which can speak."""
        victims = [*self._steps(name), *self._of_jobs(name)]
        with suppress(psutil.Error, OSError, ValueError):
            victims.append(psutil.Process(int((self.directory / f"slurmd.{name}.pid").read_text())))
        assert victims, name
        for process in victims:
            with suppress(psutil.Error):
                process.kill()

    def start_node(self, name: str) -> None:
        """Start the daemon of a node anew."""
        self._spawn("slurmd", "-D", "-N", name, "-f", str(self.directory / "slurm.conf"))

    def processes(self, job: str, text: str) -> list[psutil.Process]:
        """Of a job, those whose command line has ``text``."""
        found = []
        for process in self._of_jobs():
            with suppress(psutil.Error):
                if process.environ().get("SLURM_JOB_ID") == job and text in " ".join(process.cmdline()):
                    found.append(process)
        return found

    # --- starting and stopping ---------------------------------------------------------------------------------------

    def _start(self) -> None:
        munge = self.directory / "munge"
        (munge / "key").write_bytes(os.urandom(1024))
        (munge / "key").chmod(0o400)
        self._spawn(
            "munged", "--foreground", "--force", f"--key-file={munge / 'key'}", f"--socket={self.directory / 'sock'}",
            f"--pid-file={munge / 'pid'}", f"--log-file={munge / 'log'}", f"--seed-file={munge / 'seed'}",
        )  # fmt: skip
        self._until((self.directory / "sock").exists)
        if self.accounting:
            self._start_accounting()
        (self.directory / "slurm.conf").write_text(self._configuration())
        self._spawn("slurmctld", "-D", "-f", str(self.directory / "slurm.conf"))
        for name in self.names:
            (self.directory / "spool" / name).mkdir()
            self.start_node(name)
        self._until(lambda: len(self.idle()) == self.nodes)

    def _until(self, condition: Callable[[], object], every: float = 0.1) -> None:
        """Wait for a condition that cannot come true without the daemons that were started; DaemonEnded without one."""

        def looked() -> object:
            for process in self._processes:
                if process.poll() is not None:
                    name = _name(process)
                    logs = sorted((self.directory / "log").glob(f"{name}*"))
                    last = [line for log in logs for line in log.read_text(errors="replace").splitlines()[-3:]]
                    raise DaemonEnded(f"{name} ended with {process.returncode}: {' | '.join(last)}")
            return condition()

        until(looked, every=every)

    def _spawn(self, *command: str) -> None:
        log = (self.directory / "log" / f"{Path(command[0]).name}.out").open("ab")
        program = shutil.which(command[0], path=sbin())
        assert program is not None, command[0]
        environment = {**self.environment, "SLURM_CONF": str(self.directory / "slurm.conf")}
        with log:
            self._processes.append(
                subprocess.Popen(
                    [program, *command[1:]],
                    env=environment,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                    preexec_fn=die_with_parent,  # a worker of pytest-xdist that is killed stops nothing itself
                )
            )

    def _configuration(self) -> str:
        lines = slurm_conf(self.directory, self.names, self._ports, self.min_job_age, self.accounting)
        return "\n".join(lines) + "\n"

    def _start_accounting(self) -> None:
        here, user, port = self.directory, psutil.Process().username(), self._ports[2]
        subprocess.run(
            ["mariadb-install-db", "--no-defaults", f"--datadir={here / 'db'}", "--skip-test-db", f"--user={user}",
             "--auth-root-authentication-method=normal"],
            check=True, capture_output=True, timeout=PATIENCE,
        )  # fmt: skip
        self._spawn(
            "mariadbd", "--no-defaults", f"--user={user}", f"--datadir={here / 'db'}", f"--socket={here / 'db.sock'}",
            f"--port={port}", "--bind-address=127.0.0.1", f"--pid-file={here / 'mariadbd.pid'}",
            "--innodb-buffer-pool-size=64M", "--innodb-lock-wait-timeout=900", "--skip-name-resolve",
        )  # fmt: skip
        client = ["mariadb", "--no-defaults", "-uroot", "-S", str(here / "db.sock"), "-e"]
        grant = (
            "CREATE DATABASE slurm_acct_db; CREATE USER 'slurm'@'127.0.0.1' IDENTIFIED BY 'tests'; "
            "GRANT ALL ON slurm_acct_db.* TO 'slurm'@'127.0.0.1'"
        )
        self._until(lambda: subprocess.run([*client, "SELECT 1"], capture_output=True, check=False).returncode == 0)
        subprocess.run([*client, grant], check=True, capture_output=True)
        configuration = here / "slurmdbd.conf"
        configuration.write_text(slurmdbd_conf(here, self._ports))
        configuration.chmod(0o600)  # slurmdbd refuses to start when others can read it
        (here / "slurm.conf").write_text(self._configuration())
        self._spawn("slurmdbd", "-D")
        self._until(lambda: "tests" in self.run("sacctmgr", "-n", "-i", "add", "cluster", "tests", check=False)
                    or "tests" in self.run("sacctmgr", "-n", "show", "cluster", check=False), every=0.5)  # fmt: skip

    def _daemons(self) -> list[psutil.Process]:
        return [psutil.Process(process.pid) for process in self._processes if process.poll() is None]

    def _steps(self, node: str) -> list[psutil.Process]:
        """Slurm's own processes of the steps on a node, with "" of all; they are told by the log that they hold."""
        marks = [f"slurmd.{name}.log" for name in self.names if name == node or not node]
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error, OSError):
                if process.name() != "slurmstepd":
                    continue
                links = [str(link.readlink()) for link in Path(f"/proc/{process.pid}/fd").iterdir()]
                if any(link == str(self.directory / "log" / mark) for link in links for mark in marks):
                    found.append(process)
        return found

    def _of_jobs(self, node: str = "") -> list[psutil.Process]:
        """Processes that jobs of this cluster have started, on a node or on any."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                environment = process.environ()
                ours = environment.get("SLURM_CONF") == str(self.directory / "slurm.conf")
                if ours and "SLURM_JOB_ID" in environment and node in ("", environment.get("SLURMD_NODENAME")):
                    found.append(process)
        return found


def signal_job(cluster: Slurm, job: str, number: signal.Signals) -> None:
    """Send a signal to all processes of a job's steps, as Slurm itself does before a time limit."""
    cluster.run("scancel", f"--signal={number.name.removeprefix('SIG')}", job)

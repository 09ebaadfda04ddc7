"""The side that starts: what `subprocess.Popen` would exec is asked for at the process that forks."""

from __future__ import annotations

import contextlib
import ctypes
import inspect
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from launcher.jobs.helper_process import python_module
from launcher.paths import ROOT

PR_SET_CHILD_SUBREAPER = 36
COMMAND_LINE = 8192
"""bytes that a fork's command line may have"""
SIGNALS = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)

# Read by a library, or by the interpreter, when it is imported: a fork would not see another value.
_AT_IMPORT = re.compile(
    r"(HF|TRANSFORMERS|HUGGINGFACE|TORCH|PYTORCH|OMP|GOMP|KMP|MKL|OPENBLAS|XDG|NEURON|CUDA|PYTHON|LD|MALLOC|LC|LANG)(_|$)"
    r"|PYTHON",
    re.IGNORECASE,
)
# Of these, what is read when it is used, or is set for each fork.
_LATE = re.compile(
    r"HF_TOKEN(_PATH)?$|PYTHONPATH$|PYTHONSAFEPATH$|TORCHELASTIC_|TORCH_NCCL_|XDG_CACHE_HOME$|OMP_WAIT_POLICY$|GOMP_SPINCOUNT$"
)
# As the project sets them before it imports the libraries: trainer/fetch/hub.py, trainer/tracking/client.py.
SETTINGS = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_ETAG_TIMEOUT": "5",
    "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "GIT_PYTHON_REFRESH": "quiet",
    # Arrow would start a thread of its allocator,
    "JE_ARROW_MALLOC_CONF": "background_thread:false",
    # NumPy one for each CPU.
    "OPENBLAS_NUM_THREADS": "1",
}
_START = python_module("")[1:3]
# Modules that are commands: `python -m NAME`.
_COMMANDS = re.compile(r"(launcher|cluster|postprocess\.\w+|torch\.distributed\.run)$")


def is_known(command: list[str]) -> bool:
    """True for the project's own commands, with this interpreter."""
    if command[:1] != [sys.executable]:
        return False
    match command[1:]:
        case ["-m", module, *_]:
            return _COMMANDS.match(module) is not None
        case [script, *_] if script == str(ROOT / "launch.py"):
            return True
        case ["-c", *_]:
            return command[1:3] == _START and len(command) > 3
    return False


def starts_others(command: list[str]) -> bool:
    """True for commands that start stages: their processes are forks, too."""
    return command[1] != "-c" or command[3:4] == ["launcher"]


def import_settings(environment: Mapping[str, str]) -> dict[str, str]:
    """The part of an environment that must be the server's own. What the project sets itself is the same with it and
    without: what a test's modules import, or a stage that starts others, may have set it already."""
    return {
        key: value
        for key, value in environment.items()
        if _AT_IMPORT.match(key) and not _LATE.match(key) and SETTINGS.get(key) != value
    }


class Forks:
    """Processes that fork, and the rule of what is left to them.

    ``connection`` is one that is there already; without it one is started of each kind that is needed (a key of
    tests.warm.server.IMPORTED).
    """

    def __init__(self, connection: socket.socket | None = None, settings: dict[str, str] | None = None) -> None:
        self.adopt(os.environ)
        if settings is not None:
            self.settings = settings
        self.enabled, self.kind = True, "stages"
        self._connections = {} if connection is None else {self.kind: connection}
        self._lock = threading.Lock()

    def adopt(self, environment: Mapping[str, str]) -> None:
        """Take this as the environment of the process that forks, before it is started."""
        self.environment, self.settings = dict(environment), import_settings(environment)

    def takes(self, arguments: Mapping[str, Any]) -> bool:
        """True when a fork would be what exec makes of these arguments of Popen._execute_child."""
        args, hook, env = arguments["args"], arguments["preexec_fn"], arguments["env"]
        if not self.enabled or isinstance(args, (str, bytes, os.PathLike)):
            return False
        usual = not arguments["shell"] and not arguments["pass_fds"] and arguments["executable"] in (None, args[0])
        named = hook is None or "<" not in hook.__qualname__
        environment = os.environ if env is None else env
        return usual and named and is_known([str(a) for a in args]) and import_settings(environment) == self.settings

    def start(self, arguments: Mapping[str, Any]) -> int:
        """Fork. Returns the process id of what is now a child of this process."""
        hook, env = arguments["preexec_fn"], arguments["env"]
        request = {
            "args": [os.fspath(each) for each in arguments["args"]],
            "cwd": os.fspath(arguments["cwd"] or Path.cwd()),
            "env": dict(os.environ if env is None else env),
            "new_session": arguments["start_new_session"],
            "preexec": None if hook is None else [hook.__module__, hook.__qualname__],
            "ignored": [int(each) for each in SIGNALS if signal.getsignal(each) is signal.SIG_IGN],
        }
        given = (arguments["p2cread"], arguments["c2pwrite"], arguments["errwrite"])
        handles = [own if handle == -1 else handle for own, handle in enumerate(given)]
        with self._lock:
            if self.kind not in self._connections:
                self._connections[self.kind] = start_server(self.kind, self.environment)
            connection = self._connections[self.kind]
            with _adopting():
                send(connection, request, handles)
                answer = receive(connection)[0]
        assert answer is not None, "the process that forks has ended"
        return int(answer["pid"])


def start_server(kind: str, environment: dict[str, str]) -> socket.socket:
    """A process that forks, which ends with this one."""
    ours, theirs = socket.socketpair()
    entry = f"from tests.warm.server import main; main({theirs.fileno()}, {kind!r})"
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); {entry}"
    # The command line is overwritten by each fork with its own: room for a long one.
    command = [sys.executable, "-c", code, " " * COMMAND_LINE]
    subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, env=environment)
    theirs.close()
    ready, _ = receive(ours)
    assert ready == {"threads": 1}, f"a process of several threads can't be forked: {ready}"
    return ours


@contextlib.contextmanager
def _adopting() -> Iterator[None]:
    """What the process that forks leaves without a parent meanwhile becomes a child of this process."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        yield
    finally:
        libc.prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


def send(connection: socket.socket, message: dict[str, Any], handles: list[int] | None = None) -> None:
    """A message, and file descriptors for the other side."""
    text = json.dumps(message).encode()
    socket.send_fds(connection, [len(text).to_bytes(8, "big")], handles or [])
    connection.sendall(text)


def receive(connection: socket.socket) -> tuple[dict[str, Any] | None, list[int]]:
    """The next message and its file descriptors; None when the other side has gone."""
    head, handles, *_ = socket.recv_fds(connection, 8, 3)
    if not head:
        return None, []
    size, text = int.from_bytes(head, "big"), b""
    while len(text) < size:
        text += connection.recv(size - len(text))
    return json.loads(text), handles


def install(forks: Forks, told: Callable[[subprocess.Popen[Any]], None] = lambda process: None) -> None:
    """From now on this process's Popen takes forks where they are the same; ``told`` hears of each process."""
    original = subprocess.Popen._execute_child  # type: ignore[attr-defined]
    signature = inspect.signature(original)

    def execute(self: Any, *args: Any, **kwargs: Any) -> None:
        arguments = signature.bind(self, *args, **kwargs).arguments
        if forks.takes(arguments):
            fork(self, arguments)
        else:
            original(self, *args, **kwargs)
        told(self)

    def fork(self: Any, arguments: Mapping[str, Any]) -> None:
        try:
            self.pid = forks.start(arguments)
            self._child_created = True
        finally:
            pipes = ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")
            self._close_pipe_fds(*(arguments[name] for name in pipes))

    subprocess.Popen._execute_child = execute  # type: ignore[attr-defined]

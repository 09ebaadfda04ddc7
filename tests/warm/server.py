"""The side that forks: imports what takes long, then makes processes of that until whoever asks for them has gone.

A process becomes its starter's child thus: it is forked twice, and the one between ends; the kernel then gives it to
the nearest process above that adopts orphans, which the starter does while it asks.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import gc
import importlib
import os
import runpy
import signal
import socket
import sys
import threading
import time
import traceback
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from launcher.paths import ROOT
from tests.warm.popen import SETTINGS, SIGNALS, Forks, import_settings, install, receive, send, starts_others

# What the launcher imports of others.
_LAUNCHER = (
    "hydra", "hydra.core.global_hydra", "omegaconf", "psutil",
    "rich.console", "rich.progress", "rich.live", "rich.table",
)  # fmt: skip
# And what the stages, the launcher's helpers and the comparison do.
_STAGES = (
    "numpy", "torch", "torch.distributed.run", "torch.optim.lr_scheduler", "safetensors.torch", "tokenizers",
    "transformers.trainer", "transformers.generation", "transformers.models.llama.modeling_llama",
    "transformers.models.auto.modeling_auto", "transformers.models.auto.tokenization_auto", "transformers.integrations",
    "accelerate", "peft", "mlflow", "mlflow.tracking", "mlflow.store.tracking.sqlalchemy_store",
    "mlflow.system_metrics",
    "sqlalchemy", "alembic.command", "matplotlib.pyplot", "jinja2", "rouge_score.rouge_scorer", "submitit",
)  # fmt: skip
# What the project's processes do between fork and exec.
HOOKS = (("launcher.jobs.supervisor", "prepare_child"),)
IMPORTED = {"launcher": _LAUNCHER, "stages": ("trainer.lean_imports", *_LAUNCHER, *_STAGES)}
PR_SET_PDEATHSIG = 1
_hooks: dict[tuple[str, str], Callable[[], None]] = {}


def main(handle: int, kind: str) -> None:
    """Process entry of the server; ``kind`` says what it imports."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    connection = socket.socket(fileno=handle)
    os.environ.update(SETTINGS)
    settings = import_settings(os.environ)
    for name in IMPORTED[kind]:
        importlib.import_module(name)
    # Importing its module in each fork would take a fifth of the time of a small stage.
    _hooks.update({hook: _function(*hook) for hook in HOOKS})
    forget_project()
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    gc.collect()
    gc.freeze()
    send(connection, {"threads": len(list(Path("/proc/self/task").iterdir()))})
    serve(connection, settings)


def _function(module: str, name: str) -> Callable[[], None]:
    return getattr(importlib.import_module(module), name)


def forget_project() -> None:
    """The project's own modules are imported anew by each process: what they do then is under test."""
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if file and Path(file).is_relative_to(ROOT) and not name.startswith("tests") and ".venv" not in file:
            del sys.modules[name]
            parent, _, child = name.rpartition(".")
            if parent in sys.modules:
                with contextlib.suppress(AttributeError):
                    delattr(sys.modules[parent], child)


def serve(connection: socket.socket, settings: dict[str, str]) -> None:
    """Fork for each request; returns when the other side has gone."""
    while True:
        request, handles = receive(connection)
        if request is None:
            return
        pid = orphan(lambda request=request, handles=handles: become(connection, request, handles, settings))
        for each in handles:
            os.close(each)
        send(connection, {"pid": pid})


def orphan(work: Callable[[], NoReturn]) -> int:
    """Fork twice; ``work`` begins when the one between has ended. Returns the process id of the one that works."""
    told, tell = os.pipe()
    between = os.fork()
    if between == 0:
        own = os.getpid()
        pid = os.fork()
        if pid == 0:
            os.close(told)
            os.close(tell)
            while os.getppid() == own:  # files are closed before children change hands: no pipe would tell
                time.sleep(0.001)
            work()
        os.write(tell, str(pid).encode())
        os._exit(0)
    os.waitpid(between, 0)
    pid = int(os.read(told, 32))
    os.close(told)
    os.close(tell)
    return pid


def become(
    connection: socket.socket, request: dict[str, Any], handles: list[int], settings: dict[str, str]
) -> NoReturn:
    """In the fork: what exec would have made of it, then the program, then the end."""
    connection.close()
    command = request["args"]
    for number, handle in enumerate(handles):
        os.dup2(handle, number)
        os.close(handle)
    sys.stdout.reconfigure(line_buffering=os.isatty(1))
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    if request["new_session"]:
        os.setsid()
    for number in SIGNALS:
        usual = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
        signal.signal(number, signal.SIG_IGN if number in request["ignored"] else usual)
    helper = start_helper(settings) if starts_others(command) else None
    set_command_line(command)
    if request["preexec"] is not None:
        hook = tuple(request["preexec"])
        (_hooks.get(hook) or _function(*hook))()
        forget_project()
    set_path(command)
    if helper is not None:
        install(helper)
    end(lambda: run(command))


def start_helper(settings: dict[str, str]) -> Forks:
    """A process as fresh as this one still is, for the processes that this one will start."""
    ours, theirs = socket.socketpair()
    if os.fork() == 0:
        ours.close()
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        set_command_line(["forks"])
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        null = os.open(os.devnull, os.O_RDWR)
        for number in range(3):
            os.dup2(null, number)
        os.close(null)
        serve(theirs, settings)
        os._exit(0)
    theirs.close()
    return Forks(ours, settings)


def set_command_line(command: list[str]) -> None:
    """What /proc shows of this process; empty words follow. The room is what the server was started with."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    start, end = int(fields[45]), int(fields[46])  # arg_start and arg_end, fields 48 and 49 of proc(5)
    text = b"".join(word.encode() + b"\0" for word in command)[: end - start - 1]
    ctypes.memset(start, 0, end - start)
    ctypes.memmove(start, text, len(text))


def set_path(command: list[str]) -> None:
    """sys.path as the interpreter makes it at its start, and what it imports then."""
    given = [part for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part]
    own = {"-c": "", "-m": str(Path.cwd())}.get(command[1], str(Path(command[1]).resolve().parent))
    rest = [part for part in sys.path if part not in _server_path]
    sys.path[:] = [*([] if os.environ.get("PYTHONSAFEPATH") else [own]), *given, *rest]
    importlib.invalidate_caches()
    if any((Path(part) / "sitecustomize.py").is_file() for part in given):
        sys.modules.pop("sitecustomize", None)
        importlib.import_module("sitecustomize")


# Where the server itself was told to look.
_server_path = {"", str(ROOT), *os.environ.get("PYTHONPATH", "").split(os.pathsep)}


def run(command: list[str]) -> None:
    """The program that a command line names."""
    kind, *rest = command[1:]
    main_module = types.ModuleType("__main__")
    sys.modules["__main__"] = main_module
    if kind == "-c":
        sys.argv = ["-c", *rest[1:]]
        exec(compile(rest[0], "<string>", "exec"), main_module.__dict__)
    elif kind == "-m":
        sys.argv = ["-m", *rest[1:]]
        sys.modules.pop(rest[0], None)
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv = [kind, *rest]
        runpy.run_path(kind, run_name="__main__")


def end(work: Callable[[], None]) -> NoReturn:
    """Run ``work`` and end the process as the interpreter would."""
    code: Any = 0
    try:
        work()
    except SystemExit as leaving:
        code = leaving.code
        if code is not None and not isinstance(code, int):
            print(code, file=sys.stderr)
            code = 1
    except KeyboardInterrupt:
        traceback.print_exc()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    except BaseException:
        traceback.print_exc()
        code = 1
    try:
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
    finally:
        os._exit((code or 0) & 0xFF)

"""Instruction data from the docstrings of the running Python's standard library: real text without a download."""

from __future__ import annotations

import importlib
import inspect
import os
import platform
import re
import subprocess
import sys
import warnings
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from launcher.errors import TrntuneError
from launcher.io import write_jsonl
from launcher.paths import ROOT
from trainer.data.rows import InstructionRow

VERSION = 2  # raised when other rows are built: it is in the cached file's name

# Modules that do nothing on import but define things, and whose docstrings are written for users.
MODULES = """
abc argparse array ast asyncio asyncio.events asyncio.queues asyncio.streams asyncio.tasks base64 bdb binascii bisect
builtins bz2 calendar cmath cmd code codecs codeop collections collections.abc colorsys compileall concurrent.futures
configparser contextlib contextvars copy copyreg csv ctypes dataclasses datetime decimal difflib dis doctest
email.charset email.encoders email.generator email.header email.headerregistry email.message email.mime.base
email.mime.text email.parser email.policy email.utils enum errno faulthandler fcntl filecmp fileinput fnmatch
fractions ftplib functools gc getopt getpass gettext glob graphlib grp gzip hashlib heapq hmac html html.parser http
http.client http.cookiejar http.cookies http.server imaplib importlib importlib.abc importlib.machinery
importlib.metadata importlib.resources importlib.util inspect io ipaddress itertools json json.decoder json.encoder
keyword linecache locale logging logging.config logging.handlers lzma mailbox marshal math mimetypes mmap modulefinder
multiprocessing multiprocessing.connection multiprocessing.managers multiprocessing.pool multiprocessing.shared_memory
netrc numbers operator optparse os os.path pathlib pdb pickle pickletools pkgutil platform plistlib poplib pprint
profile pstats pty pwd py_compile pyclbr pydoc queue quopri random re readline reprlib resource rlcompleter runpy
sched secrets select selectors shelve shlex shutil signal site smtplib socket socketserver sqlite3 ssl stat statistics
string stringprep struct subprocess symtable sys sysconfig syslog tabnanny tarfile tempfile termios textwrap threading
time timeit token tokenize trace traceback tracemalloc tty types typing unicodedata unittest unittest.case
unittest.mock urllib.error urllib.parse urllib.request urllib.response urllib.robotparser uuid venv warnings wave
weakref webbrowser wsgiref.handlers wsgiref.headers wsgiref.simple_server wsgiref.util xml.dom.minidom xml.dom.pulldom
xml.etree.ElementTree xml.sax xml.sax.handler xml.sax.saxutils xmlrpc.client xmlrpc.server zipapp zipfile zipimport
zlib zoneinfo
""".split()  # noqa: SIM905 - a list would be 200 lines

_MIN_WORDS = 4
_MAX_WORDS = 60
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")
# A default that is a path names where this interpreter is installed: pydoc.Doc.getdocloc's, for one.
_PATH = re.compile(r"""['"]/[^'"]""")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
# C functions without inspectable signatures begin their docstrings with it: "max(iterable, *[, default=obj]) -> value".
_SIGNATURE_LINE = re.compile(r"^[\w.]+\(.*\)(\s*-+>.*)?$")


def cache_name() -> str:
    """Name in the cache: rows are the same for one interpreter version and platform."""
    interpreter = f"{platform.python_implementation()}-{platform.python_version()}-{platform.system()}".lower()
    return f"python_docs-{interpreter}-v{VERSION}"


def write_python_docs(path: Path) -> None:
    """Write the rows as JSON lines, atomically. Raises TrntuneError when they can't be built.

    An interpreter of its own builds them: torch and transformers change the standard library when they are imported
    (inspect.getfile, logging.Logger), and whether they are in this process depends on what else had to be fetched.
    """
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))}
    # UTF-8 mode because tarfile's signatures name the locale's encoding.
    command = [sys.executable, "-X", "utf8", "-m", "trainer.fetch.python_docs", str(path.absolute())]
    # In ROOT, because -m looks in the working directory first: the user may have a json.py there.
    done = subprocess.run(
        command, cwd=ROOT, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False
    )
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise TrntuneError(f"{path}: the rows of dataset=python_docs can't be built: {reason}")


def _write_here(path: Path) -> None:
    """What the interpreter that write_python_docs starts does."""
    rows = map(asdict, build_rows())
    write_jsonl(path, ({key: row[key] for key in ("instruction", "context", "response")} for row in rows))


def build_rows() -> list[InstructionRow]:
    """One row for each function, class and method with a docstring of its own.

    An answer that is given twice is kept once: else a held-out answer could have been trained on under another name.
    """
    rows: dict[str, InstructionRow] = {}
    for name, thing in _documented():
        answer = summary(_own_docstring(thing))
        if answer and answer.lower() not in rows:
            rows[answer.lower()] = InstructionRow(f"What does {name} do?", _signature(name, thing), answer)
    return list(rows.values())


def summary(docstring: str) -> str:
    """The first paragraph as one line, cut at a sentence's end within 60 words; empty when it says too little."""
    paragraphs = [" ".join(part.split()) for part in re.split(r"\n\s*\n", docstring.strip())]
    lines = docstring.strip().splitlines()
    if lines and _SIGNATURE_LINE.match(lines[0].strip()):
        paragraphs = [" ".join(part.split()) for part in re.split(r"\n\s*\n", "\n".join(lines[1:]).strip())]
    text = paragraphs[0] if paragraphs else ""
    if len(text.split()) < _MIN_WORDS or _ADDRESS.search(text):
        return ""
    kept = ""
    for sentence in _SENTENCE_END.split(text):
        longer = f"{kept} {sentence}".strip()
        if kept and len(longer.split()) > _MAX_WORDS:
            break
        kept = longer
    return " ".join(kept.split()[:_MAX_WORDS])


def _documented() -> Iterator[tuple[str, Any]]:
    """Public functions and classes of the modules, and the methods of the classes, under the names users write."""
    seen: set[int] = set()
    for module_name in MODULES:
        module = _import(module_name)
        for name in sorted(vars(module)) if module else ():
            thing = getattr(module, name)
            if name.startswith("_") or not _is_code(thing) or not _belongs(thing, module_name) or id(thing) in seen:
                continue
            seen.add(id(thing))
            qualified = name if module_name == "builtins" else f"{module_name}.{name}"
            yield qualified, thing
            if inspect.isclass(thing):
                for method, function in sorted(vars(thing).items()):
                    if not method.startswith("_") and _is_code(function):
                        yield f"{qualified}.{method}", function


def _import(name: str) -> Any:
    """The module, or None where this interpreter lacks it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return importlib.import_module(name)
        except Exception:
            return None


def _is_code(thing: Any) -> bool:
    return (
        inspect.isroutine(thing) or inspect.isclass(thing) or isinstance(thing, (property, classmethod, staticmethod))
    )


def _belongs(thing: Any, module_name: str) -> bool:
    """Whether the module is where users find the thing, and not one that merely imports it."""
    owner = getattr(thing, "__module__", None) or module_name
    aliases = {"posixpath": "os.path", "posix": "os", "_io": "io", "_operator": "operator"}
    owner = aliases.get(owner, owner)
    return owner == module_name or owner.lstrip("_").split(".")[0] == module_name.split(".")[0]


def _own_docstring(thing: Any) -> str:
    """The thing's own docstring, not an inherited one."""
    if isinstance(thing, (classmethod, staticmethod)):
        thing = thing.__func__
    docstring = getattr(thing, "__doc__", None)
    return inspect.cleandoc(docstring) if isinstance(docstring, str) else ""


def _signature(name: str, thing: Any) -> str:
    """How it is called, as far as the interpreter knows."""
    if isinstance(thing, property):
        return name
    try:
        text = str(inspect.signature(thing.__func__ if isinstance(thing, (classmethod, staticmethod)) else thing))
    except Exception:  # some C signatures name values that do not exist
        return name
    return name if _ADDRESS.search(text) or _PATH.search(text) or len(text) > 200 else f"{name}{text}"


if __name__ == "__main__":
    _write_here(Path(sys.argv[1]))

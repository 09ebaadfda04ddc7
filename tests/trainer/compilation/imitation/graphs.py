"""What torch-neuronx and neuronx-cc leave on disk, for a machine on which they can't be installed.

Layout and log lines are those of AWS's documentation ("Neuron Persistent Cache", "neuron_parallel_compile CLI") and of
the public cache of optimum-neuron, which docs/trainium.md names. Compiling is a pause.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from pathlib import Path

COMPILER = "neuronxcc-2.21.33363.0+82129205"
_seen: set[str] = set()


def log(source: str, text: str) -> None:
    print(f"{time.strftime('%Y-%m-%d %H:%M:%S')}.000001:  {os.getpid()}  INFO ||{source}||: {text}", flush=True)


def place(graph: str) -> Path:
    """The directory of a graph, by --cache_dir and the hash of the other flags."""
    words = os.environ["NEURON_CC_FLAGS"].split()
    cache = next(word.partition("=")[2] for word in words if word.startswith("--cache_dir="))
    flags = json.dumps([word for word in words if not re.match("--(cache_dir|retry_failed_compilation)", word)])
    number = int(hashlib.sha256(graph.encode()).hexdigest()[:15], 16)
    return Path(cache) / COMPILER / f"MODULE_{number}+{hashlib.sha256(flags.encode()).hexdigest()[:8]}"


def extract(graph: str) -> Path:
    """Write what is compiled from."""
    module = place(graph)
    module.mkdir(parents=True, exist_ok=True)
    (module / "compile_flags.json").write_text(os.environ["NEURON_CC_FLAGS"])
    (module / "model.hlo_module.pb").write_text(graph)
    return module


def compile_module(module: Path) -> bool:
    """The compiler: fails where the test says so."""
    time.sleep(float(os.environ.get("IMITATED_SECONDS", "0.05")))
    if os.environ.get("IMITATED_FAILURE"):
        (module / "model.log").write_text("[NLA001] Unhandled exception")
        return False
    (module / "model.neff").write_bytes(b"NEFF")
    (module / "model.done").touch()
    return True


def run(graph: str) -> None:
    """What happens when a program reaches a graph: in this process only the first time."""
    if graph in _seen:
        return
    _seen.add(graph)
    module = place(graph)
    if os.environ.get("NEURON_EXTRACT_GRAPHS_ONLY") == "1":
        path = extract(graph) / "model.hlo_module.pb"
        log("NEURON_CC_WRAPPER", f"Extracting graphs ({path}) for ahead-of-time parallel compilation. No compilation "
            "was done.")  # fmt: skip
    elif (module / "model.done").exists():
        log("NEURON_CC_WRAPPER", f"Using a cached neff at {module / 'model.neff'}")
    else:
        compile_module(extract(graph))

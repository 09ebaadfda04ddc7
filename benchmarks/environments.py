"""Each peer in a virtual environment of its own, made once: their requirements exclude each other's."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from launcher.errors import TrntuneError
from launcher.paths import ROOT

# What pip is told. transformers and TRL are those that this project itself is built on.
REQUIREMENTS: dict[str, list[str]] = {
    "hugging_face": ["-c", str(ROOT / "constraints.txt"), "torch", "transformers", "peft", "trl", "datasets"],
    "trl": ["torch==2.13.0", "trl==1.16.0", "transformers==5.24.0", "datasets==5.2.0"],
    "llama_factory": ["torch==2.13.0", "llamafactory==0.9.5"],
    "torchtune": ["torch==2.13.0", "torchtune==0.6.1", "torchao==0.9.0"],
    "litgpt": ["torch==2.13.0", "litgpt==0.5.13"],
}


def python_of(name: str, directory: Path) -> str:
    """The Python of environment ``name`` under ``directory``, which is made when it is not there or is not whole.

    Raises TrntuneError with pip's own reason.
    """
    environment = directory / name
    complete, python = environment / "complete", environment / "bin" / "python"
    if complete.is_file() and complete.read_text(encoding="utf-8") == _wanted(name):
        return str(python)
    print(f"making an environment for {name}, once", flush=True)
    _call([sys.executable, "-m", "venv", "--clear", str(environment)], name)
    _call([str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check", *REQUIREMENTS[name]], name)
    complete.write_text(_wanted(name), encoding="utf-8")
    return str(python)


def _wanted(name: str) -> str:
    return "\n".join(REQUIREMENTS[name][-3:])


def _call(command: list[str], name: str) -> None:
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        lines = [line for line in result.stderr.splitlines() if line.startswith("ERROR")] or result.stderr.splitlines()
        raise TrntuneError(f"{name} can't be installed: {lines[-1] if lines else f'exit code {result.returncode}'}")

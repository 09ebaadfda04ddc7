"""A model directory of the user's."""

from __future__ import annotations

from pathlib import Path

from launcher.errors import TrntuneError

_TOKENIZERS = ("tokenizer.json", "tokenizer.model")


def check_directory(path: str) -> Path:
    """The directory, absolute. Raises TrntuneError that names what a model directory needs and this one lacks."""
    directory = Path(path).expanduser().absolute()
    if not directory.is_dir():
        raise TrntuneError(f"model.path={path}: there is no such directory")
    missing = [] if (directory / "config.json").is_file() else ["config.json"]
    if not any(directory.glob("*.safetensors")):
        missing.append("*.safetensors")
    if not any((directory / name).is_file() for name in _TOKENIZERS):
        missing.append("tokenizer.json")
    if missing:
        raise TrntuneError(
            f"model.path={path}: {', '.join(missing)} missing; save a model there with transformers' save_pretrained"
        )
    return directory

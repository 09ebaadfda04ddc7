"""What a model directory has besides its weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from launcher.errors import TrntuneError
from launcher.io import fsync, write_durably
from launcher.model_dir.chat_templates import FILE, FOLDER, SETTINGS
from launcher.model_dir.files import VOCABULARIES
from launcher.model_dir.weights import last_token
from trainer.models.fingerprint import BASE_FILE

RECORD = "merge.json"
# Everything that a tokenizer may be made of. They belong together: one directory's replace the other's as a whole.
_TOKENIZER = frozenset(
    (
        *("tokenizer.json", SETTINGS, "special_tokens_map.json", "added_tokens.json"),
        *("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "tekken.json"),
        *("vocab.json", "vocab.txt", "merges.txt", FILE, "chat_template.json"),
    )
)
# What to do about an adapter whose training added tokens, and whose file doesn't have what they became.
NO_NEW_ROWS = "merge into the resized base if that was saved, or save the adapter again with save_embedding_layers=True"
_WEIGHTS = frozenset(
    (
        *(".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack"),
        *(".gguf", ".onnx", ".onnx_data", ".tflite", ".ot", ".npz", ".lock"),
    )
)
# Of the base alone: its card, and the record of its own making.
_LEFT = frozenset(("README.md", RECORD, BASE_FILE))


def has_tokenizer(directory: Path) -> bool:
    """Whether there is a whole tokenizer: its configuration and its vocabulary."""
    there = {file.name for file in directory.iterdir() if file.is_file()}
    return SETTINGS in there and any(needed <= there for needed in VOCABULARIES)


def tokenizer_of(base: Path, adapter: Path) -> Path:
    """The directory whose tokenizer is the tuned model's: the adapter's where it has a whole one, else the base's."""
    return adapter if has_tokenizer(adapter) else base


def left_tokenizer_files(adapter: Path) -> list[str]:
    """Names of the adapter's files that are parts of a tokenizer, where they make none and the base's is taken."""
    if has_tokenizer(adapter):
        return []
    alone = _TOKENIZER - {FILE}
    return sorted(file.name for file in adapter.iterdir() if file.is_file() and file.name in alone)


def left_note(record: dict[str, Any]) -> str:
    """What to say of files that were left out, by merge.json's record."""
    return f"the base's: the adapter's {', '.join(record['tokenizer']['left'])} make no tokenizer and were left out"


def side_files(base: Path, adapter: Path) -> list[Path]:
    """The files to copy: the base's without weights and model card, with the adapter's tokenizer where it has a whole
    one. A chat template alone is the adapter's, too.

    Training may have added tokens, a padding token or a chat template, and saves the tokenizer that it used.
    """
    own_tokenizer = has_tokenizer(adapter)
    own_template = (adapter / FILE).is_file()
    found = []
    for file in sorted(base.iterdir()):
        replaced = file.name in _TOKENIZER if own_tokenizer else file.name == FILE and own_template
        if is_side_file(file) and file.name not in _LEFT and not replaced:
            found.append(file)
    taken = _TOKENIZER if own_tokenizer else {FILE}
    found += [file for file in sorted(adapter.iterdir()) if file.is_file() and file.name in taken]
    templates = (adapter if own_tokenizer else base) / FOLDER
    return found + ([templates] if templates.is_dir() else [])


def is_side_file(file: Path) -> bool:
    """Whether a model directory's file is none of its weights, nor hidden."""
    index = file.name.endswith(".index.json")
    hidden = file.name.startswith(".")
    return file.is_file() and not (file.suffix in _WEIGHTS or index or hidden)


def copy_side_files(files: list[Path], directory: Path, texts: Mapping[str, str | None]) -> None:
    """Copy files and folders, and force them to disk. ``texts``: what some have instead, None for one to leave out."""
    for file in files:
        target = directory / file.name
        if file.name in texts:
            text = texts[file.name]
            if text is not None:
                write_durably(target, text)
            continue
        if file.is_dir():
            shutil.copytree(file, target)
        else:
            shutil.copyfile(file, target)
        for written in _files_of(target):
            fsync(written)


def _files_of(path: Path) -> Iterator[Path]:
    if path.is_dir():
        yield from (file for file in path.rglob("*") if file.is_file())
    yield path


def adapt_config(directory: Path, dtype: str | None, untied: bool, rows: int | None = None) -> None:
    """Have config.json say what the weights now are: their dtype when it was chosen, embeddings no longer tied, the
    ``rows`` of a vocabulary that was resized."""
    if dtype is None and not untied and rows is None:
        return
    file = directory / "config.json"
    config: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    parts = [config] + [config[key] for key in ("text_config",) if isinstance(config.get(key), dict)]
    for part in parts:
        if dtype is not None:
            # transformers wrote torch_dtype before 4.56 and dtype since; vLLM and older readers know the former.
            part["dtype" if "dtype" in part else "torch_dtype"] = dtype
        if rows is not None and (part is parts[-1] or "vocab_size" in part):
            part["vocab_size"] = rows
        if untied:
            part["tie_word_embeddings"] = False
    write_durably(file, json.dumps(config, indent=2, ensure_ascii=False) + "\n")


def check_tokenizer(adapter: Path, rows: int) -> None:
    """Raise TrntuneError when the adapter's tokenizer makes tokens that the embedding has no row for."""
    file = adapter / "tokenizer.json"
    if not file.is_file():
        return
    try:
        last = last_token(json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, KeyError, TypeError):
        raise TrntuneError(f"{file} is damaged: no vocabulary in it; copy the adapter again") from None
    if last >= rows:
        raise TrntuneError(
            f"{file} has token {last:,}, but the embedding only {rows:,} rows: the base was resized for training, "
            f"and the adapter lacks the new rows: {NO_NEW_ROWS}"
        )

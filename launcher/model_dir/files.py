"""Which files of a model directory hold its weights, and why they can't be used: by their names and config.json alone,
so that a plan knows before anything is loaded."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.errors import first

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLE, PICKLE_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
_NUMBERED = re.compile(r"(?P<stem>.+)-(?P<number>\d+)-of-(?P<count>\d+)(?P<suffix>\.safetensors|\.bin)")
_AGAIN = "download the model again"
# Beginnings and endings of names that other programs read, and what has to be said of them.
_FOREIGN = (
    (
        r"consolidated.*\.safetensors",
        "Mistral's own format, whose names of tensors transformers doesn't know: download the repository's "
        "model-*.safetensors, their index and config.json, or convert it with transformers' "
        "convert_mistral_weights_to_hf.py",
    ),
    (
        r"consolidated.*\.pth",
        "Meta's own format: download the repository's model-*.safetensors, their index and config.json, or convert it "
        "with transformers' convert_llama_weights_to_hf.py",
    ),
    (r".*\.gguf", "llama.cpp's format: take the model that it was made from"),
    (r".*\.(h5|msgpack|onnx|pth|pt|ckpt)", "which isn't read here: take the model with safetensors"),
)
# Any one of these sets is a tokenizer.
VOCABULARIES = (
    *({name} for name in ("tokenizer.json", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model")),
    *({"tekken.json"}, {"vocab.txt"}, {"vocab.json", "merges.txt"}),
)
_METHODS = {"gptq": "GPTQ", "awq": "AWQ", "fp8": "FP8", "fbgemm_fp8": "FP8", "mxfp4": "MXFP4"}
_QUANTIZED = ("quantization_config", "compression_config", "quantization")  # transformers', its older one's, MLX's
_PARTS = ("text_config", "llm_config", "language_config")


def weight_files(directory: Path) -> list[Path]:
    """The safetensors files that transformers reads there: model.safetensors, else those that the index names, sorted;
    [] where there is neither, or the index is damaged. What lies beside them is no part of the model."""
    if (directory / SINGLE).is_file():
        return [directory / SINGLE]
    return [directory / name for name in sorted(set((index_of(directory / INDEX) or {}).values()))]


def index_of(file: Path) -> dict[str, str] | None:
    """The names of an index's tensors and their files; None where there is none or it is damaged."""
    try:
        return {str(name): str(shard) for name, shard in json.loads(file.read_text("utf-8"))["weight_map"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def weights_fault(directory: Path) -> str | None:
    """Why transformers can't read the weights of a directory, and what to do; None where it can, as far as names tell,
    and where there are no weights of any kind."""
    names = sorted(file.name for file in directory.iterdir() if file.is_file())
    if "adapter_config.json" in names:
        return (
            "it is a peft adapter (adapter_config.json), for which transformers would load the base that it names: "
            f"merge it into that with {_command('merge', 'BASE', directory)}; beside a whole model take "
            "adapter_config.json away"
        )
    if SINGLE in names:
        return None
    if INDEX in names:
        return lost_shards(directory, INDEX)
    found = convertible(directory)
    if found is not None:
        return found.lost or f"{found.why}: convert it once with {_command('convert', directory)}, and give OUT"
    own = [name for name in names if name.endswith(".safetensors") and not name.startswith("consolidated")]
    if len(own) == 1:
        return f"its only weights are {own[0]}: if that is the whole model, rename it to {SINGLE}"
    if own:
        return f"its weights are {first(own)}, but {INDEX}, which says what they are, is missing; {_AGAIN}"
    return foreign_fault(names)


@dataclass(frozen=True)
class Convertible:
    """Weights that transformers doesn't read here, but that can be written anew: ``files``, why they aren't read, and
    what to say of those that are ``lost``."""

    files: tuple[Path, ...]
    why: str
    lost: str | None


def convertible(directory: Path) -> Convertible | None:
    """The weights that postprocess.convert reads there; None where there are none. Looked at where there is neither
    model.safetensors nor its index."""
    names = sorted(file.name for file in directory.iterdir() if file.is_file())
    if shards := _numbered(names, ".safetensors"):
        return _found(directory, shards, f"{INDEX} of its {len(shards)} files is missing", _lost_numbers(shards))
    shards, pickles = _numbered(names, ".bin"), "its only weights are {}, pickles, which could run code when read"
    if PICKLE in names:
        return _found(directory, [PICKLE], pickles.format(PICKLE), None)
    if PICKLE_INDEX in names:
        shards = sorted(set((index_of(directory / PICKLE_INDEX) or {}).values()))
        return _found(directory, shards, pickles.format(first(shards, 1)), lost_shards(directory, PICKLE_INDEX))
    return _found(directory, shards, pickles.format(first(shards, 1)), _lost_numbers(shards)) if shards else None


def _found(directory: Path, names: Sequence[str], why: str, lost: str | None) -> Convertible:
    return Convertible(tuple(directory / name for name in names), why, lost)


def foreign_fault(names: Sequence[str]) -> str | None:
    """What to say of weights that another program reads, where a directory has only these; None where it has none."""
    for pattern, words in _FOREIGN:
        found = [name for name in names if re.fullmatch(pattern, name)]
        if found:
            return f"its only weights are {first(found, 1)}, {words}"
    return None


def lost_shards(directory: Path, index: str) -> str | None:
    """Why the files that an index names can't be read; None where all are there."""
    weight_map = index_of(directory / index)
    if weight_map is None:
        return f"{index} is damaged: there is no weight_map in it; {_AGAIN}"
    files = sorted(set(weight_map.values()))
    lost = [name for name in files if not (directory / name).is_file()]
    if not lost:
        return None
    return f"{len(lost)} of the {len(files)} files that {index} names are missing: {first(lost)}; {_AGAIN}"


def _numbered(names: Sequence[str], suffix: str) -> list[str]:
    """Names such as model-00001-of-00003.safetensors, Mistral's own format left out."""
    found = [name for name in names if (match := _NUMBERED.fullmatch(name)) and match["suffix"] == suffix]
    return [name for name in found if not name.startswith("consolidated")]


def _lost_numbers(numbered: Sequence[str]) -> str | None:
    """Which of the numbered files are missing that the names of the others speak of; None where all are there."""
    wanted: dict[str, None] = {}
    for name in numbered:
        match = _NUMBERED.fullmatch(name)
        assert match is not None
        beginning, digits, ending = match["stem"], len(match["number"]), f"-of-{match['count']}{match['suffix']}"
        wanted.update((f"{beginning}-{each:0{digits}}{ending}", None) for each in range(1, int(match["count"]) + 1))
    lost = [name for name in wanted if name not in numbered]
    return f"{len(lost)} of its {len(wanted)} files are missing: {first(lost)}; {_AGAIN}" if lost else None


def _command(name: str, *arguments: object) -> str:
    words = " ".join(shlex.quote(str(argument)) for argument in arguments)
    return f"python -m postprocess.{name} {words} OUT"


def vocabulary_of(directory: Path) -> Path | None:
    """A file of the directory's tokenizer: tokenizer.json where that is there, else one of what it can be made of; None
    without a tokenizer."""
    for needed in VOCABULARIES:
        if all((directory / name).is_file() for name in needed):
            return directory / min(needed, key=lambda name: name != "vocab.json")
    return None


def tokenizer_fault(directory: Path) -> str | None:
    """Which file of the tokenizer is missing; None where there is one."""
    if vocabulary_of(directory) is not None:
        return None
    half = [name for name in ("vocab.json", "merges.txt") if (directory / name).is_file()]
    lost = "merges.txt" if half == ["vocab.json"] else "vocab.json" if half else "tokenizer.json"
    beside = f", without which {half[0]} is no tokenizer" if half else ""
    return f"{lost} is missing{beside}; copy the tokenizer that belongs to the model"


def settings_of(directory: Path) -> Any:
    """The JSON value of config.json; None where it can't be read, which whoever loads it says."""
    try:
        return json.loads((directory / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def quantization_fault(directory: Path) -> str | None:
    """Why a model whose weights are quantized, by its config.json, can't be used, and what can; None for another."""
    facts = settings_of(directory)
    if isinstance(facts, dict) and not isinstance(facts.get(_QUANTIZED[0], {}), dict):
        return f'its config.json gives "{_QUANTIZED[0]}" as no object, which transformers can\'t read: take it away'
    found = quantization(facts) if isinstance(facts, dict) else None
    if found is None:
        return None
    instead = "a copy of it in bf16" if found.startswith("MXFP4") else "the unquantized model that it was made from"
    also = "" if instead.startswith("a copy") else " (lora=qlora packs it while it trains)"
    return (
        f"its weights are quantized ({found}), which nothing here trains, merges or answers with: take {instead}{also}"
    )


def quantization(facts: Mapping[str, Any]) -> str | None:
    """How the weights of a config.json are quantized, in a few words; None: not at all."""
    for part in (facts, *(facts.get(name) for name in _PARTS)):
        for key in _QUANTIZED:
            settings = part.get(key) if isinstance(part, Mapping) else None
            if isinstance(settings, Mapping):
                return _method(settings, "MLX" if key == "quantization" else "by a method that isn't named")
    return None


def _method(settings: Mapping[str, Any], unnamed: str) -> str:
    bits = next((settings[key] for key in ("bits", "w_bit") if type(settings.get(key)) is int), None)
    for loaded in (4, 8):
        if settings.get(f"load_in_{loaded}bit"):
            bits, unnamed = loaded, "bitsandbytes"
    method = str(settings.get("quant_method") or unnamed)
    detail = f"{bits} bits" if bits is not None else settings.get("format")
    return ", ".join([_METHODS.get(method, method), *([str(detail)] if detail else [])])

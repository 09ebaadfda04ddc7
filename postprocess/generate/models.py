"""The models that answer: a base, and the tuned one as an adapter on it or as a directory of its own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from launcher.errors import TrntuneError
from launcher.rundir import RunDir
from trainer.families.choose import plain_attention
from trainer.models.load import load_tokenizer


@dataclass(frozen=True)
class Place:
    """Where the models are. One of ``model`` and ``adapter`` is None."""

    base: Path | None
    adapter: Path | None
    model: Path | None
    prompt: str
    """plain or chat"""
    run: RunDir | None


def locate(path: Path, base: Path | None, prompt: str | None) -> Place:
    """What lies at ``path``: a run directory, an adapter, or a model. Raises TrntuneError for anything else."""
    if not path.is_dir():
        raise TrntuneError(f"{path} is not a directory: give a run directory, an adapter or a model")
    if RunDir(path).config_file.is_file():
        return _of_run(RunDir(path), base, prompt)
    if (path / "adapter_config.json").is_file():
        named = json.loads((path / "adapter_config.json").read_text(encoding="utf-8")).get("base_model_name_or_path")
        found = base or Path(str(named))
        if not found.is_dir():
            raise TrntuneError(f"{path}: its base model {named} is not a directory here; give it: --base DIR")
        return Place(found, path, None, prompt or "plain", None)
    if (path / "config.json").is_file():
        return Place(base, None, path, prompt or "plain", None)
    raise TrntuneError(f"{path} holds no run, no adapter_config.json and no config.json")


def _of_run(run_dir: RunDir, base: Path | None, prompt: str | None) -> Place:
    fetched = run_dir.stage_result("fetch")
    if fetched is None or run_dir.stage_result("train") is None:
        raise TrntuneError(f"{run_dir.path}: its training has not finished")
    style = prompt or _style(run_dir)
    found = base or Path(fetched["model_dir"])
    if run_dir.adapter.is_dir():
        return Place(found, run_dir.adapter, None, style, run_dir)
    return Place(found, None, run_dir.model, style, run_dir)


def _style(run_dir: RunDir) -> str:
    """chat for whatever a chat template has written, conversations among it."""
    trained = run_dir.stage_result("train") or {}
    return "chat" if trained.get("data", {}).get("template_sha256") else run_dir.load_config().dataset.prompt


class Answerers:
    """Base and tuned model. With an adapter they share one base in memory."""

    def __init__(self, place: Place, dtype: torch.dtype, device: str) -> None:
        self.place, self.device = place, device
        self.tokenizer = load_tokenizer(place.adapter or place.model or Path())
        self._dtype = dtype
        self._adapted: Any = None
        if place.adapter is not None:
            assert place.base is not None
            # On the base itself, not merged: what is measured is what was trained.
            self._adapted = PeftModel.from_pretrained(self._load(place.base), place.adapter).eval()

    @property
    def names(self) -> list[str]:
        """base and tuned, or tuned alone where no base is known."""
        return ["base", "tuned"] if self.place.base is not None else ["tuned"]

    @contextmanager
    def model(self, name: str) -> Iterator[Any]:
        """The model of that name, on the device."""
        if self._adapted is not None:
            with self._adapted.disable_adapter() if name == "base" else nullcontext():
                yield self._adapted
            return
        path = self.place.base if name == "base" else self.place.model
        assert path is not None
        yield self._load(path)

    def _load(self, path: Path) -> Any:
        try:
            model: Any = AutoModelForCausalLM.from_pretrained(
                path,
                dtype=self._dtype,
                attn_implementation=plain_attention(path),
                use_safetensors=True,
                trust_remote_code=False,
            )
        except (OSError, ValueError, KeyError) as error:
            raise TrntuneError(f"{path}: the model can't be loaded: {str(error).strip().splitlines()[0]}") from None
        return model.to(self.device).eval()

"""The models that answer: a base, and the tuned one as an adapter on it or as a directory of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from launcher.errors import TrntuneError, UsageError
from launcher.model_dir.weights import check_readable
from launcher.run_dir.layout import RunDir
from postprocess.merge.adapter import CONFIG, read_adapter, read_config
from postprocess.merge.apply import adapted
from postprocess.merge.files import tokenizer_of
from postprocess.merge.renames import Rename
from postprocess.merge.vocabulary import resize, vocabulary_of
from trainer.families.answers import Answering
from trainer.families.choose import way_of_answering
from trainer.models.load import check_none_missing, check_shapes, load_tokenizer


@dataclass(frozen=True)
class ModelLocation:
    """Where the models are. One of ``model`` and ``adapter`` is None."""

    base: Path | None
    adapter: Path | None
    model: Path | None
    prompt: str
    """plain or chat"""
    run: RunDir | None
    renames: tuple[Rename, ...] = ()
    """of the adapter's tensors"""

    @property
    def tokenizer(self) -> Path:
        """The directory of the tuned model's tokenizer: as a merge takes it."""
        if self.adapter is None or self.base is None:
            return self.model or self.adapter or Path()
        return tokenizer_of(self.base, self.adapter)


def locate(path: Path, base: Path | None, prompt: str | None, renames: tuple[Rename, ...] = ()) -> ModelLocation:
    """What lies at ``path``: a run directory, an adapter, or a model. ``renames`` are of an adapter's tensors. Raises
    TrntuneError for anything else."""
    if not path.is_dir():
        raise TrntuneError(f"{path} is not a directory: give a run directory, an adapter or a model")
    if renames and (RunDir(path).config_file.is_file() or not (path / CONFIG).is_file()):
        raise UsageError(f"--rename is for an adapter's tensors, and {path} is no adapter directory")
    if RunDir(path).config_file.is_file():
        return _of_run(RunDir(path), base, prompt)
    if (path / CONFIG).is_file():
        named = read_config(path).get("base_model_name_or_path")
        found = base or Path(str(named))
        if not found.is_dir():
            raise TrntuneError(f"{path}: its base model {named} is not a directory here; give it: --base DIR")
        return ModelLocation(found, path, None, prompt or "plain", None, renames)
    if (path / "config.json").is_file():
        return ModelLocation(base, None, path, prompt or "plain", None)
    raise TrntuneError(f"{path} holds no run, no adapter_config.json and no config.json")


def _of_run(run_dir: RunDir, base: Path | None, prompt: str | None) -> ModelLocation:
    fetched = run_dir.stage_result("fetch")
    if fetched is None or run_dir.stage_result("train") is None:
        raise TrntuneError(f"{run_dir.path}: its training has not finished")
    style = prompt or _style(run_dir)
    found = base or Path(fetched["model_dir"])
    if run_dir.adapter.is_dir():
        return ModelLocation(found, run_dir.adapter, None, style, run_dir)
    return ModelLocation(found, None, run_dir.model, style, run_dir)


def _style(run_dir: RunDir) -> str:
    """chat for whatever a chat template has written, conversations among it."""
    trained = run_dir.stage_result("train") or {}
    return "chat" if trained.get("data", {}).get("template_sha256") else run_dir.load_config().dataset.prompt


class Answerers:
    """Base and tuned model. With an adapter they share one base in memory."""

    def __init__(self, place: ModelLocation, dtype: torch.dtype, device: str, length: int = 1024) -> None:
        """``length``: tokens of a question with its answer, at most."""
        self.place, self.device, self.length = place, device, length
        self.how: dict[Path, Answering] = {}
        self.tokenizer = load_tokenizer(place.tokenizer)
        self._dtype = dtype
        self._adapted: Any = None
        self._resized = False
        if place.adapter is not None:
            assert place.base is not None
            # On the base itself, not merged: what is measured is what was trained.
            self._adapted = self._with_adapter(self._load(place.base, self.way("base")), place.adapter)

    @property
    def names(self) -> list[str]:
        """base and tuned, or tuned alone where no base is known."""
        return ["base", "tuned"] if self.place.base is not None else ["tuned"]

    @contextmanager
    def model(self, name: str) -> Iterator[Any]:
        """The model of that name, on the device."""
        if self._adapted is not None and (name != "base" or self._restores):
            with self._adapted.disable_adapter() if name == "base" else nullcontext():
                yield self._adapted
            return
        path = self.place.base if name == "base" else self.place.model  # trained biases and resized embeddings stay
        assert path is not None
        yield self._load(path, self.way(name))

    @property
    def _restores(self) -> bool:
        """Whether the base is as it was while the adapter is off."""
        biases = any(getattr(config, "bias", "none") != "none" for config in self._adapted.peft_config.values())
        return not biases and not self._resized

    def _with_adapter(self, base: Any, directory: Path) -> Any:
        """The base with the adapter, resized as it was for training. Raises TrntuneError where that doesn't fit."""
        if read_config(directory).get("peft_type") != "LORA":
            return PeftModel.from_pretrained(base, directory).eval()
        adapter = read_adapter(directory, self.place.renames)
        vocabulary = vocabulary_of(adapter, base)
        if vocabulary is not None:
            self._resized = True
            resize(base, vocabulary)
        return adapted(base, adapter)

    def way(self, name: str) -> Answering:
        """How the model of that name answers exactly. Raises TrntuneError where it can't."""
        path = self.place.base if name == "base" or self.place.adapter is not None else self.place.model
        assert path is not None
        if path not in self.how:
            self.how[path] = way_of_answering(path, self.length)
        return self.how[path]

    def _load(self, path: Path, how: Answering) -> Any:
        check_readable(path)
        try:
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                path,
                dtype=self._dtype,
                attn_implementation=how.attention,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are in the report
            )
        except (OSError, ValueError, KeyError) as error:
            raise TrntuneError(f"{path}: the model can't be loaded: {str(error).strip().splitlines()[0]}") from None
        model: Any = loaded[0]
        check_shapes(model, loaded[1], path)
        check_none_missing(model, loaded[1], path)
        return model.to(self.device).eval()

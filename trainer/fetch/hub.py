"""Models and data sets of the Hugging Face Hub. The token comes from HF_TOKEN, or the file named by HF_TOKEN_PATH."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from launcher.errors import TrntuneError
from launcher.model_dir.chat_templates import FOLDER
from launcher.model_dir.files import quantization_fault, weight_files, weights_fault

# Read by huggingface_hub when it is imported: a machine without a way to the Hub answers in seconds, unreported.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("HF_HUB_ETAG_TIMEOUT", "5")
os.environ.setdefault("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")

from huggingface_hub import hf_hub_download, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from trainer.libraries.hub_versions import UNREACHABLE

_FAULTS: tuple[type[Exception], ...] = (OSError, ValueError, *UNREACHABLE)
"""of the connection, of the disk, or of an answer that makes no sense"""
_MODEL_FILES = ["*.safetensors", "*.json", "*.jinja", "*.model", "*.txt"]
_FOLDER = f"{FOLDER}/"
# No folder but that of further chat templates: names that differ from it at one place or another. The last is the whole
# model once more, in Mistral's own format.
_NOT_WANTED = [
    *(f"{_FOLDER[:place]}[!{_FOLDER[place]}]*/*" for place in range(len(FOLDER))),
    "consolidated*.safetensors",
]
_CONVERT = "hf download {} --local-dir DIR, then python -m postprocess.convert DIR OUT and model=local model.path=OUT"

Result = TypeVar("Result")


def fetch_model(
    hub_id: str, revision: str | None, with_code: bool = False, check: Callable[[Path], None] = lambda directory: None
) -> Path:
    """The directory of the model's snapshot, downloaded unless it is in huggingface_hub's own cache; ``with_code``
    brings the repository's Python files too. ``check`` sees a directory with its config.json before the weights are
    downloaded."""
    instead = "download it elsewhere and use model=local model.path=DIR"

    def download(local_only: bool) -> str:
        return snapshot_download(
            hub_id,
            revision=revision,
            token=token(),
            allow_patterns=[*_MODEL_FILES, "*.py"] if with_code else _MODEL_FILES,
            ignore_patterns=_NOT_WANTED,
            local_files_only=local_only,
        )

    config = _fetch_config(hub_id, revision, instead)
    if (fault := quantization_fault(config)) is not None:
        raise TrntuneError(f"model {hub_id}: {fault}")
    check(config)
    directory = Path(_fetch(download, f"model {hub_id}", instead))
    fault = weights_fault(directory)
    if fault is None and not weight_files(directory):
        fault = f"it has no safetensors weights; pytorch_model.bin can be converted once: {_CONVERT.format(hub_id)}"
    if fault is not None:
        raise TrntuneError(f"model {hub_id}: {fault}")
    return directory


def _fetch_config(hub_id: str, revision: str | None, instead: str) -> Path:
    """The directory where the model's config.json lies, downloaded alone."""

    def download(local_only: bool) -> str:
        return hf_hub_download(hub_id, "config.json", revision=revision, token=token(), local_files_only=local_only)

    return Path(_fetch(download, f"model {hub_id}", instead)).parent


def fetch_dataset_file(hub_id: str, file: str, revision: str | None) -> Path:
    """One file of a data set repository."""

    def download(local_only: bool) -> str:
        return hf_hub_download(
            hub_id, file, repo_type="dataset", revision=revision, token=token(), local_files_only=local_only
        )

    return Path(_fetch(download, f"data set {hub_id}", "download it elsewhere and set dataset.path=FILE"))


def cached_file(hub_id: str, file: str, revision: str | None, repo_type: str = "model") -> Path | None:
    """A file that was downloaded before, or None. Asks nobody."""
    try:
        found = try_to_load_from_cache(hub_id, file, revision=revision, repo_type=repo_type)
    except HFValidationError:
        return None
    return Path(found) if isinstance(found, str) else None


def refused(error: HfHubHTTPError) -> str:
    status = error.response.status_code if error.response is not None else "no status"
    return f"the Hub refused it ({status}): check HF_TOKEN in the environment and try again"


def _without_local_copy(error: LocalEntryNotFoundError) -> str:
    """huggingface_hub looks for a local copy after any fault, and then tells of that instead of the fault."""
    cause = error.__cause__
    if isinstance(cause, HfHubHTTPError):
        return refused(cause)
    return "the Hub can't be reached and nothing was downloaded before: check the network"


def token() -> str | bool:
    """HF_TOKEN, or what the file that HF_TOKEN_PATH names holds. Else False, not None: None would let huggingface_hub
    look for a token that was once stored on disk."""
    path = os.environ.get("HF_TOKEN_PATH")
    if os.environ.get("HF_TOKEN") or not path:
        return os.environ.get("HF_TOKEN") or False
    try:
        return Path(path).read_text(encoding="utf-8").strip() or False
    except OSError as error:
        raise TrntuneError(f"HF_TOKEN_PATH={path} can't be read: {error.strerror}") from None


def _fetch(download: Callable[[bool], str], what: str, instead: str) -> str:
    """Download, or say in one line why not and what to do."""
    try:
        return download(False)
    except GatedRepoError:
        reason = "it is gated: accept its licence on its page of the Hub, set HF_TOKEN in the environment"
    except RepositoryNotFoundError:
        reason = "the Hub knows no such repository, or it is private: check the name, set HF_TOKEN in the environment"
    except RevisionNotFoundError:
        reason = "it has no such revision: check the name of the revision"
    except HFValidationError as error:
        reason = f"{error}: check the name"
    except LocalEntryNotFoundError as error:
        reason = _without_local_copy(error)
    except EntryNotFoundError:
        reason = "the repository has no such file: check the name of the file"
    except HfHubHTTPError as error:
        reason = refused(error)
    except _FAULTS as error:
        # Some faults of the connection are not turned into the Hub's own errors: what is here already still serves.
        try:
            return download(True)
        except Exception:
            fault = type(error).__name__
            reason = f"the Hub can't be reached ({fault}) and nothing was downloaded before: check the network"
    raise TrntuneError(f"{what}: {reason}, or {instead}")

"""Which base model a checkpoint of ours was trained from."""

from __future__ import annotations

from pathlib import Path

from launcher.errors import TrntuneError
from launcher.run_dir.layout import RunDir
from trainer.checkpoints.manifest import MANIFEST, InvalidCheckpointError, Manifest, from_text
from trainer.models.fingerprint import BASE_FILE, base_text, fingerprint


def base_of_run(directory: Path) -> Path | None:
    """The base model of the run that ``directory``, one of its checkpoints, belongs to, where that is known."""
    return _fetched(RunDir(directory.parent.parent))


def stated_base(manifest: Manifest) -> dict[str, str]:
    """base.json of an adapter in a checkpoint, by its name; nothing where the manifest does not say which base."""
    found, model = manifest.identity.get("base"), manifest.identity.get("model.name")
    return {BASE_FILE: base_text(str(found), model)} if found else {}


def origin_of_shards(home: Path) -> dict[str, str]:
    """base.json of an adapter in a run's sharded/, by its name; nothing where that is not known.

    The run's checkpoints say which base it was; where none is kept, it is read from where training has read it.
    """
    run_dir = RunDir(home.parent)
    if home.name != run_dir.sharded.name:
        return {}
    for path in run_dir.checkpoints.glob(f"step-*/{MANIFEST}"):
        try:
            return stated_base(from_text(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, InvalidCheckpointError):
            continue  # another one may do
    base = _fetched(run_dir)
    if base is None or not run_dir.config_file.is_file():
        return {}
    try:
        return {BASE_FILE: base_text(fingerprint(base), run_dir.read_config()["model"]["name"])}
    except (OSError, ValueError, KeyError) as error:
        raise TrntuneError(f"{base}, the base of {run_dir.path}, can't be read: {error}") from None


def _fetched(run_dir: RunDir) -> Path | None:
    fetched = run_dir.stage_result("fetch") or {}
    base = Path(fetched["model_dir"]) if "model_dir" in fetched else None
    return base if base is not None and base.is_dir() else None

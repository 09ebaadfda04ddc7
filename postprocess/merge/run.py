"""One merge from the first check to the rename. What can be refused is refused before anything is written."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launcher.atomic_directory import MARKER, check_free, staged
from launcher.errors import TrntuneError, UsageError
from launcher.io import write_durably
from launcher.model_dir.generation_config import repair_of, repaired_texts
from launcher.run_dir.provenance import installed_packages
from postprocess.merge.adapter import Adapter, check_mergeable, read_adapter
from postprocess.merge.files import (
    RECORD,
    adapt_config,
    check_tokenizer,
    copy_side_files,
    left_tokenizer_files,
    side_files,
    tokenizer_of,
)
from postprocess.merge.options import DTYPES, MergeOptions
from postprocess.merge.readahead import read_ahead
from postprocess.outputs import check_apart, check_room
from postprocess.safetensors.header import SourceTensor, source_tensors
from postprocess.safetensors.shards import plan_shards, total_bytes
from trainer.models.fingerprint import fingerprint

if TYPE_CHECKING:
    from postprocess.merge.layout import Layout
    from postprocess.merge.outputs import Outputs
    from postprocess.merge.vocabulary import Vocabulary
    from postprocess.merge.write import Written

_PACKAGES = ("trntune", "torch", "transformers", "peft", "safetensors")
# The index, merge.json and what directories take themselves.
_SLACK = 4_000_000


def run(base: Path, adapter_dir: Path, out: Path, options: MergeOptions) -> dict[str, Any]:
    """See ``postprocess.merge.merge``."""
    tensors = source_tensors(base)
    adapter = read_adapter(adapter_dir, options.renames)
    check_mergeable(adapter)
    check_apart(out, (base, adapter_dir))
    inputs = _inputs(base, adapter, options)
    done = _finished(out, inputs)
    if done is not None:
        return {**done, "reused": True}
    return _Merge(base, adapter, out, options).run(tensors, inputs)


def check(base: Path, adapter_dir: Path, out: Path, options: MergeOptions) -> None:
    """Raise what ``run`` would raise before it writes, for an adapter as it will be but for its numbers."""
    check_free(out)
    adapter = read_adapter(adapter_dir, options.renames)
    check_mergeable(adapter)
    check_apart(out, (base, adapter_dir))
    _Merge(base, adapter, out, options).check(source_tensors(base))


def _inputs(base: Path, adapter: Adapter, options: MergeOptions) -> dict[str, Any]:
    """What decides the result. Raises TrntuneError for another base than the adapter was trained on."""
    try:
        found, expected = fingerprint(base), adapter.base_fingerprint()
    except (OSError, ValueError, KeyError) as error:  # of a file beside the model's own: those were read before
        raise TrntuneError(f"{base}: a .safetensors file there is damaged: {error}") from None
    if expected is not None and expected != found and not options.any_base:
        raise TrntuneError(
            f"{adapter.directory} was trained on another base than {base}: its base.json says {expected[:32]}..., "
            f"the base is {found[:32]}...; give that base, or --any-base to merge all the same"
        )
    return {
        "base_fingerprint": found,
        "adapter_sha256": adapter.digest(),
        "dtype": options.dtype,
        "shard_bytes": options.shard_bytes,
        # Only where there are some: a merge that was made before there could be is still the same one.
        **({"renames": [str(rename) for rename in options.renames]} if options.renames else {}),
    }


def _finished(out: Path, inputs: dict[str, Any]) -> dict[str, Any] | None:
    """The record of the same merge done before; None when ``out`` is free. Raises UsageError for anything else."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    try:
        record: dict[str, Any] = json.loads((out / RECORD).read_text(encoding="utf-8"))
        whole = all((out / name).stat().st_size == size for name, size in record["files"].items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise UsageError(f"{out} exists and is not a finished merge: remove it or give another directory") from None
    if record.get("inputs") != inputs:
        raise UsageError(f"{out} is a merge of other inputs or options: remove it or give another directory")
    if not whole:
        raise UsageError(f"{out} is this merge, but its files were changed since: remove it")
    return record


class _Merge:
    def __init__(self, base: Path, adapter: Adapter, out: Path, options: MergeOptions) -> None:
        self.base, self.adapter, self.out, self.options = base, adapter, out, options
        self.repair = repair_of(base)

    def run(self, tensors: dict[str, SourceTensor], inputs: dict[str, Any]) -> dict[str, Any]:
        # torch, transformers and peft take seconds to import: what needs none of them has been checked by now, and the
        # disk can use the time.
        read_ahead(tensors.values())
        outputs, files, resized = self.check(tensors)
        from postprocess.merge.layout import check_finite

        check_finite(self.adapter)
        with staged(self.out) as directory:
            record = self._write(directory, outputs, files, self._same_base(inputs), resized)
            record = {"inputs": inputs, **record}
            text = json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
            write_durably(directory / RECORD, text)
        return record

    def check(self, tensors: dict[str, SourceTensor]) -> tuple[Outputs, list[Path], Vocabulary | None]:
        """What to write, what to copy, and how the vocabulary was resized. Raises TrntuneError for an adapter that
        doesn't fit, and what is refused."""
        import trainer.lean_imports  # (before whatever imports transformers' models)
        import trainer.lean_peft  # noqa: F401 (before whatever imports peft)
        from postprocess.merge.layout import read_layout
        from postprocess.merge.outputs import plan_outputs

        layout = read_layout(self.base, tensors, self.adapter)
        dtype = DTYPES[self.options.dtype] if self.options.dtype else None
        outputs = plan_outputs(self.base, tensors, layout, self.adapter, dtype)
        return outputs, self._check_files(layout, outputs), layout.resized

    def _check_files(self, layout: Layout, outputs: Outputs) -> list[Path]:
        """The files to copy. Raises TrntuneError for a tokenizer that doesn't fit and for too little room."""
        files = side_files(self.base, self.adapter.directory)
        rows = [shape[0] for name, shape in layout.shapes.items() if name == layout.embedding]
        if rows:
            check_tokenizer(self.adapter.directory, rows[0])
        beside = sum(file.stat().st_size for path in files for file in [path, *path.rglob("*")])
        check_room(self.out, total_bytes(plan_shards(outputs.specs, self.options.shard_bytes)) + beside + _SLACK)
        return files

    def _same_base(self, inputs: dict[str, Any]) -> bool | None:
        """Whether the base is the one that the adapter was trained on; None when the adapter does not state that."""
        expected = self.adapter.base_fingerprint()
        return None if expected is None else bool(expected == inputs["base_fingerprint"])

    def _write(
        self, directory: Path, outputs: Outputs, files: list[Path], same_base: bool | None, resized: Vocabulary | None
    ) -> dict[str, Any]:
        """Write and prove; returns what merge.json says besides the inputs."""
        from postprocess.merge.write import write_tensors
        from trainer.models.generation import stop_at_ends

        copy_side_files(files, directory, repaired_texts(self.base, self.repair))
        adapt_config(directory, self.options.dtype, outputs.untied, resized.rows if resized else None)
        tokenizer = self._tokenizer(directory)
        ends = stop_at_ends(directory, write_durably)
        written = write_tensors(directory, outputs, self.adapter, self.options.shard_bytes)
        logits = self._logits(directory, outputs, resized)
        sizes = {file.name: file.stat().st_size for file in _files_in(directory)}
        return {
            "base": str(self.base),
            "adapter": str(self.adapter.directory),
            "same_base": same_base,
            "method": self.adapter.method,
            "rank": self.adapter.config.get("r"),
            "embeddings_untied": outputs.untied,
            "vocabulary": asdict(resized) if resized else None,
            "renames": [str(rename) for rename in self.options.renames],
            "repaired": [*self.repair.notes, *ends],
            "tensors": _counts(written),
            "zero_change": sorted(written.unchanged),
            "tokenizer": tokenizer,
            "logits": logits,
            "versions": installed_packages(_PACKAGES),
            "bytes": sum(sizes.values()),
            "files": sizes,
        }

    def _tokenizer(self, directory: Path) -> dict[str, Any]:
        """Where the tokenizer is from, and that it is that one."""
        from postprocess.merge.tokenizers import prove_tokenizer

        source = tokenizer_of(self.base, self.adapter.directory)
        left = left_tokenizer_files(self.adapter.directory)
        owner = "base" if source is self.base else "adapter"
        return {"from": owner, "left": left, **prove_tokenizer(source, directory)}

    def _logits(self, directory: Path, outputs: Outputs, resized: Vocabulary | None) -> dict[str, Any]:
        if not self.options.logits:
            return {"compared": False, "reason": "--no-logits"}
        from postprocess.merge.logits import prove_by_logits

        return prove_by_logits(self.base, self.adapter, directory, outputs, resized)


def _files_in(directory: Path) -> list[Path]:
    return [file for file in sorted(directory.iterdir()) if file.is_file() and file.name != MARKER]


def _counts(written: Written) -> dict[str, int]:
    return {
        "changed": written.changed,
        "same_bytes": written.copied,
        "same_values_in_other_dtype": written.cast,
        "bytes_copied_by_the_kernel": written.copied_bytes,
    }

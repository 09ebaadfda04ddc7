"""Which tensors the merged model has, and where each comes from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from launcher.errors import TrntuneError, first
from postprocess.merge.adapter import Adapter
from postprocess.merge.changes import Change, Replace
from postprocess.merge.files import NO_NEW_ROWS
from postprocess.merge.layout import Layout
from postprocess.merge.verify import same_bytes
from postprocess.safetensors.header import SourceTensor, TensorSpec

# Dtypes whose values can be added to and cast. Anything else in a model is an index, a mask or a quantized weight.
FLOATS = frozenset(("F64", "F32", "F16", "BF16"))


@dataclass(frozen=True)
class Output:
    """A tensor to write: as its source's bytes, as its values in another dtype, or with changes applied."""

    spec: TensorSpec
    source: SourceTensor
    changes: tuple[Change, ...] = ()
    replaced: bool = False
    """``source`` is the adapter's: the base has no such rows"""

    @property
    def copied(self) -> bool:
        return not self.changes and self.spec.dtype == self.source.spec.dtype


@dataclass(frozen=True)
class Outputs:
    """All tensors in the order of writing; ``untied``: embeddings that were one parameter now differ."""

    tensors: list[Output]
    untied: bool

    @property
    def specs(self) -> list[TensorSpec]:
        return [output.spec for output in self.tensors]


def plan_outputs(
    base: Path, tensors: Mapping[str, SourceTensor], layout: Layout, adapter: Adapter, dtype: str | None
) -> Outputs:
    """The merged model's tensors: the base's in the base's order, then an output embedding that was tied before.

    ``dtype``: safetensors code for all floating tensors, None keeps each one's own. Raises TrntuneError for a base
    whose tensors are not those of its config.json, and for changes to a weight that is not floating.
    """
    stored = _stored_names(base, layout)
    changes = {stored[name]: tuple(layout.changes[name]) for name in layout.changes if name in stored}
    sources = dict(tensors)
    untied = False
    for tie in layout.ties:
        if _still_one(tie, layout, adapter):
            continue
        untied = True
        effective = tensors[next(stored[name] for name in tie if name in stored)]
        for name in tie:
            sources[stored.get(name, name)] = effective
            changes[stored.get(name, name)] = tuple(layout.changes.get(name, ()))
    outputs = [_output(name, source, changes.get(name, ()), dtype) for name, source in sources.items()]
    if layout.resized is not None:
        shapes = _resized_shapes(layout, stored, sources)
        outputs = [
            _resized(output, shapes[output.spec.name], adapter) if output.spec.name in shapes else output
            for output in outputs
        ]
    return Outputs(outputs, untied)


def _resized_shapes(
    layout: Layout, stored: Mapping[str, str], sources: Mapping[str, SourceTensor]
) -> dict[str, tuple[int, ...]]:
    """The shapes of what another vocabulary changes, by the names in the files."""
    names = {name: stored.get(name, name) for name, shape in layout.base_shapes.items() if layout.shapes[name] != shape}
    return {key: layout.shapes[name] for name, key in names.items() if key in sources}


def _resized(output: Output, shape: tuple[int, ...], adapter: Adapter) -> Output:
    """A tensor with other rows than the base's: the adapter's own, or the base's first ones where there are fewer."""
    spec = replace(output.spec, shape=shape)
    whole = [number for number, change in enumerate(output.changes) if isinstance(change, Replace)]
    if whole:
        change, rest = output.changes[whole[-1]], output.changes[whole[-1] + 1 :]
        return Output(spec, adapter.source(change.keys()[0]), rest, replaced=True)
    if shape[0] > output.spec.shape[0]:
        raise TrntuneError(
            f"{adapter.weights}: the vocabulary was resized to {shape[0]:,} rows for training, and the new rows of "
            f"{spec.name} are not in the file: {NO_NEW_ROWS}"
        )
    return Output(spec, output.source._replace(spec=replace(output.source.spec, shape=shape)), output.changes)


def _output(name: str, source: SourceTensor, changes: tuple[Change, ...], dtype: str | None) -> Output:
    floating = source.spec.dtype in FLOATS
    if changes and not floating:
        raise TrntuneError(
            f"{source.file}: {name} is {source.spec.dtype}; only F64, F32, F16 and BF16 can be merged into"
        )
    return Output(
        TensorSpec(name, dtype if dtype and floating else source.spec.dtype, source.spec.shape), source, changes
    )


def _stored_names(base: Path, layout: Layout) -> dict[str, str]:
    """Each parameter's name in the base's files; a tied one may have none, and one that loading computes has none.

    Raises TrntuneError for tensors that don't give the parameters of config.json, and for changes to computed ones.
    """
    missing = [name for name in layout.shapes if not any(tied in layout.made for tied in layout.tie_of(name))]
    if missing:
        raise TrntuneError(f"{base}: {len(missing)} weights that config.json asks for are missing: {first(missing)}")
    found = {name: layout.made[name] for name in layout.shapes if name in layout.made}
    for name, made in found.items():
        shape = layout.base_shapes.get(name, layout.shapes[name])
        if made.shape != shape:
            have = f"{first(made.sources)} has shape {list(made.shape)}"
            raise TrntuneError(f"{base}: {have}, but config.json asks for {list(shape)}")
        if not made.as_is and (name in layout.changes or shape != layout.shapes[name]):
            raise TrntuneError(
                f"{base}: {name} is computed from {first(made.sources)} when the model is loaded, and an adapter that "
                "changes it can't be merged here"
            )
    return {name: made.sources[0] for name, made in found.items() if made.as_is}


def _still_one(tie: Sequence[str], layout: Layout, adapter: Adapter) -> bool:
    """Whether all names of a tie get the same values, so that one tensor still serves."""
    chains = [layout.changes.get(name, []) for name in tie]
    return all(
        len(chain) == len(chains[0]) and all(map(lambda one, other: _same(one, other, adapter), chain, chains[0]))
        for chain in chains
    )


def _same(one: Change, other: Change, adapter: Adapter) -> bool:
    if one == other:
        return True
    if not isinstance(one, Replace) or not isinstance(other, Replace):
        return False
    left, right = adapter.tensors[one.key], adapter.tensors[other.key]
    size = left.end - left.begin
    return left[:2] == right[:2] and same_bytes(adapter.weights, left.begin, adapter.weights, right.begin, size)

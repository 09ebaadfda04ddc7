"""What of a cluster stands already, whose it is, and why it can't become the one that is wanted. Nothing is changed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from cluster import bucket, hyperpod
from cluster import stack as stacks
from cluster.aws import Aws
from cluster.documents import PARAMETERS, TAG, Resources, parameters, request
from cluster.files import PREFIX
from cluster.schema import SetupConfig


@dataclass(frozen=True)
class Standing:
    """Stack and cluster of a name, apart by who has made them."""

    own_stack: stacks.Stack | None = None
    own_cluster: hyperpod.Cluster | None = None
    foreign_stack: stacks.Stack | None = None
    foreign_cluster: hyperpod.Cluster | None = None

    @property
    def foreign(self) -> list[str]:
        """A line for each that somebody else has made."""
        kinds = {"stack": self.foreign_stack, "cluster": self.foreign_cluster}
        return [
            f"there is a {kind} {found.name} that is not of python -m cluster (no tag {TAG}={found.name}): "
            "give another name=..."
            for kind, found in kinds.items()
            if found is not None
        ]


def look(aws: Aws, name: str) -> Standing:
    """Ask AWS. Raises TrntuneError where it doesn't say."""
    stack, cluster = stacks.find(aws, name), hyperpod.find(aws, name)
    own_stack = stack is not None and stack.tags.get(TAG) == name
    own_cluster = cluster is not None and hyperpod.tags(aws, cluster).get(TAG) == name
    return Standing(
        stack if own_stack else None,
        cluster if own_cluster else None,
        None if own_stack else stack,
        None if own_cluster else cluster,
    )


def conflicts(aws: Aws, config: SetupConfig, standing: Standing) -> Iterator[str]:
    """Why deploy would stop at what stands: asked first, since everything that it makes before that is paid."""
    yield from standing.foreign
    there, cluster = standing.own_stack, standing.own_cluster
    if there is not None and there.lost:
        yield _lost(aws, there)
    elif there is not None:
        yield from (f"the stack {config.name} is another one: {line}" for line in stacks.differences(there, config))
    if cluster is None or standing.foreign:
        return
    if there is None or (there.good and not there.has_compute):
        yield (
            f"the cluster {config.name} ({cluster.status}) is there, but not the stack that it was made in, so that it "
            "can't be used with a new one: delete it first"
        )
    elif there.good:
        wanted = stacks.resources(there)
        yield from (
            f"the cluster {config.name} is another one: {line}" for line in differences(aws, config, wanted, cluster)
        )


def _lost(aws: Aws, there: stacks.Stack) -> str:
    if there.at_work:
        return f"the stack {there.name} is {there.status}: wait until that has ended (python -m cluster status)"
    return f"{stacks.why(aws, there)}: delete it first"


def differences(aws: Aws, config: SetupConfig, wanted: Resources, cluster: hyperpod.Cluster) -> list[str]:
    """How the cluster, and its parameters in the bucket, differ from the configuration: a line each."""
    different = hyperpod.differences(cluster, request(config, wanted))
    ours = parameters(config, wanted)
    content = None if ours is None else bucket.read(aws, wanted.bucket, f"{PREFIX}/{PARAMETERS}")
    if content is not None and (there := _document(content)) != ours:
        different.append(f"{PARAMETERS} in the bucket: {_brief(there)} there")
    return different


def _document(content: bytes) -> Any:
    """The document; its text where that isn't JSON: then it differs, too."""
    try:
        return json.loads(content)
    except ValueError:
        return content.decode(errors="replace")


def _brief(document: Any) -> str:
    return json.dumps(document, separators=(",", ":"))

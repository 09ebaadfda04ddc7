"""`python -m cluster plan`: everything that deploy would make and send, without credentials or network."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

from rich.markup import escape

from cluster import bucket, stack
from cluster.cost import cost, lines
from cluster.documents import PARAMETERS, REQUEST, parameters, placeholders, request
from cluster.files import TEMPLATE, template
from cluster.schema import API, SetupConfig, groups
from cluster.show import compact_json, console, table
from launcher.errors import UsageError
from launcher.paths import shown

TEMPLATE_PARAMETERS = "stack_parameters.json"


def run(config: SetupConfig) -> int:
    """Print the plan, and write its files if wanted. Returns 0."""
    files = _files(config)
    if config.output is not None:
        _write(config.output, files)
    if config.format == "json":
        print(json.dumps(_as_json(config, files), indent=2))
    else:
        _print(config, files)
    if config.output is not None and config.format == "text":
        print(f"{len(files)} files written to {config.output}")
    return 0


def _files(config: SetupConfig) -> dict[str, bytes]:
    """Name and content of the template, its parameters, the documents and what goes into the bucket."""
    wanted = placeholders(config)
    documents: dict[str, Any] = {
        TEMPLATE_PARAMETERS: stack.parameters(config),
        REQUEST: request(config, wanted),
    }
    found = {name: (json.dumps(document, indent=2) + "\n").encode() for name, document in documents.items()}
    in_bucket = {f"bucket/{key}": content for key, content in bucket.contents(config, wanted).items()}
    return {TEMPLATE.name: template().encode(), **found, **in_bucket}


def _as_json(config: SetupConfig, files: dict[str, bytes]) -> dict[str, Any]:
    wanted = placeholders(config)
    return {
        "placeholders": True,
        "stack": {"name": config.name, "template": template(), "parameters": stack.parameters(config)},
        "create_cluster": request(config, wanted),
        "provisioning_parameters": parameters(config, wanted),
        "files": {name.removeprefix("bucket/"): len(content) for name, content in files.items() if "/" in name},
        "usd_per_hour": cost(config).usd_per_hour,
    }


def _print(config: SetupConfig, files: dict[str, bytes]) -> None:
    """The documents first, the summary last: where a terminal stops."""
    wanted = placeholders(config)
    _document("create_cluster, the request", request(config, wanted))
    if (document := parameters(config, wanted)) is not None:
        _document(PARAMETERS, document)
    uploaded = {name.removeprefix("bucket/"): content for name, content in files.items() if "/" in name}
    if uploaded:
        print(f"Uploaded to s3://{wanted.bucket}:")
        print("".join(f"  {name}  ({len(content):,} bytes)\n" for name, content in uploaded.items()))
    for line in bucket.left_here(config):
        print(f"note: {line}\n")
    _summary(config)


def _summary(config: SetupConfig) -> None:
    out = console()
    how = "HyperPod sets up Slurm" if config.mode == API else f"lifecycle scripts, {config.lifecycle.entry}"
    out.print(f"[bold]Cluster {escape(config.name)}[/] in {config.region}, mode {config.mode}: {how}")
    out.print(_groups(config))
    kinds = Counter(re.findall(r"^    Type: AWS::\w+::(\w+)$", template(), re.MULTILINE))
    listed = ", ".join(kind if count == 1 else f"{count} {kind}" for kind, count in kinds.items())
    facts = table("", "", header=False)
    facts.add_row("stack", escape(f"{shown(TEMPLATE)}: {listed}"))
    facts.add_row("zone", config.network.availability_zone_id or "not chosen yet: network.availability_zone_id=...")
    storage = config.storage
    facts.add_row(
        "file system", f"{storage.capacity_gib:,} GiB at {storage.throughput} MB/s a TiB, {storage.mount_path}"
    )
    facts.add_row("cost", escape("; ".join(lines(config))))
    facts.add_row("placeholders", "PLACEHOLDER, PLACEHLD, placeholder, 000...: what the stack will have made")
    out.print(facts)


def _groups(config: SetupConfig) -> Any:
    result = table("instance group", "type", "count", "volume", "task")
    for group in groups(config):
        task = {id(config.controller): "controller", id(config.login): "login"}.get(
            id(group), f"partition {config.workers.partition}"
        )
        result.add_row(group.name, group.instance_type, str(group.count), f"{group.volume_gb} GB", escape(task))
    return result


def _document(name: str, document: dict[str, Any]) -> None:
    print(f"{name}:\n{compact_json(document)}\n")


def _write(output: str, files: dict[str, bytes]) -> None:
    """All of them, or none. Raises UsageError where the directory takes none."""
    directory = Path(output).expanduser().absolute()
    # What an error has to take away again: the directories that are new, or what is in one that was there, empty.
    new = [path for path in (directory, *directory.parents) if not path.exists()]
    try:
        for name, content in files.items():
            path = directory / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    except (OSError, ValueError) as error:
        for path in [new[-1]] if new else list(directory.iterdir()):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
        why = error.strerror if isinstance(error, OSError) else error
        raise UsageError(f"output={output}: cannot be written: {why}; give a new directory") from None

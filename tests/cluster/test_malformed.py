"""Hand-written documents of any shape: every problem is listed, and nothing ends in a traceback."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

import pytest

from cluster import agreement, model
from cluster.__main__ import main
from cluster.compose import compose
from cluster.documents import parameters, placeholders, request
from cluster.findings import PROBLEM

VALUES: list[Any] = [None, True, 1.5, "x", [], ["w"], [["w"]], {"a": 1}]


def documents(*overrides: str) -> tuple[Any, Any]:
    config = compose(["name=demo", *overrides])
    wanted = placeholders(config)
    return request(config, wanted), parameters(config, wanted)


def paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every place in a document."""
    if path:
        yield path
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield from paths(value[key], (*path, key))


def changed(document: Any, path: tuple[Any, ...], value: Any) -> Any:
    result = copy.deepcopy(document)
    place = result
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return result


def problems(document: Any, written: Any) -> list[str]:
    findings = [*model.check_request(document), *agreement.check(document, written, {"src/on_create.sh"})]
    return [finding.detail for finding in findings if finding.state == PROBLEM]


@pytest.mark.parametrize("mode", ["scripts", "api"])
def test_anything_anywhere_is_found_or_fits(mode):
    """null is nowhere in them, so that it's a problem wherever it is put; other values may fit where they are."""
    document, written = documents(f"mode={mode}")
    assert problems(document, written) == []
    for value in VALUES:
        wrong = [(changed(document, path, value), written) for path in paths(document)]
        wrong += [(document, changed(written, path, value)) for path in paths(written or {})]
        for pair in wrong:
            assert problems(*pair) or value is not None, pair


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda d, p: p.update(worker_groups=["w"]), 'worker_groups[0] is "w", must be an object'),
        (lambda d, p: p.update(worker_groups="w"), 'worker_groups is "w", must be a list'),
        (lambda d, p: p["worker_groups"][0].pop("partition_name"), "worker_groups[0].partition_name is null"),
        (lambda d, p: p.update(controller_group={"a": 1}), 'controller_group is {"a": 1}, must be a string'),
        (lambda d, p: p.pop("fsx_mountname"), "fsx_dns_name alone mounts nothing"),
        (lambda d, p: d.pop("InstanceGroups"), "the request has no InstanceGroups"),
        (lambda d, p: d["InstanceGroups"][1].pop("InstanceType"), "worker-group-1 has no InstanceType"),
        (lambda d, p: d["InstanceGroups"][1].pop("LifeCycleConfig"), "worker-group-1 has no LifeCycleConfig"),
        (lambda d, p: d["InstanceGroups"][1].update(LifeCycleConfig=["x"]), "SourceS3Uri=None: must begin with"),
        (lambda d, p: d["InstanceGroups"][0].update(InstanceType="c5.4xlarge"), "SageMaker's types begin with ml."),
        (lambda d, p: d["InstanceGroups"][1].update(InstanceType="ml.p5.48xlarge"), "no worker has a Neuron device"),
        (lambda d, p: d["InstanceGroups"][1].update(InstanceCount=True), "InstanceCount: true, must be a number"),
        (lambda d, p: d.pop("VpcConfig"), "no subnet: VpcConfig.Subnets"),
        (lambda d, p: d["VpcConfig"].update(Subnets=[["subnet-1"]]), "no subnet: VpcConfig.Subnets"),
    ],
)
def test_what_is_missing_or_of_another_type_is_named(change, says):
    document, written = documents()
    change(document, written)
    assert [detail for detail in problems(document, written) if says in detail]


def test_a_missing_second_document_is_named():
    document, _ = documents()
    assert [detail for detail in problems(document, None) if "provisioning_parameters.json must be there" in detail]


@pytest.mark.parametrize(
    ("text", "code", "says"),
    [
        ("[1]", 2, "must be an object"),
        ("null", 2, "must be an object"),
        ("{", 2, "not JSON"),
        ('"\\ud800"', 2, "not JSON"),
        ("[" * 100_000, 2, "nested too deeply"),
        ("{}", 1, "the request has no InstanceGroups"),
        ('{"InstanceGroups": {"a": [1]}, "VpcConfig": 3, "ClusterName": ["demo"]}', 1, "Invalid type for parameter"),
        ('{"InstanceGroups": [1, null, {}], "Tags": "x"}', 1, "Invalid type for parameter InstanceGroups[0]"),
    ],
)
def test_the_command_takes_any_text(tmp_path, capsys, text, code, says):
    (tmp_path / "create_cluster.json").write_text(text)
    assert main(["validate", f"documents={tmp_path}"]) == code
    out, err = capsys.readouterr()
    assert says in " ".join((out + err).split())
    assert err.count("\n") == (code == 2)


def test_what_was_not_looked_at_is_unknown(tmp_path, capsys):
    document, written = documents()
    (tmp_path / "create_cluster.json").write_text(json.dumps(document))
    (tmp_path / "provisioning_parameters.json").write_text(json.dumps(written))
    assert main(["validate", f"documents={tmp_path}", "format=json"]) == 0
    unknown = [finding["check"] for finding in json.loads(capsys.readouterr().out) if finding["state"] == "unknown"]
    assert unknown == ["entry script", "zone offers the instances", "quota", "security group", "file system's names"]

"""The lock files hold every dependency with hashes, in a version that pyproject.toml allows and that was tested."""

from __future__ import annotations

import re
from importlib import metadata

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from launcher.paths import ROOT

LOCKS = ("requirements-cpu.lock", "requirements-cuda.lock")


def locked(name: str) -> dict[str, tuple[str, int]]:
    """Package -> its version and how many hashes it has."""
    text = (ROOT / name).read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line and not line.lstrip().startswith("#")]
    found = {}
    for line in lines:
        match = re.match(r"([A-Za-z0-9._-]+)(?:\[[^]]*\])?==([^\s;]+)", line)
        assert match, line
        found[canonicalize_name(match[1])] = (match[2], line.count("--hash=sha256:"))
    return found


@pytest.mark.parametrize("name", LOCKS)
def test_every_package_is_pinned_with_a_hash(name):
    packages = locked(name)
    assert len(packages) > 80
    assert [package for package, (_, hashes) in packages.items() if hashes == 0] == []


@pytest.mark.parametrize("name", LOCKS)
def test_every_dependency_is_there_in_a_version_that_is_allowed(name):
    packages = locked(name)
    for line in metadata.requires("trntune") or []:
        requirement = Requirement(line)
        if requirement.name == "trntune" or (requirement.marker and not requirement.marker.evaluate({"extra": "test"})):
            continue
        version, _ = packages[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(Version(version).public), requirement


def test_only_one_of_them_brings_cuda():
    assert locked(LOCKS[0])["torch"][0].endswith("+cpu")
    assert not [package for package in locked(LOCKS[0]) if package.startswith("nvidia")]
    assert [package for package in locked(LOCKS[1]) if package.startswith("nvidia")]


@pytest.mark.parametrize("name", LOCKS)
def test_the_versions_are_those_that_were_tested(name):
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    constraints = {
        canonicalize_name(line.partition("==")[0]): line.partition("==")[2] for line in lines if "==" in line
    }
    packages = locked(name)
    differing = {
        package: (version, packages[package][0])
        for package, version in constraints.items()
        if package in packages and Version(packages[package][0]).public != Version(version).public
    }
    assert differing == {}

"""Both sets of libraries: the lock files hold every dependency with hashes, in a version that pyproject.toml allows and
that was tested; the lowest set has the lower end of every range."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib import metadata

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from launcher.paths import ROOT


@dataclass(frozen=True)
class Lock:
    """A lock file, the versions that were tested, and the extras whose requirements it holds."""

    name: str
    constraints: str
    extras: tuple[str, ...]


CPU = Lock("requirements-cpu.lock", "constraints.txt", ("test",))
CUDA = Lock("requirements-cuda.lock", "constraints.txt", ("test",))
NEURON = Lock("requirements-neuron.lock", "constraints-neuron.txt", ("test", "neuron"))
each_lock = pytest.mark.parametrize("lock", [CPU, CUDA, NEURON], ids=lambda lock: lock.name)

# A lower end that no test here runs with: torch 2.8 is an instance's, and PyPI has no CPU build of it.
NOT_LOWEST = {"torch"}


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


def constraints(name: str) -> dict[str, str]:
    """Package -> the version that was tested."""
    lines = (ROOT / name).read_text().splitlines()
    return {canonicalize_name(line.partition("==")[0]): line.partition("==")[2] for line in lines if "==" in line}


def requirements(*extras: str) -> list[Requirement]:
    """What pyproject.toml names itself, with these extras."""
    found = [Requirement(line) for line in metadata.requires("trntune") or []]
    return [
        one
        for one in found
        if one.name != "trntune" and (not one.marker or any(one.marker.evaluate({"extra": e}) for e in ("", *extras)))
    ]


@each_lock
def test_every_package_is_pinned_with_a_hash(lock):
    packages = locked(lock.name)
    assert len(packages) > 80
    assert [package for package, (_, hashes) in packages.items() if hashes == 0] == []


@each_lock
def test_every_dependency_is_there_in_a_version_that_is_allowed(lock):
    packages = locked(lock.name)
    for requirement in requirements(*lock.extras):
        version, _ = packages[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(Version(version).public), requirement


def test_only_one_of_them_brings_cuda():
    for lock in (CPU, NEURON):
        assert locked(lock.name)["torch"][0].endswith("+cpu")
        assert not [package for package in locked(lock.name) if package.startswith("nvidia")]
    assert [package for package in locked(CUDA.name) if package.startswith("nvidia")]


@each_lock
def test_the_versions_are_those_that_were_tested(lock):
    packages = locked(lock.name)
    differing = {
        package: (version, packages[package][0])
        for package, version in constraints(lock.constraints).items()
        if package in packages and Version(packages[package][0]).public != Version(version).public
    }
    assert differing == {}


def test_the_lowest_set_has_the_lower_end_of_every_range():
    """A bound that nothing runs with would be a guess."""
    lowest = constraints(NEURON.constraints)
    bounds = {
        canonicalize_name(one.name): specifier.version
        for one in requirements("neuron", "qlora")
        for specifier in one.specifier
        if specifier.operator in (">=", "==")
    }
    assert len(bounds) > 20
    above = {
        name: (lowest[name], bound)
        for name, bound in bounds.items()
        if name not in NOT_LOWEST and not is_release(lowest[name], bound)
    }
    assert above == {}


def is_release(version: str, bound: str) -> bool:
    """Whether ``version`` is what a bound of as many numbers names, be it by its first patch that there is."""
    numbers = Version(bound).release
    return Version(version).release[: len(numbers)] == numbers


def test_optimum_neuron_is_in_its_own_set_alone():
    assert "optimum-neuron" in locked(NEURON.name)
    for lock in (CPU, CUDA):
        assert not {"optimum-neuron", "optimum", "trl"} & set(locked(lock.name))


def test_no_file_names_a_place_of_the_machine_that_wrote_it():
    """Neither a registry's address nor a directory."""
    for name in (CPU.name, CUDA.name, NEURON.name, CPU.constraints, NEURON.constraints):
        assert not re.search(r"://|find-links|index-url|@ |(^|\s)/", (ROOT / name).read_text()), name

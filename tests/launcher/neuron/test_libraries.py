"""A Python whose libraries don't fit optimum-neuron is refused by one line, before anything is made."""

from __future__ import annotations

import importlib.util
import platform
import sys
from importlib import metadata

import pytest

from launcher.app import check
from launcher.errors import UsageError
from launcher.neuron import libraries
from launcher.plan import build
from launcher.plan.show import footnotes
from tests.launcher.conftest import composition, single
from tests.library_sets import neuron_source

TINY = ("experiment=tiny", "accelerator=trn1_32xlarge", "parallelism=single")
NEWEST = {"transformers": "5.24.0", "peft": "0.21.2", "accelerate": "1.15.0", "huggingface_hub": "2.4.0"}
FITTING = {
    "optimum-neuron": "0.4.5", "transformers": "4.57.6", "peft": "0.17.0", "accelerate": "1.8.1", "optimum": "2.0.0",
    "huggingface_hub": "0.36.2", "trl": "0.24.0", "evaluate": "0.4.3", "torch-xla": "2.8.0",
}  # fmt: skip


@pytest.fixture
def having(monkeypatch):
    """Stands for a Python with these libraries, of which optimum-neuron says what it says."""

    def use(packages, python="3.11.7"):
        monkeypatch.setattr(libraries, "installed", packages.get)
        monkeypatch.setattr(libraries, "_metadata", lambda: (libraries.PYTHON, libraries.REQUIREMENTS))
        monkeypatch.setattr(platform, "python_version", lambda: python)

    return use


def test_the_newest_libraries_are_refused_in_one_line(having, cwd):
    having(NEWEST)
    with pytest.raises(UsageError) as refused:
        check(composition(*TINY))
    assert str(refused.value) == (
        "accelerator=trn1_32xlarge: training on Neuron needs optimum-neuron==0.4.5, transformers~=4.57.1, "
        "peft==0.17.0, accelerate==1.8.1; installed: no optimum-neuron, transformers 5.24.0, peft 0.21.2, "
        "accelerate 1.15.0; make it an environment of its own, in the checkout: python3.11 -m venv neuron && "
        ". neuron/bin/activate && pip install -e "
        "'.[neuronx]' (AWS's index: docs/trainium.md)"
    )
    assert list(cwd.iterdir()) == []


CHANGES = [
    ({"optimum-neuron": "0.5.0"}, "needs optimum-neuron==0.4.5; installed: optimum-neuron 0.5.0"),
    ({"transformers": "4.56.2"}, "needs transformers~=4.57.1; installed: transformers 4.56.2"),
    ({"accelerate": "1.9.0"}, "needs accelerate==1.8.1; installed: accelerate 1.9.0"),
    ({"trl": None}, "needs trl==0.24.0; installed: trl is missing"),
    ({"torch-xla": None}, "needs torch-xla; installed: no torch-xla; make it an environment of its own"),
]


@pytest.mark.parametrize(("change", "said"), CHANGES, ids=lambda value: str(value)[:30])
def test_what_does_not_fit_is_named_alone(change, said, having):
    having({**FITTING, **change})
    assert said in libraries.libraries_fault()


@pytest.mark.parametrize(("python", "fits"), [("3.9.2", False), ("3.10.1", True), ("3.11.9", True), ("3.12.0", False)])
def test_its_range_of_pythons_is_asked_too(python, fits, having):
    having(FITTING, python)
    fault = libraries.libraries_fault()
    assert fault is None if fits else f"needs Python <3.12,>=3.10; installed: Python {python};" in fault


def test_what_fits_is_not_refused(having, cwd):
    having(FITTING)
    check(composition(*TINY))


NOT_ASKED = [
    ("dry_run=true", "cluster=slurm", "cluster.processes_per_node=1", "cluster.cache_dir=/fsx/trntune"),
    ("stages=[fetch,consolidate]",),
    ("accelerator=cpu",),
]


@pytest.mark.parametrize("arguments", NOT_ASKED, ids=" ".join)
def test_what_trains_nothing_here_is_not_refused(arguments, having, cwd):
    having(NEWEST)
    check(composition(*TINY, *arguments))


def test_the_nodes_python_is_asked_where_it_is_another_one(having, cwd):
    having(NEWEST)
    asked = {
        python: libraries.needs_libraries(config, config.stages)
        for python in (None, sys.executable, "/shared/venv/bin/python")
        for config in [single(*TINY, "cluster=slurm", f"cluster.python={python or 'null'}").config]
    }
    assert list(asked.values()) == [True, True, False]


def test_a_plan_is_made_and_says_it(having, cwd):
    having(NEWEST)
    config = single(*TINY).config
    (note,) = [line for line in footnotes([build.make(config)]) if "started here" in line]
    assert note.startswith("note: started here it would be refused: training on Neuron needs optimum-neuron==0.4.5")
    having(FITTING)
    assert not [line for line in footnotes([build.make(config)]) if "started here" in line]


def test_what_is_written_here_is_what_the_library_says():
    neuron_source("optimum/neuron/version.py")
    assert metadata.version(libraries.PACKAGE) == libraries.VERSION
    assert libraries._metadata() == (libraries.PYTHON, libraries.REQUIREMENTS)
    # It asks for no torch-xla: that comes with torch-neuronx.
    missing = [] if importlib.util.find_spec("torch_xla") else ["torch-xla"]
    assert [needed for needed, _ in libraries._unfit()] == missing

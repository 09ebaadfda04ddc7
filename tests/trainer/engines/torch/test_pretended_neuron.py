"""The torch engine on a device "neuron" that torch knows as it would know AWS's: site/torch_neuronx pretends to be it.

It shows which calls the engine makes, in which order, and with which shapes, and that what processes exchange is what
they train with; not that a compiler takes them, nor anything of autocast or time: that needs a chip (docs/trainium.md).
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from packaging.version import Version
from safetensors.torch import load_file

from launcher.paths import ROOT
from launcher.run_dir.provenance import installed
from launcher.torch_neuron.libraries import NEEDED
from tests.conftest import Run, command, environment, launch
from tests.limits import PATIENCE
from tests.trainer.engines.torch.test_sharding import weights

LEAST = dict(each.split(">=") for each in NEEDED if ">=" in each)
TOO_OLD = [name for name in ("accelerate", "transformers") if Version(str(installed(name))) < Version(LEAST[name])]
pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(bool(TOO_OLD), reason=f"{TOO_OLD} don't know the device: refused, as test_libraries.py shows"),
]

SHORT = ("experiment=tiny", "tracking=none", "dataset.packing=false", "training.micro_batch_size=2",
         "training.global_batch_size=8", "training.max_steps=4", "training.epochs=9", "training.eval_every=2",
         "training.save_every=2", "dataset.eval_samples=5", "training.max_grad_norm=1")  # fmt: skip
FULL = ("method=full", "training.gradient_checkpointing=true")
ALL_LINEAR = ("lora.target_modules=[all-linear]", "lora.dropout=0")
BF16 = (*ALL_LINEAR, "training.precision=bf16")
PROGRAM = re.compile(r"program (\S+) (.*)")


@pytest.fixture
def pretending(tmp_path: Path) -> dict[str, str]:
    """The environment of a process that has the device."""
    version = ".".join(torch.__version__.split(".")[:2])
    site = tmp_path / "site"
    for name, number in (("torch_neuronx", f"{version}.3.0.0"), ("nki", "0.7.0")):
        info = site / f"{name}-{number}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {number}\n")
        if name == "torch_neuronx":
            (info / "entry_points.txt").write_text(
                "[torch.backends]\ntorch_neuronx = torch_neuronx:autoload\n"
                "[torch_dynamo_backends]\nneuron = torch_neuronx:compile_graph\n"
            )
    (tmp_path / "records").mkdir()
    places = [str(Path(__file__).parent / "site"), str(site), str(ROOT)]
    return {
        **environment(),
        "TORCH_DEVICE_BACKEND_AUTOLOAD": "1",  # and no fork of a process that has imported torch without the device
        "PYTHONPATH": os.pathsep.join(places),
        "TRNTUNE_RECORD": str(tmp_path / "records"),
    }


def longest_record(tmp_path: Path) -> list[str]:
    """What was asked of the device by the process that asked most: that of the training."""
    records = [json.loads(file.read_text()) for file in (tmp_path / "records").iterdir()]
    return max(records, key=len)


OFFLOADING = """
import runpy, sys
from launcher.checks import parallelism
parallelism.OFFLOADING += ("neuron",)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
"""launch.py with its arguments where the device's parts may lie in host memory, as CUDA's may"""


def pretended(environment: dict[str, str], tmp_path: Path, *arguments: str, offloading: bool = False) -> Run:
    """A run on the device."""
    whole = command(*SHORT, "accelerator=trn2_3xlarge_native", *arguments, f"hydra.run.dir={tmp_path / 'native'}")
    if offloading:
        whole = [sys.executable, "-c", OFFLOADING, *whole[1:]]
    settings = {"cwd": tmp_path, "env": environment, "capture_output": True, "text": True, "timeout": PATIENCE}
    return Run(tmp_path / "native", subprocess.run(whole, **settings))


def assert_same_training(run: Run, expected: Run, rel: float = 1e-6, atol: float = 1e-6) -> None:
    """Losses, norms, counts, and what is saved."""
    for event, keys in (("train", ("loss", "grad_norm", "tokens")), ("eval", ("eval_loss",))):
        mine, theirs = run.metrics(event), expected.metrics(event)
        assert len(mine) == len(theirs) > 2
        for key in keys:
            found = [record.get(key) for record in mine]
            assert found == pytest.approx([record.get(key) for record in theirs], rel=rel), key
    torch.testing.assert_close(weights(run.directory), weights(expected.directory), rtol=0, atol=atol)


def by_step(events: list[str]) -> list[list[str]]:
    """What comes before the first step's clock is read, between two readings of it, and after the last."""
    parts: list[list[str]] = [[]]
    for event in events:
        parts[-1].append(event)
        if event.startswith("clock on_step_end"):
            parts.append([])
    return parts


def programs(events: list[str]) -> list[tuple[str, str]]:
    return [(found[1], found[2]) for found in map(PROGRAM.match, events) if found]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Run]:
    """Runs of one process on a CPU, each made once."""
    done: dict[tuple[str, ...], Run] = {}

    def run(*arguments: str) -> Run:
        if arguments not in done:
            directory = tmp_path_factory.mktemp("alone") / "run"
            made = Run(directory, launch(directory.parent, *SHORT, *arguments, f"hydra.run.dir={directory}"))
            assert made.process.returncode == 0, made.process.stderr
            done[arguments] = made
        return done[arguments]

    return run


def test_a_run_is_that_of_a_cpu_in_programs_of_one_shape(alone, pretending, tmp_path):
    native, host = pretended(pretending, tmp_path, *ALL_LINEAR, "parallelism=single"), alone(*ALL_LINEAR)
    assert native.process.returncode == 0, native.process.stderr[-3000:]

    assert_same_training(native, host)
    for name in ("trainable_params", "total_params"):
        assert native.result[name] == host.result[name]
    rng = load_file(native.directory / "checkpoints" / "step-4" / "rng-00000.safetensors")
    assert {"neuron", "torch"} <= rng.keys()

    events = longest_record(tmp_path)
    steps = by_step(events)
    # The device is waited for before each clock and before its memory is read.
    before = [events[index - 1] for index, event in enumerate(events) if event in READINGS]
    assert before == ["synchronize"] * 5
    # The first of four steps brings all programs of training; the rows are of one shape, int32.
    found = programs(events)
    rows = {shapes for name, shapes in found if name == "embedding"}
    assert len(rows) == 1
    assert rows.pop().endswith("('torch.int32', [2, 512])]")
    assert not [each for each in found if "int64" in each[1] or "float64" in each[1]]
    assert not {"nonzero", "masked_select", "index"} & {name for name, _ in found}
    # Attention of queries, keys and values of a whole micro batch, and no mask.
    attention = {shapes for name, shapes in found if name == "scaled_dot_product_attention"}
    assert attention == {str([("torch.float32", [2, 4, 512, 16])] * 3)}
    # Both layers are handed to the device's own compiler, which the pretended device has no work for: torch.compile
    # leaves out whatever runs inside a dispatch mode. That nothing was compiled is told.
    asked = [event for event in events if event.startswith("torch.compile ")]
    assert asked == ["torch.compile neuron None", *["torch.compile neuron False"] * 2]
    assert "warning: training.compile=layers: torch.compile has compiled nothing" in native.process.stderr
    assert native.result["compilations"] == 0
    late = {name for part in steps[2:] for name, _ in programs(part)}
    assert late <= SAVING


READINGS = ("clock on_step_end", "max_memory_allocated")
# Means for the log, and whether all weights are finite.
SAVING = {"mean", "sub_", "abs", "ne", "eq", "mul", "all", "_local_scalar_dense"}


@pytest.mark.parametrize(
    ("layout", "method"), [("ddp2", ALL_LINEAR), ("fsdp2", FULL), ("tp2", BF16)], ids=["ddp", "fsdp", "tp"]
)
def test_processes_train_as_one_does_and_exchange_no_int64(layout, method, alone, pretending, tmp_path):
    run = pretended(pretending, tmp_path, *method, f"parallelism={layout}")
    assert run.process.returncode == 0, run.process.stderr[-3000:]
    if method == BF16:
        assert_same_training(run, alone(*method), rel=3e-3, atol=1e-2)
    else:
        assert_same_training(run, alone(*method))

    events = longest_record(tmp_path)
    assert {event for event in events if event.startswith("update")} == {"update neuron neuron neuron"}
    # AWS: the process group comes first. accelerate then asks which device is this process's.
    assert events[:2] == ["init_process_group neuron", "current_device"]
    found = programs(events)
    assert {name for name, _ in found} >= EXCHANGES[layout]
    assert not [each for each in found if "int64" in each[1] or "float64" in each[1]]
    assert not {"nonzero", "masked_select", "index"} & {name for name, _ in found}
    assert method != BF16 or not any(name == "mm" and "float32" in shapes for name, shapes in found)
    # After the last step what lies over the processes is put together to be saved.
    assert {name for part in by_step(events)[2:-1] for name, _ in programs(part)} <= SAVING


def test_parts_in_host_memory_train_as_one_process_does_and_are_updated_there(alone, pretending, tmp_path):
    """parallelism.cpu_offload, which is CUDA's alone so far. What is sent from host memory by the device's own backend
    is refused here: the norm's parts are, but for a group that has both."""
    layout = ("parallelism=fsdp2", "parallelism.cpu_offload=true")
    run = pretended(pretending, tmp_path, *FULL, *layout, offloading=True)
    assert run.process.returncode == 0, run.process.stderr[-3000:]
    assert_same_training(run, alone(*FULL))
    events = longest_record(tmp_path)
    assert [event for event in events if event.startswith("update")] == ["update cpu cpu cpu"] * 4
    found = programs(events)
    assert {name for name, _ in found} >= EXCHANGES["fsdp2"]
    assert not [each for each in found if "int64" in each[1] or "float64" in each[1]]


# What torch makes of each layout: sums of buckets; parts put together and summed; positions put together and summed.
EXCHANGES = {
    "ddp2": {"c10d::allreduce_"},
    "fsdp2": {"c10d::_allgather_base_", "c10d::_reduce_scatter_base_"},
    "tp2": {"_c10d_functional::all_gather_into_tensor", "_c10d_functional::reduce_scatter_tensor"},
}

"""The torch engine on a device "neuron" that torch knows as it would know AWS's: site/torch_neuronx pretends to be it.

It shows which calls the engine makes, in which order, and with which shapes; not that a compiler takes them, nor
anything of autocast, DistributedDataParallel or time: that needs a chip (docs/trainium.md).
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
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

LEAST = dict(each.split(">=") for each in NEEDED if ">=" in each)
TOO_OLD = [name for name in ("accelerate", "transformers") if Version(str(installed(name))) < Version(LEAST[name])]
pytestmark = pytest.mark.skipif(
    bool(TOO_OLD), reason=f"{TOO_OLD} don't know the device: refused, as test_libraries.py shows"
)

SMALL = ("experiment=tiny", "tracking=none", "dataset.packing=false", "training.micro_batch_size=3",
         "training.global_batch_size=6")  # fmt: skip
NATIVE = ("accelerator=trn2_3xlarge_native", "parallelism=single")
PROGRAM = re.compile(r"program (\w+) (.*)")


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


def test_a_run_is_that_of_a_cpu_in_programs_of_one_shape(pretending, tmp_path):
    arguments = (*SMALL, "lora.dropout=0")
    native = Run(tmp_path / "native", subprocess.run(
        command(*arguments, *NATIVE, f"hydra.run.dir={tmp_path / 'native'}"),
        cwd=tmp_path, env=pretending, capture_output=True, text=True, timeout=PATIENCE,
    ))  # fmt: skip
    assert native.process.returncode == 0, native.process.stderr[-3000:]
    host = Run(tmp_path / "cpu", launch(tmp_path, *arguments, f"hydra.run.dir={tmp_path / 'cpu'}"))
    assert host.process.returncode == 0, host.process.stderr

    # The same training: losses, counts, and what is saved.
    for event, keys in (("train", ("loss", "grad_norm", "tokens")), ("eval", ("eval_loss",))):
        mine, theirs = native.metrics(event), host.metrics(event)
        assert len(mine) == len(theirs) > 2
        for key in keys:
            assert [record.get(key) for record in mine] == pytest.approx(
                [record.get(key) for record in theirs], rel=1e-4
            )
    for name in ("trainable_params", "total_params"):
        assert native.result[name] == host.result[name]
    mine, theirs = (load_file(each.directory / "adapter/adapter_model.safetensors") for each in (native, host))
    assert mine.keys() == theirs.keys()
    assert all(torch.allclose(mine[name], theirs[name], atol=2e-4) for name in mine)
    rng = load_file(native.directory / "checkpoints" / "step-6" / "rng-00000.safetensors")
    assert {"neuron", "torch"} <= rng.keys()

    events = longest_record(tmp_path)
    steps = by_step(events)
    # The device is waited for before each clock and before its memory is read.
    before = [events[index - 1] for index, event in enumerate(events) if event in READINGS]
    assert before == ["synchronize"] * 7
    # The first of six steps brings all programs of training; the rows are of one shape, int32.
    found = programs(events)
    rows = {shapes for name, shapes in found if name == "embedding"}
    assert len(rows) == 1
    assert rows.pop().endswith("('torch.int32', [3, 512])]")
    assert not [each for each in found if "int64" in each[1] or "float64" in each[1]]
    assert not {"nonzero", "masked_select", "index"} & {name for name, _ in found}
    # Attention of queries, keys and values of a whole micro batch, and no mask.
    attention = {shapes for name, shapes in found if name == "scaled_dot_product_attention"}
    assert attention == {str([("torch.float32", [3, 4, 512, 16])] * 3)}
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

JOINING = """
import json, sys, torch, torch_neuronx
from tests.launcher.conftest import single
from trainer.engines.torch import process_group
group = process_group.join(single(*json.loads(sys.argv[1])).config)
asked = list(torch_neuronx.EVENTS)
total = group.all_reduce(torch.tensor([1.0 + group.rank], dtype=torch.float64, device=group.counts))
print(json.dumps([asked, group.rank, group.replicas, str(group.device), str(group.counts), total.tolist()]))
process_group.leave()
"""


def test_the_process_group_is_joined_before_the_device_is_used_and_counts_are_summed_by_hosts(
    pretending, tmp_path, free_port
):
    """AWS: init_process_group comes first. accelerate then asks which device is this process's."""
    given = json.dumps([*SMALL, *NATIVE, "parallelism.data_parallel=2"])
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", JOINING, given], cwd=tmp_path, stdout=subprocess.PIPE, text=True,
            env={**pretending, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
                 "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port)},
        )
        for rank in range(2)
    ]  # fmt: skip
    answers = [json.loads(process.communicate(timeout=PATIENCE)[0].splitlines()[-1]) for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    for rank, answer in enumerate(answers):
        assert answer == [["init_process_group neuron", "current_device"], rank, 2, "neuron:0", "cpu", [3.0]]


@pytest.fixture
def free_port() -> int:
    import socket

    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])

"""The torch engine on Trainium as seen by the launcher: stages, environment, and what is refused."""

from __future__ import annotations

import pytest

from launcher.checks.validate import problems
from launcher.config.schema import Config
from launcher.errors import UsageError
from launcher.executors.local import processes_here
from launcher.jobs.job import job_of
from launcher.jobs.variables import variables
from launcher.neuron.checks import check_trainable
from tests.launcher.conftest import single

ROWS = ("dataset.packing=false", "training.max_length=512", "training.global_batch_size=64")
WHOLE = ("accelerator=trn2_48xlarge_native", "parallelism=ddp64", "training.precision=bf16", *ROWS)
TRN1 = ("accelerator=trn1_32xlarge", "accelerator.engine=torch", "accelerator.backend=neuron")
KEY = "accelerator.torch_neuron"


def native(*arguments: str) -> Config:
    return single(*WHOLE, *arguments).config


REFUSED = [
    (["parallelism=tp4_fsdp16", "model=smollm2_135m"], "parallelism.tensor_parallel", "3 key/value heads, which it"),
    (["parallelism.zero_1=true"], "parallelism.zero_1", "accelerator=trn2_48xlarge, whose engine is neuron"),
    (["dataset.packing=true"], "dataset.packing", "aren't kept apart exactly on TorchNeuron yet"),
    (["training.max_length=1000"], "training.max_length", "rows of multiples of 512 positions alone; nearest is 1024"),
    (["training.max_length=100"], "training.max_length", "nearest is 512"),
    (["lora=qlora"], "lora.quantize_base", "bitsandbytes has no kernels for neuron"),
    (["stages=[fetch,compile,train]"], "stages", "has no stage compile"),
    (["accelerator.backend=xla"], "accelerator.backend", "with accelerator.engine=torch needs neuron; write "
     "accelerator.backend=neuron"),
    (["parallelism.data_parallel=48", "training.global_batch_size=96"], "parallelism.data_parallel", "nearest is 64"),
    ([f"{KEY}=null"], KEY, "take accelerator=trn2_48xlarge_native"),
    ([f"{KEY}.cache_dir='s3://bucket/x'"], f"{KEY}.cache_dir", "no absolute path"),
    ([f"{KEY}.cache_dir=cache"], f"{KEY}.cache_dir", "no absolute path"),
    ([f"{KEY}.compiler_flags=['--cache_dir=/x']"], f"{KEY}.compiler_flags", f"NCC_EARG002); use {KEY}.cache_dir"),
    ([f"{KEY}.compiler_flags=[O1]"], f"{KEY}.compiler_flags", "write it so"),
    (["accelerator.environment=['NEURON_CC_FLAGS=-O1']"], "accelerator.environment", f"is made from {KEY}"),
    (["cluster.environment=['TORCH_NEURONX_NEFF_CACHE_DIR=/x']"], "cluster.environment", f"is made from {KEY}"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "key", "piece"), REFUSED, ids=lambda value: str(value)[:60])
def test_what_torch_neuron_cannot_do_is_one_problem(arguments, key, piece, cwd):
    found = {problem.key: str(problem) for problem in reversed(problems(native(*arguments)))}
    assert list(found) == [key]
    assert piece in found[key]


@pytest.mark.parametrize("name", ["trn1_32xlarge", "ml.trn1n.32xlarge", "inf2_48xlarge"])
def test_the_first_generation_is_refused_by_name_first(name, cwd):
    first = problems(single(*TRN1, f"accelerator.name={name}", *ROWS).config)[0]
    assert str(first) == (
        f"accelerator.engine=torch: TorchNeuron is for trn2 and trn3 alone, and this is {name}; leave "
        "accelerator.engine and accelerator.backend out: its engine is neuron"
    )


@pytest.mark.parametrize(
    ("arguments", "key", "piece"),
    [
        (["accelerator=trn2_48xlarge_native", "accelerator.engine=neuron"], "accelerator.backend", "neuron needs xla"),
        (["accelerator=trn2_48xlarge", "accelerator.engine=torch"], "accelerator.backend", "torch needs neuron"),
        (["accelerator=trn2_48xlarge", "accelerator.engine=torch", "accelerator.backend=neuron"], KEY, "_native"),
        (["accelerator=trn2_48xlarge_native", "accelerator.device=cpu"], KEY, "engine torch on device neuron alone"),
    ],
    ids=str,
)
def test_settings_of_one_engine_are_not_the_others(arguments, key, piece, cwd):
    found = [problem for problem in problems(single(*arguments, *ROWS).config) if problem.key == key]
    assert [piece in str(problem) for problem in found] == [True]


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["method=full"],
        ["lora=dora"],
        ["training.max_length=2048"],
        ["parallelism=fsdp64", "method=full"],
        ["parallelism=tp4_fsdp16", "model=llama3_8b", "training.compile=none"],
    ],
    ids=str,
)
def test_what_it_can_do_is_not_refused(arguments, cwd):
    config = native(*arguments)
    assert problems(config) == []
    check_trainable(config)


def test_it_trains_without_a_stage_that_compiles_and_by_torchrun_where_there_are_several(cwd):
    config = native()
    assert config.stages == ["fetch", "train"]
    assert processes_here(job_of("train", config)) == 64
    alone = job_of("train", native("parallelism=single"))
    assert (alone.how, alone.elastic) == ("one process", False)
    small = native("accelerator=trn2_3xlarge_native", "parallelism=ddp4")
    assert processes_here(job_of("train", small)) == 4
    with pytest.raises(UsageError, match="128 processes are 2 instances of trn2_48xlarge_native"):
        check_trainable(native("parallelism.data_parallel=128", "training.global_batch_size=128"))


def test_the_environment_is_torch_neurons_alone(cwd, monkeypatch):
    monkeypatch.delenv("TRNTUNE_CACHE", raising=False)
    expected = {
        "NEURON_LOGICAL_NC_CONFIG": "2",
        "TORCH_NEURONX_NEFF_CACHE_DIR": "/var/tmp/trntune-torch-neuron",
        "NEURON_CC_FLAGS": "-O1",
        "TORCH_NEURONX_ENABLE_NKI_SDPA": "1",
        "OMP_NUM_THREADS": "2",
    }
    assert variables("train", native()) == expected
    assert variables("merge", native()) == {}
    changed = native(
        f"{KEY}.cache_dir=/shared/neff/", f"{KEY}.compiler_flags=[]", f"{KEY}.nki_attention=false",
        f"{KEY}.logical_nc=1", f"{KEY}.omp_threads=3", "parallelism.data_parallel=128",
        "accelerator.environment=['NEURON_RT_LOG_LEVEL=INFO']",
    )  # fmt: skip
    assert variables("train", changed) == {
        "NEURON_LOGICAL_NC_CONFIG": "1",
        "TORCH_NEURONX_NEFF_CACHE_DIR": "/shared/neff",
        "TORCH_NEURONX_ENABLE_NKI_SDPA": "0",
        "OMP_NUM_THREADS": "3",
        "NEURON_RT_LOG_LEVEL": "INFO",
    }
    monkeypatch.setenv("TRNTUNE_CACHE", "/fsx/cache")
    assert variables("train", native())["TORCH_NEURONX_NEFF_CACHE_DIR"] == "/fsx/cache/torch-neuron"


def test_the_plan_shows_the_environment_and_no_compiling(answer, cwd):
    done = answer(*WHOLE, "model=llama32_1b", "dataset=dolly15k", "dataset.packing=false", "plan=true")
    assert done.returncode == 0, done.stderr
    for piece in ("TORCH_NEURONX_ENABLE_NKI_SDPA=1", "NEURON_CC_FLAGS=-O1", "64 processes"):
        assert piece in done.stdout
    for piece in ("neuron_parallel_compile", "NEURON_RT_ASYNC_EXEC", "FI_PROVIDER", "NEURON_FUSE_SOFTMAX"):
        assert piece not in done.stdout

"""Composition: what --cfg prints, sweeps, names of directories, and that the fast path is Hydra's own result."""

from __future__ import annotations

import re

import pytest
import yaml
from omegaconf import OmegaConf

from launcher.config.compose import Composer
from launcher.config.schema import Config
from launcher.errors import UsageError
from launcher.run_dir.create import create, subdirectory_name
from tests.launcher.conftest import composition, single


def test_cfg_job_is_yaml_that_composes_to_the_same_configuration(launch, cwd):
    arguments = ["model=tiny_llama", "method=full", "seed=7", "training.max_steps=30"]
    done = launch(*arguments, "--cfg", "job", "--resolve")
    assert done.returncode == 0, done.stderr
    assert list(cwd.iterdir()) == []
    merged = OmegaConf.merge(OmegaConf.structured(Config), OmegaConf.create(yaml.safe_load(done.stdout)))
    assert OmegaConf.to_object(merged) == single(*arguments).config


@pytest.mark.parametrize(
    ("arguments", "piece"),
    [
        (["--cfg", "job", "--package", "lora"], "# @package lora\nname: r16_qv"),
        (["--cfg", "hydra", "--package", "hydra.sweep"], "subdir:"),
        (["--cfg", "all"], "hydra:\n"),
        (["--cfg", "job"], "learning_rate: ${method.learning_rate}"),
        (["--info", "defaults"], "training/quick"),
        (["--hydra-help"], "--multirun"),
    ],
)
def test_hydras_ways_to_look_work_and_write_nothing(arguments, piece, launch, cwd):
    done = launch(*arguments)
    assert done.returncode == 0, done.stderr
    assert piece in done.stdout
    assert list(cwd.iterdir()) == []


def test_a_single_run_is_named_by_time_and_method(cwd):
    run = composition("method=full").runs[0]
    assert run.directory.parent == cwd / "outputs"
    assert re.fullmatch(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d_full", run.directory.name)
    assert not run.fixed_name
    assert single("hydra.run.dir=mine").fixed_name


def test_a_sweep_is_the_product_of_its_values(cwd):
    found = composition("-m", "method=lora,full", "seed=choice(1,2)", "training.max_steps=30")
    assert [run.directory.name for run in found.runs] == [
        "0_method=lora,seed=1", "1_method=lora,seed=2", "2_method=full,seed=1", "3_method=full,seed=2"
    ]  # fmt: skip
    assert [run.config.training.learning_rate for run in found.runs] == [1e-3, 1e-3, 5e-5, 5e-5]
    assert [run.config.seed for run in found.runs] == [1, 2, 1, 2]
    assert {run.config.training.max_steps for run in found.runs} == {30}
    assert found.sweep_dir is not None
    assert found.sweep_dir.parent == cwd / "outputs" / "sweeps"


def test_an_experiment_can_be_a_sweep(cwd):
    found = composition("experiment=fpft_vs_peft_small")
    assert [run.config.method.name for run in found.runs] == ["full", "lora"]
    assert {run.config.tracking.experiment for run in found.runs} == {"fpft_vs_peft_small"}


def test_the_command_line_wins_over_the_sweep_of_an_experiment(cwd):
    assert [run.config.method.name for run in composition("experiment=fpft_vs_peft_small", "method=full").runs] == [
        "full"
    ]


def test_composing_a_sweep_fast_gives_what_hydra_gives(cwd):
    composer = Composer()
    lines = ["model=tiny_llama", "seed=4", "lora=dora", "training.max_steps=9"]
    for _ in range(2):  # the second time from the cache
        fast, full = composer.load_in_sweep([], lines), composer.load(lines)
        full.hydra.job.override_dirname = fast.hydra.job.override_dirname  # ours names only what is swept
        assert OmegaConf.to_container(fast) == OmegaConf.to_container(full)
    other = composer.load_in_sweep([], ["model=tiny_llama", "lora=dora"])
    assert other.training.max_steps == 16
    assert other.seed == 0


def test_200_configurations_are_composed_in_seconds(cwd):
    assert len(composition("-m", "seed=range(0,100)", "method=lora,full").runs) == 200


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("0_method=lora", "0_method=lora"),
        ("1_dataset.path=/data/my rows.jsonl", "1_dataset.path=-data-my-rows.jsonl"),
        ("0_", "0"),
        ("../../etc", "etc"),
        ("2_" + "x" * 300, "2_" + "x" * 98),
    ],
)
def test_names_of_runs_in_a_sweep_are_short_and_safe(text, name):
    assert subdirectory_name(text).strip("-") == name


def test_two_runs_of_the_same_second_get_their_own_directories(tmp_path):
    made = [create(tmp_path / "run", fixed_name=False) for _ in range(3)]
    assert [path.name for path in made] == ["run", "run_2", "run_3"]
    assert all(path.stat().st_mode & 0o777 == 0o700 for path in made)


CALIBRATION = "accelerator.calibration={source: mine, compute_efficiency: 0.4, low: 0.5, high: 2}"


@pytest.mark.parametrize("sweep", [[], ["-m", "seed=1,2"]])
def test_a_node_that_is_null_can_be_given_whole(sweep, cwd):
    """Found by a user of accelerator=cuda, which has no calibration: OmegaConf has nothing to merge the keys into."""
    lines = ["accelerator=cuda", CALIBRATION, "accelerator.calibration.high=3"]
    for run in composition(*sweep, *lines).runs:
        found = run.config.accelerator.calibration
        assert found is not None
        assert (found.source, found.compute_efficiency, found.low, found.high) == ("mine", 0.4, 0.5, 3.0)
        assert list(run.hydra.hydra.overrides.task)[-1] == lines[-1]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("accelerator.calibration={source: mine}", "has no value: give accelerator.calibration.compute_efficiency=..."),
        ("accelerator.calibration={lov: 0.5}", "unknown key accelerator.calibration.lov; did you mean"),
        ("accelerator.calibration={low: much}", "accelerator.calibration.low"),
        ("accelerator.calibration=5", "accelerator.calibration"),
        ("accelerator.calibration.low=0.5", "is null here, so that it has no keys; give it whole"),
    ],
)
def test_a_node_given_whole_is_checked_as_its_keys_are(line, said, cwd):
    with pytest.raises(UsageError, match=re.escape(said)):
        composition("accelerator=cuda", line)

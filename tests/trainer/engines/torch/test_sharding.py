"""A model that lies over several processes trains as a whole one does: real runs, started by torchrun."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from launcher.plan.build import known, preflight
from tests.conftest import TINY, Run, launch
from tests.launcher.conftest import single
from trainer.fetch.tiny_llama import byte_tokenizer
from trainer.libraries.transformers_files import save_tokenizer

SETTINGS = (
    *TINY,
    "tracking=none",
    "training.global_batch_size=8",  # several micro batches on each rank
    "training.max_length=128",
    "training.max_steps=4",
    "training.epochs=9",
    "training.eval_every=2",
    "training.save_every=2",
    "training.max_grad_norm=1",  # the norms are larger
    "dataset.eval_samples=5",  # ranks have different numbers of rows
)
FULL = ("method=full", "training.early_stopping_patience=3")
LORA = ("lora.dropout=0", "training.max_grad_norm=0", "lora.modules_to_save=[model.norm]", "lora.use_dora=true")
ALL_LINEAR = ("lora.dropout=0", "training.max_grad_norm=0", "lora.target_modules=[all-linear]")
BF16 = ("method=full", "training.precision=bf16", "training.gradient_checkpointing=true")

pytestmark = pytest.mark.long

Started = Callable[..., Run]


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Started:
    """Runs by their settings, each made once."""
    done: dict[tuple[str, ...], Run] = {}

    def run(*arguments: str) -> Run:
        if arguments not in done:
            directory = tmp_path_factory.mktemp("runs") / "run"
            done[arguments] = _run(directory, *arguments)
        return done[arguments]

    return run


def _run(directory: Path, *arguments: str) -> Run:
    run = Run(directory, launch(directory.parent, *SETTINGS, f"hydra.run.dir={directory}", *arguments))
    assert run.process.returncode == 0, run.process.stderr
    return run


def weights(directory: Path) -> dict[str, torch.Tensor]:
    [file] = [*directory.glob("adapter/*.safetensors"), *directory.glob("model/*.safetensors")]
    return load_file(file)


def assert_same_training(run: Run, expected: Run, rel: float = 2e-6, atol: float = 1e-6) -> None:
    for event, key in (("train", "loss"), ("train", "grad_norm"), ("eval", "eval_loss")):
        found = [line[key] for line in run.metrics(event)]
        assert found == pytest.approx([line[key] for line in expected.metrics(event)], rel=rel), key
    torch.testing.assert_close(weights(run.directory), weights(expected.directory), rtol=0, atol=atol)


@pytest.mark.parametrize(
    ("method", "layout"),
    [(FULL, "fsdp2"), (FULL, "fsdp4"), (LORA, "fsdp2"), (FULL, "tp2_fsdp2"), (ALL_LINEAR, "tp2")],
    ids=["full, 2", "full, 4", "lora, 2", "full, 2 x 2", "lora, split"],
)
def test_losses_norms_and_weights_are_those_of_one_process(method: tuple[str, ...], layout: str, started: Started):
    run, alone = started(f"parallelism={layout}", *method), started("parallelism=single", *method)
    assert_same_training(run, alone)
    saved, expected = (next(d.directory.glob("[am]*/*config.json")) for d in (run, alone))
    ours, theirs = (json.loads(file.read_text()) for file in (saved, expected))
    for settings in (ours, theirs):
        settings["target_modules"] = sorted(settings.get("target_modules", []))
    assert ours == theirs


def test_norms_of_heads_and_an_untied_head_are_split(started: Started, tmp_path_factory: pytest.TempPathFactory):
    directory = tmp_path_factory.mktemp("qwen3")
    _qwen3(directory)
    settings = ("method=full", "model=local", f"model.path={directory}")
    assert_same_training(started("parallelism=tp2", *settings), started("parallelism=single", *settings))


def test_compiled_layers_in_parts_train_as_written_ones_also_with_what_an_earlier_start_compiled(
    started: Started, tmp_path: Path
):
    arguments = ("parallelism=tp2", *FULL, "training.compile=layers")
    run = started(*arguments)
    assert_same_training(run, started("parallelism=single", *FULL))
    whole = started("parallelism=single", *FULL, "training.compile=layers").result
    assert run.result["compilations"] > 0
    assert run.result["late_compilations"] == 0
    assert run.result["graph_breaks"] <= whole["graph_breaks"]  # the first layer takes what the others do
    assert_same_training(gone_on(run, tmp_path / "run", *arguments), run, rel=0, atol=0)


def _qwen3(directory: Path) -> None:
    """Two random layers."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    tokenizer = byte_tokenizer(4096)
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "vocab_size": 264, "head_dim": 16}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": False}
    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    torch.manual_seed(1)
    Qwen3ForCausalLM(Qwen3Config(**sizes, **heads, **ids)).save_pretrained(directory)
    save_tokenizer(tokenizer, directory)


def test_tied_weights_are_saved_once_and_read_as_tied(started: Started):
    from transformers import AutoModelForCausalLM

    directory = started("parallelism=fsdp2", *FULL).directory / "model"
    assert "lm_head.weight" not in weights(directory.parent)
    model = AutoModelForCausalLM.from_pretrained(directory)
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_bf16_with_recomputed_activations_is_that_of_one_process_within_its_rounding(started: Started):
    run, expected = started("parallelism=fsdp2", *BF16), started("parallelism=single", *BF16)
    assert_same_training(run, expected, rel=1e-3, atol=2e-3)
    first, reference = (each.metrics("eval")[0]["eval_loss"] for each in (run, expected))
    assert first == reference


def test_random_numbers_are_those_of_a_replica_on_all_of_its_ranks_and_no_others(started: Started):
    directory = started("parallelism=tp2_fsdp2", *FULL).directory / "checkpoints" / "step-4"
    one, two, three, four = (load_file(file)["torch"] for file in sorted(directory.glob("rng-*.safetensors")))
    assert torch.equal(one, two)
    assert torch.equal(three, four)
    assert not torch.equal(one, three)


def test_each_rank_writes_its_part_and_the_plan_knows_how_much(started: Started):
    run = started("parallelism=fsdp2", *FULL)
    config = single(*SETTINGS, "parallelism=fsdp2", *FULL).config
    planned = preflight(config, known(config)[0]).memory
    directory = run.directory / "checkpoints" / "step-4"
    sizes = {}
    for name, keys in (("optimizer", ("exp_avg", "exp_avg_sq")), ("weights/model", ("weight",)), ("best", ("weight",))):
        for rank in range(2):
            stored = load_file(directory / f"{name}.rank-{rank:05d}-of-00002.safetensors")
            sizes[name, rank] = sum(t.nbytes for key, t in stored.items() if key.endswith(keys))
    assert sizes["optimizer", 0] == sizes["optimizer", 1] == planned.optimizer
    assert sizes["weights/model", 0] == sizes["best", 1] == planned.optimizer / 2
    assert planned.checkpoint == pytest.approx(planned.optimizer * 2)  # weights and moments, and the best weights
    assert not (directory / "weights" / "model.safetensors").exists()


@pytest.mark.parametrize("layout", ["fsdp2", "tp2_fsdp2"])
def test_a_checkpoint_in_parts_is_put_together(layout: str, started: Started, tmp_path: Path):
    from postprocess.consolidate.run import Options, consolidate

    run = started(f"parallelism={layout}", *FULL)
    consolidate(run.directory / "checkpoints" / "step-4", tmp_path / "model", Options(base=None), print)
    torch.testing.assert_close(load_file(tmp_path / "model" / "model.safetensors"), weights(run.directory))


def gone_on(run: Run, directory: Path, *arguments: str) -> Run:
    """A run as if it had been killed after step 2, started again."""
    shutil.copytree(run.directory, directory)
    shutil.rmtree(directory / "checkpoints" / "step-4")
    (directory / "stages" / "train.json").unlink()
    again = _run(directory, *arguments)
    assert "going on after step 2" in again.process.stderr
    return again


@pytest.mark.parametrize(("layout", "method"), [("fsdp2", FULL), ("tp2", ALL_LINEAR)], ids=["full", "lora, split"])
def test_a_run_that_goes_on_is_bit_for_bit_the_one_that_was_not_ended(
    layout: str, method: tuple[str, ...], started: Started, tmp_path: Path
):
    arguments = (f"parallelism={layout}", *method)
    again = gone_on(started(*arguments), tmp_path / "run", *arguments)
    assert_same_training(again, started(*arguments), rel=0, atol=0)


@pytest.mark.parametrize(
    ("before", "after"),
    [("fsdp4", "fsdp2"), ("single", "fsdp2"), ("single", "tp2"), ("tp2_fsdp2", "single")],
    ids=lambda name: name,
)
def test_another_number_of_ranks_goes_on_when_that_is_wanted(before: str, after: str, started: Started, tmp_path: Path):
    arguments = (*FULL, "training.allow_config_change=[parallelism]")
    run = started(f"parallelism={before}", *FULL)
    assert_same_training(gone_on(run, tmp_path / "run", f"parallelism={after}", *arguments), run)


def test_weights_that_are_no_numbers_are_not_saved(tmp_path: Path):
    arguments = ("method=full", "parallelism=fsdp2", "training.learning_rate=1e38", "training.max_steps=1")
    settings = (*SETTINGS, *arguments, "training.eval_every=null", "tracking.skip_steps=0", "training.warmup_steps=0")
    done = launch(tmp_path, *settings, f"hydra.run.dir={tmp_path}/run")
    assert done.returncode == 1
    [line] = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert "numbers that are not finite, so the weights are not saved" in line
    assert not (tmp_path / "run" / "model").exists()

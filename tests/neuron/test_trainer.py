"""The neuron engine with the real optimum-neuron and neuronx_distributed: it trains as the torch engine does, however
the model is split, and a killed run goes on exactly.

It needs torch 2.8 with torch_xla 2.8, and on PYTHONPATH neuronx_distributed 0.15's source and the directory that holds
neuron_shim.py and lab_init.py: stand-ins for what only AWS ships, and collectives over gloo. None of them is part of
this project; without them these tests are skipped.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from launcher.paths import ROOT
from tests.neuron.runs import TP2, Curve, Processes, assert_close, result
from trainer.fetch.tiny_llama import byte_tokenizer
from trainer.libraries.transformers_files import save_tokenizer

NEEDED = ("torch_xla", "neuronx_distributed", "neuron_shim", "lab_init")
MISSING = [name for name in NEEDED if importlib.util.find_spec(name) is None]
RIG = Processes("site")
BF16_ZERO = ("training.precision=bf16", "parallelism.zero_1=true")
FULL_BF16 = ("method=full", "method.learning_rate=1e-3", *BF16_ZERO)

# torch_xla starts threads when it is imported: nothing can be forked of that.
pytestmark = [
    pytest.mark.cold,
    pytest.mark.skipif(bool(MISSING), reason=f"needs {', '.join(MISSING)}: see {Path(__file__).name}"),
]


@pytest.fixture
def processes() -> Processes:
    return RIG


@pytest.fixture
def random_model(tmp_path: Path) -> Callable[[str], Path]:
    """Makes a model of two random layers: "qwen3" norms queries and keys of each head, "granite" scales what others
    don't, and has its ends whole on every rank."""

    def make(family: str) -> Path:
        directory = tmp_path / family
        tokenizer = byte_tokenizer(4096)
        ids = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
        sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "vocab_size": 264}
        heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.05}
        own = {
            "qwen3": {"head_dim": 16},
            "granite": {
                "embedding_multiplier": 3.0,
                "logits_scaling": 2.0,
                "residual_multiplier": 0.5,
                "attention_multiplier": 0.2,
                "tie_word_embeddings": True,
            },
        }[family]
        torch.manual_seed(1)
        config = AutoConfig.for_model(family, **sizes, **heads, **ids, **own)
        AutoModelForCausalLM.from_config(config).save_pretrained(directory)
        save_tokenizer(tokenizer, directory)
        return directory

    return make


LORA = ("method=lora", "lora.dropout=0", "lora.target_modules=[q_proj,v_proj,o_proj]")
TP4 = ("parallelism.tensor_parallel=4", "parallelism.sequence_parallel=true")
# Fewer key/value heads than tensor-parallel ranks: two ranks hold a copy of each.
TWO_HEADS = ("model.architecture.heads=8", "model.architecture.kv_heads=2", "model.architecture.head_dim=8")
# Four micro batches a step, through two stages; a tied head has no place in them.
STAGED = ("model.architecture.tied_embeddings=false", "training.micro_batch_size=1", "training.global_batch_size=4")
PP2 = ("parallelism.pipeline_parallel=2",)
ONE_HEAD = ("model.architecture.kv_heads=1",)


@pytest.mark.parametrize(
    ("settings", "layout", "number"),
    [
        (("method=full",), TP2, 2),
        (("method=full",), ("parallelism.tensor_parallel=2",), 2),
        (LORA, TP2, 2),
        (LORA, ("parallelism=ddp2",), 2),
        (("method=full", *ONE_HEAD), TP2, 2),
        (("method=full", "dataset.packing=false", "training.gradient_checkpointing=true"), (), 1),
        (("method=full", *STAGED), PP2, 2),
        (("method=full", *STAGED, "training.gradient_checkpointing=true"), PP2, 2),
        ((*LORA, *STAGED, "dataset.packing=false", "training.weight_decay=0.5"), (*TP2, *PP2), 4),
        (("method=full", *STAGED, *ONE_HEAD), (*TP2, *PP2), 4),
        ((*LORA, *STAGED, "training.gradient_checkpointing=true", "training.early_stopping_patience=1"), PP2, 2),
    ],
    ids=[
        *("full", "full-whole-sequences", "lora", "lora-two-replicas", "full-copied-heads", "full-unpacked"),
        *("full-two-stages", "full-two-stages-recomputed", "lora-unpacked-two-stages-of-two"),
        *("full-copied-heads-two-stages-of-two", "lora-two-stages-recomputed-early-stopping"),
    ],
)
def test_it_trains_as_the_torch_engine_does(
    train: Callable[..., Path],
    by_torch: Callable[..., Path],
    settings: tuple[str, ...],
    layout: tuple[str, ...],
    number: int,
) -> None:
    """Loss, gradient norm and held-out loss, with several samples in a row."""
    assert_close(by_torch(*settings), train("neuron", number, *settings, *layout))


def test_copies_of_heads_follow_the_weights_on_trainium_2(
    train: Callable[..., Path], by_torch: Callable[..., Path]
) -> None:
    """neuronx_distributed has copies on ranks next to each other there, optimum-neuron every second rank."""
    settings = ("method=full", *TWO_HEADS)
    assert_close(by_torch(*settings), train("neuron", 4, *settings, *TP4, chip="trn2"))


def test_four_ranks_of_a_model_are_no_neighbours_on_trainium_1(
    train: Callable[..., Path], by_torch: Callable[..., Path]
) -> None:
    """There a model is split over ranks 0, 2, 4 and 6 of eight."""
    settings = ("method=full", *TWO_HEADS)
    assert_close(by_torch(*settings), train("neuron", 8, *settings, *TP4, "parallelism.data_parallel=2"))


def test_copies_of_an_adapter_count_once_however_many_there_are(train: Callable[..., Path]) -> None:
    """The three projections have one lora_A where heads are copied: no other engine has that."""
    settings = ("method=lora", "lora.dropout=0", "lora.target_modules=[q_proj,k_proj,v_proj]", *ONE_HEAD)
    assert_close(train("two", 2, *settings, *TP2), train("four", 4, *settings, *TP4))


@pytest.mark.parametrize(
    ("family", "settings", "layout"),
    [
        ("qwen3", ("method=full",), TP2),
        ("granite", ("method=full",), TP2),
        ("granite", LORA, TP2),
        ("qwen3", ("method=full", *STAGED[1:]), PP2),
    ],
    ids=["qwen3-full", "granite-full", "granite-lora", "qwen3-full-two-stages"],
)
def test_other_families_train_as_the_torch_engine_has_them(
    train: Callable[..., Path],
    by_torch: Callable[..., Path],
    random_model: Callable[[str], Path],
    family: str,
    settings: tuple[str, ...],
    layout: tuple[str, ...],
) -> None:
    given = (*settings, "model=local", f"model.path={random_model(family)}")
    assert_close(by_torch(*given), train("neuron", 2, *given, *layout))


@pytest.mark.parametrize("settings", [("method=full",), LORA], ids=["full", "lora"])
def test_what_every_rank_holds_stays_the_same_on_every_rank(
    train: Callable[..., Path], settings: tuple[str, ...]
) -> None:
    """Bit for bit: under ZeRO-1 gradients of norms and of one half of LoRA would not be summed over the ranks."""
    directory = train("run", 2, *BF16_ZERO, *settings, *TP2)
    one, other = (load_file(path) for path in sorted((directory / "sharded").rglob("*.safetensors")))
    whole = [name for name in one if "norm" in name or name.endswith(("q_proj.lora_A.weight", "o_proj.lora_B.weight"))]
    assert len(whole) >= 4
    for name in whole:
        assert torch.equal(one[name], other[name]), name


@pytest.mark.parametrize(
    ("settings", "number"),
    [
        ((*FULL_BF16, *TP2), 2),
        (("method=lora", *TP2), 2),
        ((*FULL_BF16, *STAGED, *PP2, "parallelism.data_parallel=2"), 4),
        (("method=lora", *STAGED, *PP2), 2),
    ],
    ids=["full-bf16-zero1", "lora-dropout", "two-replicas-of-two-stages-bf16-zero1", "lora-dropout-two-stages"],
)
def test_a_killed_run_goes_on_exactly(
    train: Callable[..., Path], fetched: Callable[..., Path], settings: tuple[str, ...], number: int
) -> None:
    straight = Curve.read(train("straight", number, *settings))
    directory = fetched("killed", *settings)
    RIG.kill_after_checkpoint(directory, number, step=3)
    assert "going on after step 3" in RIG.go_on(directory, number)
    assert Curve.read(directory) == straight
    assert result(directory)["attempts"] == 2


def test_under_zero_1_the_schedule_is_followed_and_the_model_learns(train: Callable[..., Path]) -> None:
    held_out = Curve.read(train("run", 2, *FULL_BF16, *TP2)).held_out
    assert held_out[6] < held_out[3] < held_out[0]


def test_what_was_saved_becomes_one_model_that_generates(train: Callable[..., Path]) -> None:
    directory = train("run", 2, "method=lora", "lora.target_modules=[q_proj,v_proj,o_proj]", *TP2)
    assert result(directory)["saved"] == "sharded"
    for stage in ("consolidate", "merge", "generate"):
        command = [sys.executable, "-m", "launcher.jobs.run_stage", stage, str(directory)]
        env = {**RIG.environment(), "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
        subprocess.run(command, env=env, check=True, capture_output=True)
    ranks = sorted((directory / "sharded").rglob("*.safetensors"))
    halves = [load_file(path) for path in ranks]
    whole = load_file(directory / "adapter" / "adapter_model.safetensors")
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"
    assert torch.equal(whole[name], torch.cat([half[name] for half in halves]))
    assert (directory / "merged" / "config.json").is_file()


def test_stages_of_a_model_become_the_one_that_the_torch_engine_trains(
    train: Callable[..., Path], by_torch: Callable[..., Path]
) -> None:
    settings = ("method=full", *STAGED)
    directory = train("run", 2, *settings, *PP2)
    command = [sys.executable, "-m", "launcher.jobs.run_stage", "consolidate", str(directory)]
    subprocess.run(command, env=RIG.environment(), check=True, capture_output=True)
    found = load_file(directory / "model" / "model.safetensors")
    expected = load_file(by_torch(*settings) / "model" / "model.safetensors")
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        assert torch.allclose(found[name], weight, rtol=1e-5, atol=1e-6), name

"""Bases that aren't what their config.json says: named before a step is made, never filled with random numbers."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel

from launcher.checks.validate import problems
from launcher.errors import TrntuneError
from launcher.model_dir.config_json import read_architecture
from launcher.model_dir.weights import check_fit, incomplete, stored_shapes
from postprocess.generate.models import Answerers, ModelLocation
from tests.trainer.models.conftest import composed
from trainer.engines.torch.engine import TorchEngine
from trainer.fetch import tiny_llama
from trainer.fetch.sources import fetch_model
from trainer.libraries.transformers_versions import FINDS_MORE_NAMES
from trainer.models.load import load_model, load_tokenizer
from trainer.probes.dataset import measure

Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Llama whose head is not the embedding."""
    architecture = composed("model=tiny_llama").model.architecture
    assert architecture is not None
    architecture.tied_embeddings, directory = False, tmp_path_factory.mktemp("base")
    tiny_llama.build(directory, architecture)
    return directory


@pytest.fixture
def base(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "base"))


def rewrite(base: Path, change: Callable[[Tensors], Tensors]) -> None:
    file = base / "model.safetensors"
    tensors = change(load_file(file))
    file.unlink()  # a model that was loaded lies in it, and safetensors below 0.8 would write over that
    save_file(tensors, file, metadata={"format": "pt"})


def config_of(base: Path, *arguments: str):
    return composed("model=local", f"model.path={base}", "training.max_length=128", *arguments)


def load(base: Path):
    return load_model(base, config_of(base), "eager")


def without(*gone: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if name not in gone}


def named(rename: Callable[[str], str]) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {rename(name): tensor for name, tensor in tensors.items()}


NORM = "model.layers.1.input_layernorm.weight"
INCOMPLETE = {
    "one tensor": (
        without(NORM),
        f"1 of the 21 tensors of its config.json are in none of its files ({NORM}): download",
    ),
    "no head": (
        without("lm_head.weight"),
        "(lm_head.weight): the output head; if it is the embedding, config.json has",
    ),
    "another prefix": (
        named(lambda name: f"llm.{name}"),
        "21 of the 21 tensors of its config.json are in none of its files (lm_head.weight, model.embed_tokens.weight, "
        "model.layers.0.input_layernorm.weight, ...): all are there with 'llm.' before their names",
    ),
    "another name": (
        named(lambda name: name.replace("model.", "transformer.")),
        "all are there with 'transformer.' in place of 'model.'",
    ),
    "no prefix": (named(lambda name: name.removeprefix("model.")), "all are there without 'model.'"),
    "peft's names": (
        named(lambda name: f"base_model.model.{name}".replace("q_proj.", "q_proj.base_layer.")),
        "the files have peft's names",
    ),
}


@pytest.mark.parametrize("kind", INCOMPLETE)
def test_weights_that_no_file_holds_are_refused_from_headers_alone_and_when_loaded(kind, base):
    change, says = INCOMPLETE[kind]
    expected = load(base).state_dict()
    rewrite(base, change)
    [problem] = problems(config_of(base))
    assert problem.key == "model.path"
    assert says in problem.why
    with pytest.raises(TrntuneError) as fetched:
        check_fit(base)
    assert str(fetched.value) == f"{base}: {problem.why}"
    if kind == "no prefix" and FINDS_MORE_NAMES:
        assert_same(load(base).state_dict(), expected)
        return
    with pytest.raises(TrntuneError) as loaded:
        load(base)
    assert str(loaded.value) == f"{base}: {problem.why}"


def assert_same(found: Tensors, expected: Tensors) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_a_model_that_lacks_a_tensor_answers_nothing(base):
    rewrite(base, without(NORM))
    answerers = Answerers(ModelLocation(None, None, base, "plain", None), torch.float32, "cpu")
    with pytest.raises(TrntuneError, match=f"none of its files \\({NORM}\\)"), answerers.model("tuned"):
        pass


def test_sharded_files_are_whole(base, tmp_path):
    model = load(base)
    assert incomplete(base) is None
    model.save_pretrained(tmp_path / "shards", max_shard_size="100KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    assert stored_shapes(tmp_path / "shards") == stored_shapes(base)
    assert incomplete(tmp_path / "shards") is None
    assert stored_shapes(tmp_path) is None


@pytest.fixture
def tied(tmp_path: Path) -> Path:
    return Path(shutil.copytree(fetch_model(composed("model=tiny_llama").model), tmp_path / "tied"))


def test_names_without_the_models_prefix_are_a_whole_tied_model(tied):
    expected = list(load(tied).parameters())
    rewrite(tied, named(lambda name: name.removeprefix("model.")))
    assert problems(config_of(tied)) == []
    assert all(torch.equal(found, p) for found, p in zip(load(tied).parameters(), expected, strict=True))


def test_an_embedding_that_is_stored_as_its_tied_head_alone_is_refused(tied):
    expected = load(tied).state_dict()
    rewrite(tied, named(lambda name: name.replace("model.embed_tokens", "lm_head")))
    [problem] = problems(config_of(tied))
    assert "(model.embed_tokens.weight): all are there with 'lm_head.' in place of 'model.embed_tokens.'" in problem.why
    if FINDS_MORE_NAMES:
        assert_same(load(tied).state_dict(), expected)
        return
    with pytest.raises(TrntuneError, match=r"model\.embed_tokens\.weight"):
        load(tied)


def test_another_shape_than_config_json_asks_for(base):
    rewrite(base, lambda tensors: {**tensors, NORM: torch.ones(3)})
    assert f"{NORM} has shape [3], but its config.json asks for [64]" in problems(config_of(base))[0].why
    with pytest.raises(TrntuneError, match="asks for"):
        load(base)


def test_another_familys_model_is_refused_when_it_is_loaded(whole, tmp_path):
    small = {"n_embd": 32, "n_layer": 1, "n_head": 2, "vocab_size": 99, "n_positions": 64, "tie_word_embeddings": False}
    GPT2LMHeadModel(GPT2Config(**small)).save_pretrained(tmp_path)
    shutil.copy(whole / "tokenizer.json", tmp_path)
    assert problems(config_of(tmp_path, "lora.target_modules=[c_attn]")) == []
    load(tmp_path)
    norm = "transformer.h.0.ln_1.weight"
    rewrite(tmp_path, lambda tensors: {**tensors, norm: torch.ones(3)})
    with pytest.raises(
        TrntuneError, match=rf": {norm} has another shape than \[32\], which its config\.json asks for$"
    ):
        load(tmp_path)
    rewrite(tmp_path, without(norm, "lm_head.weight"))
    with pytest.raises(TrntuneError, match=r"2 of the 17 tensors .* \(lm_head\.weight, transformer\.h\.0\.ln_1\.w"):
        load(tmp_path)


def test_tensors_that_are_no_part_of_the_model_are_told_of(base, capsys):
    rewrite(base, lambda tensors: {**tensors, "model.layers.9.mlp.extra": torch.ones(3)})
    assert problems(config_of(base)) == []
    load(base)
    assert "1 tensors are no part of the model: model.layers.9.mlp.extra" in capsys.readouterr().err


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_base_that_holds_no_number_is_named_with_its_tensor(value, base):
    def spoil(tensors: Tensors) -> Tensors:
        tensors[NORM][5] = value
        return tensors

    rewrite(base, spoil)
    with pytest.raises(TrntuneError) as caught:
        load(base)
    assert str(caught.value) == (
        f"{base}: {NORM} holds 1 numbers of 64 that are not finite: the base is damaged; download or convert it again"
    )


def test_a_tokenizer_with_more_tokens_than_the_embedding_has_rows(base):
    tokenizer = load_tokenizer(base)
    rows, known = read_architecture(base).vocab_size, len(tokenizer)
    tokenizer.add_tokens([f"<extra_{number}>" for number in range(rows - known)])
    tokenizer.save_pretrained(base)
    check_fit(base)  # padded to the last row
    tokenizer.add_tokens(["<one_more>"])
    tokenizer.save_pretrained(base)
    says = f"its tokenizer has {rows + 1} tokens, but its embedding only {rows} rows"
    with pytest.raises(TrntuneError, match=says):
        check_fit(base)
    with pytest.raises(TrntuneError, match=says):
        measure(config_of(base))
    with pytest.raises(TrntuneError, match=says):
        TorchEngine(config_of(base)).load(base, tokenizer)


def test_a_file_whose_header_is_cut_off_is_left_to_whoever_loads_it(tmp_path: Path) -> None:
    """Its first 8 bytes promise more header than the file has: nothing of that size is read."""
    (tmp_path / "model.safetensors").write_bytes((1 << 50).to_bytes(8, "little") + b"{}")
    assert stored_shapes(tmp_path) is None


@pytest.mark.parametrize(("dtype", "name"), [(torch.float8_e4m3fn, "F8_E4M3"), (torch.int8, "I8")])
def test_a_weight_in_8_bits_that_config_json_does_not_speak_of_is_named(dtype, name, base):
    weight = "model.layers.1.mlp.up_proj.weight"
    rewrite(base, lambda tensors: {**tensors, weight: tensors[weight].to(dtype)})
    problem = next(problem for problem in problems(config_of(base)) if problem.key == "model.path")
    assert problem.why == f"{weight} is stored as {name}, as quantized weights are: take the unquantized model"
    with pytest.raises(TrntuneError, match=f"is stored as {name}"):
        load(base)

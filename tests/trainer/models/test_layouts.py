"""How the files of a model lie in its directory: each layout is used, or refused in one line by plan, fetch and
training alike."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import ByteLevelBPETokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from launcher.checks.sources import check_sources_exist
from launcher.checks.validate import problems
from launcher.errors import TrntuneError, UsageError
from launcher.model_dir.config_json import read_config_json
from launcher.model_dir.files import vocabulary_of, weight_files
from launcher.model_dir.weights import check_fit, stored_shapes
from launcher.plan.disk import merged_bytes
from postprocess.safetensors.header import source_tensors
from tests.pickled import pickle_shards
from tests.postprocess.merge.models import make_base
from tests.trainer.models.conftest import config_of, load
from trainer.fetch.local import check_directory
from trainer.models.fingerprint import fingerprint
from trainer.models.load import load_tokenizer
from trainer.probes.dataset import measure

Change = Callable[[Path], object]
SHARDS = [f"model-0000{number}-of-00004.safetensors" for number in (1, 2, 3, 4)]


def shard(base: Path) -> None:
    """The model in four files with an index."""
    AutoModelForCausalLM.from_pretrained(base).save_pretrained(base, max_shard_size="110KB")
    (base / "model.safetensors").unlink(missing_ok=True)
    assert sorted(file.name for file in base.glob("*.safetensors")) == SHARDS


def renamed(name: str) -> Change:
    return lambda base: (base / "model.safetensors").rename(base / name)


def sharded_without(*names: str) -> Change:
    def change(base: Path) -> None:
        shard(base)
        for name in names:
            (base / name).unlink()

    return change


def with_index(text: str) -> Change:
    def change(base: Path) -> None:
        shard(base)
        (base / "model.safetensors.index.json").write_text(text)

    return change


def pickled_in_shards(lost: str | None = None) -> Change:
    def change(base: Path) -> None:
        shard(base)
        pickle_shards(base)
        if lost is not None:
            (base / lost).unlink()

    return change


INDEX = "model.safetensors.index.json"
CONVERT = "convert it once with python -m postprocess.convert {base} OUT, and give OUT"
REFUSED: dict[str, tuple[Change, str]] = {
    "a pickle": (
        renamed("pytorch_model.bin"),
        "its only weights are pytorch_model.bin, pickles, which could run code when read: " + CONVERT,
    ),
    "pickled shards": (
        pickled_in_shards(),
        "its only weights are pytorch_model-00001-of-00004.bin and 3 more, pickles, which could run code when read: "
        + CONVERT,
    ),
    "pickled shards without an index": (
        pickled_in_shards("pytorch_model.bin.index.json"),
        "its only weights are pytorch_model-00001-of-00004.bin and 3 more, pickles, which could run code when read: "
        + CONVERT,
    ),
    "a lost pickled shard": (
        pickled_in_shards("pytorch_model-00003-of-00004.bin"),
        "1 of the 4 files that pytorch_model.bin.index.json names are missing: pytorch_model-00003-of-00004.bin; "
        "download the model again",
    ),
    "no index": (sharded_without(INDEX), f"{INDEX} of its 4 files is missing: {CONVERT}"),
    "a lost shard": (
        sharded_without(SHARDS[1]),
        f"1 of the 4 files that {INDEX} names are missing: {SHARDS[1]}; download the model again",
    ),
    "a lost shard and no index": (
        sharded_without(INDEX, SHARDS[1], SHARDS[3]),
        f"2 of its 4 files are missing: {SHARDS[1]}, {SHARDS[3]}; download the model again",
    ),
    "a damaged index": (
        with_index("{}"),
        f"{INDEX} is damaged: there is no weight_map in it; download the model again",
    ),
    "Mistral's own": (
        renamed("consolidated.safetensors"),
        "its only weights are consolidated.safetensors, Mistral's own format, whose names of tensors transformers "
        "doesn't know: download the repository's model-*.safetensors, their index and config.json, or convert it with "
        "transformers' convert_mistral_weights_to_hf.py",
    ),
    "Meta's own": (
        renamed("consolidated.00.pth"),
        "its only weights are consolidated.00.pth, Meta's own format: download the repository's model-*.safetensors, "
        "their index and config.json, or convert it with transformers' convert_llama_weights_to_hf.py",
    ),
    "llama.cpp's": (
        renamed("tiny.Q8_0.gguf"),
        "its only weights are tiny.Q8_0.gguf, llama.cpp's format: take the model that it was made from",
    ),
    "TensorFlow's": (
        renamed("tf_model.h5"),
        "its only weights are tf_model.h5, which isn't read here: take the model with safetensors",
    ),
    "another name": (
        renamed("pytorch_model.safetensors"),
        "its only weights are pytorch_model.safetensors: if that is the whole model, rename it to model.safetensors",
    ),
    "two files without an index": (
        lambda base: (renamed("a.safetensors")(base), shutil.copy(base / "a.safetensors", base / "b.safetensors")),
        f"its weights are a.safetensors, b.safetensors, but {INDEX}, which says what they are, is missing; download "
        "the model again",
    ),
    "an adapter": (
        lambda base: (base / "adapter_config.json").write_text('{"base_model_name_or_path": "elsewhere"}'),
        "it is a peft adapter (adapter_config.json), for which transformers would load the base that it names: merge "
        "it into that with python -m postprocess.merge BASE {base} OUT; beside a whole model take adapter_config.json "
        "away",
    ),
    "half a tokenizer": (
        lambda base: (base / "tokenizer.json").rename(base / "vocab.json"),
        "merges.txt is missing, without which vocab.json is no tokenizer; copy the tokenizer that belongs to the model",
    ),
    "no tokenizer": (
        lambda base: (base / "tokenizer.json").unlink(),
        "tokenizer.json is missing; copy the tokenizer that belongs to the model",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_layout_that_is_not_read_is_refused_by_plan_and_fetch_and_when_loaded(kind, base):
    change, says = REFUSED[kind]
    change(base)
    says = says.replace("{base}", str(base))
    [problem] = problems(config_of(base))
    assert str(problem) == f"model.path={base}: {says}"
    with pytest.raises(TrntuneError) as fetched:
        check_directory(str(base))
    assert str(fetched.value) == f"model.path={base}: {says}"
    with pytest.raises(TrntuneError) as loaded:
        load_tokenizer(base) if "tokenizer" in kind else load(base)
    assert says.partition(";")[0] in str(loaded.value)


def test_an_index_that_names_a_tensor_that_its_shard_lacks(base):
    shard(base)
    norm = "model.norm.weight"
    [file] = [file for file in base.glob("*.safetensors") if norm in load_file(file)]
    save_file({n: t for n, t in load_file(file).items() if n != norm}, file, {"format": "pt"})
    says = f"1 of the 20 tensors of its config.json are in none of its files ({norm}): download"
    assert says in problems(config_of(base))[0].why
    with pytest.raises(TrntuneError, match=norm):
        load(base)


def test_mistrals_own_format_has_no_config_json_and_is_named_all_the_same(base):
    renamed("consolidated.safetensors")(base)
    (base / "config.json").unlink()
    with pytest.raises(UsageError, match=r"consolidated\.safetensors, Mistral's own format"):
        read_config_json(base)


def test_a_plan_needs_a_config_json_alone_and_a_run_the_weights(base):
    (base / "model.safetensors").unlink()
    config = config_of(base)
    assert problems(config) == []
    with pytest.raises(UsageError, match=r"^model\.path=.*base: \*\.safetensors missing; save a model there"):
        check_sources_exist(config)
    check_sources_exist(config_of(base, "stages=[merge]"))


def test_what_lies_beside_the_shards_is_no_part_of_the_model(base, tmp_path, capsys):
    expected = load(base).state_dict()
    shard(base)
    alone, size = fingerprint(base), sum(file.stat().st_size for file in base.glob("*.safetensors"))
    tensors = {f"layers.{name}": tensor for name, tensor in load_file(base / SHARDS[0]).items()}
    save_file(tensors, base / "consolidated.safetensors")
    config = config_of(base, "stages=[fetch,train,merge]")
    assert problems(config) == []
    assert check_directory(str(base)) == base
    check_fit(base)
    assert [file.name for file in weight_files(base)] == SHARDS
    assert set(stored_shapes(base) or ()) == set(source_tensors(base))
    assert fingerprint(base) == alone
    assert merged_bytes(config, base, 90_944) == size
    found = load(base).state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert capsys.readouterr().err == ""


@pytest.fixture
def merges(tmp_path: Path) -> Path:
    """A GPT-2 whose tokenizer is vocab.json and merges.txt."""
    tokenizer = ByteLevelBPETokenizer()
    text = ["the cat sat on the mat, and the dog on the log"]
    tokenizer.train_from_iterator(text, vocab_size=300, special_tokens=["<|endoftext|>"], show_progress=False)
    directory = tmp_path / "merges"
    directory.mkdir()
    tokenizer.save_model(str(directory))
    make_base(directory, "gpt2")
    model = AutoModelForCausalLM.from_pretrained(directory)
    model.resize_token_embeddings(tokenizer.get_vocab_size())
    model.save_pretrained(directory)
    return directory


def test_a_fast_tokenizer_is_built_of_vocab_json_and_merges_txt(merges, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(f'{{"instruction": "{i} the cat", "response": "sat"}}\n' for i in range(90)))
    data = ("dataset=jsonl", f"dataset.path={rows}", "dataset.max_samples=null", "training.max_length=64")
    config = config_of(merges, *data, "lora.target_modules=[c_attn]")
    assert problems(config) == []
    check_sources_exist(config)
    assert vocabulary_of(merges) == merges / "vocab.json"
    tokenizer = load_tokenizer(merges)
    assert tokenizer.is_fast
    assert tokenizer.decode(tokenizer("the dog sat").input_ids) == "the dog sat"
    found = measure(config)
    tokenizer.save_pretrained(merges)
    assert vocabulary_of(merges) == merges / "tokenizer.json"
    assert found is not None
    assert found == measure(config)


def test_a_tokenizer_that_no_fast_one_can_be_made_of(base):
    """A Llama's config.json, which says that its tokenizer is SentencePiece's."""
    (base / "tokenizer.json").rename(base / "vocab.json")
    (base / "merges.txt").write_text("#version: 0.2\n")
    (base / "tokenizer_config.json").unlink()
    says = r"its tokenizer.json is missing, and none can be made of vocab\.json: copy it from the model, or name its"
    with pytest.raises(TrntuneError, match=says):
        load_tokenizer(base)
    (base / "vocab.json").rename(base / "tokenizer.model")
    with pytest.raises(TrntuneError, match=r"of tokenizer\.model: copy it from the model"):
        load_tokenizer(base)


def test_the_saved_tokenizer_of_such_a_base_is_the_same(merges, tmp_path):
    tokenizer = load_tokenizer(merges)
    tokenizer.save_pretrained(tmp_path / "saved")
    again = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert again("the cat 12").input_ids == tokenizer("the cat 12").input_ids

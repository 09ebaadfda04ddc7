"""Adapters of other releases of peft and of other trainers, with other names, and with a resized vocabulary.

What newer and older releases write was looked up in their own files: peft 0.5 to 0.21 wrote adapters of every kind
here, and their merge_and_unload gave what this merge gives.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from launcher.errors import TrntuneError, UsageError
from postprocess.generate.models import Answerers, locate
from postprocess.merge import MergeOptions, merge
from postprocess.merge.__main__ import main
from postprocess.merge.adapter import read_adapter
from postprocess.merge.apply import adapted as put_on
from postprocess.merge.renames import Rename, fitting, parse_renames
from postprocess.merge.vocabulary import explains
from tests.postprocess.merge.models import adapted, load, make_adapter, make_base, peft_merge, stored
from tests.postprocess.merge.test_merge import save_tokenizer

QUICK = MergeOptions(logits=False)
FILE = "adapter_model.safetensors"
ROWS = 101  # of the bases
# What each release writes beside the fields of peft 0.17, of a plain LoRA.
NEWER: dict[str, dict[str, Any]] = {
    "0.18.1": {"alora_invocation_tokens": None, "arrow_config": None, "ensure_weight_tying": False},
}
NEWER["0.19.1"] = {**NEWER["0.18.1"], "lora_ga_config": None, "use_bdlora": None}
NEWER["0.20.0"] = {**NEWER["0.19.1"], "monteclora_config": None, "velora_config": None}
NEWER["0.21.0"] = {**NEWER["0.20.0"], "kasa_config": None}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The base of a kind, made once."""
    root = tmp_path_factory.mktemp("bases")

    def base(kind: str) -> Path:
        return root / kind if (root / kind).exists() else make_base(root / kind, kind)

    return base


def configure(adapter: Path, **changes: Any) -> None:
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def rename(adapter: Path, change: Callable[[str], str]) -> None:
    save_file({change(name): tensor for name, tensor in load_file(adapter / FILE).items()}, adapter / FILE)


def same(out: Path, expected: dict[str, torch.Tensor]) -> None:
    found = stored(out)
    assert found
    for name, tensor in found.items():
        assert torch.equal(tensor, expected[name]), name


@pytest.mark.parametrize("release", NEWER)
def test_what_newer_releases_write_of_a_plain_lora(bases, tmp_path: Path, release: str) -> None:
    base = bases("llama")
    adapter = make_adapter(tmp_path / "adapter", base, target_modules=["q_proj", "v_proj"], rank_pattern={"v_proj": 2})
    expected = peft_merge(base, adapter)
    configure(adapter, peft_version=release, **NEWER[release])
    assert merge(base, adapter, tmp_path / "out", MergeOptions())["logits"]["compared"]
    same(tmp_path / "out", expected)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"velora_config": {"scale": 1.0}, "peft_version": "0.20.0"}, r"velora_config=.* wrote the adapter \(0.20.0\)"),
        ({"use_bdlora": {"nblocks": 2}, "kasa_config": {"a": 1}}, r"doesn't know (use_bdlora|kasa_config)=.*, "),
        ({"ensure_weight_tying": True, "target_modules": ["embed_tokens"]}, "doesn't know ensure_weight_tying=True"),
        ({"init_lora_weights": "lora_ga", "lora_ga_config": None}, "changed the base weights before training"),
        ({"trainable_token_indices": {"lm_head": [1]}}, "rows of lm_head, which is no embedding: .* 0.18 or later"),
        ({"r": "four"}, "peft can't read its configuration|doesn't fit the base"),
    ],
)
def test_settings_that_mean_something_are_named(bases, tmp_path: Path, changes: dict[str, Any], match: str) -> None:
    base = bases("llama")
    targets = changes.get("target_modules", ["q_proj"])
    adapter = make_adapter(tmp_path / "adapter", base, target_modules=targets)
    configure(adapter, **changes)
    with pytest.raises(TrntuneError, match=match) as caught:
        merge(base, adapter, tmp_path / "out", QUICK)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_tied_weights_that_a_newer_release_has_kept_tied(bases, tmp_path: Path) -> None:
    """It names one in modules_to_save and saves both, with the same values."""
    base = bases("llama_tied")
    adapter = make_adapter(tmp_path / "adapter", base, target_modules=["q_proj"], modules_to_save=["embed_tokens"])
    tensors = load_file(adapter / FILE)
    tensors["base_model.model.lm_head.weight"] = tensors["base_model.model.model.embed_tokens.weight"].clone()
    save_file(tensors, adapter / FILE)
    configure(adapter, ensure_weight_tying=True, peft_version="0.18.1")
    record = merge(base, adapter, tmp_path / "out")
    assert record["logits"]["compared"]
    assert not record["embeddings_untied"]
    found = stored(tmp_path / "out")
    assert "lm_head.weight" not in found
    assert torch.equal(found["model.embed_tokens.weight"], tensors["base_model.model.lm_head.weight"])


def test_biases_by_the_names_of_peft_before_0_7(bases, tmp_path: Path) -> None:
    base = bases("llama")
    adapter = make_adapter(tmp_path / "adapter", base, target_modules=["q_proj"], bias="all")
    expected = peft_merge(base, adapter)
    rename(adapter, lambda name: name.replace(".base_layer.", "."))
    old = ("auto_mapping", "base_model_name_or_path", "bias", "fan_in_fan_out", "inference_mode", "init_lora_weights")
    old += ("layers_pattern", "layers_to_transform", "lora_alpha", "lora_dropout", "modules_to_save", "peft_type", "r")
    config = json.loads((adapter / "adapter_config.json").read_text())
    fields = {key: config[key] for key in (*old, "revision", "target_modules", "task_type")}
    (adapter / "adapter_config.json").write_text(json.dumps(fields))
    assert merge(base, adapter, tmp_path / "out")["logits"]["compared"]
    same(tmp_path / "out", expected)


def test_a_pickle_is_converted_by_the_command_that_its_refusal_names(
    bases, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = bases("llama")
    adapter = make_adapter(tmp_path / "adapter", base, target_modules=["q_proj"])
    expected = peft_merge(base, adapter)
    torch.save(load_file(adapter / FILE), adapter / "adapter_model.bin")
    (adapter / FILE).unlink()
    with pytest.raises(TrntuneError, match=r"only adapter_model.bin, a pickle; convert it once") as caught:
        merge(base, adapter, tmp_path / "out", QUICK)
    monkeypatch.chdir(adapter)
    [code] = re.findall(r'python -c "(.*)"$', str(caught.value))
    exec(code)
    merge(base, adapter, tmp_path / "out", QUICK)
    same(tmp_path / "out", expected)


# Small copies of what other trainers leave behind: their configurations and the files beside the adapter's.
def unsloth(adapter: Path, base: Path) -> None:
    """A regular expression for the layers, as for its models with vision; its mark; a tokenizer."""
    part = "self_attn|attention|mlp|feed_forward|ffn|dense"
    targets = (
        rf"(?:.*?(?:language|text).*?(?:{part}).*?(?:q_proj|v_proj).*?)"
        rf"|(?:\bmodel\.layers\.[\d]{{1,}}\.(?:{part})\.(?:(?:q_proj|v_proj)))"
    )
    mapping = {"base_model_class": "LlamaForCausalLM", "parent_library": "transformers", "unsloth_fixed": True}
    configure(adapter, target_modules=targets, auto_mapping=mapping, peft_version="0.18.1", **NEWER["0.18.1"])
    configure(adapter, task_type=None, base_model_name_or_path="unsloth/llama-bnb-4bit", lora_dropout=0)


def llama_factory(adapter: Path, base: Path) -> None:
    for name in ("training_args.bin", "trainer_state.json", "all_results.json", "trainer_log.jsonl"):
        (adapter / name).write_bytes(b"{}")
    (adapter / "checkpoint-10").mkdir()
    shutil.copy(adapter / FILE, adapter / "checkpoint-10")


def axolotl(adapter: Path, base: Path) -> None:
    """The base's config.json, optimizer and card beside the adapter."""
    shutil.copy(base / "config.json", adapter)
    (adapter / "README.md").write_text("card")
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"):
        (adapter / name).write_bytes(b"x")


def torchtune(adapter: Path, base: Path) -> None:
    """The few settings that it knows; another name for the magnitudes."""
    config = json.loads((adapter / "adapter_config.json").read_text())
    names = ("r", "lora_alpha", "target_modules", "peft_type", "use_dora")
    (adapter / "adapter_config.json").write_text(json.dumps({name: config[name] for name in names}))
    rename(adapter, lambda name: f"{name}.weight" if name.endswith("magnitude_vector") else name)


@pytest.mark.parametrize("trainer", [unsloth, llama_factory, axolotl, torchtune])
def test_adapters_of_other_trainers(bases, tmp_path: Path, trainer: Callable[[Path, Path], None]) -> None:
    base = bases("llama")
    dora = trainer is torchtune
    adapter = make_adapter(tmp_path / "adapter", base, target_modules=["q_proj", "v_proj"], use_dora=dora)
    expected = peft_merge(base, adapter)
    trainer(adapter, base)
    save_tokenizer(adapter, *(f"w{number}" for number in range(ROWS - 2)))
    record = merge(base, adapter, tmp_path / "out")
    assert record["logits"]["compared"]
    assert record["tokenizer"]["from"] == "adapter"
    same(tmp_path / "out", expected)
    tokenizer = {"special_tokens_map.json", "tokenizer.json", "tokenizer_config.json"}
    model = {"config.json", "generation_config.json", "model.safetensors", "merge.json"}
    assert {file.name for file in (tmp_path / "out").iterdir()} == tokenizer | model


# Names as they come, and what is proposed.
NAMES: dict[str, tuple[Callable[[str], str], list[str]]] = {
    "without_model": (lambda name: name.replace("model.layers.", "layers."), ["layers.=model.layers."]),
    "without_prefix": (lambda name: name.removeprefix("base_model.model."), ["=base_model.model."]),
    "language_model": (
        lambda name: name.replace("model.layers.", "model.language_model.layers."),
        ["language_model.="],
    ),
    "before_model": (lambda name: name.replace("model.model.", "model.language_model.model."), ["language_model.="]),
    "compiled": (lambda name: name.replace("base_model.model.", "base_model.model._orig_mod."), ["_orig_mod.="]),
    "adapters_name": (
        lambda name: re.sub(r"(lora_[AB])", r"\1.default", name),
        ["lora_A.default=lora_A", "lora_B.default=lora_B"],
    ),
}


@pytest.mark.parametrize("kind", NAMES)
def test_a_renaming_that_fits_is_proposed_and_done(
    bases, tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    change, proposed = NAMES[kind]
    base = bases("llama")
    adapter = make_adapter(
        tmp_path / "adapter", base, target_modules=["q_proj", "lm_head"], alpha_pattern={"layers.1.*q_proj": 3}
    )
    expected = peft_merge(base, adapter)
    rename(adapter, change)
    arguments = [str(base), str(adapter), str(tmp_path / "out")]
    assert main(arguments) == 1
    [line] = capsys.readouterr().err.splitlines()
    typed = [part for rule in proposed for part in ("--rename", rule)]
    assert line.endswith(f"all of its tensors fit with {' '.join(typed)}")
    assert "tensors match nothing in the base" in line
    assert not (tmp_path / "out").exists()
    assert main([*arguments, *typed]) == 0
    same(tmp_path / "out", expected)
    record = json.loads((tmp_path / "out" / "merge.json").read_text())
    assert record["renames"] == record["inputs"]["renames"] == proposed
    assert record["logits"]["compared"]
    capsys.readouterr()
    assert main(arguments) == 2  # it is no merge without them
    assert "is a merge of other inputs or options" in capsys.readouterr().err


def test_settings_by_the_old_names_are_of_the_new_ones(bases, tmp_path: Path) -> None:
    """Of a model with vision: layers, ranks, alphas and copies by their full names in it."""
    base = bases("llama")
    patterns = {
        "rank_pattern": {"model.layers.1.self_attn.q_proj": 2},
        "alpha_pattern": {"layers.0.self_attn.q_proj": 5},
    }
    saved = ["model.norm"]
    adapter = make_adapter(
        tmp_path / "adapter", base, target_modules=["q_proj"], modules_to_save=saved, r=4, lora_alpha=7, **patterns
    )
    expected = peft_merge(base, adapter)

    def other(name: str) -> str:
        return name.replace("model.layers", "model.language_model.layers").replace(
            "model.norm", "model.language_model.norm"
        )

    rename(adapter, other)
    configure(adapter, target_modules=r"model\.language_model\.layers\.\d+\.self_attn\.q_proj")
    configure(adapter, rank_pattern={other(name): rank for name, rank in patterns["rank_pattern"].items()})
    configure(adapter, alpha_pattern={"language_model.layers.0.self_attn.q_proj": 5}, modules_to_save=[other(saved[0])])
    with pytest.raises(
        TrntuneError, match=r"doesn't fit the base: Target modules.*fit with --rename language_model.=$"
    ):
        merge(base, adapter, tmp_path / "out", QUICK)
    merge(base, adapter, tmp_path / "out", MergeOptions(renames=parse_renames(["language_model.="])))
    same(tmp_path / "out", expected)


@pytest.mark.parametrize("part", ["visual.blocks.0.attn.qkv", "vision_tower.layers.0.self_attn.q_proj"])
def test_what_no_renaming_fits_is_refused_without_one(bases, tmp_path: Path, part: str) -> None:
    """A part that sees: it has layers that a text hasn't, or would be put where the text's own are."""
    base = bases("llama")
    adapter = make_adapter(tmp_path / "adapter", base, target_modules=["q_proj"])
    rename(adapter, lambda name: name.replace("layers.", "language_model.layers."))
    tensors = load_file(adapter / FILE)
    seen = {name.replace("language_model.layers.0.self_attn.q_proj", part): t.clone() for name, t in tensors.items()}
    save_file({**tensors, **seen}, adapter / FILE)
    with pytest.raises(TrntuneError, match=r"6 tensors match nothing in the base: [^;]*$"):
        merge(base, adapter, tmp_path / "out", QUICK)


def test_one_layer_is_never_proposed_for_another() -> None:
    modules = ["model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.o_proj"]
    assert fitting(["base_model.model.model.layers.0.self_attn.query.lora_A.weight"], modules) == ()
    assert fitting(["base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"], modules) == ()


def test_names_that_fit_are_left_alone() -> None:
    modules = ["model.embed_tokens", "model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj", "lm_head"]
    short = [name.removeprefix("model.") for name in modules]
    rules = fitting(
        [f"base_model.model.{name}.{'weight' if '.' not in name else 'lora_A.weight'}" for name in short], modules
    )
    assert {str(rule) for rule in rules} == {"layers.=model.layers.", "embed_tokens.=model.embed_tokens."}


@pytest.mark.parametrize(
    ("renames", "match"),
    [
        (["layers"], "write OLD=NEW"),
        (["a=a"], "write OLD=NEW"),
        (["nothing.=x."], r"none of the adapter's tensors has nothing\. in its name; they are such as base_model"),
        (["layers.0=layers.1"], "two of the tensors become base_model"),
    ],
)
def test_renamings_that_are_none(
    bases, tmp_path: Path, renames: list[str], match: str, capsys: pytest.CaptureFixture[str]
) -> None:
    base = bases("llama")
    adapter = make_adapter(tmp_path / "adapter", base, target_modules=["q_proj"])
    typed = [part for rule in renames for part in ("--rename", rule)]
    assert main([str(base), str(adapter), str(tmp_path / "out"), *typed]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert re.search(match, line)


def test_a_renaming_begins_at_a_part_of_a_name() -> None:
    assert Rename("model.", "x.")("base_model.model.layers") == "base_model.x.layers"
    assert Rename("model.layers.", "")("model.layers.0") == "0"
    assert Rename("proj.", "x.")("q_proj.lora_A") == "q_proj.lora_A"
    assert Rename("", "a.")("b") == "a.b"


RESIZED = ROWS + 3
# Whether the head is stored apart, by kind of base, settings, and how embeddings were saved.
VOCABULARIES: list[tuple[str, dict[str, Any], bool | str, bool]] = [
    ("llama", {"modules_to_save": ["embed_tokens", "lm_head"]}, False, False),
    ("llama", {"modules_to_save": ["embed_tokens", "lm_head"]}, "auto", False),
    ("llama", {"modules_to_save": ["embed_tokens"]}, "auto", False),
    ("llama", {}, "auto", False),
    ("llama", {"target_modules": ["q_proj", "embed_tokens", "lm_head"]}, "auto", False),
    ("llama", {"trainable_token_indices": [ROWS, ROWS + 1, 7]}, "auto", False),
    ("llama_tied", {"modules_to_save": ["embed_tokens", "lm_head"]}, False, True),
    ("llama_tied", {"modules_to_save": ["embed_tokens"]}, "auto", True),
    ("llama_tied", {"target_modules": ["q_proj", "embed_tokens"]}, "auto", True),
    ("llama_tied", {"trainable_token_indices": [ROWS, ROWS + 1, 7]}, "auto", False),
    ("llama_tied", {}, "auto", False),
    ("qwen3", {}, True, False),
]


@pytest.mark.parametrize(("kind", "config", "saving", "untied"), VOCABULARIES)
def test_a_resized_vocabulary(
    bases, tmp_path: Path, kind: str, config: dict[str, Any], saving: bool | str, untied: bool
) -> None:
    base = bases(kind)
    settings = {"target_modules": ["q_proj"], "rows": RESIZED, "save_embedding_layers": saving, **config}
    adapter = make_adapter(tmp_path / "adapter", base, **settings)
    save_tokenizer(adapter, *(f"w{number}" for number in range(RESIZED - 2)))
    record = merge(base, adapter, tmp_path / "out")
    assert record["vocabulary"] == {"rows": RESIZED, "base_rows": ROWS, "tokens": RESIZED}
    assert record["tokenizer"]["from"] == "adapter"
    assert record["embeddings_untied"] is untied
    assert json.loads((tmp_path / "out" / "config.json").read_text())["vocab_size"] == RESIZED
    assert record["logits"]["compared"]
    assert record["logits"]["prompts"][-1] == "the last 16 tokens"
    assert_same_logits(base, adapter, tmp_path / "out", RESIZED)


def assert_same_logits(base: Path, adapter: Path, out: Path, rows: int) -> None:
    tokens = torch.arange(rows - 40, rows)[None]
    with torch.no_grad():
        expected = adapted(base, adapter, rows=rows)(tokens).logits
        torch.testing.assert_close(load(out)(tokens).logits, expected, atol=1e-5, rtol=1e-4)


def test_a_vocabulary_that_became_smaller(bases, tmp_path: Path) -> None:
    """A padded embedding, resized to the tokenizer's tokens; the head trained with it is the base's first rows."""
    base, rows = bases("llama"), ROWS - 11
    settings = {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"], "save_embedding_layers": False}
    adapter = make_adapter(tmp_path / "adapter", base, rows=rows, **settings)
    save_tokenizer(adapter, *(f"w{number}" for number in range(rows - 2)))
    record = merge(base, adapter, tmp_path / "out")
    assert record["vocabulary"] == {"rows": rows, "base_rows": ROWS, "tokens": rows}
    assert torch.equal(stored(tmp_path / "out")["lm_head.weight"], stored(base)["lm_head.weight"][:rows])
    assert_same_logits(base, adapter, tmp_path / "out", rows)


def test_a_resized_vocabulary_in_another_dtype(bases, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = bases("llama")
    settings = {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"], "rows": RESIZED}
    adapter = make_adapter(tmp_path / "adapter", base, **settings)
    save_tokenizer(adapter, *(f"w{number}" for number in range(RESIZED - 2)))
    assert main([str(base), str(adapter), str(tmp_path / "out"), "--dtype", "bfloat16"]) == 0
    [line] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("vocabulary")]
    assert line.endswith(
        "104 rows, the base has 101: resized for training, as the adapter's tokenizer of 104 tokens explains"
    )
    trained = load_file(adapter / FILE)["base_model.model.model.embed_tokens.weight"]
    assert torch.equal(stored(tmp_path / "out")["model.embed_tokens.weight"], trained.bfloat16())


def test_rows_that_nothing_explains(bases, tmp_path: Path) -> None:
    base = bases("llama")
    settings = {"target_modules": ["q_proj"], "rows": RESIZED, "save_embedding_layers": False}
    adapter = make_adapter(tmp_path / "adapter", base, modules_to_save=["embed_tokens", "lm_head"], **settings)

    def refused(directory: Path, match: str) -> None:
        with pytest.raises(TrntuneError, match=match) as caught:
            merge(base, directory, tmp_path / "out", QUICK)
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "out").exists()

    refused(adapter, "has 104 rows, the base 101: another base, or a vocabulary resized .* put the one of its training")
    save_tokenizer(adapter, "too", "few")
    refused(adapter, "the tokenizer beside the adapter has 4 tokens, which explains neither")
    (adapter / "tokenizer.json").write_text("{}")
    refused(adapter, "its tokenizer can't be loaded")
    lost = make_adapter(tmp_path / "lost", base, modules_to_save=["embed_tokens"], **settings)
    save_tokenizer(lost, *(f"w{number}" for number in range(RESIZED - 2)))
    refused(lost, "resized to 104 rows .* new rows of lm_head.weight are not in the file: merge into the resized base")


def test_the_rows_that_a_tokenizer_explains() -> None:
    assert explains(104, 104)
    assert explains(150_003, 150_016)  # a multiple of 32
    assert explains(32_001, 32_064)  # of 64
    assert not explains(104, 101)
    assert not explains(104, 107)


def test_an_adapter_that_took_its_beginning_off_the_base_answers_with_the_rest(bases, tmp_path: Path) -> None:
    base = bases("llama")
    adapter = make_adapter(tmp_path / "adapter", base, target_modules=["q_proj"], init_lora_weights="pissa")
    tokens = torch.arange(1, 40)[None]
    with torch.no_grad():
        expected = adapted(base, adapter)(tokens).logits
        found = put_on(load(base), read_adapter(adapter))(tokens).logits
        plain = put_on(load(base), replace(read_adapter(adapter), config=without_start(adapter)))(tokens).logits
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(plain, expected, atol=1e-5)  # it would have shown


def without_start(adapter: Path) -> dict[str, Any]:
    return {**json.loads((adapter / "adapter_config.json").read_text()), "init_lora_weights": True}


def test_an_adapter_answers_with_other_names_and_a_resized_vocabulary(bases, tmp_path: Path) -> None:
    """What answers is the adapter, or nothing: peft itself would load what fits, here nothing."""
    base = bases("llama")
    settings = {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"], "rows": RESIZED}
    adapter = make_adapter(tmp_path / "adapter", base, save_embedding_layers=False, **settings)
    save_tokenizer(adapter, *(f"w{number}" for number in range(RESIZED - 2)))
    tokens = torch.arange(60, RESIZED)[None]
    with torch.no_grad():
        expected = adapted(base, adapter, rows=RESIZED)(tokens).logits
        plain = load(base)(tokens[:, : ROWS - 60]).logits
    rename(adapter, lambda name: name.removeprefix("base_model.model."))
    with pytest.raises(TrntuneError, match=r"fit with --rename =base_model\.model\.$"):
        Answerers(locate(adapter, base, None), torch.float32, "cpu")
    answerers = Answerers(locate(adapter, base, None, parse_renames(["=base_model.model."])), torch.float32, "cpu")
    with torch.no_grad(), answerers.model("tuned") as model:
        torch.testing.assert_close(model(tokens).logits, expected)
    with torch.no_grad(), answerers.model("base") as model:
        torch.testing.assert_close(model(tokens[:, : ROWS - 60]).logits, plain)
    with pytest.raises(UsageError, match="is no adapter directory"):
        locate(base, None, None, parse_renames(["a=b"]))

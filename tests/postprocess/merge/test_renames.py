"""Adapters whose tensors have other names than the base's layers."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from launcher.errors import TrntuneError
from postprocess.merge import MergeOptions, merge
from postprocess.merge.__main__ import main
from postprocess.merge.renames import Rename, fitting, parse_renames
from tests.postprocess.merge.adapters import FILE, QUICK, configure, rename, same
from tests.postprocess.merge.models import make_adapter, peft_merge

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

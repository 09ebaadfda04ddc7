"""Training ends and its result is there: what a save would fail at is put right, or refused before the first step."""

from __future__ import annotations

import errno
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from launcher.errors import TrntuneError
from launcher.model_dir.generation_config import applied, repairs
from launcher.paths import ROOT
from launcher.plan.room import SLACK, Sizes, room_of
from launcher.run_dir.layout import RunDir
from postprocess.consolidate.__main__ import main as consolidate
from postprocess.merge.stage import rehearse as rehearse_merge
from tests.conftest import TINY, Run, command, environment
from tests.limits import PATIENCE
from tests.trainer.models.conftest import composed
from trainer import rehearsal
from trainer.checkpoints.manifest import Manifest, Position, World
from trainer.checkpoints.peers import SingleProcess
from trainer.checkpoints.writer import Snapshot, write_files
from trainer.data.template_faults import unread_faults
from trainer.engines.torch.engine import TorchEngine
from trainer.engines.torch.state import config_document, live_weights
from trainer.fetch.stage import fetch_model, try_files
from trainer.models.generation import check_generation, mend_generation
from trainer.models.load import load_tokenizer, run_tokenizer

# As the first Llama 2 and Vicuna came.
SAMPLED = {"eos_token_id": 2, "pad_token_id": 0, "temperature": 0.6, "top_p": 0.9}


@pytest.fixture(scope="session")
def tiny() -> Path:
    return fetch_model(composed("experiment=tiny").model)


@pytest.fixture
def base(tiny: Path, tmp_path: Path) -> Callable[..., Path]:
    """A model directory of its own, with files of other contents."""

    def make(**files: Any) -> Path:
        directory = tmp_path / "base"
        shutil.copytree(tiny, directory)
        for name, content in files.items():
            text = content if isinstance(content, str) else json.dumps(content)
            (directory / f"{name}.{'jinja' if name == 'chat_template' else 'json'}").write_text(text)
        return directory

    return make


def local(directory: Path) -> tuple[str, ...]:
    return ("model=local", f"model.path={directory}", "tracking=none", "tracking.samples=1")


def generation_of(directory: Path, again: Path) -> dict[str, Any]:
    """What a saved model says of generation, once it was loaded and saved again."""
    model = AutoModelForCausalLM.from_pretrained(directory)
    model.save_pretrained(again)
    content: dict[str, Any] = json.loads((again / "generation_config.json").read_text())
    content.pop("transformers_version")
    return content


def size(*directories: Path) -> int:
    return sum(file.stat().st_size for directory in directories for file in directory.rglob("*") if file.is_file())


def test_full_training_of_a_base_that_transformers_would_not_save(base, run_tiny, tmp_path: Path) -> None:
    faulty = base(generation_config=SAMPLED)
    run: Run = run_tiny("run", "method=full", *local(faulty))
    assert run.process.returncode == 0, run.process.stderr
    [note] = [line for line in run.process.stderr.splitlines() if "do_sample" in line]
    assert note.startswith(f"note: {faulty}/generation_config.json gives temperature=0.6, top_p=0.9 without do_sample")
    AutoTokenizer.from_pretrained(run.directory / "model")
    assert generation_of(run.directory / "model", tmp_path / "again") == {**SAMPLED, "do_sample": True}
    assert not list(run.directory.glob(".rehearsal*"))

    # The checkpoint's config is another file; the base's is what it is completed with.
    assert consolidate([str(run.directory / "checkpoints" / "step-6"), str(tmp_path / "of_step")]) == 0
    assert generation_of(tmp_path / "of_step", tmp_path / "again2") == {**SAMPLED, "do_sample": True}
    assert json.loads((faulty / "generation_config.json").read_text()) == SAMPLED

    # What was planned is what is there: two checkpoints, the model.
    planned = json.loads((run.directory / "plan.json").read_text())["disk_bytes"] - SLACK
    weights = run.directory / "model" / "model.safetensors"
    there = size(run.directory / "checkpoints") + weights.stat().st_size
    assert planned == pytest.approx(there, rel=0.05)


def test_lora_merges_into_such_a_base(base, run_tiny, tmp_path: Path) -> None:
    faulty = base(generation_config={**SAMPLED, "do_sample": False})
    run: Run = run_tiny("run", "method=lora", "stages=[fetch,train,merge,generate]", *local(faulty))
    assert run.process.returncode == 0, run.process.stderr
    assert generation_of(run.directory / "merged", tmp_path / "again") == {"eos_token_id": 2, "pad_token_id": 0}
    [note] = json.loads((run.directory / "merged" / "merge.json").read_text())["repaired"]
    assert "temperature=0.6, top_p=0.9, to no effect" in note
    assert note in run.process.stderr


def test_a_save_that_fails_says_how_to_get_what_was_trained(base, tmp_path: Path, monkeypatch) -> None:
    directory = tmp_path / "run"
    fault = {"op": "mkdir", "path": r"model\.tmp$", "from": 1, "errno": errno.ENOSPC}
    env = environment() | {"TRNTUNE_FAULT": json.dumps(fault), "PYTHONPATH": str(ROOT / "tests" / "faults")}
    done = subprocess.run(
        command(*TINY, "tracking=none", "method=full", f"hydra.run.dir={directory}"),
        cwd=tmp_path, env=env, capture_output=True, text=True, timeout=PATIENCE,
    )  # fmt: skip
    assert done.returncode == 1
    [line] = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    step = "run/checkpoints/step-6"
    assert f"{directory / 'model'} can't be written: [Errno 28]" in line
    assert line.endswith(f"python -m postprocess.consolidate {step} OUT makes the model of step 6")
    monkeypatch.chdir(tmp_path)
    assert consolidate([step, "OUT"]) == 0
    AutoModelForCausalLM.from_pretrained("OUT")


def prepared(directory: Path, run_dir: Path, *overrides: str) -> tuple[TorchEngine, RunDir]:
    """An engine with its model, in a run of which stage fetch is over."""
    config = composed("experiment=tiny", *local(directory), *overrides)
    engine = TorchEngine(config)
    engine.load(directory, load_tokenizer(directory))
    run = RunDir(run_dir)
    (run_dir / "stages").mkdir(parents=True)
    run.stage_file("fetch").write_text(json.dumps({"model_dir": str(directory)}))
    return engine, run


def rehearse(engine: TorchEngine, run: RunDir, steps: int = 6) -> str | None:
    place = Path(engine.config.model.path or "")
    beside = rehearsal.rehearse(engine.config, run, engine, SingleProcess(), engine.tokenizer, place)
    return rehearsal.check_room(engine.config, run, engine, SingleProcess(), place, steps, beside)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_everything_but_the_weights_is_written_as_it_will_be(tiny: Path, tmp_path: Path, method: str) -> None:
    engine, run = prepared(tiny, tmp_path / "run", f"method={method}")
    state = torch.random.get_rng_state()
    assert rehearse(engine, run) is None
    assert torch.equal(state, torch.random.get_rng_state())
    assert [path.name for path in run.path.iterdir()] == ["stages"]
    engine.rehearse(tmp_path / "tried")
    engine.save(tmp_path / "saved")
    texts = [
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir() if path.suffix in (".json", ".jinja")}
        for name in ("tried", "saved")
    ]
    assert texts[0] == texts[1]
    assert size(tmp_path / "tried") - sum(map(len, texts[0].values())) < 200_000
    weights, checkpoint = engine.saved_bytes()
    [file] = (tmp_path / "saved").glob("*.safetensors")
    assert weights == pytest.approx(file.stat().st_size, rel=0.05)
    assert checkpoint == 3 * weights


def biased(tiny: Path, directory: Path) -> Path:
    """The tiny model with biases in its attention."""
    shutil.copytree(tiny, directory, ignore=shutil.ignore_patterns("*.safetensors", "config.json"))
    config = AutoConfig.from_pretrained(tiny, attention_bias=True)
    AutoModelForCausalLM.from_config(config).save_pretrained(directory)
    return directory


def test_all_that_an_adapter_trains_is_in_the_rehearsed_save_and_merges(tiny: Path, tmp_path: Path) -> None:
    options = ("lora.bias=lora_only", "lora.modules_to_save=[model.norm]", "lora.trainable_token_indices=[65,66]")
    engine, run = prepared(biased(tiny, tmp_path / "base"), tmp_path / "run", "stages=[fetch,train,merge]", *options)
    assert rehearse(engine, run) is None
    engine.rehearse(tmp_path / "tried")
    engine.save(tmp_path / "saved")
    tried, saved = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("tried", "saved"))
    assert tried.keys() == saved.keys() == live_weights(engine.model).keys()
    for part in ("q_proj.base_layer.bias", "model.norm.weight", "trainable_tokens_delta"):
        assert any(part in name for name in tried), part
    assert engine.saved_bytes()[0] == sum(tensor.nbytes for tensor in saved.values())
    rehearse_merge(engine.config, run, tmp_path / "tried")


def test_weights_that_transformers_cannot_save_are_found_before_training(tiny: Path, tmp_path: Path) -> None:
    """Two layers that share a weight without the model's saying so: save_pretrained would lose one of them."""
    engine, run = prepared(tiny, tmp_path / "run", "method=full")
    assert not isinstance(engine.model, PeftModel)
    first, second = engine.model.model.layers
    second.mlp.up_proj.weight = first.mlp.up_proj.weight
    with pytest.raises(TrntuneError, match=r"can't be saved, so nothing is trained: The weights trying to be saved"):
        rehearse(engine, run)
    assert [path.name for path in run.path.iterdir()] == ["stages"]


def test_a_tokenizer_that_changes_as_it_is_saved_is_found_before_training(tiny: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(tiny)
    tokenizer.save_pretrained(tmp_path)
    rehearsal.try_tokenizer(tokenizer, rehearsal.QUESTION, "plain", tmp_path, False)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**settings, "eos_token": "<|endoftext|>"}))
    with pytest.raises(TrntuneError, match="saved and read again, makes other ids"):
        rehearsal.try_tokenizer(tokenizer, rehearsal.QUESTION, "plain", tmp_path, False)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(TrntuneError, match="the tokenizer can't be saved and read again, so nothing is trained"):
        rehearsal.try_tokenizer(tokenizer, rehearsal.QUESTION, "plain", tmp_path, False)


@pytest.mark.parametrize("name", ["adapter.tmp", "checkpoints", "merged", "merged.tmp", "generate"])
def test_what_is_in_the_way_of_a_result_is_found_before_training(tiny: Path, tmp_path: Path, name: str) -> None:
    engine, run = prepared(tiny, tmp_path / "run", "stages=[fetch,train,merge,generate]")
    (run.path / name).write_text("mine")
    with pytest.raises(TrntuneError, match=rf"{name}\b.*(in the way|there is a file)"):
        rehearse(engine, run)
    assert (run.path / name).read_text() == "mine"


def test_a_merge_that_would_be_refused_is_found_before_training(base, tmp_path: Path) -> None:
    directory = base()
    engine, run = prepared(directory, tmp_path / "run", "stages=[fetch,train,merge]")
    engine.rehearse(tmp_path / "tried")
    rehearse_merge(engine.config, run, tmp_path / "tried")
    [file] = directory.glob("*.safetensors")
    file.unlink()
    with pytest.raises(TrntuneError, match=r"stage merge could not do its work, so nothing is trained: .* neither"):
        rehearse(engine, run)


def test_too_little_room_is_refused_and_with_force_only_told(tiny: Path, tmp_path: Path) -> None:
    many = ("training.save_every=1", "training.keep_checkpoints=1000000000")
    engine, run = prepared(tiny, tmp_path / "run", *many)
    with pytest.raises(TrntuneError, match=r"nothing is trained: .*needs about .*lower training\.keep_checkpoints"):
        rehearse(engine, run, steps=10**9)
    engine.config.plan.force = True
    assert "needs about" in str(rehearse(engine, run, steps=10**9))
    assert rehearse(engine, run) is None


def test_what_a_run_has_written_already_is_not_counted_again(tiny: Path, tmp_path: Path) -> None:
    """Of checkpoints of which all but one are there, one more is needed: sparse files take no room."""
    engine, run = prepared(tiny, tmp_path / "run", "training.save_every=1", "training.keep_checkpoints=1000000000")
    needed = room_of(engine.config, Sizes(*engine.saved_bytes()), 10**9).most
    (run.checkpoints / "step-1").mkdir(parents=True)
    with (run.checkpoints / "step-1" / "optimizer.safetensors").open("wb") as stream:
        stream.truncate(min(needed, 2**43))
    steps = min(needed, 2**43) // engine.saved_bytes()[1]
    assert rehearse(engine, run, steps=steps) is None


class Recorded:
    """Rank 0 of two, with what the other one has said."""

    rank = 0

    def __init__(self, other: Any) -> None:
        self.other = other

    def all_gather(self, value: Any) -> list[Any]:
        return [value, self.other]


def test_one_rank_that_fails_stops_all() -> None:
    assert rehearsal.agreed(Recorded((2, None)), lambda: 1) == [1, 2]
    with pytest.raises(TrntuneError, match="theirs"):
        rehearsal.agreed(Recorded((None, "theirs")), lambda: 1)


TEMPLATE = "{% for message in messages %}\n{{ message['content'] }}\n{% endfo %}"


@pytest.mark.parametrize(
    ("template", "words"),
    [
        (TEMPLATE, r"chat_template\.jinja, line 3: .*endfo.*correct the template, or use dataset\.prompt=plain$"),
        ("\n\n{{ messages[0]['text'] + 'x' }}", r"chat_template\.jinja, line 3: .*text"),
        ("{{ raise_exception('no user turn') }}", r"chat_template\.jinja, line 1: no user turn"),
    ],
)
def test_a_chat_template_that_cannot_be_rendered_is_told_with_file_and_line(base, template: str, words: str) -> None:
    directory = base(chat_template=template)
    rows = instructions(directory)
    with pytest.raises(TrntuneError, match=words) as caught:
        try_files(composed("experiment=tiny", *local(directory), "dataset.prompt=chat"), directory, rows)
    assert str(directory) in str(caught.value)
    assert "\n" not in str(caught.value)
    try_files(composed("experiment=tiny", *local(directory)), directory, rows)


TURNS = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
ENDED = (
    "{% for turn in messages %}<|im_start|>{{ turn.role }}: {{ turn.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant: {% endif %}"
)


def test_conversations_are_tried_with_the_template_that_they_will_be_written_by(base, tmp_path: Path) -> None:
    directory, rows, own = base(chat_template=TEMPLATE), tmp_path / "chats.jsonl", tmp_path / "own.jinja"
    rows.write_text(json.dumps({"messages": TURNS}))
    where = (*local(directory), "dataset=jsonl", f"dataset.path={rows}")
    with pytest.raises(TrntuneError, match=r"base/chat_template\.jinja, line 3: .*endfo"):
        try_files(composed("experiment=tiny", *where), directory, rows)
    given = (*where, f"dataset.chat_template={own}")
    own.write_text(ENDED)
    try_files(composed("experiment=tiny", *given), directory, rows)
    own.write_text(f"{ENDED}\n{{{{ 1 // 0 }}}}")
    with pytest.raises(TrntuneError, match=r"question and its answer: dataset\.chat_template, line 3: .*zero; correct"):
        try_files(composed("experiment=tiny", *given), directory, rows)


def instructions(directory: Path) -> Path:
    rows = directory.with_name("rows.jsonl")
    rows.write_text(json.dumps({"instruction": "a", "response": "b"}))
    return rows


def several(directory: Path, in_files: bool, **templates: str) -> None:
    """Give a model templates by name, as transformers has saved them since 4.51, or before."""
    (directory / "chat_template.jinja").unlink()
    if in_files:
        (directory / "additional_chat_templates").mkdir()
        for name, text in templates.items():
            (directory / "additional_chat_templates" / f"{name}.jinja").write_text(text)
        return
    settings = json.loads((directory / "tokenizer_config.json").read_text())
    named = [{"name": name, "template": text} for name, text in templates.items()]
    (directory / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": named}))


@pytest.mark.parametrize("in_files", [True, False])
def test_templates_without_a_default_are_named_and_one_can_be_chosen(base, in_files: bool, tmp_path: Path) -> None:
    directory = base()
    several(directory, in_files, rag=ENDED, tool_use="x")
    rows, chats = instructions(directory), tmp_path / "chats.jsonl"
    chats.write_text(json.dumps({"messages": TURNS}))
    chat = ("experiment=tiny", *local(directory), "dataset.prompt=chat")
    conversations = ("experiment=tiny", *local(directory), "dataset=jsonl", f"dataset.path={chats}")
    for arguments, data in ((chat, rows), (conversations, chats)):
        with pytest.raises(TrntuneError, match=r"several chat templates \(rag, tool_use\), and none .*template=NAME$"):
            try_files(composed(*arguments), directory, data)
        try_files(composed(*arguments, "dataset.chat_template=rag"), directory, data)
    # Not used and not broken, they stay what they are.
    assert unread_faults(load_tokenizer(directory)) == []

    chosen = run_tokenizer(composed(*chat, "dataset.chat_template=rag"), directory)
    chosen.save_pretrained(tmp_path / "saved")
    assert load_tokenizer(tmp_path / "saved").chat_template == {"default": ENDED, "rag": ENDED, "tool_use": "x"}
    config = composed(*chat)
    config.dataset.chat_template = "ragg"
    with pytest.raises(TrntuneError, match=r"=ragg: there is no such file, and no .* are: rag, tool_use\)$"):
        run_tokenizer(config, directory)


def test_a_broken_template_that_nothing_is_written_by_is_told_before_training(base, run_tiny) -> None:
    directory = base(chat_template=TEMPLATE)
    run: Run = run_tiny("run", *local(directory), "stages=[fetch,train]")
    assert run.process.returncode == 0, run.process.stderr
    [note] = [line for line in run.process.stderr.splitlines() if "chat template" in line]
    assert note.startswith(f"note: {directory}/chat_template.jinja, line 3: ")
    assert "this chat template can't be read, and is saved with what is trained as it is; correct it, or give" in note


@pytest.mark.parametrize("in_files", [True, False])
def test_a_named_template_that_is_broken_is_told_by_its_place(base, in_files: bool) -> None:
    directory = base()
    several(directory, in_files, rag=TEMPLATE, default=ENDED)
    [fault] = unread_faults(load_tokenizer(directory))
    place = "additional_chat_templates/rag.jinja" if in_files else "tokenizer_config.json: chat_template rag"
    assert fault.startswith(f"{directory}/{place}, line 3: ")
    if not in_files:
        with pytest.raises(TrntuneError, match=rf"{place}, line 3: .*endfo"):
            try_files(
                composed("experiment=tiny", *local(directory), "dataset.prompt=chat", "dataset.chat_template=rag"),
                directory,
                instructions(directory),
            )


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (
            {"early_stopping": None},
            r"generation_config\.json: `early_stopping` must be a boolean.*correct it, or remove",
        ),
        ({"num_return_sequences": 3}, "Greedy methods without beam search"),
        ([1], "is not a JSON object"),
    ],
)
def test_settings_that_transformers_does_not_load_are_refused_in_one_line(base, content: Any, words: str) -> None:
    with pytest.raises(TrntuneError, match=words) as caught:
        check_generation(base(generation_config=content))
    assert "\n" not in str(caught.value)


# Everything that transformers calls a contradiction, two at a time and all at once.
FAULTS: list[dict[str, Any]] = [
    {"temperature": 0.6, "top_p": 0.9},
    {"temperature": 0.0, "top_k": 5},
    {"min_p": 0.1, "typical_p": 0.9, "epsilon_cutoff": 3e-4, "eta_cutoff": 3e-4},
    {"min_p": 0.0},
    {"do_sample": False, "top_k": 40},
    {"early_stopping": True, "length_penalty": 2.0},
    {"pad_token_id": -1},
    {"use_cache": False, "cache_implementation": "dynamic", "return_legacy_cache": True},
    {"output_scores": True, "output_logits": True, "output_attentions": True, "output_hidden_states": True},
]


@pytest.mark.parametrize("number", range(len(FAULTS)))
def test_what_is_repaired_is_what_transformers_refuses_and_then_saves(number: int, tmp_path: Path) -> None:
    pairs = [{**FAULTS[number], **other} for other in FAULTS]
    for content in (*pairs, {key: value for fault in FAULTS for key, value in fault.items()}):
        with pytest.raises(ValueError, match="GenerationConfig is invalid"):
            GenerationConfig(**content).validate(strict=True)
        kept = GenerationConfig(**applied(content, repairs(content)))
        kept.save_pretrained(tmp_path)


@pytest.mark.parametrize("generation", [None, "{broken", {"eos_token_id": 2}, {**SAMPLED, "do_sample": True}])
def test_a_model_whose_config_json_has_such_settings_is_saved(base, generation: Any, tmp_path: Path) -> None:
    directory = base(generation_config=generation or {})
    if generation is None:
        (directory / "generation_config.json").unlink()
    facts = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**facts, "do_sample": False, "temperature": 0.7, "top_k": 9}))
    model = AutoModelForCausalLM.from_pretrained(directory)
    assert mend_generation(model, directory) != ()
    model.save_pretrained(tmp_path / "saved")
    content = generation_of(tmp_path / "saved", tmp_path / "again")
    sampling = {key: content[key] for key in ("temperature", "top_k", "top_p") if key in content}
    kept = isinstance(generation, dict) and "temperature" in generation
    assert sampling == ({"temperature": 0.6, "top_p": 0.9} if kept else {})


def test_an_infinite_limit_in_a_models_config_costs_no_checkpoint(tiny: Path, tmp_path: Path) -> None:
    """As Mamba's time_step_limit: transformers writes and reads it, though JSON has no such number."""
    engine, run = prepared(tiny, tmp_path / "run", "method=full")
    engine.model.config.time_step_limit = [0.0, float("inf")]
    assert rehearse(engine, run) is None
    name, document = config_document(engine.model)
    manifest = Manifest(1, 0.1, Position(0, 1), World(1, 1, 1, 1), {}, "", {}, "", {})
    write_files(Snapshot(manifest, {}, {name: document}), tmp_path / "step")
    assert json.loads((tmp_path / "step" / name).read_text())["time_step_limit"] == [0.0, float("inf")]

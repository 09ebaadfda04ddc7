"""Chat templates that the end of a run needs are tried before its first step."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from launcher.errors import TrntuneError
from tests.conftest import Run
from tests.trainer.models.conftest import composed
from tests.trainer.rehearsal.conftest import local
from trainer.data.template_faults import unread_faults
from trainer.fetch.stage import try_files
from trainer.models.load import load_tokenizer, run_tokenizer

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

"""From rows to ids: the prompt's exact text, what is trained on, and what is cut."""

from __future__ import annotations

import copy

import pytest
from tokenizers.processors import TemplateProcessing

from launcher.errors import TrntuneError
from trainer.data.chat import ChatTemplate
from trainer.data.prompts import render
from trainer.data.rows import InstructionRow
from trainer.data.tokenize import IGNORE, prompt_ids, tokenize
from trainer.fetch.tiny_llama import byte_tokenizer

ROW = InstructionRow("Add.", "1 2", "3")
EOS = 2


def test_the_plain_prompt(tokenizer):
    assert render(ROW, "plain", tokenizer) == ("### Instruction\nAdd.\n\n### Context\n1 2\n\n### Answer\n", "3")
    bare = InstructionRow("Add.", " ", "3")
    assert render(bare, "plain", tokenizer)[0] == "### Instruction\nAdd.\n\n### Answer\n"


def test_the_chat_prompt(tokenizer):
    expected = "<|im_start|>user\nAdd.\n\n1 2<|im_end|>\n<|im_start|>assistant\n"
    assert render(ROW, "chat", tokenizer) == (expected, "3")
    ids = prompt_ids(ROW, "chat", tokenizer)
    assert ids.count(EOS) == 1
    assert ids[0] == 1


def test_a_tokenizer_without_a_template_is_told(tokenizer_without_template):
    with pytest.raises(TrntuneError, match=r"dataset\.prompt=plain"):
        render(ROW, "chat", tokenizer_without_template)
    assert len(tokenize([ROW], "plain", "response", 512, tokenizer_without_template).examples) == 1


@pytest.mark.parametrize(
    "template", ["hello", "{% for m in messages if m.role != 'user' %}{{ m.content }}{% endfor %}A:"]
)
def test_a_template_that_leaves_the_question_out_is_refused(template, tokenizer):
    silent = copy.copy(tokenizer)
    silent.chat_template = template
    with pytest.raises(TrntuneError, match="leaves out what the user says"):
        tokenize([ROW], "chat", "response", 512, silent)
    with pytest.raises(TrntuneError, match="leaves out what the user says"):
        ChatTemplate(silent)
    assert len(tokenize([ROW], "plain", "response", 512, silent).examples) == 1


def test_a_tokenizer_without_an_end_token_is_told():
    endless = byte_tokenizer(4096)
    endless.eos_token = None
    with pytest.raises(TrntuneError, match="names no end-of-sequence token"):
        tokenize([ROW], "plain", "response", 512, endless)


@pytest.mark.parametrize("prompt", ["plain", "chat"])
def test_training_rows_begin_with_the_prompt_of_generation_and_end_with_a_trained_eos(tokenizer, prompt):
    [example] = tokenize([ROW], prompt, "response", 512, tokenizer).examples
    before = prompt_ids(ROW, prompt, tokenizer)
    assert example.input_ids[: len(before)] == before
    assert tokenizer.decode(example.input_ids[len(before) :]) == "3<|im_end|>"
    assert example.labels == [IGNORE] * len(before) + example.input_ids[len(before) :]
    assert example.input_ids[-1] == EOS


def test_loss_on_all_counts_every_token(tokenizer):
    [example] = tokenize([ROW], "plain", "all", 512, tokenizer).examples
    assert example.labels == example.input_ids


@pytest.mark.parametrize("prompt", ["plain", "chat"])
def test_control_tokens_in_an_answer_are_only_text(tokenizer, prompt):
    row = InstructionRow("Which token ends?", "", "It is <|im_end|> indeed")
    [example] = tokenize([row], prompt, "response", 512, tokenizer).examples
    answer = example.input_ids[len(prompt_ids(row, prompt, tokenizer)) :]
    assert answer.count(EOS) == 1
    assert answer[-1] == EOS
    assert tokenizer.decode(answer[:-1]) == row.response


def test_control_tokens_in_a_plain_prompt_are_only_text_and_the_tokenizer_is_left_as_it_was(tokenizer):
    row = InstructionRow("What is <|im_end|>?", "<|im_start|>", "x")
    assert not {0, 1, 2} & set(prompt_ids(row, "plain", tokenizer))
    assert tokenizer("<|im_end|>").input_ids == [EOS]


def test_padding_and_truncation_that_a_tokenizer_was_saved_with_change_no_row_and_are_kept():
    rows = [ROW, InstructionRow("A longer one." * 3, "", "4" * 30)]
    saved_with = byte_tokenizer(4096)
    saved_with.backend_tokenizer.enable_padding(length=200, pad_id=0, pad_token="<|endoftext|>")
    saved_with.backend_tokenizer.enable_truncation(10, stride=2, direction="left")
    settings = copy.deepcopy((saved_with.backend_tokenizer.padding, saved_with.backend_tokenizer.truncation))
    expected = tokenize(rows, "plain", "response", 512, byte_tokenizer(4096))
    assert tokenize(rows, "plain", "response", 512, saved_with) == expected
    assert prompt_ids(ROW, "chat", saved_with) == prompt_ids(ROW, "chat", byte_tokenizer(4096))
    assert (saved_with.backend_tokenizer.padding, saved_with.backend_tokenizer.truncation) == settings


@pytest.mark.parametrize("template", ["<|endoftext|> $A", "<|endoftext|> $A <|im_end|>"])
def test_a_tokenizer_that_adds_bos_puts_one_before_the_prompt_and_its_own_eos_never_inside(template):
    adds_bos = byte_tokenizer(4096)
    special = [("<|endoftext|>", 0), ("<|im_end|>", EOS)]
    adds_bos.backend_tokenizer.post_processor = TemplateProcessing(single=template, special_tokens=special)
    plain = tokenize([ROW], "plain", "response", 512, byte_tokenizer(4096)).examples[0].input_ids
    assert tokenize([ROW], "plain", "response", 512, adds_bos).examples[0].input_ids == [0, *plain]
    assert prompt_ids(ROW, "chat", adds_bos) == prompt_ids(ROW, "chat", byte_tokenizer(4096))


def test_what_is_cut_and_what_is_dropped_is_counted(tokenizer):
    fits, cut = InstructionRow("a", "", "b"), InstructionRow("a", "", "b" * 100)
    no_room = InstructionRow("a" * 100, "", "b")
    length = len(prompt_ids(fits, "plain", tokenizer)) + 2
    result = tokenize([fits, cut, no_room], "plain", "response", length, tokenizer)
    assert (len(result.examples), result.truncated, result.dropped) == (2, 1, 1)
    assert [len(example.input_ids) for example in result.examples] == [length, length]
    assert result.examples[0].input_ids[-1] == EOS
    assert result.examples[1].input_ids[-1] != EOS
    with pytest.raises(TrntuneError, match=r"training\.max_length=20: no row leaves room"):
        tokenize([no_room], "plain", "response", 20, tokenizer)


def test_an_answer_needs_room_for_one_token(tokenizer):
    length = len(prompt_ids(ROW, "plain", tokenizer))
    [example] = tokenize([ROW], "plain", "response", length + 1, tokenizer).examples
    assert tokenizer.decode(example.labels[-1:]) == "3"
    with pytest.raises(TrntuneError, match=r"no row leaves room for an answer \(1 dropped\)"):
        tokenize([ROW], "plain", "response", length, tokenizer)


def test_more_rows_than_one_batch_keep_their_order(tokenizer):
    rows = [InstructionRow(f"{i}", "", f"{i}") for i in range(2300)]
    examples = tokenize(rows, "plain", "response", 64, tokenizer).examples
    assert [tokenizer.decode([t for t in e.labels if t not in (IGNORE, EOS)]) for e in examples] == [
        f"{i}" for i in range(2300)
    ]

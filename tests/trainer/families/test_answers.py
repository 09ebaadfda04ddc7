"""How families answer: the fastest way that gives the tokens of plain forward passes."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig

from launcher.errors import TrntuneError
from trainer.families.answers import Answering, answering, continuations
from trainer.families.choose import way_of_answering
from trainer.families.small import small_config, small_model
from trainer.libraries.transformers_versions import MAJOR

IN_BATCHES = Answering("sdpa", batched=True, cached=True)
PROMPTS = [[5, 17, 44, 60, 8, 9, 12, 33, 71, 20, 6, 7], [31, 30, 29]]


def model(family: str, **settings):
    return small_model(small_config(AutoConfig.for_model(family, **settings), 64), "eager")


@pytest.mark.parametrize("family", ["llama", "granite", "qwen3", "mistral", "mixtral"])
def test_most_families_answer_in_padded_batches(family):
    assert answering(model(family), "sdpa") == IN_BATCHES


@pytest.mark.parametrize(
    ("family", "settings", "how"),
    [
        # Since transformers 5 its convolutions leave padding out.
        ("lfm2", {"full_attn_idxs": [1, 3]}, Answering("sdpa", batched=MAJOR >= 5, cached=True)),
        ("rwkv", {}, Answering("eager", batched=False, cached=True)),
    ],
)
def test_where_padding_makes_another_model_of_a_family_it_does_without(family, settings, how):
    found = model(family, **settings)
    assert answering(found, how.attention) == how
    expected = []
    for prompt in PROMPTS:
        ids = list(prompt)
        for _ in range(4):
            ids.append(int(found(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
        expected.append(ids[len(prompt) :])
    settings = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None}
    assert continuations(found, PROMPTS, how, 0, **settings) == expected


def test_a_family_without_an_exact_way_is_refused_by_name(tmp_path):
    config = small_config(AutoConfig.for_model("roberta", is_decoder=True), 64)
    config.save_pretrained(tmp_path)
    with pytest.raises(TrntuneError, match=r"RobertaForCausalLM can't answer here: .*tracking\.samples=0"):
        way_of_answering(tmp_path, 64)

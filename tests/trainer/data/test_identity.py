"""What names the tokens of rows: cached ones by the library too, those of a checkpoint whichever library reads them."""

from __future__ import annotations

from typing import Any

import pytest
from tokenizers.processors import ByteLevel, TemplateProcessing
from transformers import AutoTokenizer

from trainer.data import encoder as module
from trainer.data.chat_encoder import ChatEncoder
from trainer.data.encoder import Encoder
from trainer.fetch.tiny_llama import byte_tokenizer

# Of the same files under tokenizers 0.22 with transformers 4.57, and under 0.23 with 5.24: CI runs this with both.
PLAIN = "9dbc99a2c758df967f8a4ddd4929ae67caacdf4a31c783a5bc8aad606befc7a4"
CHAT = "d11a7ddb8457b687c72cee16bdf5dd4c4994a0bc6061886f79d2a63f0ab596e3"
CONVERSATION = "b42bfb1675c158792ddceae4701b6e1135d34289b075413355c009b5ea2dbc31"


@pytest.fixture(scope="module")
def loaded(tmp_path_factory) -> Any:
    """A tokenizer as a run has it: transformers 5 puts an empty post-processor there."""
    directory = tmp_path_factory.mktemp("tokenizer")
    byte_tokenizer(512).save_pretrained(directory)
    return AutoTokenizer.from_pretrained(directory)


def test_a_checkpoint_of_one_set_of_libraries_is_known_under_the_other(loaded):
    assert Encoder(loaded, "plain").lasting_identity == PLAIN
    assert Encoder(loaded, "chat").lasting_identity == CHAT
    assert ChatEncoder(loaded, None).lasting_identity == CONVERSATION


def test_the_library_names_cached_tokens_alone(loaded, monkeypatch):
    before = Encoder(loaded, "plain")
    assert before.identity != before.lasting_identity
    monkeypatch.setattr(module, "version", lambda _: "0.1")
    after = Encoder(loaded, "plain")
    assert after.identity != before.identity
    assert after.lasting_identity == before.lasting_identity


def test_a_post_processor_counts_where_it_adds_something():
    tokenizer = byte_tokenizer(512)
    backend = tokenizer.backend_tokenizer
    backend.post_processor = None
    bare = Encoder(tokenizer, "plain").lasting_identity
    for idle in (ByteLevel(), TemplateProcessing(single="$A", pair="$A $B:1", special_tokens=[])):
        backend.post_processor = idle
        assert Encoder(tokenizer, "plain").lasting_identity == bare
        assert type(backend.post_processor) is type(idle)
    backend.post_processor = TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", backend.token_to_id("<|im_start|>"))]
    )
    kept = backend.post_processor.__getstate__()
    assert Encoder(tokenizer, "plain").lasting_identity != bare
    assert backend.post_processor.__getstate__() == kept

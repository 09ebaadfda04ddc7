"""Nothing that a run leaves holds a secret of its environment; a secret in the configuration is refused."""

from __future__ import annotations

import stat
import subprocess
from pathlib import Path

import pytest

from launcher import app
from launcher.config import secrets
from tests.conftest import TINY, command, environment
from tests.limits import PATIENCE

pytestmark = pytest.mark.long

# Shapes of real ones; none of them opens anything.
PLANTED = {
    "HF_TOKEN": "hf_" + "Planted0SecretAbCdEfGhIjKlMnOpQr",
    "HUGGING_FACE_HUB_TOKEN": "hf_" + "Planted1SecretAbCdEfGhIjKlMnOpQr",
    "AWS_ACCESS_KEY_ID": "AKIA" + "PLANTED2SECRETXY",
    "AWS_SECRET_ACCESS_KEY": "Planted3Secret" + "K7MDENGbPxRfiCYEXAMPLEKEY0",
    "AWS_SESSION_TOKEN": "Planted4Secret//////////session",
    "MLFLOW_TRACKING_USERNAME": "planted5-user",
    "MLFLOW_TRACKING_PASSWORD": "planted6-password",
    "MLFLOW_TRACKING_TOKEN": "planted7-token",
    "http_proxy": "http://planted8-user:planted8-password@127.0.0.1:9",
    "WANDB_API_KEY": "planted9" * 5,
}
SECRETS = [*PLANTED.values(), "planted8-password"]


def run(cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    env = environment() | PLANTED | {"no_proxy": "127.0.0.1,localhost"}
    return subprocess.run(command(*arguments), cwd=cwd, env=env, capture_output=True, text=True, timeout=PATIENCE)


def leaks(root: Path, process: subprocess.CompletedProcess[str]) -> list[str]:
    """Every place that holds a planted secret."""
    places = {str(path): path.read_bytes() for path in root.rglob("*") if path.is_file()}
    places |= {"stdout": process.stdout.encode(), "stderr": process.stderr.encode()}
    return [f"{place}: {secret}" for place, text in places.items() for secret in SECRETS if secret.encode() in text]


def test_nothing_that_a_run_or_a_sweep_leaves_holds_a_secret(tmp_path):
    (tmp_path / "outputs").mkdir(mode=0o755)
    process = run(tmp_path, "-m", *TINY, "method=lora,full")
    assert process.returncode == 0, process.stderr
    for name, mode in (("sweeps", 0o700), ("mlartifacts", 0o700), ("mlflow.db", 0o600)):
        assert stat.S_IMODE((tmp_path / "outputs" / name).stat().st_mode) == mode, name
    assert (tmp_path / "outputs" / "mlflow.db").stat().st_size > 100_000
    assert len(list(tmp_path.glob("outputs/mlartifacts/**/metrics.jsonl"))) == 2
    assert len(list(tmp_path.glob("outputs/sweeps/*/*/checkpoints/*/manifest.json"))) == 4
    assert leaks(tmp_path, process) == []


@pytest.mark.cold
def test_nothing_that_a_failed_run_leaves_holds_a_secret(tmp_path):
    """A run that breaks, tracked at an address that nobody answers: errors name what they were about."""
    broken = ("method=full", "training.learning_rate=1e30", "tracking.uri=http://127.0.0.1:9")
    process = run(tmp_path, *TINY, *broken)
    assert process.returncode == 1
    assert "warning: MLflow at http://127.0.0.1:9 failed" in process.stderr
    assert leaks(tmp_path, process) == []


def test_directories_are_their_owners_alone(tmp_path):
    (tmp_path / "open").mkdir(mode=0o755)
    process = run(tmp_path, *TINY, "tracking=none", "hydra.run.dir=open", "output_dir=made/here")
    assert process.returncode == 0, process.stderr
    for name in ("open", "open/checkpoints", "open/checkpoints/step-6", "made", "made/here"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o700, name


@pytest.mark.parametrize("secret", [PLANTED["HF_TOKEN"], PLANTED["AWS_SECRET_ACCESS_KEY"]])
@pytest.mark.parametrize("key", ["tracking.run_name", "dataset.name", "hydra.job.name", "+model.token"])
def test_a_secret_in_an_override_is_refused_and_written_nowhere(tmp_path, key, secret):
    process = run(tmp_path, *TINY, f"{key}={secret}")
    assert process.returncode == 2
    assert secret not in process.stderr + process.stdout
    assert "secrets come from the environment" in process.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_secret_in_a_yaml_file_is_refused_and_written_nowhere(tmp_path):
    own = tmp_path / "own" / "tracking"
    own.mkdir(parents=True)
    (own / "mine.yaml").write_text(f"uri: sqlite:///x.db\nrun_name: {PLANTED['HF_TOKEN']}\n")
    process = run(tmp_path, *TINY, "--config-dir", "own", "tracking=mine")
    assert process.returncode == 2
    assert process.stderr.startswith("error: tracking.run_name=***: looks like an access token")
    assert [path.name for path in tmp_path.iterdir()] == ["own"]


def test_a_secret_that_an_interpolation_takes_from_the_environment_is_refused(tmp_path):
    process = run(tmp_path, *TINY, "tracking.run_name=${oc.env:HF_TOKEN}")
    assert process.returncode == 2
    assert PLANTED["HF_TOKEN"] not in process.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def refused(tmp_path, monkeypatch, capsys):
    """The error of launch.py in an empty directory, which must stay empty and hold no secret."""

    def of(*arguments: str) -> str:
        monkeypatch.chdir(tmp_path)
        for name, value in PLANTED.items():
            monkeypatch.setenv(name, value)
        secrets.environment_secrets.cache_clear()
        files = set(tmp_path.rglob("*"))
        assert app.main([*TINY, *arguments]) == 2
        text = "".join(capsys.readouterr())
        assert [secret for secret in SECRETS if secret in text] == []
        assert set(tmp_path.rglob("*")) == files
        return text

    yield of
    secrets.environment_secrets.cache_clear()


AWS = PLANTED["AWS_SECRET_ACCESS_KEY"]
JOBS = ("cluster=slurm", "dry_run=true")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((*JOBS, f"cluster.setup=['export A=b; export KEY={AWS}']"), "cluster.setup holds what looks like an access"),
        ((*JOBS, f"cluster.srun_args=['--export=ALL,KEY={AWS}']"), "cluster.srun_args holds what looks like an access"),
        ((*JOBS, "cluster.environment=['P=${oc.env:MLFLOW_TRACKING_PASSWORD}']"), "cluster.environment[0]=***: looks"),
        ((*JOBS, "cluster.environment=['P=postgres://u:planted8-password@h/x']"), "P=postgres://***@h/x: holds cred"),
        (("tracking.run_name=planted7-token",), "tracking.run_name holds what looks like an access token"),
        (("tracking.uri=http://u:planted8-password/@h",), "tracking.uri=http://***@h: holds credentials"),
        (("dataset=dolly15k", "dataset.hub_id=https://u:planted8-password@h/x"), "hub_id=https://***@h/x: holds cred"),
        (("hydra.run.dir=x/${oc.env:HF_TOKEN}",), "the run directory's name holds what looks like an access token"),
        (("-m", "seed=0,1", "hydra.sweep.dir=${oc.env:HF_TOKEN}"), "the run directory's name holds what looks like"),
    ],
)
def test_a_secret_is_refused_wherever_it_stands(arguments, message, refused):
    """Of any shape, when the environment holds it as one; also where the run's directory and job scripts would."""
    assert message in refused(*arguments)


@pytest.mark.parametrize(
    "query",
    ["access_token=abc12", "page=2&api_key=abc12", "sig=abc12", "X-Amz-Signature=abc12", "Password=abc12", "auth=abc12",
     "client_secret=abc12", "oauth=abc12", "AWSAccessKeyId=abc12", "sslpassword=abc12"],
)  # fmt: skip
def test_a_credential_in_the_query_of_an_address_is_refused_and_never_printed(query, refused):
    address = f"https://h/x?{query}"
    assert secrets.redact(f"failed: {address} (403)").count("abc12") == 0
    for key in ("tracking.uri", "dataset=dolly15k", "tracking.run_name"):
        override = f"dataset.hub_id='{address}'" if key.startswith("dataset") else f"{key}='{address}'"
        text = refused(*([key] if key.startswith("dataset") else []), override)
        assert "abc12" not in text
        assert "holds credentials" in text


@pytest.mark.parametrize("query", ["page=2", "design=3", "sslmode=require", "token_count=5", "sort_key=a", "signed=1"])
def test_an_ordinary_query_is_none(query):
    assert secrets.without_credentials(f"https://h/x?{query}") == f"https://h/x?{query}"


def test_a_secret_in_hydras_own_settings_is_refused(tmp_path, refused):
    (tmp_path / "own.yaml").write_text(
        f"defaults: [config]\nhydra:\n  job:\n    env_set: {{X: {PLANTED['HF_TOKEN']}}}\n"
    )
    arguments = ("--config-dir", str(tmp_path), "--config-name", "own")
    assert "hydra.job.env_set.X holds what looks like an access token" in refused(*arguments)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.trust_remote_code=true", "model.source=builtin has no code to trust"),
        ("tracking.run_name=../../elsewhere", "a name has letters, digits"),
        ("model.name=../../elsewhere", "a name has letters, digits"),
        ("tracking.experiment=/etc/x", "a name has letters, digits"),
    ],
)
def test_names_cannot_leave_the_output_directory(tmp_path, override, message):
    process = run(tmp_path, *TINY, override)
    assert process.returncode == 2
    assert message in process.stderr
    assert list(tmp_path.iterdir()) == []


def test_code_of_a_repository_needs_a_commit(tmp_path):
    hub = ("model=qwen3_0_6b", "model.trust_remote_code=true")
    branch = run(tmp_path, *hub, "model.revision=main")
    assert branch.returncode == 2
    assert "give the 40 digits of the commit" in branch.stderr
    pinned = run(tmp_path, *hub, f"model.revision={'ab' * 20}", "--cfg", "job")
    assert pinned.returncode == 0

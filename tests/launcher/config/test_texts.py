"""A text that looks like a number is the text that was written, on the command line; in a file it is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from cluster.compose import compose as compose_cluster
from launcher import app
from launcher.cli import parse
from launcher.config.compose import compose
from launcher.config.fields import keys, lookup
from launcher.config.texts import is_text, quote_texts
from launcher.errors import UsageError
from tests.launcher.conftest import composition, single

NUMBERS = [
    "4e10232",
    "2024_01_15",
    "1.10",
    "5e3",
    "1e3",
    "007",
    "0012345",
    "1_000",
    "inf",
    "NaN",
    "true",
    "False",
    "-0",
    "12:30",
    "0x1F",
]
TEXTS = [
    name
    for name, key in keys().items()
    if key.type is str and not key.choices and name.partition(".")[0] not in ("model", "plan")
]


@pytest.mark.parametrize("text", NUMBERS)
def test_a_text_on_the_command_line_stays_as_it_was_typed(text: str) -> None:
    run = single(f"model.revision={text}", f"output_dir={text}", f"lora.target_modules=[q_proj,{text}]")
    assert run.config.model.revision == text
    assert run.config.output_dir == text
    assert run.config.lora.target_modules == ["q_proj", text]


@pytest.mark.parametrize("key", TEXTS)
def test_every_text_of_the_schema(key: str) -> None:
    assert quote_texts(f"{key}=1e5") == f"{key}='1e5'"
    assert is_text(key)


def test_run_directories(cwd: Path) -> None:
    assert single("hydra.run.dir=2024_01_15").directory == cwd / "2024_01_15"
    assert composition("-m", "seed=0,1", "hydra.sweep.dir=1e3").sweep_dir == cwd / "1e3"


def test_in_a_sweep() -> None:
    runs = composition("-m", "model.revision=4e10232,main", "dataset.revision=choice(5e3,1.10)", "seed=range(1,3)").runs
    found = [(run.config.model.revision, run.config.dataset.revision, run.config.seed) for run in runs]
    assert found == [
        (model, data, seed) for model in ("4e10232", "main") for data in ("5e3", "1.10") for seed in (1, 2)
    ]
    assert runs[0].directory.name == "0_model.revision=4e10232,dataset.revision=5e3,seed=1"


def test_a_whole_group_of_texts() -> None:
    wheel = single("model.wheel={requirement: 1.10, member: 2024_01_15, sha256: 1e5}").config.model.wheel
    assert wheel is not None
    assert (wheel.requirement, wheel.member, wheel.sha256) == ("1.10", "2024_01_15", "1e5")


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("tracking.run_name='1.10'", "1.10"),
        ('tracking.run_name="1.10"', "1.10"),
        ("tracking.run_name=null", None),
        ("tracking.run_name=run ${seed}", "run 0"),
        ("tracking.run_name= 1.10 ", "1.10"),
        ("training.learning_rate=1e-3", 0.001),
        ("tracking.enabled=false", False),
        ("training.max_steps=1_0", 10),
    ],
)
def test_what_is_said_otherwise_keeps_its_meaning(line: str, value: object) -> None:
    assert lookup(single("seed=0", line).config, line.partition("=")[0]) == value


def test_of_a_cluster_too() -> None:
    assert compose_cluster(["name=1e5", "region=us-west-2"]).name == "1e5"


def test_what_a_run_writes_down_is_read_back_the_same() -> None:
    for text in NUMBERS:
        written = OmegaConf.to_yaml(OmegaConf.structured(single(f"model.revision={text}").config))
        assert OmegaConf.create(written).model.revision == text


@pytest.fixture
def refused(tmp_path: Path):
    """The error for a user's own model with these lines more."""

    def of(name: str, text: str, argument: str) -> str:
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        with pytest.raises(UsageError) as error:
            compose(parse(["--config-dir", str(tmp_path), argument]))
        return str(error.value)

    return of


@pytest.mark.parametrize("value", ["0012345", "12:30", "1.10", "5e3", "2024_01_15", "yes", "0x1F"])
def test_a_number_in_a_file_is_refused_with_the_line_that_quotes_it(value: str, refused) -> None:
    text = f"# @package _global_\ntracking:\n  run_name: {value}\n"
    message = refused("experiment/own.yaml", text, "experiment=own")
    assert "own.yaml, line 3: tracking.run_name is a text" in message
    assert message.endswith(f'quote it: run_name: "{value}"')


def test_of_a_group_of_a_list_and_of_hydra(refused) -> None:
    assert 'name: "007"' in refused("dataset/own.yaml", "name: 007\nsource: jsonl\n", "dataset=own")
    of_list = "# @package _global_\nlora:\n  target_modules:\n    - q_proj\n    - 1e5\n"
    assert refused("experiment/list.yaml", of_list, "experiment=list").endswith(
        'line 5: lora.target_modules is a text, and YAML reads 1e5 as something else: quote it: - "1e5"'
    )
    of_hydra = "# @package _global_\nhydra:\n  run:\n    dir: 2024_01_15\n"
    assert "line 4: hydra.run.dir is a text" in refused("experiment/dir.yaml", of_hydra, "experiment=dir")


@pytest.mark.parametrize("key", ["dataset.name", "output_dir", "tracking.run_name", "model.name", "cluster.partition"])
@pytest.mark.parametrize("empty", ["", "''", "'  '"])
def test_a_text_that_is_empty_is_refused(key: str, empty: str, cwd: Path, capsys) -> None:
    assert app.main([f"{key}={empty}"]) == 2
    message = capsys.readouterr().err
    assert f"{key}=" in message
    assert "must not be empty" in message
    assert list(cwd.iterdir()) == []

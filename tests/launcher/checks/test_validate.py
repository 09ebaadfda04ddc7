"""Pairs of settings that cannot work: each check fires on what it is for, and not on the shipped configurations."""

from __future__ import annotations

import gzip
import json

import pytest

from launcher.checks.validate import problems
from launcher.config.help import choices
from launcher.data.files import HubSet, check_format, hub_set
from launcher.errors import UsageError
from launcher.model_dir.chat_templates import named_templates
from launcher.paths import CONF
from tests.launcher.conftest import composition, single

ROWS_ON_TORCH_NEURON = ["dataset.packing=false", "training.max_length=512"]

PAIRS = [
    (["training.global_batch_size=7", "training.micro_batch_size=3"], "training.global_batch_size", "nearest is 6"),
    (["training.global_batch_size=1", "parallelism=ddp2"], "training.global_batch_size", "nearest is 2"),
    (["training.max_length=9000"], "training.max_length", "8192"),
    (["lora.target_modules=[q_prog]"], "lora.target_modules", "did you mean q_proj?"),
    (["lora.target_modules=[q_proj,q_proj]"], "lora.target_modules", "listed twice"),
    (["lora.target_modules=[]"], "lora.target_modules", "no layer"),
    (["lora.target_modules=[all-linear,q_proj]"], "lora.target_modules", "write lora.target_modules=[all-linear]"),
    (["method=full", "lora.r=4"], "lora.r", "not used with method=full"),
    (["method=full", "lora=dora"], "lora", "not used with method=full"),
    (["training.eval_every=null", "training.early_stopping_patience=2"], "training.early_stopping_patience", "eval"),
    (["training.max_steps=2", "training.eval_every=1"], "tracking.skip_steps", "at most 1"),
    (["training.max_steps=5", "training.early_stopping_patience=1"], "training.eval_every", "at most 5"),
    (["training.warmup_steps=50"], "training.warmup_steps", "at most 16"),
    (["training.warmup_steps=16", "training.warmup_from_zero=true"], "training.warmup_steps", "at most 15"),
    (["training.warmup_ratio=0.99", "training.warmup_from_zero=true"], "training.warmup_ratio", "a smaller one"),
    (["training.warmup_ratio=0.1", "training.warmup_steps=3"], "training.warmup_steps", "beside training.warmup_ratio"),
    (["model=local"], "model.path", "model.path=DIR"),
    (["model=local", "model.path=nowhere"], "model.path", "does not exist"),
    (["model.path=."], "model.path", "use model=local"),
    (["model=qwen3_0_6b", "model.hub_id=null"], "model.hub_id", "OWNER/NAME"),
    (["dataset=jsonl", "dataset.path=nowhere"], "dataset.path", "does not exist"),
    (["dataset=jsonl", "dataset.path=."], "dataset.path", "is not a file"),
    (["dataset=hub"], "dataset.hub_id", "OWNER/NAME"),
    (["dataset=files"], "dataset.path", "give dataset.path=FILE"),
    (["dataset=files", "dataset.path=[nowhere*.jsonl]"], "dataset.path", "no file has such a name"),
    (["dataset=jsonl", "dataset.path=[a,b]"], "dataset.path", "use dataset=files"),
    (["dataset.eval_path=pyproject.toml"], "dataset.eval_path", "is read with dataset.path only"),
    (["dataset.weights=[1]"], "dataset.weights", "use dataset=files"),
    (["dataset.split=test"], "dataset.split", "use dataset=hub"),
    (["dataset.prompt_template='Q: {a[0]}'"], "dataset.prompt_template", "is no name"),
    (["dataset.prompt_template='Q: {a'"], "dataset.prompt_template", "write fields as"),
    (["dataset.prompt_template=Hello"], "dataset.prompt_template", "names no field"),
    (["dataset.format=text", "dataset.prompt_template='{a}'"], "dataset.prompt_template", "no single prompt"),
    (["dataset.chat_template=nowhere"], "dataset.chat_template", "is not a file"),
    (["dataset.path=[[a]]"], "dataset.path", "a list of texts"),
    (["dataset.max_samples=32"], "dataset.max_samples", "at least 33"),
    (["parallelism.sharding=fsdp"], "parallelism.sharding", "take parallelism=fsdp2"),
    (["parallelism=fsdp2", "lora.quantize_base=nf4", "training.global_batch_size=2"], "lora.quantize_base", "nf4"),
    (["parallelism=offload"], "parallelism.cpu_offload", "computes in host memory already"),
    (
        ["accelerator=cuda", "parallelism.cpu_offload=true"],
        "parallelism.cpu_offload",
        "write parallelism.sharding=fsdp",
    ),
    (["accelerator=cuda", "parallelism.sharding=fsdp"], "parallelism.sharding", "or parallelism.cpu_offload=true"),
    (
        ["accelerator=cuda", "model=llama3_8b", "parallelism=tp2", "parallelism.cpu_offload=true"],
        "parallelism.cpu_offload",
        "take parallelism=fsdp2",
    ),
    (
        [
            *("accelerator=trn2_3xlarge_native", "parallelism=fsdp2", "parallelism.cpu_offload=true"),
            *ROWS_ON_TORCH_NEURON,
        ],
        "parallelism.cpu_offload",
        "for devices cuda alone",
    ),
    (["parallelism.sharding=zero"], "parallelism.sharding", "ddp, fsdp"),
    (["accelerator.backend=nccl"], "accelerator.backend", "needs gloo"),
    (["accelerator=cuda", "accelerator.backend=gloo"], "accelerator.backend", "needs nccl"),
    (["accelerator.price_usd_per_hour=2", "accelerator.price_date=2025-11-23"], "accelerator.price_source", "all of"),
    (["accelerator.price_source=x", "accelerator.price_date=2025-11-23"], "accelerator.price_usd_per_hour", "all of"),
    (
        ["accelerator.price_usd_per_hour=2", "accelerator.price_source=x", "accelerator.price_date=2025-02-30"],
        "accelerator.price_date",
        "not a date",
    ),
    (["tracking.uri=ftp://host"], "tracking.uri", "no such kind"),
    (["tracking.uri=sqlite://file.db"], "tracking.uri", "sqlite:///"),
    (["tracking.uri=''"], "tracking.uri", "needs an address"),
    (["tracking.uri=https://a:b@host"], "tracking.uri", "MLFLOW_TRACKING_USERNAME"),
    (["output_dir=/dev/null"], "output_dir", "is a file"),
]


def test_all_linear_is_the_layers_of_a_known_family_by_name(cwd):
    config = single("lora.target_modules=[all-linear]").config
    assert problems(config) == []
    layers = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    assert config.lora.target_modules == layers
    config = single("lora=r16_all_linear", "lora.exclude_modules=[down_proj]").config
    assert problems(config) == []
    assert config.lora.target_modules == ["all-linear"]


@pytest.mark.parametrize(("arguments", "key", "piece"), PAIRS, ids=lambda value: str(value)[:60])
def test_a_pair_that_cannot_work_is_one_problem(arguments, key, piece, cwd):
    run = single(*arguments)
    (problem,) = problems(run.config, run.overrides)
    assert problem.key == key
    assert piece in str(problem)


GROUPS = {group: list(names) for group, names in choices([CONF]).items()}


@pytest.mark.parametrize("choice", [f"{group}={name}" for group, names in GROUPS.items() for name in names])
def test_every_shipped_choice_composes_and_passes(choice, cwd, tmp_path):
    (tmp_path / "rows.jsonl").write_text("{}\n")
    needs = {
        "dataset=files": [f"dataset.path=[{tmp_path}/*.jsonl,{tmp_path}]"],
        "dataset=hub": ["dataset.hub_id=owner/name"],
        "model=local": ["model.path=" + str(local_model(tmp_path))],
        "dataset=jsonl": [f"dataset.path={tmp_path}/rows.jsonl"],
        **{f"accelerator={name}": ROWS_ON_TORCH_NEURON for name in ("trn2_48xlarge_native", "trn2_3xlarge_native")},
        "parallelism=offload": ["accelerator=cuda"],
        "parallelism=ddp4": ["training.global_batch_size=4"],
        "parallelism=ddp64": ["training.global_batch_size=64"],
        "parallelism=fsdp64": ["training.global_batch_size=64"],
        "parallelism=tp4_fsdp16": ["training.global_batch_size=16"],
        "tracking=sagemaker": ["tracking.uri=arn:aws:sagemaker:us-west-2:123456789012:mlflow-app/app-1"],
    }
    arguments = [choice, *needs.get(choice, [])]
    if choice.startswith("parallelism=trn"):
        accelerator = "trn1_32xlarge" if "trn1" in choice else "trn2_48xlarge"
        arguments += [f"accelerator={accelerator}", "model=llama3_70b", "lora=r16_all_linear"]
        arguments += ["training.global_batch_size=96", "training.precision=bf16"]
    elif choice.startswith(("parallelism=fsdp", "parallelism=tp")) and choice not in needs:
        arguments.append("training.global_batch_size=8")
    if choice.startswith("parallelism=tp"):
        arguments += ["model=llama3_8b", "accelerator=cuda", "training.precision=bf16"]
    for run in composition(*arguments).runs:
        assert problems(run.config, run.overrides, run.swept) == []


def test_adapter_settings_are_allowed_where_the_method_is_swept(cwd):
    for run in composition("-m", "method=lora,full", "lora.r=4").runs:
        assert problems(run.config, run.overrides, run.swept) == []


def local_model(folder, **changes):
    facts = {
        "model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 264, "max_position_embeddings": 600,
    }  # fmt: skip
    path = folder / "model"
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps({**facts, **changes}))
    return path


def test_facts_of_a_local_model_are_read_and_checked(cwd, tmp_path):
    config = single("model=local", f"model.path={local_model(tmp_path)}", "training.max_length=601").config
    assert [problem.key for problem in problems(config)] == ["training.max_length"]
    assert config.model.architecture is not None
    assert (config.model.architecture.head_dim, config.model.architecture.layers) == (16, 2)


def test_another_family_is_left_to_transformers(cwd, tmp_path):
    path = local_model(tmp_path, model_type="gpt2")
    config = single("model=local", f"model.path={path}", "lora.target_modules=[c_attn]").config
    assert problems(config) == []
    assert config.model.architecture is None


def test_heads_must_share_key_value_heads_evenly(cwd, tmp_path):
    config = single("model=local", f"model.path={local_model(tmp_path, num_key_value_heads=3)}").config
    assert [problem.key for problem in problems(config)] == ["model.architecture.heads"]


def test_a_directory_without_a_model_is_refused(cwd, tmp_path):
    with pytest.raises(UsageError, match=r"config\.json"):
        problems(single("model=local", f"model.path={tmp_path}").config)


OTHER_KINDS = [
    ("a.jsonl", b'[\n {"instruction": "a"}\n]', "is a JSON array, and dataset.source=jsonl reads lines"),
    ("a.csv", b"instruction,response\na,b\n", "is a CSV file, and"),
    ("a.tsv", b"instruction\tresponse\na\tb\n", "is a TSV file, and"),
    ("a.jsonl", b"PAR1...", "is a Parquet file, and"),
    ("a.bin", b"ARROW1\x00\x00", "is an Arrow file, and"),
    ("a.jsonl.gz", gzip.compress(b'{"a": 1}\n'), "is JSON lines compressed by gzip, and"),
    ("a.jsonl", gzip.compress(b'{"a": 1}\n'), "is compressed by gzip, and its name doesn't say so; name it a.jsonl.gz"),
    ("a.jsonl", b"PK\x03\x04", "is a zip archive (as .xlsx and .npz are, too); unpack it first"),
    ("a.jsonl", b"version https://git-lfs.github.com/spec/v1\n", "is a pointer of Git LFS"),
    ("a.txt", b'question,answer\n"a, b",c\n', "looks like a CSV file; name it a.csv and use dataset=files"),
    ("a.jsonl", b"question\tanswer\na\tb\n", "looks like a TSV file; name it a.tsv and use dataset=files"),
    ("a.json", b'{\n "instruction": "a",\n', "is JSON over several lines, not a row a line; write it so: jq -c . FILE"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content", "says"), OTHER_KINDS, ids=[says for *_, says in OTHER_KINDS])
def test_a_file_of_another_kind_than_jsonl_is_told_with_the_command_that_reads_it(name, content, says, cwd):
    (cwd / name).write_bytes(content)
    [problem] = problems(single("dataset=jsonl", f"dataset.path={name}").config)
    assert str(problem).startswith(f"dataset.path={name}: {says}")
    if "and dataset.source" in str(problem):
        assert str(problem).endswith(f"use dataset=files dataset.path={name}")
        assert problems(single("dataset=files", f"dataset.path={name}").config) == []


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows.txt", b'\xef\xbb\xbf\n{"instruction": "a"}\n'),
        ("rows", b'not JSON, though\n{"a": "b, c"}\n'),
        ("rows.jsonl", b'[1, 2]\n{"instruction": "a"}\n'),
        ("rows.json", b'{"instruction": "a"}\n'),
        ("rows.jsonl", b""),
    ],
)
def test_lines_of_json_are_left_to_whoever_reads_their_rows(name, content, cwd):
    (cwd / name).write_bytes(content)
    assert problems(single("dataset=jsonl", f"dataset.path={name}").config) == []


@pytest.mark.parametrize(
    ("entry", "found"),
    [
        ("hub:owner/name", HubSet("owner/name", None, "train", None)),
        ("hub:owner/name@v1.0", HubSet("owner/name", None, "train", "v1.0")),
        ("hub:owner/na.me:talks:test@refs/pr/1", HubSet("owner/na.me", "talks", "test", "refs/pr/1")),
        ("hub:squad::validation", HubSet("squad", None, "validation", None)),
        ("rows.jsonl", None),
    ],
)
def test_a_set_of_the_hub_is_an_entry_of_a_mixture(entry, found):
    assert hub_set(entry) == found
    if found is not None:
        config = single("dataset=files", f"dataset.path=[{entry},{entry}]", "dataset.weights=[1,2]").config
        assert config.dataset.path == [entry, entry]
        assert problems(config) == []


@pytest.mark.parametrize("entry", ["hub:", "hub:a/b/c", "hub:a/b:c:d:e", "hub:a b"])
def test_an_entry_that_names_no_set_is_told_how_one_is_written(entry, cwd):
    [problem] = problems(single("dataset=files", f"dataset.path='{entry}'").config)
    assert str(problem).startswith(f"dataset.path={entry}: names no set on the Hub; write hub:OWNER/NAME")


def test_a_chat_template_is_a_file_or_one_of_the_models_by_its_name(cwd):
    base = cwd / "base"
    (base / "additional_chat_templates").mkdir(parents=True)
    assert named_templates(base) == []
    templates = [{"name": "rag", "template": "x"}, {"name": "default", "template": "y"}]
    (base / "tokenizer_config.json").write_text(json.dumps({"chat_template": templates}))
    assert named_templates(base) == ["default", "rag"]
    for name in ("tool_use", "rag-2"):
        (base / "additional_chat_templates" / f"{name}.jinja").write_text("x")
    (base / "chat_template.jinja").write_text("x")
    assert named_templates(base) == ["default", "rag-2", "tool_use"]  # as transformers, which reads files before

    def faults(given: str, source: str) -> list[str]:
        config = single("dataset.chat_template=" + given).config
        config.model.source, config.model.path = source, "base"
        return [str(each) for each in check_format(config)]

    assert faults("rag-2", "local") == []
    [fault] = faults("rag", "local")
    assert fault == (
        "dataset.chat_template=rag: is not a file; give a file with a Jinja template, or the name of one of the "
        "model's (default, rag-2, tool_use)"
    )
    assert faults("rag", "hub") == []  # stage fetch knows
    assert (
        len(faults("own.jinja", "hub")) == len(faults("rag", "builtin")) == len(faults("x" * 300 + ".", "local")) == 1
    )

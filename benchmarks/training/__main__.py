"""`python -m benchmarks.training`: this project against its peers, the same model, rows, precision and batch.

Each framework runs in a process and an environment of its own (made once, under --directory), one after the other,
in rounds that begin with another one each time; before each, the rate of matrix products is measured, which is the
ceiling that its share is of. Prints a table and leaves everything measured as JSON.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks import environments
from benchmarks.measure import show
from benchmarks.training.gemm_ceiling import ceiling, reason, run
from benchmarks.training.peers import CASES, ROWS_PER_STEP, Case, trntune_overrides
from benchmarks.training.report import comparison_table, summary
from benchmarks.training.workload import TokenFile, write_tokens
from launcher.cli import Parser, parse, process_entry
from launcher.config.compose import compose
from launcher.config.schema import ColumnsConfig, Config
from launcher.errors import TrntuneError, UsageError
from launcher.run_dir.provenance import software

_WORKERS = Path(__file__).parents[1] / "workers"
_LORA = {"r": 16, "lora_alpha": 16, "lora_dropout": 0.05, "target_modules": ["q_proj", "v_proj"]}
_MAX_LENGTH = 1024


def main(argv: list[str] | None = None) -> int:
    """Process entry. Returns the exit code."""
    return process_entry(lambda given: _run(_parse(given)), argv)


def _run(arguments: argparse.Namespace) -> int:
    arguments.directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="training-", dir=arguments.directory) as scratch:
        Comparison(arguments, Path(scratch).resolve()).run()
    return 0


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = Parser(prog="python -m benchmarks.training", description=__doc__, allow_abbrev=False)
    parser.add_argument("--method", choices=("lora", "full"), default="lora")
    parser.add_argument("--model", default="smollm2_135m", help="a choice of the group model")
    parser.add_argument("--data", type=Path, help="JSONL: instruction, context, response (default: python_docs)")
    parser.add_argument("--samples", type=int, default=64, help="at most; whole steps are taken (default: 64)")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--cases", help="numbers of --list, with commas (default: all)")
    parser.add_argument("--list", action="store_true", help="say which cases there are, and end")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=2, help="of the processor (default: 2)")
    parser.add_argument("--prefix", default="", help="put before each process: taskset, numactl or flock")
    parser.add_argument("--directory", type=Path, default=Path("outputs/benchmarks"))
    arguments = parser.parse_args(argv)
    arguments.precision = "bf16" if arguments.device == "cuda" else "fp32"
    if arguments.repeats < 1:
        raise UsageError(f"--repeats {arguments.repeats}: at least 1")
    arguments.chosen = _chosen(arguments.cases)
    return arguments


def _chosen(text: str | None) -> list[Case]:
    numbers = range(len(CASES)) if text is None else [int(part) for part in text.split(",") if part.isdecimal()]
    if not numbers or max(numbers) >= len(CASES):
        raise UsageError(f"--cases {text}: numbers from 0 to {len(CASES) - 1}, with commas; --list shows them")
    return [CASES[number] for number in numbers]


class Comparison:
    """One run of the benchmark."""

    def __init__(self, arguments: argparse.Namespace, scratch: Path) -> None:
        self.arguments, self.scratch = arguments, scratch
        self.results: dict[str, list[dict[str, Any]]] = {case.name: [] for case in arguments.chosen}
        self.failures: dict[str, str] = {}

    def run(self) -> None:
        """All rounds, the table, the JSON file."""
        if self.arguments.list:
            for number, case in enumerate(CASES):
                print(f"{number:3}  {case.name}")
            return
        self._prepare()
        for number in range(self.arguments.repeats):
            start = number % len(self.arguments.chosen)
            for case in [*self.arguments.chosen[start:], *self.arguments.chosen[:start]]:
                if case.name not in self.failures:
                    self._measure(case, number)
        if not any(self.results.values()):
            raise TrntuneError("; ".join(f"{name}: {why}" for name, why in self.failures.items()))
        self._report()

    def _prepare(self) -> None:
        """Model, rows, environments."""
        from trainer.data.json_lines import read_jsonl
        from trainer.fetch.sources import fetch_dataset, fetch_model
        from trainer.models.load import load_tokenizer

        arguments = self.arguments
        self.overrides = trntune_overrides(arguments.method, arguments.precision, arguments.device, arguments.model, 0)
        config = compose(parse(self.overrides)).runs[0].config
        assert isinstance(config, Config)
        self.architecture = config.model.architecture
        if self.architecture is None:
            raise UsageError(f"--model {arguments.model}: its configuration has no architecture to count products by")
        self.model_dir = fetch_model(config.model)
        file = arguments.data or fetch_dataset(config.dataset)
        rows, _ = read_jsonl(file, ColumnsConfig(), "stop")
        self.tokenizer = load_tokenizer(self.model_dir)
        tokens = self.scratch / "tokens.jsonl"
        self.data: TokenFile = write_tokens(rows, self.tokenizer, tokens, arguments.samples, _MAX_LENGTH, ROWS_PER_STEP)
        self.pythons: dict[str | None, str] = {None: sys.executable}
        for name in {case.environment for case in arguments.chosen if case.environment}:
            try:
                self.pythons[name] = environments.python_of(name, arguments.directory.resolve() / "peers")
            except TrntuneError as error:
                self.failures.update({case.name: str(error) for case in arguments.chosen if case.environment == name})

    def _measure(self, case: Case, number: int) -> None:
        """One case once, behind a measurement of the ceiling."""
        ceiling = self._ceiling()
        settings = case.settings
        if case.environment is None:
            settings = {"overrides": [*self.overrides, *settings.get("more", ())]}
        scratch = self.scratch / f"{number}-{len(self.results[case.name])}-{CASES.index(case)}"
        scratch.mkdir()
        job = {
            "model": str(self.model_dir),
            "tokens": str(self.data.path),
            "directory": str(scratch),
            "method": self.arguments.method,
            "lora": _LORA,
            "learning_rate": 1e-4,
            "max_length": _MAX_LENGTH,
            "pad_token_id": self.tokenizer.pad_token_id,
            "precision": self.arguments.precision,
            "device": self.arguments.device,
            "threads": self.arguments.threads,
            "seed": 0,
            "settings": settings,
        }
        file = scratch / "job.json"
        file.write_text(json.dumps(job), encoding="utf-8")
        command = [*shlex.split(self.arguments.prefix), self.pythons[case.environment], str(_WORKERS / case.worker)]
        done = run([*command, str(file)], self.arguments.threads, ours=case.environment is None)
        result = file.with_suffix(".result.json")
        if done.returncode or not result.is_file():
            self.failures[case.name] = reason(done)
            print(f"{case.name}: {self.failures[case.name]}", flush=True)
            return
        measured = {**json.loads(result.read_text(encoding="utf-8")), "ceiling_flops_per_second": ceiling}
        self.results[case.name].append(measured)
        print(f"round {number + 1}  {case.name:<40} {self.data.tokens / measured['seconds']:7.1f} tokens/s", flush=True)

    def _ceiling(self) -> float:
        given = self.arguments
        return ceiling(self.architecture, _MAX_LENGTH, given.device, given.precision, given.prefix, given.threads)

    def _report(self) -> None:
        """The table, what could not run and why, what is not the same work, and the JSON file."""
        arguments = self.arguments
        summaries = {
            name: summary(results, self.data, self.architecture, arguments.method, arguments.threads)
            for name, results in self.results.items()
            if results
        }
        notes = {case.name: case.note for case in arguments.chosen if case.note}
        show(comparison_table(summaries, self._title()), width=150)
        for name, why in self.failures.items():
            print(f"could not run: {name}: {why}")
        for name, note in notes.items():
            print(f"{name}: {note}")
        content = {
            "benchmark": "training",
            "settings": {key: getattr(arguments, key) for key in ("method", "model", "device", "precision", "threads")},
            "data": {**asdict(self.data), "path": str(arguments.data or "python_docs")},
            "summaries": summaries,
            "results": self.results,
            "failures": self.failures,
            "notes": notes,
            "software": software(),
        }
        file = arguments.directory / f"training_{arguments.method}_{arguments.device}.json"
        file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        print(f"all samples: {file}")

    def _title(self) -> str:
        data, given = self.data, self.arguments
        what = f"{given.method}, {given.model}, {given.device}, {given.precision}, threads: {given.threads}"
        mean, trained = data.tokens / data.samples, data.trained / data.tokens
        return f"{what}; {data.samples} samples of {mean:.0f} tokens, {trained:.0%} trained on, {given.repeats} rounds"


if __name__ == "__main__":
    sys.exit(main())

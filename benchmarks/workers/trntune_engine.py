"""This project's torch engine, as the training stage runs it, without evaluations, checkpoints and tracking."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from common import Meter, examples, run


def work(job: dict[str, Any], meter: Meter) -> None:
    from benchmarks.training.workload import packed
    from launcher.cli import parse
    from launcher.config.compose import compose
    from launcher.config.schema import Config
    from trainer.data.tokenize import Example
    from trainer.engines.base import create_engine
    from trainer.metrics.throughput import Stopwatch
    from trainer.models.load import load_tokenizer
    from trainer.signals import Stop

    class TrainingCallback:
        def on_step(self, report: Any) -> None:
            meter.step()
            meter.losses.append(report.counts.loss_sum / report.counts.trained)

        def on_evaluation(self, step: int, loss: float) -> None: ...

        def stop_requested(self) -> Stop:
            return Stop.NO

        def lines(self, rows: list[int]) -> list[int]:
            return rows

    class NoCheckpoints:
        resumed = None
        saved_step = 0

        def due(self, *steps: int) -> bool:
            return False

        def poll(self) -> None: ...

        def wait(self) -> None: ...

    config = compose(parse(job["settings"]["overrides"])).runs[0].config
    assert isinstance(config, Config)
    engine: Any = create_engine(config)
    engine.load(Path(job["model"]), load_tokenizer(Path(job["model"])))
    rows = packed([Example(row["input_ids"], row["labels"]) for row in examples(job)], job["max_length"])
    rows += [[] for _ in range(-len(rows) % config.training.global_batch_size)]
    meter.begin()
    engine.fit(rows, [], TrainingCallback(), NoCheckpoints(), Stopwatch())
    engine.close()


if __name__ == "__main__":
    run(work, ("torch", "transformers", "peft", "trntune"))

"""What a person sees while it trains: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

_LOG_SECONDS = 10.0


def clock(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss."""
    minutes, second = divmod(int(seconds + 0.5), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"


class Progress:
    """Loss, real tokens a second and the time left. ``visible`` is False on ranks other than 0."""

    def __init__(self, total_steps: int, visible: bool = True) -> None:
        self.total = total_steps
        self.visible = visible
        self.console = Console(file=sys.stderr)
        self._bar: Bar | None = None
        self._started, self._done = time.monotonic(), 0
        self._last_line = 0.0
        self._speed = 0.0

    def message(self, text: str) -> None:
        """One line about what happens now."""
        if self.visible:
            self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def start(self, done: int = 0) -> None:
        """Begin to count the time of training; ``done`` steps were done by an earlier attempt."""
        self._started, self._done = time.monotonic(), done
        if self.visible and self.console.is_terminal:
            self._bar = Bar(
                TextColumn("training"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TextColumn("loss {task.fields[loss]}  {task.fields[speed]} tokens/s  left"),
                TimeRemainingColumn(),
                console=self.console,
            )
            self._task = self._bar.add_task("training", total=self.total, completed=done, loss="  -  ", speed="  -")
            self._bar.start()

    def step(self, step: int, loss: float, tokens_per_second: float) -> None:
        """Show a finished step; the speed is smoothed over about ten of them."""
        if not self.visible:
            return
        first = self._speed == 0
        self._speed = tokens_per_second if first else 0.9 * self._speed + 0.1 * tokens_per_second
        if self._bar is not None:
            self._bar.update(self._task, completed=step, loss=f"{loss:.4f}", speed=f"{self._speed:,.0f}")
        elif first or step == self.total or time.monotonic() - self._last_line >= _LOG_SECONDS:
            self._last_line = time.monotonic()
            left = (self._last_line - self._started) / (step - self._done) * (self.total - step)
            self.message(f"step {step}/{self.total}  loss {loss:.4f}  {self._speed:,.0f} tokens/s  {clock(left)} left")

    def evaluation(self, step: int, loss: float) -> None:
        """Show a held-out loss."""
        self.message(f"held-out loss {'before training' if step == 0 else f'after step {step}'}: {loss:.4f}")

    def stop(self) -> None:
        """Leave the bar as it stands."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

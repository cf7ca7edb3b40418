"""Progress on a terminal, in go-metal's layout."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Mapping
from typing import TextIO

from .callbacks import Callback, Event

WIDTH = 70  # characters of the bar, as in go-metal
FULL = "\u2588"


class ProgressBar:
    """``Epoch 1/2:  50%|████    | 5/10 [00:01<00:01, 4.20batch/s, loss=0.512, accuracy=81.25%]`` on one line.

    Args:
        description: in front of the percentage.
        total: steps; 0 shows an empty bar at 100 %.
        file: where to draw; default standard error.
        width: characters of the bar.
    Source: go-metal training/progress.go.
    """

    def __init__(self, description: str, total: int, *, file: TextIO | None = None, width: int = WIDTH) -> None:
        self.description, self.total, self.width = description, max(total, 0), width
        self.file = file
        self.current = 0
        self._metrics: dict[str, float] = {}
        self._start = time.perf_counter()
        self._drawn = 0

    def update(self, step: int, metrics: Mapping[str, float] | None = None) -> None:
        """Go to a step and replace the metrics shown."""
        self.current = step
        self._metrics = dict(metrics or {})
        self._draw()

    def update_metrics(self, metrics: Mapping[str, float]) -> None:
        """Add to the metrics shown."""
        self._metrics |= metrics
        self._draw()

    def finish(self) -> None:
        """Fill the bar and end the line, which is shown whole."""
        self.current = self.total
        self._draw(self.line(whole=True))
        self._write("\n")
        self._drawn = 0

    def leave(self) -> None:
        """End the line as it is, if there is one."""
        if self._drawn:
            self._write("\n")
        self._drawn = 0

    def line(self, *, whole: bool = False) -> str:
        """What is drawn; on a terminal the bar is shorter, and the end left out (or not), where it would not fit."""
        elapsed = time.perf_counter() - self._start
        share = min(max(self.current / self.total, 0.0), 1.0) if self.total else 1.0
        left = elapsed / share - elapsed if share else 0.0
        rate = f", {self.current / elapsed:.2f}batch/s" if self.current > 0 and elapsed > 0 else ""
        shown = "".join(f", {k}={_metric(k, v)}" for k, v in self._metrics.items())
        times = f"{_clock(elapsed)}<{_clock(left)}"
        before = f"{self.description}: {share * 100:3.0f}%|"
        after = f"| {self.current}/{self.total} [{times}{rate}{shown}]"
        columns = self._columns()
        width = max(0, min(self.width, columns - len(before) - len(after)))
        filled = math.floor(share * width)
        return f"{before}{FULL * filled}{' ' * (width - filled)}{after}"[: None if whole else columns]

    def _columns(self) -> int:
        """How many characters a line may have: one more and a terminal would begin the next line."""
        try:
            file = self.file or sys.stderr  # a notebook's has the number of the server's terminal
            columns = os.get_terminal_size(file.fileno()).columns if file.isatty() else 0
        except (OSError, ValueError, AttributeError):  # nothing like a file
            columns = 0
        return columns - 1 if columns else sys.maxsize  # there are terminals that do not say

    def _draw(self, line: str | None = None) -> None:
        line = line or self.line()
        self._write("\r" + line.ljust(self._drawn))
        self._drawn = len(line)

    def _write(self, text: str) -> None:
        file = self.file or sys.stderr
        if file is not None:  # a process without a terminal may have none
            file.write(text)
            file.flush()


def _clock(seconds: float) -> str:
    whole = max(int(seconds), 0)
    return f"{whole // 60:02}:{whole % 60:02}"


def _metric(name: str, value: float) -> str:
    return f"{value * 100:.2f}%" if "acc" in name else f"{value:.3f}"


class ProgressPrinter(Callback):
    """Draws a bar for each epoch of ``fit``.

    Args:
        file: where to draw; default standard error.
        interval_s: least time between two redraws; reading the numbers makes the loop wait for them.
        width: characters of the bar.
    """

    def __init__(self, *, file: TextIO | None = None, interval_s: float = 0.1, width: int = 30) -> None:
        self.file, self.interval_s, self.width = file, interval_s, width
        self._bar: ProgressBar | None = None
        self._drawn_at = 0.0

    def on_epoch_begin(self, event: Event) -> None:
        title = f"Epoch {event.epoch}/{event.epochs}"
        self._bar = ProgressBar(title, event.batches, file=self.file, width=self.width)
        self._drawn_at = 0.0

    def on_step_end(self, event: Event) -> None:
        now = time.monotonic()
        if self._bar and event.result and now - self._drawn_at >= self.interval_s:
            self._drawn_at = now
            metrics = {"loss": event.result.loss}
            if event.result.accuracy is not None:
                metrics["accuracy"] = event.result.accuracy
            self._bar.update(event.batch, metrics)

    def on_epoch_end(self, event: Event) -> None:
        if self._bar:
            shown = {k: v for k, v in (event.metrics or {}).items() if "loss" in k or "accuracy" in k}
            self._bar.update(event.batches, shown)
            self._bar.finish()

    def on_interrupt(self, event: Event) -> None:
        if self._bar:  # what is told next begins a line of its own
            self._bar.leave()

"""What saving costs the training loop: nothing saved, saved in the training thread, saved in a thread of its own.

    python benchmarks/async_save.py        # writes async_save.md and async_save.json beside itself

An MLP of ten million parameters trains with Adam (a file has thirty million numbers), compiled, in one long ``fit``.
It is cut into segments of as many steps as two and a half saves take. At the start of each one nothing is
saved, or a checkpoint in the training thread, or one in a thread of its own; its end waits until the file is finished.
The three take turns in random order. What a save costs is the time of its segment above the one without a save in the
same round; the medians are compared. The target is that an asynchronous save costs less than a tenth of a synchronous
one. BLAS may use one thread or two: on a machine of two processors the second leaves none free for the writer.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
HIDDEN = (2048, 2048, 1536, 352)  # Dense layers behind 1024 inputs, before 10 outputs: 9,987,562 parameters
BATCH = 16
ROUNDS = 40
FORMATS = {"SAFETENSORS": 1, "JSON": 3}  # the latter, which takes ten times as long, has a third of the rounds
KINDS = ("none", "sync", "async")
THREADS = (1, 2)
TARGET = 0.1


def measure(rounds: int) -> dict[str, Any]:
    """Seconds of the segments and of the calls that save, by format and kind, for the BLAS threads of this process."""
    import numpy as np

    from gometal_mlx import ModelBuilder
    from gometal_mlx.training import ModelTrainer, TrainerConfig

    builder = ModelBuilder((BATCH, 1024))
    for i, size in enumerate(HIDDEN, 1):
        builder.add_dense(size, name=f"fc{i}").add_relu(f"relu{i}")
    # a rate at which nothing is learned, so that the last segment is like the first
    settings = TrainerConfig(batch_size=BATCH, seed=0, learning_rate=1e-6)
    trainer = ModelTrainer(builder.add_dense(10, name="out").compile(), settings)
    rng = np.random.default_rng(0)
    data = rng.standard_normal((BATCH * 32, 1024)).astype(np.float32), rng.integers(0, 10, BATCH * 32)
    trainer.fit(data, 1)  # compiles
    start = time.perf_counter()
    trainer.fit(data, 1)
    step = (time.perf_counter() - start) / 32
    found: dict[str, Any] = {"seconds_per_step": step}
    with tempfile.TemporaryDirectory() as folder:
        for format, share in FORMATS.items():
            found[format] = segments(trainer, data, format, rounds // share, step, Path(folder))
    return found


def segments(trainer: Any, data: Any, format: str, rounds: int, step: float, folder: Path) -> dict[str, Any]:
    from gometal_mlx.training import Callback, CheckpointConfig, CheckpointManager

    def manager(kind: str) -> CheckpointManager:
        settings: dict[str, Any] = {"format": format, "async_save": kind == "async", "max_checkpoints": 1}
        return CheckpointManager(trainer, CheckpointConfig(folder / format / kind, **settings))

    managers = {kind: manager(kind) for kind in KINDS[1:]}
    start = time.perf_counter()
    managers["sync"].save_checkpoint()
    length = max(8, math.ceil(2.5 * (time.perf_counter() - start) / step))
    order, shuffle = [], random.Random(0)
    for _ in range(rounds + 1):
        order += shuffle.sample(KINDS, 3)
    took: dict[str, list[float]] = {kind: [] for kind in KINDS}
    calls: dict[str, list[float]] = {kind: [] for kind in KINDS}

    class Segments(Callback):
        """Ends a segment and begins the next one."""

        at = steps = 0
        began = time.perf_counter()

        def on_step_end(self, event: Any) -> None:
            self.steps += 1
            if self.steps % length or self.at > len(order):
                return
            managers["async"].wait()
            now = time.perf_counter()
            if self.at:
                took[order[self.at - 1]].append(now - self.began)
            self.at += 1
            if self.at > len(order):
                return
            self.began, kind = now, order[self.at - 1]
            if kind != "none":
                managers[kind].save_checkpoint()
            calls[kind].append(time.perf_counter() - now)

    trainer.fit(data, math.ceil(length * (len(order) + 2) / 32), callbacks=[Segments()])
    for m in managers.values():
        m.close()
    # the first round warms the page cache
    return {
        "steps": length,
        "segments": {k: [round(t, 5) for t in v[1:]] for k, v in took.items()},
        "calls": {k: [round(t, 5) for t in v[1:]] for k, v in calls.items()},
    }


def cost(row: dict[str, Any], kind: str) -> list[float]:
    """Quartiles of the seconds that a save costs."""
    pairs = zip(row["segments"][kind], row["segments"]["none"], strict=True)
    return statistics.quantiles([a - b for a, b in pairs], n=4)


def report(found: dict[str, Any]) -> str:
    """The results as Markdown."""
    rounds = " and ".join(str(len(found["1"][f]["segments"]["none"])) for f in FORMATS)
    lines = [
        "# What a save costs the training loop",
        "",
        f"{found['machine']}. MLP of 9,987,562 parameters, Adam, batches of {BATCH}, compiled; {rounds} rounds.",
        "Medians, with the quartiles in brackets.",
        "",
        "| BLAS threads | format | a step | a segment | cost: sync | async | of which the call | async / sync |",
        "|---:|---|---:|---:|---:|---:|---:|---:|",
    ]
    for threads in map(str, THREADS):
        step = f"{1000 * found[threads]['seconds_per_step']:.0f} ms"
        for format in FORMATS:
            row = found[threads][format]
            sync, background = cost(row, "sync"), cost(row, "async")
            call = f"{1000 * statistics.median(row['calls']['async']):.1f} ms"
            share = f"{background[1] / sync[1]:.1%}, {'met' if background[1] < TARGET * sync[1] else 'MISSED'}"
            cells = [threads, format, step, f"{row['steps']} steps", shown(sync), shown(background), call, share]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def shown(quartiles: list[float]) -> str:
    low, middle, high = (1000 * v for v in quartiles)
    return f"{middle:.0f} ms ({low:.0f} to {high:.0f})"


def main(rounds: int = ROUNDS) -> str:
    """Measure, write async_save.json and async_save.md, and return the latter's text."""
    found: dict[str, Any] = {
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} processors",
    }
    for threads in THREADS:
        child = [sys.executable, __file__, "--rounds", str(rounds), "--work"]
        names = {name: str(threads) for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")}
        done = subprocess.run(child, env={**os.environ, **names}, check=True, stdout=subprocess.PIPE, text=True)
        found[str(threads)] = json.loads(done.stdout)
    text = report(found)
    (FOLDER / "async_save.json").write_text(json.dumps(found, indent=1) + "\n")
    (FOLDER / "async_save.md").write_text(text)
    return text


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    print(json.dumps(measure(options.rounds)) if options.work else main(options.rounds))

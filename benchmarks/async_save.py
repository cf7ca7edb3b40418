"""What saving costs the training loop: nothing saved, saved in the training thread, saved in a thread of its own.

    python benchmarks/async_save.py        # writes async_save.md and async_save.json beside itself

An MLP of ten million parameters trains with Adam (a file has thirty million numbers), compiled. A loop is one call of
``fit``; it saves twice and goes on until the second file is finished. Loops of the three kinds take turns.
The cost of a save is measured twice. By loops: the loop's time above that of the loop without saves in the same round.
By steps: the time of the call that saves, and how much longer than its neighbours a step takes while a file is being
written; that says the same of a quiet machine, and still something of a busy one. The target is that an asynchronous
save costs less than a tenth of a synchronous one.
Two threads share a processor's caches, memory and power, whatever they do. How much that alone slows a step down is
measured with a thread that only computes SHA-256 of 64 KB in C, without Python's lock.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import platform
import statistics
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
HIDDEN = (2048, 2048, 1536, 352)  # Dense layers behind 1024 inputs, before 10 outputs: 9,987,562 parameters
BATCH = 16
SAVES = 2
ROUNDS = 7
FORMATS = ("JSON", "SAFETENSORS")
KINDS = ("none", "sync", "async")
TARGET = 0.1


def new_trainer() -> Any:
    from gometal_mlx import ModelBuilder
    from gometal_mlx.training import ModelTrainer, TrainerConfig

    builder = ModelBuilder((BATCH, 1024))
    for i, size in enumerate(HIDDEN, 1):
        builder.add_dense(size, name=f"fc{i}").add_relu(f"relu{i}")
    return ModelTrainer(builder.add_dense(10, name="out").compile(), TrainerConfig(batch_size=BATCH, seed=0))


def loop(trainer: Any, kind: str, format: str, interval: int, folder: Path) -> dict[str, Any]:
    """Seconds of one fit, of every call that saves, and of the steps with and without a file being written."""
    import numpy as np

    from gometal_mlx.training import CheckpointConfig, CheckpointManager

    steps = interval * (SAVES + 1) - 1
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((BATCH * 8, 1024)).astype(np.float32)
    x = np.tile(rows, (math.ceil(steps / 8), 1))[: steps * BATCH]
    y = rng.integers(0, 10, len(x))
    calls: list[float] = []
    times: dict[bool, list[float]] = {False: [], True: []}  # steps by whether a file was being written

    class Timed(CheckpointManager):
        ended = 0.0
        writing = False

        def running(self) -> bool:
            return self._job is not None and not self._job.done()

        def on_step_end(self, event: Any) -> None:
            start = time.perf_counter()
            if self.ended:
                times[self.writing].append(start - self.ended)
            super().on_step_end(event)
            self.ended, self.writing = time.perf_counter(), self.running()
            if event.batch % interval == 0:
                calls.append(self.ended - start)

    config = CheckpointConfig(
        folder, format=format, async_save=kind == "async", every_steps=interval, save_frequency=0, save_best=False,
        max_checkpoints=1,
    )  # fmt: skip
    manager = Timed(trainer, config) if kind != "none" else None
    start = time.perf_counter()
    trainer.fit((x, y), 1, checkpoints=manager)
    took = time.perf_counter() - start
    if manager:
        manager.close()
    return {"seconds": took, "steps": steps, "calls": calls, "writing": times[True], "quiet": times[False]}


def measure(rounds: int) -> dict[str, Any]:
    """Everything, as JSON values."""
    trainer = new_trainer()
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        loop(trainer, "none", "JSON", 4, folder)  # compiles
        step = loop(trainer, "none", "JSON", 8, folder)
        per_step = step["seconds"] / step["steps"]
        slowed = slowed_by_hashing(trainer, folder)
        for format in FORMATS:
            alone = [seconds_of_a_save(trainer, format, folder) for _ in range(3)]
            interval = max(4, math.ceil(2 * statistics.median(alone) / per_step))
            loops: dict[str, list[dict[str, float]]] = {kind: [] for kind in KINDS}
            for at in range(rounds):
                for kind in KINDS[at % 3 :] + KINDS[: at % 3]:
                    loops[kind].append(loop(trainer, kind, format, interval, folder))
            found[format] = {"interval": interval, "loops": loops}
    return {
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} processors",
        "seconds_per_step": per_step,
        "slowed_by_hashing": slowed,
        "formats": found,
    }


def slowed_by_hashing(trainer: Any, folder: Path) -> float:
    """By which factor a step takes longer beside a thread that computes in C."""
    block, stop = memoryview(bytes(1 << 16)), threading.Event()

    def work() -> None:
        digest = hashlib.sha256()
        while not stop.is_set():
            digest.update(block)

    quiet, busy = [], []
    for _ in range(3):
        quiet.append(loop(trainer, "none", "JSON", 4, folder)["seconds"])
        stop.clear()
        thread = threading.Thread(target=work)
        thread.start()
        busy.append(loop(trainer, "none", "JSON", 4, folder)["seconds"])
        stop.set()
        thread.join()
    return statistics.median(busy) / statistics.median(quiet)


def seconds_of_a_save(trainer: Any, format: str, folder: Path) -> float:
    from gometal_mlx import save

    path = folder / f"alone.{format.lower()}"
    start = time.perf_counter()
    save(trainer.checkpoint(), path)
    took = time.perf_counter() - start
    path.unlink()
    return took


def by_loops(loops: dict[str, list[dict[str, Any]]], kind: str) -> float:
    """Seconds that a save costs: the median of the rounds."""
    pairs = zip(loops[kind], loops["none"], strict=True)
    return statistics.median((a["seconds"] - b["seconds"]) / SAVES for a, b in pairs)


def by_steps(loops: list[dict[str, Any]]) -> tuple[float, float]:
    """Seconds of the call, and by which the steps during a write are longer than the others, for one save."""
    call = statistics.median(c for v in loops for c in v["calls"])
    writing, quiet = ([t for v in loops for t in v[name]] for name in ("writing", "quiet"))
    if not writing:
        return call, 0.0
    return call, (statistics.median(writing) - statistics.median(quiet)) * len(writing) / len(loops) / SAVES


def report(found: dict[str, Any]) -> str:
    """The results as Markdown."""
    rounds = len(next(iter(found["formats"].values()))["loops"]["none"])
    step = 1000 * found["seconds_per_step"]
    lines = [
        "# What a save costs the training loop",
        "",
        f"{found['machine']}. MLP of 9,987,562 parameters, Adam, batches of {BATCH}, compiled; {step:.0f} ms a step.",
        f"Medians; {rounds} rounds, {SAVES} saves a loop.",
        f"A step beside a thread that only hashes takes {found['slowed_by_hashing'] - 1:+.1%} longer.",
        "",
        "| format | loop without saves | sync | async | cost of a save by loops: sync | async | async / sync "
        "| by steps: sync | async: the call | slower steps | async / sync |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for format, row in found["formats"].items():
        loops = row["loops"]
        totals = [f"{statistics.median(v['seconds'] for v in loops[kind]):.2f} s" for kind in KINDS]
        sync, background = by_loops(loops, "sync"), by_loops(loops, "async")
        alone, _ = by_steps(loops["sync"])
        call, slower = by_steps(loops["async"])
        cells = [f"{sync:.3f} s", f"{background:.3f} s", share(background, sync)]
        cells += [f"{alone:.3f} s", f"{call:.3f} s", f"{slower:.3f} s", share(call + slower, alone)]
        lines.append(f"| {' | '.join([format, *totals, *cells])} |")
    return "\n".join(lines) + "\n"


def share(part: float, whole: float) -> str:
    return f"{part / whole:.1%}, {'met' if part < TARGET * whole else 'MISSED'}"


def main(rounds: int = ROUNDS) -> str:
    """Measure, write async_save.json and async_save.md, and return the latter's text."""
    found = measure(rounds)
    text = report(found)
    (FOLDER / "async_save.json").write_text(json.dumps(found, indent=2) + "\n")
    (FOLDER / "async_save.md").write_text(text)
    return text


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    print(main(parser.parse_args().rounds))

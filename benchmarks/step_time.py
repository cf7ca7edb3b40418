"""Milliseconds of a training step: gometal_mlx, MLX by hand, MLX as shipped, PyTorch.

Every contestant is a process of its own, and they take turns in one run, so that what else the machine does hits all
of them alike: trust the ratios. Between turns all rest, for MKL's threads wait a fifth of a second by spinning. A turn
is a run of steps on fresh random batches (a batch that is learned by heart has gradients too small for normal numbers,
which are slow), from numpy arrays to the updated weights. Everyone who uses MLX has kernels of his own, in a folder
that is empty at first. Where MKL is installed, gometal_mlx takes part twice, with it and without.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

Times = dict[str, dict[str, list[float]]]
Seconds = tuple[float, float]
Step = Callable[[np.ndarray, np.ndarray], object]
Turn = tuple[Step, Callable[[], object]]  # one step, and what waits for all that were begun

FOLDER = Path(__file__).parent
CASES = {
    "MLP, batch 32": ("mlp", 32), "MLP, batch 256": ("mlp", 256), "CNN, batch 32": ("cnn", 32),
    "CNN with BatchNorm, batch 32": ("norm", 32),
}  # fmt: skip
CONTESTANTS = {
    "gometal": "gometal_mlx",
    "openblas": "gometal_mlx without MKL",
    "hand": "MLX by hand, compiled",
    "hand_conv": "the same with our convolution",
    "shipped": "mlx.nn as shipped",
    "torch": "PyTorch eager",
    "torch_compiled": "PyTorch compiled",
}
SHIPPED = {"GOMETAL_BLAS": "off", "LD_PRELOAD": ""}  # environment of a process with the BLAS of MLX's wheel
ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
TURN_SECONDS = 0.25
REST_SECONDS = 0.25  # more than threads spin: MKL's 0.2
PLAIN_SHARE = 5  # MLX as shipped has every fifth turn only: it is slow

INPUTS = {"mlp": (784,), "cnn": (3, 32, 32), "norm": (3, 32, 32)}


# --------------------------------------------------------------------------------------------------------- contestants


def gometal(kind: str, batch: int) -> Turn:
    """ModelTrainer.train_batch, with its defaults."""
    import gometal_mlx as gm  # isort: skip  (before mlx, whose BLAS it chooses)
    import mlx.core as mx

    trainer = gm.ModelTrainer(spec(kind, batch), gm.TrainerConfig(learning_rate=1e-3, optimizer_type="Adam", seed=0))
    return trainer.train_batch, lambda: mx.eval(trainer.model.state, trainer.optimizer.state)


def spec(kind: str, batch: int) -> Any:
    """The models as a ModelSpec."""
    import gometal_mlx as gm

    builder = gm.ModelBuilder((batch, *INPUTS[kind]))
    if kind == "cnn":
        builder.add_conv2d(32, 3, 1, 1).add_relu().add_conv2d(64, 3, 2, 1).add_relu().add_dense(128).add_relu()
    elif kind == "norm":
        builder.add_conv2d(32, 3, 1, 1, use_bias=False).add_batch_norm().add_relu()
        builder.add_conv2d(64, 3, 2, 1, use_bias=False).add_batch_norm().add_relu().add_dense(128).add_relu()
    else:
        for width in (512, 256, 128):
            builder.add_dense(width).add_relu()
    return builder.add_dense(10).compile()


def by_hand(kind: str, batch: int, *, compiled: bool = True, our_blas: bool = True, our_conv: bool = False) -> Turn:
    """What one would write with mlx.nn; compiled, the model's and the optimizer's state go in and out."""
    if our_blas:
        import gometal_mlx  # noqa: F401  # isort: skip
    import mlx.core as mx
    import mlx.nn as nn
    import mlx.optimizers as optim

    model = mlx_model(kind, our_conv=our_conv)
    optimizer = optim.Adam(1e-3, bias_correction=True)
    optimizer.init(model.trainable_parameters())
    state = [model.state, optimizer.state]
    mx.eval(state)
    gradient = nn.value_and_grad(model, lambda x, y: nn.losses.cross_entropy(model(x), y, reduction="mean"))

    def step(x: mx.array, y: mx.array) -> mx.array:
        loss, gradients = gradient(x, y)
        optimizer.update(model, gradients)
        return loss

    run = mx.compile(step, inputs=state, outputs=state) if compiled else step

    def one(x: np.ndarray, y: np.ndarray) -> None:
        loss = run(mx.array(x if x.ndim == 2 else x.transpose(0, 2, 3, 1)), mx.array(y))
        mx.eval(state, loss)

    return one, lambda: None


def mlx_model(kind: str, *, our_conv: bool = False) -> Any:
    """The models in mlx.nn, channels last."""
    import mlx.core as mx
    import mlx.nn as nn

    class Ours(nn.Conv2d):  # type: ignore[misc]
        def __call__(self, x: mx.array) -> mx.array:
            from gometal_mlx.layers._conv import conv2d

            return conv2d(x, self.weight, self.get("bias"), self.stride[0], self.padding[0])

    conv = Ours if our_conv else nn.Conv2d
    if kind != "mlp":
        norm = kind == "norm"
        first, second = conv(3, 32, 3, 1, 1, bias=not norm), conv(32, 64, 3, 2, 1, bias=not norm)
        after = ([nn.BatchNorm(n), nn.ReLU()] if norm else [nn.ReLU()] for n in (32, 64))
        flat = [partial(mx.flatten, start_axis=1), nn.Linear(64 * 16 * 16, 128), nn.ReLU(), nn.Linear(128, 10)]
        return nn.Sequential(first, *next(after), second, *next(after), *flat)
    sizes = (784, 512, 256, 128, 10)
    layers = [part for a, b in itertools.pairwise(sizes) for part in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


def torch_model(kind: str) -> Any:
    """The models in torch.nn."""
    from torch import nn

    if kind != "mlp":
        norm = kind == "norm"
        first, second = nn.Conv2d(3, 32, 3, 1, 1, bias=not norm), nn.Conv2d(32, 64, 3, 2, 1, bias=not norm)
        after = ([nn.BatchNorm2d(n), nn.ReLU()] if norm else [nn.ReLU()] for n in (32, 64))
        flat = [nn.Flatten(), nn.Linear(64 * 16 * 16, 128), nn.ReLU(), nn.Linear(128, 10)]
        return nn.Sequential(first, *next(after), second, *next(after), *flat)
    sizes = (784, 512, 256, 128, 10)
    layers = [part for a, b in itertools.pairwise(sizes) for part in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


def torch(kind: str, batch: int, *, compiled: bool = False) -> Turn:
    """PyTorch as in its tutorials."""
    import torch

    model = torch.compile(torch_model(kind)) if compiled else torch_model(kind)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    def one(x: np.ndarray, y: np.ndarray) -> None:
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(torch.from_numpy(x)), torch.from_numpy(y))
        loss.backward()
        optimizer.step()

    return one, lambda: None


MAKE: dict[str, Callable[[str, int], Turn]] = {
    "gometal": gometal,
    "openblas": gometal,
    "hand": by_hand,
    "hand_conv": partial(by_hand, our_conv=True),
    "shipped": partial(by_hand, compiled=False, our_blas=False),
    "torch": torch,
    "torch_compiled": partial(torch, compiled=True),
}


# --------------------------------------------------------------------------------------------------------------- turns


def batches(kind: str, batch: int, rng: np.random.Generator) -> list[tuple[np.ndarray, np.ndarray]]:
    """A few random batches."""
    shape = (batch, *INPUTS[kind])
    return [(rng.standard_normal(shape, np.float32), rng.integers(0, 10, batch)) for _ in range(4)]


def turn(make: Callable[[str, int], Turn], kind: str, batch: int) -> Callable[[], Seconds]:
    """A function that runs steps for TURN_SECONDS and returns seconds a step, elapsed and of the processor."""
    step, wait = make(kind, batch)
    rng = np.random.default_rng(0)

    def run() -> Seconds:
        given = batches(kind, batch, rng)
        step(*given[0])  # wakes up caches and threads
        wait()
        start, processor, count = time.perf_counter(), time.process_time(), 0
        while count < 2 or time.perf_counter() - start < TURN_SECONDS:
            step(*given[count % len(given)])
            count += 1
        wait()
        return (time.perf_counter() - start) / count, (time.process_time() - processor) / count

    return run


def work(make: Mapping[str, Callable[[str, int], Turn]], name: str) -> None:
    """A contestant's process: reads a model and a batch size a line, answers with both times of a step."""
    if name == "openblas":
        is_file = os.path.isfile
        os.path.isfile = lambda path: "libmkl_rt" not in str(path) and is_file(path)
    ready: dict[str, Callable[[], Seconds]] = {}
    for line in sys.stdin:
        kind, batch = line.split()
        if line not in ready:
            ready[line] = turn(make[name], kind, int(batch))
            ready[line]()  # compiles
        print(*ready[line](), flush=True)


class Worker:
    """A contestant's process, from outside."""

    def __init__(self, script: str, name: str, *, one_thread: bool) -> None:
        self.one_thread = one_thread
        self.kernels = tempfile.TemporaryDirectory()
        environment = {**os.environ, **(SHIPPED if name == "shipped" else {}), **(ONE_THREAD if one_thread else {})}
        if not name.startswith("torch"):  # which keeps what it has compiled there, and needs minutes for it
            environment["TMPDIR"] = self.kernels.name
        self.process = subprocess.Popen(
            [sys.executable, script, "--work", name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment,
            text=True,
        )  # fmt: skip

    def ask(self, kind: str, batch: int) -> float:
        """Milliseconds a step; of the processor, if there is one thread."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(f"{kind} {batch}\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError(f"{self.process.args}: ended with {self.process.wait()}")
        return float(answer.split()[self.one_thread]) * 1e3

    def close(self) -> None:
        """End it."""
        self.process.communicate()
        self.kernels.cleanup()


def installed(names: Iterable[str]) -> list[str]:
    """The contestants that can take part; PyTorch and MKL are no dependencies."""
    from importlib.util import find_spec

    from gometal_mlx._blas import STATUS

    missing = [] if find_spec("torch") else ["torch", "torch_compiled"]
    missing += [] if "libmkl_rt" in (STATUS.path or "") else ["openblas"]
    return [n for n in names if n not in missing]


def measure(
    script: str, cases: Mapping[str, tuple[str, int]], names: list[str], rounds: int, *, one_thread: bool = False
) -> Times:
    """Times by case and contestant, in milliseconds."""
    workers = {name: Worker(script, name, one_thread=one_thread) for name in names}
    times: Times = {case: {name: [] for name in names} for case in cases}
    try:
        for i in range(rounds):
            for case, (kind, batch) in cases.items():
                for name in names:
                    if (name == "hand_conv" and kind == "mlp") or (name == "shipped" and i % PLAIN_SHARE):
                        continue
                    time.sleep(REST_SECONDS)
                    times[case][name].append(workers[name].ask(kind, batch))
                    print(".", end="", flush=True, file=sys.stderr)
    finally:
        for worker in workers.values():
            worker.close()
        print(file=sys.stderr)
    return times


def command(
    description: str | None, make: Mapping[str, Callable[[str, int], Turn]], main: Callable[[int], str]
) -> None:
    """The command line of a benchmark with contestants: measure, or be one of them."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--work", help=argparse.SUPPRESS)
    parser.add_argument("--rounds", type=int, default=25, help="turns of each contestant")
    options = parser.parse_args()
    if options.work:
        work(make, options.work)
    else:
        print(main(options.rounds))


# -------------------------------------------------------------------------------------------------------------- report


def summary(values: list[float], row: Mapping[str, list[float]]) -> dict[str, float]:
    """Median, quartiles, and the medians of ours / theirs within each round."""
    step = max(1, len(row["gometal"]) // len(values))  # some have fewer turns
    ratios = {
        f"{ours}_ratio": round(statistics.median(a / b for a, b in zip(row[ours][::step], values, strict=False)), 3)
        for ours in ("gometal", "openblas")
        if row.get(ours)
    }
    low, middle, high = statistics.quantiles(values, n=4) if len(values) > 1 else [values[0]] * 3
    return {
        "median_ms": round(middle, 3), "least_ms": round(min(values), 3),
        "quartile1_ms": round(low, 3), "quartile3_ms": round(high, 3),
        "turns": len(values), **ratios,
    }  # fmt: skip


def report(title: str, note: str, names: Mapping[str, str], times: Times, one_thread: Times, stem: str) -> str:
    """Write ``stem``.md and .json; return the Markdown."""
    found = {"elapsed": table_of(times), "processor time, one thread": table_of(one_thread)}
    lines = [f"# {title}", "", note, "", machine()]
    for what, rows in found.items():
        used = [n for n in names if any(n in row for row in rows.values())]
        lines += ["", f"| {what} | " + " | ".join(names[n] for n in used) + " |", "|---" * (len(used) + 1) + "|"]
        for case, row in rows.items():
            lines.append(f"| {case} | " + " | ".join(cell(n, row.get(n)) for n in used) + " |")
    text = "\n".join(lines) + "\n"
    (FOLDER / f"{stem}.md").write_text(text)
    (FOLDER / f"{stem}.json").write_text(json.dumps({"machine": machine(), **found}, indent=1) + "\n")
    return text


def table_of(times: Times) -> dict[str, dict[str, dict[str, float]]]:
    """Summaries by case and contestant."""
    return {case: {n: summary(v, row) for n, v in row.items() if v} for case, row in times.items()}


def cell(name: str, found: Mapping[str, float] | None) -> str:
    """``median (quartiles) ratio``, and in brackets the ratio without MKL."""
    if found is None:
        return ""
    text = f"{found['median_ms']:.3g} ({found['quartile1_ms']:.3g}-{found['quartile3_ms']:.3g})"
    if name == "gometal":
        return text
    text += f" **{found['gometal_ratio']:.2f}x**"
    return text if name == "openblas" or "openblas_ratio" not in found else f"{text} ({found['openblas_ratio']:.2f}x)"


def machine() -> str:
    """What it was measured on."""
    model = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), model)
    packages = ["mlx", "numpy", "onnxruntime", *installed(["torch"])]
    versions = ", ".join(f"{p} {importlib.metadata.version(p)}" for p in packages)
    system = f"{model}, {os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}"
    return f"{system}, {versions}; {blas()}"


def blas() -> str:
    """The BLAS that gometal_mlx has given MLX."""
    if os.environ.get("LD_PRELOAD"):
        return f"LD_PRELOAD={os.environ['LD_PRELOAD']}"
    from gometal_mlx._blas import STATUS

    return f"BLAS: {Path(STATUS.path or 'of MLX').name}, {STATUS.threads} threads"


NOTE = (
    "Adam, cross-entropy; MLP 784-512-256-128-10, CNN 3x32x32: conv 32, conv 64 stride 2, dense 128, dense 10. "
    "Milliseconds a step: median (quartiles) of turns; bold: gometal_mlx's time divided by this one's, median within "
    "rounds, and in brackets the same without MKL, where that is used. MLX by hand has the BLAS of gometal_mlx, MLX as "
    "shipped its own, and is not compiled. The second table counts what one thread computes: "
    "other programs on the machine hardly change it."
)


def main(rounds: int = 25) -> str:
    """Measure, write step_time.md and .json, return the Markdown."""
    times = measure(__file__, CASES, installed(MAKE), rounds)
    one_thread = measure(__file__, CASES, installed(MAKE), max(2, rounds // 3), one_thread=True)
    return report("Training step", NOTE, CONTESTANTS, times, one_thread, "step_time")


if __name__ == "__main__":
    command(__doc__, MAKE, main)

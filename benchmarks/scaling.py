"""How a training step grows with width, depth and batch, what an import costs, and whether memory stays.

    python benchmarks/scaling.py        # writes scaling.md and scaling.json beside itself

An MLP trains with Adam. Its limits stand beside each time: what the matrix products would take at the speed of one
large product, and what the optimizer's seven passes over memory would take at the speed of one large copy.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
sys.path.insert(0, str(FOLDER))
INPUTS, OUTPUTS = 784, 10
WIDTHS, DEPTHS, BATCHES = (128, 256, 512, 1024, 2048), (1, 2, 4, 8, 16), (8, 32, 128, 512, 2048)
USUAL = {"width": 512, "depth": 2, "batch": 128}
STEPS = 10_000  # of the run whose memory is watched
ADAM_PASSES = 7  # weight, gradient and two moments read, three of them written


def median_ms(action: Callable[[], object], seconds: float = 0.6) -> float:
    """Of as many calls as fit, after two to warm up."""
    action(), action()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < 5 or time.perf_counter() < end:
        start = time.perf_counter()
        action()
        times.append((time.perf_counter() - start) * 1e3)
    return statistics.median(times)


def trainer(width: int, depth: int, batch: int) -> Any:
    import gometal_mlx as gm

    builder = gm.ModelBuilder((batch, INPUTS))
    for _ in range(depth):
        builder.add_dense(width).add_relu()
    return gm.ModelTrainer(builder.add_dense(OUTPUTS).compile(), gm.TrainerConfig(seed=0, learning_rate=1e-3))


def step_ms(width: int, depth: int, batch: int) -> float:
    """A step of ours."""
    import mlx.core as mx
    import numpy as np

    made = trainer(width, depth, batch)
    rng = np.random.default_rng(0)
    data = [(rng.standard_normal((batch, INPUTS), np.float32), rng.integers(0, OUTPUTS, batch)) for _ in range(4)]
    turn = iter(range(10**9))

    def step() -> None:
        made.train_batch(*data[next(turn) % 4])
        mx.eval(made.model.state, made.optimizer.state)

    return median_ms(step)


def limits() -> tuple[float, float]:
    """Multiplications and additions a second of one large product; bytes a second of a large copy."""
    import mlx.core as mx
    import numpy as np

    a, b = mx.random.normal((1536, 1536)), mx.random.normal((1536, 1536))
    flops = 2 * 1536**3 / (median_ms(lambda: mx.eval(a @ b)) * 1e-3)
    source = np.ones(1 << 23, np.float32)
    target = np.empty_like(source)
    return flops, 2 * source.nbytes / (median_ms(lambda: np.copyto(target, source)) * 1e-3)


def floor_ms(width: int, depth: int, batch: int, flops: float, bandwidth: float) -> tuple[float, float]:
    """What the products, and Adam's passes over memory, take at least."""
    sizes = [(INPUTS, width), *[(width, width)] * (depth - 1), (width, OUTPUTS)]
    weights = sum(a * b for a, b in sizes)
    work = 2 * batch * (3 * weights - INPUTS * width)  # the first layer needs no gradient for its input
    return work / flops * 1e3, ADAM_PASSES * 4 * weights / bandwidth * 1e3


def imports() -> dict[str, float]:
    """Milliseconds of a new Python that imports this, above one that imports nothing."""
    names = {"gometal_mlx": "gometal_mlx", "mlx.nn and mlx.optimizers": "mlx.nn, mlx.optimizers", "PyTorch": "torch"}
    found = {}
    empty = median_ms(lambda: subprocess.run([sys.executable, "-c", "pass"], check=True), 1)
    for name, modules in names.items():
        if importlib.util.find_spec(modules.partition(",")[0].split(".")[0]):
            command = [sys.executable, "-c", f"import {modules}"]
            found[name] = median_ms(lambda command=command: subprocess.run(command, check=True), 1) - empty
    return found


def memory() -> list[tuple[int, float]]:
    """Resident megabytes after so many steps; in a process of its own."""
    done = subprocess.run([sys.executable, __file__, "--memory"], capture_output=True, text=True, check=True)
    return [tuple(row) for row in json.loads(done.stdout)]


def watch_memory() -> None:
    import numpy as np
    import psutil

    made, process = trainer(64, 2, 16), psutil.Process()
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((16, INPUTS)).astype(np.float32), rng.integers(0, OUTPUTS, 16)
    rows = []
    for step in range(1, STEPS + 1):
        made.train_batch(x, y)
        if step in (100, 1000, 2000, 5000, STEPS):
            rows.append((step, process.memory_info().rss / 1e6))
    print(json.dumps(rows))


def uncompiled() -> dict[str, tuple[float, float]]:
    """A step compiled, and as it runs where MLX finds no compiler."""
    import mlx.core as mx

    found = {}
    for width, batch in ((128, 32), (512, 128)):
        compiled = step_ms(width, 2, batch)
        mx.disable_compile()
        found[f"width {width}, depth 2, batch {batch}"] = (compiled, step_ms(width, 2, batch))
        mx.enable_compile()
    return found


def measure() -> dict[str, Any]:
    """Everything, as JSON values."""
    flops, bandwidth = limits()
    grid = [{**USUAL, name: v} for name, vs in (("width", WIDTHS), ("depth", DEPTHS), ("batch", BATCHES)) for v in vs]
    rows = [(case, step_ms(**case), *floor_ms(**case, flops=flops, bandwidth=bandwidth)) for case in grid]
    return {
        "flops": flops, "bandwidth": bandwidth, "steps": rows, "imports": imports(), "memory": memory(),
        "uncompiled": uncompiled(),
    }  # fmt: skip


def report(found: dict[str, Any], machine: str) -> str:
    """The results as Markdown."""
    speeds = f"one large product {found['flops'] / 1e9:.0f} GFLOP/s, one large copy {found['bandwidth'] / 1e9:.1f} GB/s"
    lines = ["# Scaling", "", f"{machine}", "", f"Limits measured in the same run: {speeds}.", ""]
    lines += ["| width | depth | batch | ms a step | products at least | Adam at least | share of the two |"]
    lines += ["|---:|---:|---:|---:|---:|---:|---:|"]
    for case, took, products, adam in found["steps"]:
        share = f"{(products + adam) / took:.0%}"
        shape = f"{case['width']} | {case['depth']} | {case['batch']}"
        lines.append(f"| {shape} | {took:.2f} | {products:.2f} | {adam:.2f} | {share} |")
    lines += ["", "| import | ms |", "|---|---:|", *(f"| {n} | {v:.0f} |" for n, v in found["imports"].items())]
    lines += ["", "| steps so far | resident MB |", "|---:|---:|"]
    lines += [f"| {n:,} | {v:.1f} |" for n, v in found["memory"]]
    lines += ["", "| step | compiled, ms | uncompiled, ms |", "|---|---:|---:|"]
    lines += [f"| {n} | {a:.2f} | {b:.2f} |" for n, (a, b) in found["uncompiled"].items()]
    return "\n".join(lines) + "\n"


def main() -> str:
    """Measure, write scaling.json and scaling.md, and return the latter's text."""
    from step_time import machine

    import gometal_mlx  # noqa: F401  (before mlx, whose BLAS it chooses)

    found = measure()
    text = report(found, machine())
    (FOLDER / "scaling.json").write_text(json.dumps({"machine": machine(), **found}, indent=1) + "\n")
    (FOLDER / "scaling.md").write_text(text)
    return text


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--memory", action="store_true", help=argparse.SUPPRESS)
    if parser.parse_args().memory:
        watch_memory()
    else:
        print(main())

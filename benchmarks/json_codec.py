"""Saving and loading a checkpoint of ten million numbers, as JSON and as safetensors: seconds and memory.

    python benchmarks/json_codec.py        # writes json_codec.md and json_codec.json beside itself

Times are medians of five rounds in one process after one to warm up, files in the page cache. Operations that are
compared take turns. Memory is measured in a process of its own for each operation: the peak of resident memory (what
``ru_maxrss`` gives) above what it was when everything was imported and, for saving, the checkpoint was built.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
ROUNDS = 5
HIDDEN = (2048, 2048, 1536, 352)  # Dense layers behind 1024 inputs, before 10 outputs: 9,987,370 numbers
GO_SECONDS = {"save": 2.0, "load": 1.9}  # go-metal's published times for such a JSON file of about 200 MB
FORMATS = ("json", "safetensors")
TARGETS: dict[str, tuple[str, float]] = {  # (at least or at most, limit)
    "JSON save, times faster than Go": (">=", 4.0),
    "JSON load, times faster than Go": (">=", 4.0),
    "JSON save, peak memory / file size": ("<=", 2.0),
    "JSON load, peak memory / file size": ("<=", 2.5),
    "safetensors save / plain write and fsync": ("<=", 1.5),
}


def checkpoint() -> Any:
    """A trained MLP as files have it: He-normal weights, small biases. Makes no large temporary arrays."""
    import numpy as np

    from gometal_mlx import Checkpoint, ModelBuilder
    from gometal_mlx.checkpoints import TrainingState, WeightTensor

    builder = ModelBuilder((64, 1024))
    for i, size in enumerate(HIDDEN, 1):
        builder.add_dense(size, name=f"fc{i}").add_relu(f"relu{i}")
    spec = builder.add_dense(10, name="out").compile()
    rng = np.random.default_rng(0)
    weights = []
    for layer in spec.layers:
        for kind, shape in zip(("weight", "bias"), layer.parameter_shapes, strict=False):
            data = np.empty(shape, np.float32)
            rng.standard_normal(dtype=np.float32, out=data)
            data *= np.float32((2 / shape[0]) ** 0.5 if kind == "weight" else 0.01)
            weights.append(WeightTensor(f"{layer.name}.{kind}", shape, data, layer.name, kind))
    return Checkpoint(spec, weights, TrainingState(10, 9380, 0.001, 0.05, 0.98, 9380))


def with_odd_numbers(checkpoint: Any) -> Any:
    """The same with -0 and denormal numbers, which the fast parser reads otherwise than Go; L-BFGS's state has many."""
    import numpy as np

    weights = [replace(w, data=w.data.copy()) for w in checkpoint.weights]
    for w in weights:
        w.data.reshape(-1)[::2000], w.data.reshape(-1)[1000::2000] = -0.0, np.float32(1e-41)
    return replace(checkpoint, weights=weights)


# -------------------------------------------------------------------------------------------------------------- memory


def peak_bytes() -> int:
    """The most resident memory this process has had.

    On Linux ``ru_maxrss`` outlives exec, so that a process of a large parent begins with that; VmHWM is its own.
    """
    if (status := Path("/proc/self/status")).exists():
        (line,) = (x for x in status.read_text().splitlines() if x.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def memory_of(operation: str, path: Path) -> dict[str, int]:
    """Run an operation in a process of its own."""
    command = [sys.executable, __file__, "--memory", operation, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    values: dict[str, int] = json.loads(done.stdout)
    return values


def measure_memory(operation: str, path: Path) -> None:
    """The process of its own: print the baseline and what the operation adds."""
    from gometal_mlx import load, save
    from gometal_mlx.checkpoints import json_format, safetensors_format  # imported when used, else  # noqa: F401

    subject = checkpoint() if operation == "save" else None
    baseline = peak_bytes()
    result = save(subject, path) if subject is not None else load(path)
    print(json.dumps({"baseline": baseline, "above": peak_bytes() - baseline}))
    del result


# --------------------------------------------------------------------------------------------------------------- times


def seconds(action: Callable[[], object]) -> tuple[float, float]:
    """By the clock, and of the processor alone (which other programs disturb less)."""
    start, worked = time.perf_counter(), time.process_time()
    action()
    return time.perf_counter() - start, time.process_time() - worked


def write_plainly(data: bytes, path: Path) -> None:
    """What any program that keeps its data must do at least, in place of an older file like ours."""
    path.unlink(missing_ok=True)
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def time_all(folder: Path) -> dict[str, list[tuple[float, float]]]:
    """``seconds`` of every operation, round by round, after one round to warm up."""
    from gometal_mlx import load, save

    subject = checkpoint()
    paths = {name: folder / f"c.{name}" for name in FORMATS}
    for path in paths.values():
        save(subject, path)
        for a, b in zip(subject.weights, load(path).weights, strict=True):
            assert a.data.tobytes() == b.data.tobytes(), f"{path}: {a.name} came back changed"
    plain, raw = folder / "plain", paths["safetensors"].read_bytes()
    odd = folder / "odd.json"
    save(with_odd_numbers(subject), odd)
    groups: list[dict[str, Callable[[], object]]] = [
        {"JSON save": lambda: save(subject, paths["json"]), "JSON load": lambda: load(paths["json"])},
        {"JSON load, every 1000th -0 or denormal": lambda: load(odd)},
        {
            "safetensors save": lambda: save(subject, paths["safetensors"]),
            "plain write and fsync": lambda: write_plainly(raw, plain),
        },
        {"safetensors load": lambda: load(paths["safetensors"]), "plain read": plain.read_bytes},
    ]
    times: dict[str, list[tuple[float, float]]] = {name: [] for group in groups for name in group}
    for group in groups:
        os.sync()  # what earlier operations left to the disk is not charged to these
        for at in range(ROUNDS + 1):
            for name in list(group) if at % 2 else reversed(group):  # neither always follows the other
                took = seconds(group[name])
                times[name] += [took] if at else []
    return times


# ------------------------------------------------------------------------------------------------------------- results


def measure() -> dict[str, Any]:
    """Everything, as JSON values."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = {f: folder / f"c.{f}" for f in FORMATS}
        memory = {f"{f} {operation}": memory_of(operation, paths[f]) for f in FORMATS for operation in ("save", "load")}
        times = time_all(folder)
        sizes = {f: path.stat().st_size for f, path in paths.items()}
    clock = {name: [wall for wall, _ in values] for name, values in times.items()}
    medians = {name: statistics.median(values) for name, values in clock.items()}
    ratios = {f"JSON {o}, times faster than Go": GO_SECONDS[o] / medians[f"JSON {o}"] for o in ("save", "load")}
    ratios |= {
        f"JSON {o}, peak memory / file size": memory[f"json {o}"]["above"] / sizes["json"] for o in ("save", "load")
    }
    ratios["safetensors save / plain write and fsync"] = medians["safetensors save"] / medians["plain write and fsync"]
    packages = ("mlx", "numpy", "orjson", "pysimdjson", "safetensors")
    python = f"Python {platform.python_version()}"
    return {
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} processors, {python}",
        "packages": {p: importlib.metadata.version(p) for p in packages},
        "file_bytes": sizes,
        "seconds": clock,
        "processor_seconds": {name: [cpu for _, cpu in values] for name, values in times.items()},
        "memory_bytes": memory,
        "ratios": ratios,
    }


def met(name: str, value: float) -> bool:
    kind, limit = TARGETS[name]
    return value >= limit if kind == ">=" else value <= limit


def report(found: dict[str, Any]) -> str:
    """The results as Markdown."""
    sizes, memory = found["file_bytes"], found["memory_bytes"]
    packages = ", ".join(f"{k} {v}" for k, v in found["packages"].items())
    lines = [
        "# Saving and loading ten million numbers",
        "",
        f"{found['machine']}; {packages}.",
        f"A trained MLP of 9,987,370 float32: {sizes['json'] / 1e6:.0f} MB as JSON, "
        f"{sizes['safetensors'] / 1e6:.0f} MB as safetensors.",
        f"Medians of {ROUNDS}; the spread is largest minus smallest; sizes in powers of 1000.",
        "",
        "| operation | seconds | spread | of the processor | MB/s | peak memory above the baseline |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name, values in found["seconds"].items():
        kind = "json" if name.startswith("JSON") else "safetensors"
        median = statistics.median(values)
        row = memory.get(name.replace("JSON", "json"))
        peak = f"{row['above'] / 1e6:.0f} MB" if row else ""
        spread, cpu = max(values) - min(values), statistics.median(found["processor_seconds"][name])
        speed = sizes[kind] / median / 1e6
        lines.append(f"| {name} | {median:.3f} | {spread:.3f} | {cpu:.3f} | {speed:.0f} | {peak} |")
    lines += ["", "| ratio | value | target | |", "|---|---:|---:|---|"]
    for name, value in found["ratios"].items():
        kind, limit = TARGETS[name]
        lines.append(f"| {name} | {value:.2f} | {kind} {limit} | {'met' if met(name, value) else 'MISSED'} |")
    go = f"go-metal's published {GO_SECONDS['save']} s (save) and {GO_SECONDS['load']} s (load) for such a file"
    lines += ["", f"Go: {go}, without fsync; our times include it."]
    return "\n".join(lines) + "\n"


def main() -> str:
    """Measure, write json_codec.json and json_codec.md, and return the latter's text."""
    found = measure()
    text = report(found)
    (FOLDER / "json_codec.json").write_text(json.dumps(found, indent=2) + "\n")
    (FOLDER / "json_codec.md").write_text(text)
    return text


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--memory", nargs=2, metavar=("OPERATION", "PATH"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory:
        measure_memory(arguments.memory[0], Path(arguments.memory[1]))
    else:
        print(main())

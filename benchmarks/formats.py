"""Saving and loading ten million numbers in every format, against PyTorch's own files and exporters.

    python benchmarks/formats.py        # writes formats.md and formats.json beside itself

Medians of five rounds in one process after one to warm up; the operations take turns, PyTorch's if it is installed. Our
saves flush file and folder to disk, PyTorch's do not; "flushed" adds a flush to them. An ONNX file is checked and run
in onnxruntime before it is put in place, unless that is switched off, as it is for the comparison with the exporters.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import itertools
import json
import logging
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from json_codec import HIDDEN, checkpoint

FOLDER = Path(__file__).parent
ROUNDS = 5
TIMES_FASTER = 5  # than torch.onnx.export, the target
SECONDS = 0.5  # of an export without its proof, the target


def flushed(path: Path) -> None:
    """Wait until a file is on the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def ours(folder: Path) -> dict[str, Callable[[], object]]:
    """gometal_mlx's saves, then its loads."""
    from gometal_mlx import load, save

    subject = checkpoint()
    onnx = folder / "c.onnx"
    actions: dict[str, Callable[[], object]] = {
        "ONNX export": lambda: save(subject, onnx, verify=False),
        "ONNX export, proven": lambda: save(subject, onnx),
    }
    for name in ("safetensors", "json", "json.gz"):
        path = folder / f"c.{name}"
        actions[f"{name} save"] = lambda path=path: save(subject, path)
    for name in ("safetensors", "json", "json.gz"):
        path = folder / f"c.{name}"
        actions[f"{name} load"] = lambda path=path: load(path)
    return actions | {
        "ONNX load": lambda: load(onnx, check=False),
        "ONNX load, proven": lambda: load(onnx),
    }


def pytorch(folder: Path) -> dict[str, Callable[[], object]]:
    """What PyTorch has for the same model."""
    import torch
    from torch import nn

    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    sizes = (1024, *HIDDEN, 10)
    layers = [part for a, b in itertools.pairwise(sizes) for part in (nn.Linear(a, b), nn.ReLU())]
    model = nn.Sequential(*layers[:-1]).eval()
    x = torch.zeros(1, 1024)
    path, old, new = folder / "c.pt", folder / "old.onnx", folder / "new.onnx"

    def export(to: Path, *, dynamo: bool) -> None:
        names = {"input_names": ["input"], "output_names": ["output"], "opset_version": 18}
        shapes = {"dynamic_shapes": ({0: "batch"},)} if dynamo else {"dynamic_axes": {"input": {0: "batch"}}}
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                model, (x,), str(to), dynamo=dynamo, external_data=False, verbose=False, **names, **shapes
            )

    def save_flushed() -> None:
        torch.save(model.state_dict(), path)
        flushed(path)

    def export_flushed(to: Path, *, dynamo: bool) -> None:
        export(to, dynamo=dynamo)
        flushed(to)

    return {
        "torch.onnx.export": lambda: export(new, dynamo=True),
        "torch.onnx.export, flushed": lambda: export_flushed(new, dynamo=True),
        "torch.onnx.export, TorchScript": lambda: export(old, dynamo=False),
        "torch.onnx.export, TorchScript, flushed": lambda: export_flushed(old, dynamo=False),
        "torch.save": lambda: torch.save(model.state_dict(), path),
        "torch.save, flushed": save_flushed,
        "torch.load": lambda: torch.load(path),
    }


def measure() -> dict[str, list[float]]:
    """Seconds of every operation, round by round."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        actions = ours(folder)
        if importlib.util.find_spec("torch") and importlib.util.find_spec("onnxscript"):
            actions |= pytorch(folder)
        times: dict[str, list[float]] = {n: [] for n in actions}
        for at in range(ROUNDS + 1):
            for n, action in actions.items():
                os.sync()  # what another one left to the disk is not charged to this one
                start = time.perf_counter()
                action()
                times[n] += [time.perf_counter() - start] if at else []
    return times


def report(times: dict[str, list[float]], machine: str) -> str:
    """The results as Markdown."""
    middle = {n: statistics.median(v) for n, v in times.items()}
    lines = ["# One checkpoint in every format", "", f"MLP of 9,987,370 float32. {machine}", ""]
    lines += ["| operation | seconds | spread |", "|---|---:|---:|"]
    lines += [f"| {n} | {middle[n]:.3f} | {max(v) - min(v):.3f} |" for n, v in times.items()]
    ratios = [("ONNX export, seconds", middle["ONNX export"], f"<= {SECONDS}", middle["ONNX export"] <= SECONDS)]
    for n in [n for n in middle if n.startswith("torch.onnx.export")]:
        faster = middle[n] / middle["ONNX export"]
        ratios.append((f"ONNX export, times faster than {n}", faster, f">= {TIMES_FASTER}", faster >= TIMES_FASTER))
    lines += ["", "| ratio | value | target | |", "|---|---:|---:|---|"]
    lines += [f"| {n} | {v:.2f} | {target} | {'met' if met else 'MISSED'} |" for n, v, target, met in ratios]
    return "\n".join(lines) + "\n"


def main() -> str:
    """Measure, write formats.json and formats.md, and return the latter's text."""
    from step_time import machine

    times = measure()
    text = report(times, machine())
    (FOLDER / "formats.json").write_text(json.dumps({"machine": machine(), "seconds": times}, indent=1) + "\n")
    (FOLDER / "formats.md").write_text(text)
    return text


if __name__ == "__main__":
    print(main())

"""``gometal inspect``: what is in a checkpoint."""

from __future__ import annotations

import argparse
import json
import textwrap
from pathlib import Path
from typing import Any

from ..checkpoints.report import report
from .source import add_read_external, read
from .table import say, size_text, table


def add_parser(subparsers: Any) -> None:
    """Declare the subcommand."""
    p = subparsers.add_parser("inspect", help="show metadata, training state, architecture and weights of a file")
    p.add_argument("file")
    p.add_argument("--json", action="store_true", help="print one JSON object for machines")
    add_read_external(p)
    p.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the report as text or JSON."""
    (checkpoint,) = read(args, args.file, tolerant=True)
    found = report(checkpoint, file_bytes=Path(args.file).stat().st_size)
    text = json.dumps(found, indent=2, default=lambda v: v.tolist()) if args.json else _text(args.file, found)
    say(text)
    return 0


def _text(path: str, r: dict[str, Any]) -> str:
    meta, state, sizes = r["metadata"], r["training_state"], r["memory"]
    parts = [f"{path} ({size_text(sizes['file_bytes'])})", "", "Metadata", table(meta.items(), indent="  ")]
    if r["info"]:
        parts += ["", "Info", table(((k, textwrap.shorten(str(v), 100)) for k, v in r["info"].items()), indent="  ")]
    parts += ["", "Training state", table(state.items(), indent="  ")]
    optimizer = r["optimizer"]
    if optimizer:
        settings = ", ".join(f"{k} {v}" for k, v in optimizer["parameters"].items())
        parts.append(f"  optimizer {optimizer['type']}: {settings}; {optimizer['tensors']} state tensors")
    model = r["model"]
    parts += [
        "",
        f"Architecture: {model['input_shape']} -> {model['output_shape']}, {model['total_parameters']:,} parameters",
    ]
    layers = [
        (i, x["name"], x["type"], x["output_shape"], f"{x['parameters']:,}", x["settings"])
        for i, x in enumerate(r["layers"], 1)
    ]
    parts.append(table(layers, ("#", "name", "layer", "output", "parameters", "settings"), indent="  "))
    if r["weights"]:
        figures = ("min", "max", "mean", "std")
        counts = ("zeros", "nonfinite") if any(w["nonfinite"] for w in r["weights"]) else ("zeros",)
        rows = [
            (w["name"], w["type"], w["shape"], *(f"{w[k]:.4g}" for k in figures), *(w[k] for k in counts))
            for w in r["weights"]
        ]
        header = ("name", "type", "shape", *figures, *counts)
        parts += ["", "Weights", table(rows, header, indent="  ")]
    parts += [
        "",
        f"Memory: weights {size_text(sizes['weights_bytes'])}, optimizer state {size_text(sizes['optimizer_bytes'])}",
    ]
    parts += ["", "go-metal", *(f"  {line}" for line in r["go_metal"] or ["can load, run, train and save this model"])]
    parts += ["", "Notes", *(f"  {n}" for n in r["notes"])] if r["notes"] else []
    return "\n".join(parts)

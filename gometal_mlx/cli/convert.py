"""``gometal convert``: from any format to any other."""

from __future__ import annotations

import argparse
from typing import Any

from ..checkpoints import load, save


def add_parser(subparsers: Any) -> None:
    """Declare the subcommand."""
    p = subparsers.add_parser("convert", help="convert a checkpoint between .json, .json.gz, .safetensors and .onnx")
    p.add_argument("input", help="the file to read")
    p.add_argument("output", help="the file to write; its suffix chooses the format")
    p.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Read, write, tell what was repaired and what the proof found."""
    checkpoint = load(args.input)
    report = save(checkpoint, args.output)
    for note in checkpoint.notes:
        print(f"note: {note}")
    if report is not None:
        print(f"onnxruntime agrees with MLX: relative difference {report.relative_difference:.1e}")
    if args.output.endswith(".onnx") and checkpoint.optimizer_state is not None:
        print("note: the optimizer state stays behind; an ONNX file is for inference")
    print(f"{args.output}: written, {checkpoint!r}")
    return 0

"""``gometal verify``: does the file hold a model that runs, and does its ONNX graph do what it should."""

from __future__ import annotations

import argparse
import os
import warnings
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from ..checkpoints import load
from ..checkpoints.folder import ANY, CheckpointFolder
from ..checkpoints.formats import is_export
from ..errors import CheckpointError, GoMetalError, naming
from ..layers import Model
from .source import add_read_external, external_data, read
from .table import say


def add_parser(subparsers: Any) -> None:
    """Declare the subcommand."""
    p = subparsers.add_parser("verify", help="check that a file, or a folder of them, is whole, consistent and runs")
    p.add_argument("file", help="a checkpoint, or the folder of a CheckpointManager")
    told = "ONNX: largest relative difference (default 1e-5)"
    p.add_argument("--tolerance", type=float, default=argparse.SUPPRESS, help=told)
    add_read_external(p)
    p.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Load, build, run; for ONNX compare; in a folder check every file of the manifest."""
    (external,) = external_data(args, args.file)
    if os.path.isdir(args.file):
        return _folder(Path(args.file))
    if is_export(args.file):
        from ..checkpoints.onnx import verify_file

        given = {k: v for k, v in vars(args).items() if k == "tolerance"}
        report = verify_file(Path(args.file), external_data=external, **given)
        sizes = " and ".join(map(str, report.batch_sizes))
        edges = f"{report.edge_rows} edge cases"
        say(f"{args.file}: ok; checker passed, onnxruntime agrees with MLX on batches of {sizes}, and on {edges}")
        say(f"  largest difference {report.largest_difference:.2e}, relative {report.relative_difference:.1e}")
        return 0
    (checkpoint,) = read(args, args.file)
    with naming(args.file):
        model = Model.from_checkpoint(checkpoint)
    x = np.random.default_rng(0).standard_normal((2, *model.spec.input_shape[1:])).astype(np.float32)
    if not np.isfinite(np.array(model(mx.array(x)))).all():
        raise CheckpointError(f"{args.file}: the model runs, but gives NaN or infinity on normal random inputs")
    for note in checkpoint.notes:
        say(f"note: {note}")
    say(f"{args.file}: ok; {checkpoint!r}")
    return 0


def _folder(path: Path) -> int:
    with warnings.catch_warnings(action="ignore"):  # of a damaged manifest, which counts below
        folder = CheckpointFolder(path, ANY)
    if not folder.entries and not folder.unread:
        raise CheckpointError(f"{path}: no checkpoint in it")
    broken = len(folder.unread)
    for told in folder.unread:
        say(told)
    for entry in folder.newest_first():
        try:
            folder.check(entry)
            load(path / entry.name)
            say(f"{path / entry.name}: ok; {entry.kind}, epoch {entry.epoch}, step {entry.step}")
        except GoMetalError as e:
            broken += 1
            say(str(e))
    if broken:
        raise CheckpointError(f"{path}: {broken} of {len(folder.entries) + len(folder.unread)} files are damaged")
    return 0

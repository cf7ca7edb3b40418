"""``gometal predict``: run a checkpoint on an array."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from ..checkpoints.atomic import replacing
from ..errors import CheckpointError, naming
from ..inference import ENGINES, Predictor
from .source import add_read_external, read


def add_parser(subparsers: Any) -> None:
    """Declare the subcommand."""
    p = subparsers.add_parser("predict", help="run a checkpoint on the rows of an .npy file")
    p.add_argument("file", help="checkpoint")
    p.add_argument("input", help=".npy file of shape (rows, ...)")
    p.add_argument("--engine", choices=ENGINES, default="mlx", help="what computes; onnxruntime is faster on a CPU")
    p.add_argument("--out", type=Path, help="write the predictions to this .npy file instead of printing them")
    add_read_external(p)
    p.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Predict; print one row a line, or write an array."""
    (checkpoint,) = read(args, args.file)
    with naming(args.file):
        predictor = Predictor(checkpoint, engine=args.engine)
    try:
        with open(args.input, "rb") as file:
            inputs = np.lib.format.read_array(file, allow_pickle=False)
    except OSError as e:
        raise CheckpointError(f"{args.input}: cannot be read: {e.strerror or e}") from e
    except Exception as e:  # numpy reads the header as Python's tokens, which can fail in many ways
        raise CheckpointError(f"{args.input}: no readable .npy file: {e}") from e
    if inputs.dtype.kind not in "iubf":
        raise CheckpointError(f"{args.input}: numbers are needed, got {inputs.dtype}")
    with naming(args.input):
        predictions = predictor.predict(inputs)
    if args.out is None:
        for row in predictions.reshape(len(predictions), -1):
            print(" ".join(f"{v:.6g}" for v in row))
        return 0
    with replacing(args.out) as temporary, temporary.open("wb") as file:
        np.save(file, predictions)
    print(f"{args.out}: {predictions.shape} written")
    return 0

"""``gometal convert``: from any format to any other."""

from __future__ import annotations

import argparse
from typing import Any

from ..checkpoints import CheckpointFormat, save
from ..checkpoints.formats import format_of
from ..errors import CheckpointError
from .source import add_read_external, read
from .table import say


def add_parser(subparsers: Any) -> None:
    """Declare the subcommand; an option that is not given is not passed on, so that defaults stand in one place."""
    p = subparsers.add_parser(
        "convert",
        help="convert a checkpoint between .json, .json.gz, .safetensors and .onnx",
        argument_default=argparse.SUPPRESS,
    )
    p.add_argument("input", help="the file to read")
    p.add_argument("output", help="the file to write; its suffix chooses the format")
    add_read_external(p)
    p.add_argument("--no-extras", dest="extras", action="store_false", help="leave out what only gometal_mlx reads")
    onnx = p.add_argument_group("when writing ONNX").add_argument
    options = [
        onnx("--opset", type=int, help="operator set, from 13 on (default 17)"),
        onnx("--softmax", action="store_true", help="end in a Softmax over the classes"),
        onnx("--float16-weights", action="store_true", help="store the weights in half the space"),
        onnx("--keep-dropout", action="store_true", help="keep Dropout nodes"),
        onnx("--matmul", dest="gemm", action="store_false", help="Dense as MatMul and Add, not as Gemm"),
        onnx("--input-name", help="name of the graph's input (default input)"),
        onnx("--output-name", help="name of the graph's output (default output)"),
        onnx("--external-data", action="store_true", help="put the weights into a file beside it"),
        onnx("--tolerance", type=float, help="largest relative difference to onnxruntime (default 1e-5)"),
        onnx("--no-verify", dest="verify", action="store_false", help="do not compare with onnxruntime"),
    ]
    p.set_defaults(run=run, onnx_options={o.dest: o.option_strings[0] for o in options})


def run(args: argparse.Namespace) -> int:
    """Read, write, tell what was repaired and what the proof found."""
    given = vars(args)
    onnx = format_of(args.output) == CheckpointFormat.ONNX
    flags = args.onnx_options
    options = {k: v for k, v in given.items() if k in flags or k == "extras"}
    if wrong := [flags.get(k, "--no-extras") for k in options if (k in flags) != onnx]:
        needed = "a .json or .safetensors" if onnx else "an .onnx"
        raise CheckpointError(f"{args.output}: {wrong[0]} needs {needed} file as output")
    (checkpoint,) = read(args, args.input)
    report = save(checkpoint, args.output, **options)
    for note in checkpoint.notes:
        say(f"note: {note}")
    if onnx and report is not None:
        say(f"onnxruntime agrees with MLX: relative difference {report.relative_difference:.1e}")
    if onnx and checkpoint.optimizer_state is not None:
        say("note: the optimizer state stays behind; an ONNX file is for inference")
    say(f"{args.output}: written, {checkpoint!r}")
    return 0

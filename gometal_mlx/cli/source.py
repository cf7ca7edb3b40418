"""Checkpoints named on the command line."""

from __future__ import annotations

import argparse
from typing import Any

from ..checkpoints import Checkpoint, CheckpointFormat, load
from ..checkpoints.formats import FORMATS
from ..errors import CheckpointError


def add_read_external(p: argparse.ArgumentParser) -> None:
    """Declare the option without which no other file is read than the one named."""
    told = "read an ONNX file's weights from files beside it, too"
    p.add_argument("--read-external", action="store_true", default=False, help=told)


def external_data(args: argparse.Namespace, *paths: str) -> list[bool]:
    """For each path, whether the option holds; CheckpointError if it is given for nothing."""
    suffixes = FORMATS[CheckpointFormat.ONNX].suffixes
    found = [args.read_external and path.lower().endswith(suffixes) for path in paths]
    if args.read_external and not any(found):
        raise CheckpointError(f"{paths[0]}: --read-external needs an .onnx file as input")
    return found


def read(args: argparse.Namespace, *paths: str, **options: Any) -> list[Checkpoint]:
    """The checkpoints, loaded as the command's options say."""
    flags = external_data(args, *paths)
    return [
        load(path, **options, **({"external_data": True} if flag else {}))
        for path, flag in zip(paths, flags, strict=True)
    ]

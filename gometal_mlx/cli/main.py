"""``gometal``: one file a subcommand; exit 0 ok, 1 a finding or error in one line, 2 usage."""

from __future__ import annotations

import argparse
import importlib
import io
import sys
from collections.abc import Sequence

from .._version import __version__
from ..errors import GoMetalError, printable

COMMANDS = ("train", "inspect", "convert", "verify", "diff", "predict", "doctor")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="gometal", description="Train, inspect, convert and check go-metal models on MLX."
    )
    parser.add_argument("--version", action="version", version=f"gometal_mlx {__version__}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="command")
    for name in COMMANDS:
        importlib.import_module(f".{name}", __package__).add_parser(subparsers)
    args = parser.parse_args(argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # names may have letters that it does not
            stream.reconfigure(errors="backslashreplace")
    try:
        code: int = args.run(args)
        if sys.stdout:  # else it was closed before Python began
            sys.stdout.flush()
    except GoMetalError as e:
        print(printable(f"gometal {args.command}: {e}"), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"gometal {args.command}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output has gone, as in `gometal inspect f | head`
        sys.stderr.close()
        return 1
    except OSError as e:
        told = f"{e.filename}: " if e.filename else "the output cannot be written: "
        print(printable(f"gometal {args.command}: {told}{e.strerror or e}"), file=sys.stderr)
        if not e.filename:
            sys.stdout = None  # or Python would try again
        return 1
    return code


if __name__ == "__main__":
    sys.exit(main())

"""Every error this package raises on purpose: one line, what was needed, what came, what to do."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Iterator, Sequence
from typing import Any


class GoMetalError(Exception):
    """Base of all errors raised by gometal_mlx."""


class SpecError(GoMetalError, ValueError):
    """A model, layer, optimizer or trainer was described with values that cannot work."""


class ShapeError(GoMetalError, ValueError):
    """An array or layer input has a shape that does not fit."""


class CheckpointError(GoMetalError, ValueError):
    """A checkpoint file or object is missing, damaged, inconsistent or does not fit the model."""


class TrainingError(GoMetalError):
    """Training cannot go on: the loss is NaN or infinite.

    Args:
        undone: how many batches, this one included, the trainer went back.
    """

    def __init__(self, message: str, undone: int = 1) -> None:
        super().__init__(message)
        self.undone = undone


class UnsupportedError(GoMetalError):
    """The request is understood, but has no exact equivalent on the other side."""


def shown(value: Any, length: int = 80) -> str:
    """A value for a message of one line: an array by its shape, anything else as Python writes it, cut to a length."""
    text = f"an array of shape {tuple(value.shape)}" if getattr(value, "ndim", 0) else " ".join(repr(value).split())
    return text if len(text) <= length else f"{text[: length - 3]}..."


def suggest(word: str, known: Sequence[str]) -> str:
    """``; did you mean 'x'?`` for the nearest of the known names, else the list of them."""
    near = difflib.get_close_matches(word.casefold(), {k.casefold(): k for k in known}, n=1, cutoff=0.6)
    if near:
        return f"; did you mean {next(k for k in known if k.casefold() == near[0])!r}?"
    return f"; known: {', '.join(known)}" if known else "; there are none"


def printable(text: str, but: str = "") -> str:
    """The text with what would move a terminal's cursor or change its colours written out, ``but`` these."""
    return "".join(c if c.isprintable() or c in but else repr(c)[1:-1] for c in text)


def one_line(error: Exception, length: int = 300) -> str:
    """What another package's error says, in one line that moves no cursor."""
    return printable(" ".join(str(error).split())[:length])


@contextlib.contextmanager
def naming(source: object, doing: str = "") -> Iterator[None]:
    """Put the file's name in front of the errors from inside that do not have it yet.

    Args:
        doing: what has failed, such as ``not saved: ``.
    """
    try:
        yield
    except GoMetalError as e:
        if str(e).startswith(f"{source}:"):
            raise
        raise type(e)(f"{source}: {doing}{e}") from e

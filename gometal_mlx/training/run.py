"""A fit under way: where it began, where it is in the data, and how Ctrl-C ends it."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

from ..data import DataLoader
from ..errors import CheckpointError, SpecError
from .callbacks import Callback


@dataclass
class Run:
    """One call of ``fit``, or the rest of one that was interrupted.

    Args:
        start: the epoch (finished ones) at which it began.
        loader: the data it goes through; None in a restored run that fit has not taken up yet.
        listeners: its callbacks.
        restored_position, restored_callbacks: as a checkpoint has them.
        stopping: a callback had already asked it to stop.
        resumed: whether it is the rest of one.
    """

    start: int
    loader: DataLoader | None
    listeners: list[Callback]
    restored_position: dict[str, Any] | None = None
    restored_callbacks: list[dict[str, Any]] = field(default_factory=list)
    stopping: bool = False
    resumed: bool = False
    thread: int = field(default_factory=threading.get_ident)

    @classmethod
    def begun(cls, epoch: int, loader: DataLoader, listeners: Sequence[Callback]) -> Run:
        """A new one, from the first batch on: whoever looked at some of them before has not trained with them."""
        loader.batch = 0
        return cls(epoch, loader, list(listeners))

    def position(self) -> dict[str, Any] | None:
        """The loader's position, for a checkpoint."""
        return self.loader.state_dict() if self.loader else self.restored_position

    def callback_states(self) -> list[dict[str, Any]]:
        """Class name and state of every callback that has any, for a checkpoint."""
        if self.loader is None:
            return self.restored_callbacks
        states = [(type(c).__name__, c.state_dict()) for c in self.listeners]
        return [{"class": name, "state": state} for name, state in states if state]

    def taken_up(self, loader: DataLoader, listeners: Sequence[Callback], epoch: int) -> Run:
        """This run, continued with the data and callbacks of a new call of ``fit``.

        Raises: SpecError if a restored run is given other data or callbacks. A run that Ctrl-C ended in this process is
            forgotten then, and a new one begins.
        """
        states = list(self.restored_callbacks if self.loader is None else [])
        found = [(c, states.pop(0)["state"]) for c in listeners if states and states[0]["class"] == type(c).__name__]
        if states:  # before anything is touched: the call can be made again, as the message asks
            raise SpecError(f"fit: the run to be finished had a {states[0]['class']} as callback; hand it over again")
        position = self.position()
        try:
            if position is not None:
                loader.load_state_dict(position)
        except SpecError as e:
            if self.loader is not None:
                return Run.begun(epoch, loader, listeners)
            raise SpecError(f"fit: the run to be finished was given other data: {e}") from e
        for callback, state in found:
            _load(callback, state)
        return Run(self.start, loader, list(listeners), resumed=True)


def _load(callback: Callback, state: Mapping[str, Any]) -> None:
    try:
        callback.load_state_dict(state)
    except (KeyError, TypeError, ValueError) as e:
        raise CheckpointError(f"fit: the saved state of {type(callback).__name__} is damaged: {e}") from e


class Interrupt:
    """Whether Ctrl-C was pressed, or the process asked to end (SIGTERM)."""

    requested = False
    terminate = False


@contextlib.contextmanager
def interruptible() -> Iterator[Interrupt]:
    """Ctrl-C and SIGTERM set ``requested``; the second Ctrl-C raises KeyboardInterrupt. (In the main thread.)

    After SIGTERM the process ends with the usual exit code when the block is left.
    """
    stop = Interrupt()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def handle(number: int, frame: FrameType | None) -> None:
        if stop.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.requested, stop.terminate = True, stop.terminate or number == signal.SIGTERM

    before = {s: signal.signal(s, handle) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if stop.terminate:  # whatever else has gone wrong
            raise SystemExit(128 + signal.SIGTERM)

"""Callbacks: what happens around steps and epochs without touching the loop."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from .._types import is_number
from ..checkpoints import extract_weights, load_weights
from ..errors import SpecError, shown, suggest

if TYPE_CHECKING:
    from .result import TrainingResult
    from .trainer import Trainer


@dataclass(frozen=True)
class Event:
    """Where the run stands when a callback is called.

    Args:
        trainer: set ``trainer.should_stop = True`` to end fit after this epoch.
        epoch: the epoch under way or just finished, from 1.
        epochs: the epoch at which this fit ends.
        batch: batches of this epoch done so far.
        batches: batches in an epoch.
        result: of the step, in on_step_end; reading its numbers waits for them.
        metrics: of the epoch, in on_epoch_end.
        error: what ended fit, in on_interrupt; None for Ctrl-C and SIGTERM.
        resumed: in on_fit_begin, whether an interrupted run goes on; a callback of a new run begins anew.
    """

    trainer: Trainer
    epoch: int
    epochs: int
    batch: int = 0
    batches: int = 0
    result: TrainingResult | None = None
    metrics: Mapping[str, Any] | None = None
    error: BaseException | None = None
    resumed: bool = False


MORE_IS_BETTER = ("accuracy", "f1", "precision", "recall", "specificity", "auc", "r2", "npv")  # words in names


class Callback:
    """Override what you need; every method gets an Event."""

    saves: ClassVar[bool] = False  # one that writes checkpoints is called last: they hold the others' states

    def check_trainer(self, trainer: Any) -> None:
        """Raise SpecError if it cannot serve this trainer; called before anything begins."""

    def on_fit_begin(self, event: Event) -> None:
        """Before the first epoch."""

    def on_epoch_begin(self, event: Event) -> None:
        """Before the epoch's first batch."""

    def on_step_end(self, event: Event) -> None:
        """After each optimizer step."""

    def on_epoch_end(self, event: Event) -> None:
        """After the epoch's training and validation."""

    def on_interrupt(self, event: Event) -> None:
        """When Ctrl-C, SIGTERM or an error ends fit before its last epoch."""

    def on_fit_end(self, event: Event) -> None:
        """After the last epoch, also when fit ends early."""

    def state_dict(self) -> dict[str, Any]:
        """What must survive an interruption: JSON values and float32 arrays."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a ``state_dict``."""


@dataclass(frozen=True)
class Listeners:
    """The callbacks of one fit, in the order in which they are called, and what all their events share."""

    trainer: Trainer
    epochs: int
    batches: int
    callbacks: Sequence[Callback]

    def tell(self, method: str, epoch: int, **values: Any) -> None:
        """Call a method of each; an error ends it."""
        event = Event(self.trainer, epoch, self.epochs, batches=self.batches, **values)
        for callback in self.callbacks:
            getattr(callback, method)(event)

    def tell_all(self, method: str, epoch: int, failed: BaseException | None, **values: Any) -> BaseException | None:
        """Call a method of each, whoever fails, for those that save come last.

        Args:
            failed: what has ended fit.
        Returns: that, or else the first error here; further ones become its notes.
        """
        event = Event(self.trainer, epoch, self.epochs, batches=self.batches, **values)
        for callback in self.callbacks:
            try:
                getattr(callback, method)(event)
            except BaseException as e:
                if failed is None:
                    failed = e
                else:
                    failed.add_note(f"{type(callback).__name__}.{method}: {type(e).__name__}: {e}")
        return failed


class EarlyStopping(Callback):
    """Ends fit when a metric has not improved for a number of epochs, and goes back to the best weights.

    A value that is not finite is no improvement. A run that Ctrl-C or an error ends keeps its weights, so that it can
    be finished; a new run begins without the best of another.

    Args:
        monitor: the metric; None takes val_loss, or loss where there is no validation.
        patience: epochs without improvement, at least 1; default 10; infinity never stops, and keeps the best.
        min_delta: least improvement that counts, at least 0; default 1e-4.
        mode: "min" or "max"; None: max for names with accuracy, f1, precision, recall,
            specificity, auc, r2 or npv, else min.
        restore_best: put the best epoch's weights back at the end; default True.
    Raises: SpecError for values out of range, or a metric that is not recorded.
    """

    def __init__(
        self, monitor: str | None = None, patience: int = 10, min_delta: float = 1e-4, mode: str | None = None,
        restore_best: bool = True,
    ) -> None:  # fmt: skip
        checks = (
            ("monitor", monitor, "a metric's name", monitor is None or isinstance(monitor, str)),
            ("patience", patience, "a number of at least 1", isinstance(patience, Real) and patience >= 1),
            ("min_delta", min_delta, "a number of at least 0", is_number(min_delta) and min_delta >= 0),
            ("mode", mode, "'min' or 'max'", mode in (None, "min", "max")),
            ("restore_best", restore_best, "True or False", isinstance(restore_best, bool | np.bool_)),
        )
        for name, value, needed, allowed in checks:
            if not allowed:
                raise SpecError(f"EarlyStopping: {name} must be {needed}, got {shown(value)}")
        self.monitor, self.patience, self.min_delta, self.restore_best = monitor, patience, min_delta, restore_best
        self.mode = mode
        self._interrupted = False
        self._begin()

    def _begin(self) -> None:
        self.best: float | None = None
        self.best_epoch = 0
        self.waited = 0
        self._weights: dict[str, Any] = {}

    def on_fit_begin(self, event: Event) -> None:
        self._interrupted = False
        if not event.resumed:
            self._begin()

    def on_interrupt(self, event: Event) -> None:
        self._interrupted = True

    def on_epoch_end(self, event: Event) -> None:
        name, value = monitored(event.metrics or {}, self.monitor, "EarlyStopping")
        sign = -1 if (self.mode or usual_mode(name)) == "max" else 1
        if math.isfinite(value) and (self.best is None or sign * value < sign * self.best - self.min_delta):
            self.best, self.best_epoch, self.waited = value, event.epoch, 0
            if self.restore_best:
                self._weights = {w.name: w.data for w in extract_weights(event.trainer.model, copy=False)}
            return
        self.waited += 1
        if self.waited >= self.patience:
            event.trainer.should_stop = True

    def on_fit_end(self, event: Event) -> None:
        if self.restore_best and self._weights and self.best_epoch < event.epoch and not self._interrupted:
            kept = [replace(w, data=self._weights[w.name]) for w in extract_weights(event.trainer.model, copy=False)]
            load_weights(event.trainer.model, kept)

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "best_epoch": self.best_epoch, "waited": self.waited, "weights": self._weights}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.best, self.best_epoch, self.waited = state["best"], state["best_epoch"], state["waited"]
        self._weights = dict(state["weights"])


def monitored(metrics: Mapping[str, Any], name: str | None, whose: str) -> tuple[str, float]:
    """Name and value of the metric to follow; SpecError with the recorded names if it is not among them."""
    chosen = name or ("val_loss" if "val_loss" in metrics else "loss")
    if chosen not in metrics:
        judged = chosen.startswith("val_") and "val_loss" not in metrics
        told = "; give fit validation_data, or a validation_split" if judged else suggest(chosen, list(metrics))
        raise SpecError(f"{whose}: metric {chosen!r} is not recorded{told}")
    return chosen, float(metrics[chosen])


def usual_mode(name: str) -> str:
    """'max' for metrics of which more is better, else 'min'."""
    return "max" if any(word in name for word in MORE_IS_BETTER) else "min"

"""Callbacks: what happens around steps and epochs without touching the loop."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .trainer import ModelTrainer, TrainingResult


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
    """

    trainer: ModelTrainer
    epoch: int
    epochs: int
    batch: int = 0
    batches: int = 0
    result: TrainingResult | None = None
    metrics: Mapping[str, Any] | None = None


class Callback:
    """Override what you need; every method gets an Event."""

    def on_fit_begin(self, event: Event) -> None:
        """Before the first epoch."""

    def on_epoch_begin(self, event: Event) -> None:
        """Before the epoch's first batch."""

    def on_step_end(self, event: Event) -> None:
        """After each optimizer step."""

    def on_epoch_end(self, event: Event) -> None:
        """After the epoch's training and validation."""

    def on_fit_end(self, event: Event) -> None:
        """After the last epoch, also when fit ends early."""

"""What a training step gives back."""

from __future__ import annotations

import math
from functools import cached_property

import mlx.core as mx

from .._types import number


class TrainingResult:
    """What one step gave; the numbers are computed when they are read.

    Args:
        loss: mean over the batch, before the update.
        accuracy: share of the batch classified correctly, from the same forward pass; None for regression.
        batch_size: rows in this batch.
        step_time: seconds this call took (without waiting for numbers that nobody reads).
    """

    success = True  # go-metal's field; a step that fails raises

    def __init__(self, loss: mx.array, correct: mx.array | None, batch_size: int, step_time: float) -> None:
        self._loss, self._correct = loss, correct
        self.batch_size, self.step_time = batch_size, step_time

    @cached_property
    def loss(self) -> float:
        """Mean loss of the batch."""
        return number(self._loss)

    @cached_property
    def accuracy(self) -> float | None:
        """Share of rows classified correctly, 0 to 1; None for regression."""
        return None if self._correct is None else number(self._correct) / self.batch_size

    @property
    def batch_rate(self) -> float:
        """Rows per second."""
        return self.batch_size / self.step_time if self.step_time > 0 else math.inf

    def __repr__(self) -> str:
        accuracy = "" if self.accuracy is None else f", accuracy={self.accuracy:.4f}"
        return f"TrainingResult(loss={self.loss:.6g}{accuracy}, batch_size={self.batch_size})"

"""The compiled training step: forward, backward, update and running totals in one function."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from .._types import FloatArray
from ..layers import Model
from ..optimizers import Optimizer
from .losses import Loss

PREDICT_ROWS = 1024


class TrainingStep:
    """Owns what a step changes beside weights and optimizer state: the random key and the epoch's totals.

    Both are inputs and outputs of the compiled function; a key that were not would give the same Dropout mask for ever.

    Args:
        model, loss, optimizer: the optimizer's state must be initialised.
        key: random key of the next step.
        totals: sums over the epoch so far: loss * rows, correct rows, rows.
    """

    def __init__(self, model: Model, loss: Loss, optimizer: Optimizer, key: mx.array, totals: mx.array) -> None:
        self._state = state = {"key": key, "totals": totals}
        self._everything = [model.state, optimizer.state, state]

        def judge(x: mx.array, y: mx.array, key: mx.array) -> tuple[mx.array, mx.array]:
            outputs = (model.logits if loss.uses_logits else model)(x, key)
            correct = loss.correct(outputs, y)
            return mx.mean(loss.per_row(outputs, y)), mx.array(0) if correct is None else correct

        gradient = nn.value_and_grad(model, judge)

        def step(x: mx.array, y: mx.array) -> tuple[mx.array, mx.array]:
            state["key"], key = mx.random.split(state["key"])
            with mode(model, training=True):
                (mean, correct), gradients = gradient(x, y, key)
            optimizer.update(model, gradients)
            rows = x.shape[0]
            state["totals"] = state["totals"] + mx.stack(
                [mean * rows, correct.astype(mx.float32), mx.array(float(rows))]
            )
            return mean, correct

        def forward(x: mx.array) -> mx.array:
            with mode(model, training=False):
                return model.logits(x) if loss.uses_logits else model(x)

        self._step = mx.compile(step, inputs=self._everything, outputs=self._everything)
        self.forward = mx.compile(forward, inputs=[model.state])

    def __call__(self, x: mx.array, y: mx.array) -> tuple[mx.array, mx.array]:
        """Mean loss and correct rows of the batch, before the update; the work is started, not awaited."""
        loss, correct = self._step(x, y)
        mx.async_eval(  # type: ignore[no-untyped-call]
            self._everything, loss, correct
        )
        return loss, correct

    @property
    def key(self) -> mx.array:
        """The random key of the next step."""
        return self._state["key"]

    @property
    def totals(self) -> list[float]:
        """loss * rows, correct rows, rows: summed since the last reset."""
        return [float(v) for v in np.asarray(self._state["totals"])]

    def reset_totals(self) -> None:
        """Begin a new epoch."""
        self._state["totals"] = mx.zeros(3)


def in_pieces(function: Callable[[mx.array], mx.array], x: FloatArray) -> FloatArray:
    """A function of any number of rows, applied to PREDICT_ROWS at a time, so that memory stays bounded."""
    pieces = (x[i : i + PREDICT_ROWS] for i in range(0, len(x), PREDICT_ROWS))
    return np.concatenate([np.array(function(mx.array(piece)), np.float32) for piece in pieces])


@contextlib.contextmanager
def mode(model: Model, *, training: bool) -> Iterator[None]:
    """The model in training or evaluation mode, and afterwards in the mode it was in."""
    before = model.training
    model.train(training)
    try:
        yield
    finally:
        model.train(before)

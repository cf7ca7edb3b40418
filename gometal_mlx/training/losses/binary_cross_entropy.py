"""Binary cross-entropy of probabilities and of logits."""

from __future__ import annotations

from typing import Any, ClassVar

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from ...errors import ShapeError, SpecError
from ...layers import Layer, LayerSpec, Sigmoid
from .base import Loss, label_numbers

CLAMP = 1e-7  # go-metal's distance from 0 and 1


class BinaryCrossEntropy(Loss):
    """``mean(-(y log p + (1 - y) log(1 - p)))`` over all outputs, with p clamped to [1e-7, 1 - 1e-7].

    Each output is a probability of its own (the model ends in Sigmoid). Label smoothing s makes the target
    ``(1 - s) y + s / 2``.

    Shapes: outputs ``(N, C)``; labels ``(N, C)`` of 0..1, or ``(N,)`` for a single output. The label itself is the
        target: 1 means yes.
    Raises: ShapeError for labels that do not fit.
    Source: go-metal bridge_graph.m, with 1 where it has 1 - 1e-7.
    """

    code: ClassVar[int] = 2
    classification: ClassVar[bool] = True
    threshold: ClassVar[float] = 0.5
    needs_last: ClassVar[tuple[str, ...]] = ("Sigmoid", "Softmax")
    instead: ClassVar[str] = "BCEWithLogits takes logits"

    @property
    def multi_label(self) -> bool:
        return self.outputs[0] > 1

    def labels(self, y: npt.ArrayLike, rows: int) -> npt.NDArray[Any]:
        kind = type(self).__name__
        values = label_numbers(y, kind).astype(np.float32, copy=False)
        needed = (rows, *self.outputs)
        if values.shape == (rows,) and self.outputs == (1,):
            values = values[:, None]
        if values.shape != needed:
            raise ShapeError(
                f"{kind}: labels must have shape {needed} (one of 0..1 for each output), got {values.shape}"
            )
        if not ((values >= 0) & (values <= 1)).all():
            bad = values[~((values >= 0) & (values <= 1))][0]
            raise ShapeError(f"{kind}: labels must be from 0 to 1, got {bad}")
        return values

    def per_row(self, outputs: mx.array, y: mx.array) -> mx.array:
        p, y = mx.clip(outputs.astype(mx.float32), CLAMP, 1 - CLAMP), self._smoothed(y)
        return mx.mean(-(y * mx.log(p) + (1 - y) * mx.log1p(-p)), axis=1)

    def _smoothed(self, y: mx.array) -> mx.array:
        s = self.label_smoothing
        return y * (1 - s) + s / 2 if s else y

    def row_weights(self, y: mx.array, class_weights: mx.array) -> mx.array:
        return mx.mean(mx.where(y > 0.5, class_weights[1], class_weights[0]), axis=1)

    def correct(self, outputs: mx.array, y: mx.array) -> mx.array | None:
        # with several outputs: the mean share of them, so that rows still count as rows
        return mx.sum(mx.mean((outputs > self.threshold) == (y > 0.5), axis=1))


class BCEWithLogits(BinaryCrossEntropy):
    """``mean(y log(1 + exp(-x)) + (1 - y) log(1 + exp(x)))`` over all outputs: BinaryCrossEntropy of sigmoid(x).

    Shapes and labels: as BinaryCrossEntropy; the outputs are logits.
    Raises: SpecError for a model that ends in Sigmoid or Softmax.
    Source: go-metal bridge_graph.m, reduced to a scalar for any number of outputs.
    """

    code: ClassVar[int] = 3
    threshold: ClassVar[float] = 0.0
    answer: ClassVar[type[Layer] | None] = Sigmoid
    needs_last: ClassVar[tuple[str, ...]] = ()

    def check_model(self, last: LayerSpec) -> None:
        if last.type_name == "LogSoftmax":
            raise SpecError("BCEWithLogits: the model must end in logits, but it ends in LogSoftmax; leave that away")
        if last.type_name in BinaryCrossEntropy.needs_last:
            told = f"the model must end in logits, but it ends in {last.type_name}, and probabilities are none"
            raise SpecError(f"BCEWithLogits: {told}; use BinaryCrossEntropy")

    def per_row(self, outputs: mx.array, y: mx.array) -> mx.array:
        x, y = outputs.astype(mx.float32), self._smoothed(y)
        # log(1 + exp(x)) in one piece: max and abs have no slope at 0, where it is 1/2. No x y: it takes digits.
        zero = mx.zeros_like(x)
        return mx.mean(y * mx.logaddexp(-x, zero) + (1 - y) * mx.logaddexp(x, zero), axis=1)

"""Softmax cross-entropy, for class numbers and one-hot rows alike."""

from __future__ import annotations

from typing import Any, ClassVar

import mlx.core as mx
import numpy.typing as npt

from ..._types import Shape
from ...errors import SpecError
from ...layers import Layer, Softmax
from ...layers._exp import log_softmax
from .base import Loss, class_indices


class CrossEntropy(Loss):
    """``mean_n(-sum_c y_nc log softmax(x_n)_c)``; with class numbers, ``y_n`` is one-hot.

    The model's output before a trailing Softmax is used, so that no Softmax is applied twice.

    Label smoothing s makes the target ``(1 - s) y + s / C``.

    Shapes: outputs ``(N, C)``, C >= 2; labels ``(N,)`` class numbers or ``(N, C)`` rows of probabilities.
    Raises: SpecError for a single output (BCEWithLogits is for those); ShapeError for labels that do not fit.
    Source: go-metal bridge_graph.m; both of its cross-entropies are this one.
    """

    code: ClassVar[int] = 0
    classification: ClassVar[bool] = True
    uses_logits: ClassVar[bool] = True
    answer: ClassVar[type[Layer] | None] = Softmax

    def __init__(self, output_shape: Shape, label_smoothing: float = 0.0) -> None:
        super().__init__(output_shape, label_smoothing)
        if output_shape[1] < 2:
            raise SpecError(
                f"{type(self).__name__}: at least 2 outputs needed, the model has {output_shape[1]}; use BCEWithLogits"
            )

    def labels(self, y: npt.ArrayLike, rows: int) -> npt.NDArray[Any]:
        return class_indices(y, rows, self.outputs[0], type(self).__name__)

    def per_row(self, outputs: mx.array, y: mx.array) -> mx.array:
        return self._expect(log_softmax(outputs.astype(mx.float32), 1), y)

    def _expect(self, logs: mx.array, y: mx.array) -> mx.array:
        """Minus the mean of the log-probabilities under the (smoothed) targets."""
        hit = mx.sum(y * logs, axis=1) if y.ndim == 2 else mx.take_along_axis(logs, y[:, None], axis=1).squeeze(1)
        smooth = self.label_smoothing
        return 0 - ((1 - smooth) * hit + smooth * mx.mean(logs, axis=1) if smooth else hit)  # not -0

    def row_weights(self, y: mx.array, class_weights: mx.array) -> mx.array:
        return class_weights[y] if y.ndim == 1 else y @ class_weights

    def correct(self, outputs: mx.array, y: mx.array) -> mx.array | None:
        classes = y if y.ndim == 1 else mx.argmax(y, axis=1)
        return mx.sum(mx.argmax(outputs, axis=1) == classes)


class SparseCrossEntropy(CrossEntropy):
    """CrossEntropy under go-metal's second name; the labels decide, not the name."""

    code: ClassVar[int] = 1

"""What the losses that compare values share."""

from __future__ import annotations

from typing import Any, ClassVar

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from ...errors import ShapeError
from .base import Loss, label_numbers


class Regression(Loss):
    """Base of the losses that compare values: mean over all elements of a penalty of the difference.

    Shapes: outputs ``(N, ...)``; labels alike, or ``(N,)`` for a single output.
    Raises: ShapeError for labels of another shape; NaN and infinity among them are refused too.
    """

    classification: ClassVar[bool] = False

    def labels(self, y: npt.ArrayLike, rows: int) -> npt.NDArray[Any]:
        values = label_numbers(y, type(self).__name__).astype(np.float32, copy=False)
        needed = (rows, *self.outputs)
        if values.shape == (rows,) and self.outputs == (1,):
            values = values[:, None]
        if values.shape != needed:
            raise ShapeError(f"{type(self).__name__}: labels must have the outputs' shape {needed}, got {values.shape}")
        if not np.isfinite(values).all():
            raise ShapeError(f"{type(self).__name__}: NaN or infinity in the labels; remove those rows")
        return values

    def penalty(self, difference: mx.array) -> mx.array:
        """What a difference costs, element by element."""
        raise NotImplementedError  # every registered loss overrides it

    def per_row(self, outputs: mx.array, y: mx.array) -> mx.array:
        cost = self.penalty(outputs.astype(mx.float32) - y)
        return mx.mean(cost.reshape(cost.shape[0], -1), axis=1)

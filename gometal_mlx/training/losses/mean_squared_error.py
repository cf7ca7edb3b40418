"""Mean squared error."""

from __future__ import annotations

from typing import ClassVar

import mlx.core as mx

from .regression import Regression


class MeanSquaredError(Regression):
    """``mean((x - y)^2)`` over all elements.

    Source: go-metal guides; its engine divides by minus the number of outputs.
    """

    code: ClassVar[int] = 5

    def penalty(self, difference: mx.array) -> mx.array:
        return mx.square(difference)

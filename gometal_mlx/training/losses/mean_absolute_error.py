"""Mean absolute error."""

from __future__ import annotations

from typing import ClassVar

import mlx.core as mx

from .regression import Regression


class MeanAbsoluteError(Regression):
    """``mean(abs(x - y))`` over all elements.

    Source: go-metal guides; its engine divides by minus the number of outputs.
    """

    code: ClassVar[int] = 6

    def penalty(self, difference: mx.array) -> mx.array:
        return mx.abs(difference)

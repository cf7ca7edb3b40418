"""Huber loss."""

from __future__ import annotations

from typing import ClassVar

import mlx.core as mx

from .regression import Regression


class Huber(Regression):
    """``mean(d^2 / 2 if abs(d) <= 1 else abs(d) - 1/2)`` with ``d = x - y``, over all elements (Huber 1964).

    Source: go-metal guides; its engine divides by minus the number of outputs.
    """

    code: ClassVar[int] = 7

    def penalty(self, difference: mx.array) -> mx.array:
        size = mx.abs(difference)
        return mx.where(size <= 1, 0.5 * mx.square(difference), size - 0.5)

"""What pooling layers share: a square window, its shapes, and how ONNX states it."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Self

import mlx.core as mx

from .._types import Shape
from ._window import square_window, window_shape
from .base import Layer, Match


@dataclass(frozen=True, kw_only=True)
class Pool2D(Layer):
    """Base of the layers that reduce each square window of an image to one number; not a layer itself."""

    pool_size: int = 2
    stride: int = 0
    padding: int = 0

    def check(self) -> None:
        if self.pool_size < 1:
            raise self.error(f"pool_size must be at least 1, got {self.pool_size}")
        if self.stride < 0:
            raise self.error(f"stride must be at least 1 (or 0 for pool_size), got {self.stride}")
        if not 0 <= self.padding <= self.pool_size // 2:
            raise self.error(f"padding must be from 0 to half the window ({self.pool_size // 2}), got {self.padding}")

    def resolve(self, x: Shape) -> Self:
        return self if self.stride else replace(self, stride=self.pool_size)

    def output_shape(self, x: Shape) -> Shape:
        return (*x[:2], *window_shape(self, x, *self.window))

    def operations_per_row(self, x: Shape) -> int:
        return math.prod(self.output_shape(x)[1:]) * self.pool_size**2

    @property
    def window(self) -> tuple[int, int, int]:
        """Side, step and padding."""
        return self.pool_size, self.stride or self.pool_size, self.padding

    def side_by_side(self, x: mx.array, over: Callable[..., mx.array], outside: float) -> mx.array:
        """``over`` (``mx.max``, say) both axes of each window, where windows neither overlap nor leave gaps."""
        size, _, padding = self.window
        n, height, width, c = (x := _pad(x, padding, outside)).shape
        down, across = height // size, width // size  # what is left over of the image lies in no window
        return over(x[:, : down * size, : across * size].reshape(n, down, size, across, size, c), axis=(2, 4))

    def one_by_one(self, x: mx.array, pair: Callable[..., mx.array], outside: float) -> mx.array:
        """Each window's lines reduced by ``pair`` (``mx.maximum``, say), then its columns.

        nn.MaxPool2d gathers windows, and scatters their gradients number by number: 6 to 10 times slower on a CPU, and
        on a GPU in no certain order.
        """
        size, stride, padding = self.window
        x = _pad(x, padding, outside)
        for axis in (1, 2):
            last = (x.shape[axis] - size) // stride * stride
            before = (slice(None),) * axis
            x = functools.reduce(pair, (x[(*before, slice(i, i + last + 1, stride))] for i in range(size)))
        return x

    def onnx_window(self) -> dict[str, Any]:
        """The window as ONNX attributes."""
        size, stride, padding = self.window
        return {"kernel_shape": [size, size], "strides": [stride, stride], "pads": [padding] * 4}

    @staticmethod
    def matched_window(m: Match) -> dict[str, int]:
        """The fields that a pooling node states."""
        size, stride, padding = square_window(m, [])
        if m.attr(0, "ceil_mode", 0) and any((d + 2 * padding - size) % stride for d in m.input_shape[2:]):
            m.problem(0, f"ceil_mode adds windows that reach beyond the image of {m.input_shape[2:]}")
        return {"pool_size": size, "stride": stride, "padding": padding}


def _pad(x: mx.array, padding: int, outside: float) -> mx.array:
    sides = (padding, padding)
    return mx.pad(x, [(0, 0), sides, sides, (0, 0)], constant_values=mx.array(outside, x.dtype)) if padding else x

"""Two-dimensional maximum pooling."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import mlx.core as mx
import mlx.nn as nn

from .._types import FloatArray, Params, Shape
from ._device import on_cpu
from .base import GraphWriter, Layer, Match
from .conv2d import square_window, window_shape


@dataclass(frozen=True, kw_only=True)
class MaxPool2D(Layer):
    """Largest value of each square window.

    Shapes: input ``(N, C, H, W)``; output ``(N, C, H', W')`` with ``H' = (H + 2 * padding - pool_size) // stride + 1``.
    Args:
        pool_size: window side, at least 1.
        stride: step on both axes; 0 (or None in the builder) means ``pool_size``.
        padding: minus infinity on all four sides, at most half the window.
    ONNX: ``MaxPool``.
    Raises: SpecError for values out of range; ShapeError if the input is not 4-D or smaller than the window.
    Source: go-metal layers/layer.go has the type number only; keys as its inference engine reads them.
    """

    code: ClassVar[int] = 4
    aliases = {"kernel_size": "pool_size"}
    onnx_patterns: ClassVar[tuple[tuple[str, ...], ...]] = (("MaxPool",),)
    go_metal_limit = "go-metal has the number of this layer, but cannot run it"

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
        return (*x[:2], *window_shape(self, x, self.pool_size, self.stride or self.pool_size, self.padding))

    def forward(self, p: Params, x: mx.array, *, training: bool, key: mx.array | None) -> mx.array:
        size, stride, padding = self.pool_size, self.stride or self.pool_size, self.padding
        if on_cpu() and stride != size:
            return _overlapping(x, size, stride, padding)
        y: mx.array = nn.MaxPool2d(size, stride, padding)(x)
        return y

    def to_onnx(self, g: GraphWriter, x: str) -> str:
        k, s, p = self.pool_size, self.stride or self.pool_size, self.padding
        return g.node("MaxPool", x, kernel_shape=[k, k], strides=[s, s], pads=[p] * 4)

    @classmethod
    def from_onnx(cls, m: Match) -> tuple[Self, dict[str, FloatArray]] | None:
        if len(m.input_shape) != 4:
            raise m.refuse(0, f"input of rank {len(m.input_shape)}; only two-dimensional pooling is supported")
        if any(d != 1 for d in m.attr(0, "dilations", [1, 1])):
            raise m.refuse(0, f"dilations = {m.attr(0, 'dilations', [1, 1])}; only 1 is supported")
        if m.attr(0, "ceil_mode", 0):
            raise m.refuse(0, "ceil_mode = 1; only 0 is supported")
        kernel, stride, padding = square_window(m, [])
        return cls(name=m.name, pool_size=kernel, stride=stride, padding=padding), {}


def _overlapping(x: mx.array, size: int, stride: int, padding: int) -> mx.array:
    """The pool along the lines, then along the columns: MLX gathers windows, and its CPU scatters gradients slowly."""
    if padding:
        sides = (padding, padding)
        x = mx.pad(x, [(0, 0), sides, sides, (0, 0)], constant_values=mx.array(-math.inf, x.dtype))
    for axis in (1, 2):
        last = (x.shape[axis] - size) // stride * stride
        before = (slice(None),) * axis
        shifted = (x[(*before, slice(i, i + last + 1, stride))] for i in range(size))
        x = functools.reduce(mx.maximum, shifted)
    return x

"""Two-dimensional average pooling."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Self

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from .._types import FloatArray, Params, Shape
from .base import GraphWriter, Layer, Match
from .conv2d import square_window, window_shape


@dataclass(frozen=True, kw_only=True)
class AvgPool2D(Layer):
    """Mean of each square window.

    Shapes: input ``(N, C, H, W)``; output ``(N, C, H', W')`` with ``H' = (H + 2 * padding - pool_size) // stride + 1``.
    Args:
        pool_size: window side, at least 1.
        stride: step on both axes; 0 (or None in the builder) means ``pool_size``.
        padding: zeros on all four sides, at most half the window.
        count_include_pad: divide by the whole window (True, as PyTorch) or by what of it lies inside the image.
    ONNX: ``AveragePool``.
    Raises: SpecError for values out of range; ShapeError if the input is not 4-D or smaller than the window.
    Source: the ONNX operator AveragePool; PyTorch's nn.AvgPool2d.
    """

    code: ClassVar[int] = 101
    onnx_patterns: ClassVar[tuple[tuple[str, ...], ...]] = (("AveragePool",),)
    go_metal_limit = "go-metal does not know this layer"

    pool_size: int = 2
    stride: int = 0
    padding: int = 0
    count_include_pad: bool = True

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
        pool = nn.AvgPool2d(self.pool_size, self.stride or self.pool_size, self.padding)
        y: mx.array = pool(x)
        if self.count_include_pad or not self.padding:
            return y
        inside = [self._inside(size, count) for size, count in zip(x.shape[1:3], y.shape[1:3], strict=True)]
        counts = np.outer(*inside).astype(np.float32)[None, :, :, None]
        return y * mx.array(self.pool_size**2 / counts).astype(x.dtype)

    def _inside(self, size: int, windows: int) -> FloatArray:
        """How many rows of each window along one axis lie inside the image."""
        start = np.arange(windows) * (self.stride or self.pool_size) - self.padding
        return (np.minimum(start + self.pool_size, size) - np.maximum(start, 0)).astype(np.float32)

    def to_onnx(self, g: GraphWriter, x: str) -> str:
        k, s, p = self.pool_size, self.stride or self.pool_size, self.padding
        include = int(self.count_include_pad)
        return g.node("AveragePool", x, kernel_shape=[k, k], strides=[s, s], pads=[p] * 4, count_include_pad=include)

    @classmethod
    def from_onnx(cls, m: Match) -> tuple[Self, dict[str, FloatArray]] | None:
        if len(m.input_shape) != 4:
            raise m.refuse(0, f"input of rank {len(m.input_shape)}; only two-dimensional pooling is supported")
        if any(d != 1 for d in m.attr(0, "dilations", [1, 1])):
            raise m.refuse(0, f"dilations = {m.attr(0, 'dilations', [1, 1])}; only 1 is supported")
        if m.attr(0, "ceil_mode", 0):
            raise m.refuse(0, "ceil_mode = 1; only 0 is supported")
        kernel, stride, padding = square_window(m, [])
        include = bool(m.attr(0, "count_include_pad", 0)) or padding == 0
        layer = cls(name=m.name, pool_size=kernel, stride=stride, padding=padding, count_include_pad=include)
        return layer, {}

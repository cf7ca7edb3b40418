"""Two-dimensional average pooling."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

import mlx.core as mx
import numpy as np

from .._types import FloatArray, Params
from ._pool import Pool2D
from .base import GraphWriter, Match


@dataclass(frozen=True, kw_only=True)
class AvgPool2D(Pool2D):
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

    count_include_pad: bool = True

    def forward(self, p: Params, x: mx.array, *, training: bool, key: mx.array | None) -> mx.array:
        size, stride, _ = self.window
        full = x.astype(mx.float32)  # float16 ends at 65,504
        y = self.side_by_side(full, mx.sum, 0) if stride == size else self.one_by_one(full, mx.add, 0)
        if self.count_include_pad or not self.padding:
            return (y * (1 / size**2)).astype(x.dtype)
        inside = [self._inside(d, count) for d, count in zip(x.shape[1:3], y.shape[1:3], strict=True)]
        return (y * mx.array(1 / np.outer(*inside)[None, :, :, None])).astype(x.dtype)

    def _inside(self, size: int, windows: int) -> FloatArray:
        """How many rows of each window along one axis lie inside the image."""
        start = np.arange(windows) * self.window[1] - self.padding
        return (np.minimum(start + self.pool_size, size) - np.maximum(start, 0)).astype(np.float32)

    def to_onnx(self, g: GraphWriter, x: str) -> str:
        return g.node("AveragePool", x, **self.onnx_window(), count_include_pad=int(self.count_include_pad))

    @classmethod
    def from_onnx(cls, m: Match) -> tuple[Self, dict[str, FloatArray]] | None:
        window = cls.matched_window(m)
        include = bool(m.attr(0, "count_include_pad", 0)) or window["padding"] == 0
        return cls(name=m.name, count_include_pad=include, **window), {}

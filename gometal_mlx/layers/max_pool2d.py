"""Two-dimensional maximum pooling."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import ClassVar, Self

import mlx.core as mx
import mlx.nn as nn

from .._types import FloatArray, Params
from ._device import on_cpu
from ._pool import Pool2D
from .base import GraphWriter, Match


@dataclass(frozen=True, kw_only=True)
class MaxPool2D(Pool2D):
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

    def forward(self, p: Params, x: mx.array, *, training: bool, key: mx.array | None) -> mx.array:
        size, stride, padding = self.window
        if on_cpu() and stride != size:
            return _overlapping(x, size, stride, padding)
        y: mx.array = nn.MaxPool2d(size, stride, padding)(x)
        return y

    def to_onnx(self, g: GraphWriter, x: str) -> str:
        return g.node("MaxPool", x, **self.onnx_window())

    @classmethod
    def from_onnx(cls, m: Match) -> tuple[Self, dict[str, FloatArray]] | None:
        return cls(name=m.name, **cls.matched_window(m)), {}


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

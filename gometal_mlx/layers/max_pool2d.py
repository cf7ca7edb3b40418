"""Two-dimensional maximum pooling."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Self

import mlx.core as mx

from .._types import FloatArray, Params
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
        size, stride, _ = self.window
        if stride == size:
            return self.side_by_side(x, mx.max, -math.inf)
        return self.one_by_one(x, mx.maximum, -math.inf)

    def to_onnx(self, g: GraphWriter, x: str) -> str:
        return g.node("MaxPool", x, **self.onnx_window())

    @classmethod
    def from_onnx(cls, m: Match) -> tuple[Self, dict[str, FloatArray]] | None:
        return cls(name=m.name, **cls.matched_window(m)), {}

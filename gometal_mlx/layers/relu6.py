"""ReLU6."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

import mlx.core as mx

from .._types import FloatArray, Params
from ._clip import clip_limits
from ._piecewise import piecewise
from .base import Activation, GraphWriter, Match


@dataclass(frozen=True, kw_only=True)
class ReLU6(Activation):
    """``min(max(x, 0), 6)`` (Krizhevsky 2010).

    Shapes: any.
    ONNX: ``Clip`` with 0 and 6.
    Source: the ONNX operator Clip; PyTorch's nn.ReLU6.
    """

    code: ClassVar[int] = 104
    onnx_patterns: ClassVar[tuple[tuple[str, ...], ...]] = (("Clip",),)

    def forward(self, p: Params, x: mx.array, *, training: bool, key: mx.array | None) -> mx.array:
        def slope(x: mx.array, g: mx.array, y: mx.array) -> mx.array:
            return mx.where(y > 0, mx.where(y < 6, g, 0), 0)

        return piecewise(lambda x: mx.minimum(mx.maximum(x, 0), 6), slope, x, training=training)

    def to_onnx(self, g: GraphWriter, x: str) -> str:
        return g.node("Clip", x, g.scalar("min", 0.0), g.scalar("max", 6.0))

    @classmethod
    def from_onnx(cls, m: Match) -> tuple[Self, dict[str, FloatArray]] | None:
        limits = clip_limits(m)
        if limits == (0.0, None):
            return None  # a ReLU
        if limits != (0.0, 6.0):
            raise m.refuse(0, f"only Clip from 0 to 6 (ReLU6), or from 0 on (ReLU), is supported, got {limits}")
        return cls(name=m.name), {}

"""LeakyReLU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

import mlx.core as mx

from .._types import FloatArray, Params
from ._piecewise import piecewise
from .base import Activation, GraphWriter, Match


@dataclass(frozen=True, kw_only=True)
class LeakyReLU(Activation):
    """``x`` for x > 0, ``negative_slope * x`` otherwise (Maas et al. 2013).

    Shapes: any.
    Args:
        negative_slope: slope for negative x.
    ONNX: ``LeakyRelu``.
    Source: go-metal layers/layer.go.
    """

    code: ClassVar[int] = 7
    onnx_patterns: ClassVar[tuple[tuple[str, ...], ...]] = (("LeakyRelu",),)

    negative_slope: float = 0.01

    def forward(self, p: Params, x: mx.array, *, training: bool, key: mx.array | None) -> mx.array:
        slope = self.negative_slope
        larger = mx.maximum if slope <= 1 else mx.minimum
        return piecewise(
            lambda x: larger(x, slope * x), lambda x, g, y: mx.where(x > 0, g, slope * g), x, training=training
        )

    def to_onnx(self, g: GraphWriter, x: str) -> str:
        return g.node("LeakyRelu", x, alpha=self.negative_slope)

    @classmethod
    def from_onnx(cls, m: Match) -> tuple[Self, dict[str, FloatArray]] | None:
        return cls(name=m.name, negative_slope=m.attr(0, "alpha", 0.01)), {}

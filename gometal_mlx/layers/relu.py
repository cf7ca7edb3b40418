"""ReLU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

import mlx.core as mx

from .._types import FloatArray, Params
from ._clip import clip_limits
from ._piecewise import piecewise
from .base import Activation, GraphWriter, Match


@dataclass(frozen=True, kw_only=True)
class ReLU(Activation):
    """``max(x, 0)``.

    Shapes: any.
    ONNX: ``Relu``; also reads ``Clip`` from 0 on, and ``Max`` with 0.
    Source: go-metal layers/layer.go.
    """

    code: ClassVar[int] = 2
    onnx_patterns: ClassVar[tuple[tuple[str, ...], ...]] = (("Relu",), ("Clip",), ("Max",))

    def forward(self, p: Params, x: mx.array, *, training: bool, key: mx.array | None) -> mx.array:
        return piecewise(lambda x: mx.maximum(x, 0), lambda x, g, y: mx.where(y > 0, g, 0), x, training=training)

    def to_onnx(self, g: GraphWriter, x: str) -> str:
        return g.node("Relu", x)

    @classmethod
    def from_onnx(cls, m: Match) -> tuple[Self, dict[str, FloatArray]] | None:
        if m.ops[0] == "Max":
            consts = m.consts(0)
            if len(consts) != 1 or consts[0].ndim > len(m.input_shape) or consts[0].any() or consts[0].size != 1:
                raise m.refuse(0, "only the maximum of the data and the number 0 is supported")
        if m.ops[0] == "Clip" and clip_limits(m) != (0.0, None):
            return None
        return cls(name=m.name), {}

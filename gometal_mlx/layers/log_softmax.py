"""LogSoftmax."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

import mlx.core as mx

from .._types import FloatArray, Params, Shape
from ..errors import ShapeError
from ._exp import log_softmax
from ._layout import internal_axis
from .base import Activation, GraphWriter, Match


@dataclass(frozen=True, kw_only=True)
class LogSoftmax(Activation):
    """``x - log(sum(exp(x)))`` along ``axis``.

    Shapes: any of rank >= 1 that has the axis.
    Args:
        axis: position in the public (NCHW) shape; negative counts from the end.
    ONNX: ``LogSoftmax`` (before opset 13 only where flattening from the axis is the same thing).
    Raises: ShapeError if the input has no such axis.
    Source: the ONNX operator LogSoftmax.
    """

    code: ClassVar[int] = 103
    onnx_patterns: ClassVar[tuple[tuple[str, ...], ...]] = (("LogSoftmax",),)

    axis: int = -1

    def output_shape(self, x: Shape) -> Shape:
        if not -len(x) <= self.axis < len(x):
            raise ShapeError(f"LogSoftmax {self.name!r}: axis {self.axis} is outside the input shape {x}")
        return x

    def rows_apart(self, x: Shape, *, training: bool) -> bool:
        return self.axis % len(x) != 0

    def forward(self, p: Params, x: mx.array, *, training: bool, key: mx.array | None) -> mx.array:
        return log_softmax(x.astype(mx.float32), internal_axis(self.axis, x.ndim)).astype(x.dtype)

    def to_onnx(self, g: GraphWriter, x: str) -> str:
        return g.node("LogSoftmax", x, axis=self.axis)

    @classmethod
    def from_onnx(cls, m: Match) -> tuple[Self, dict[str, FloatArray]] | None:
        axis, rank = m.attr(0, "axis", -1 if m.opset >= 13 else 1), len(m.input_shape)
        if m.opset < 13 and axis % rank != rank - 1:
            raise m.refuse(0, f"before opset 13, axis = {axis} of rank {rank} flattens the input first")
        return cls(name=m.name, axis=m.axis(0, axis)), {}

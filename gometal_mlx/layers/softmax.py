"""Softmax."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

import mlx.core as mx

from .._types import FloatArray, Params, Shape
from ..errors import ShapeError
from ._exp import softmax
from ._layout import internal_axis
from .base import Activation, GraphWriter, Match


@dataclass(frozen=True, kw_only=True)
class Softmax(Activation):
    """``exp(x) / sum(exp(x))`` along ``axis``.

    Shapes: any of rank >= 1 that has the axis.
    Args:
        axis: position in the public (NCHW) shape; negative counts from the end.
    ONNX: ``Softmax`` (before opset 13 only where flattening from the axis is the same thing).
    Raises: ShapeError if the input has no such axis.
    Source: go-metal layers/layer.go.
    """

    code: ClassVar[int] = 3
    few_digits: ClassVar[bool] = True
    onnx_patterns: ClassVar[tuple[tuple[str, ...], ...]] = (("Softmax",),)

    axis: int = -1

    def output_shape(self, x: Shape) -> Shape:
        if not -len(x) <= self.axis < len(x):
            raise ShapeError(f"Softmax {self.name!r}: axis {self.axis} is outside the input shape {x}")
        return x

    def rows_apart(self, x: Shape, *, training: bool) -> bool:
        return self.axis % len(x) != 0

    def forward(self, p: Params, x: mx.array, *, training: bool, key: mx.array | None) -> mx.array:
        return softmax(x, internal_axis(self.axis, x.ndim))

    def to_onnx(self, g: GraphWriter, x: str) -> str:
        return g.node("Softmax", x, axis=self.axis)

    @classmethod
    def from_onnx(cls, m: Match) -> tuple[Self, dict[str, FloatArray]] | None:
        axis, rank = m.attr(0, "axis", -1 if m.opset >= 13 else 1), len(m.input_shape)
        if m.opset < 13 and not m.from_gometal and axis % rank != rank - 1:
            raise m.refuse(0, f"before opset 13, axis = {axis} of rank {rank} flattens the input first")
        return cls(name=m.name, axis=m.axis(0, axis)), {}

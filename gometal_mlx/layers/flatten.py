"""Flatten."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Self

import mlx.core as mx

from .._types import FloatArray, Params, Shape
from ..errors import ShapeError
from ._layout import to_public
from .base import FLATTEN_OPS, GraphWriter, Layer, Match


@dataclass(frozen=True, kw_only=True)
class Flatten(Layer):
    """``(N, d1, d2, ...)`` to ``(N, d1 * d2 * ...)`` in C, H, W order. A Dense layer does it by itself.

    Shapes: input of rank >= 2; output ``(N, product)``.
    ONNX: ``Flatten``; also reads ``Reshape`` and ``Squeeze`` that do the same.
    Raises: ShapeError if the input has rank < 2.
    Source: go-metal's guides use it; its code has no such layer.
    """

    code: ClassVar[int] = 100
    keeps_numbers: ClassVar[bool] = True
    any_layout: ClassVar[bool] = True
    onnx_patterns: ClassVar[tuple[tuple[str, ...], ...]] = tuple((op,) for op in FLATTEN_OPS)

    def output_shape(self, x: Shape) -> Shape:
        if len(x) < 2:
            raise ShapeError(f"Flatten {self.name!r}: input needs rank >= 2 (batch, ...), got shape {x}")
        return (x[0], math.prod(x[1:]))

    def forward(self, p: Params, x: mx.array, *, training: bool, key: mx.array | None) -> mx.array:
        return to_public(x).reshape(x.shape[0], math.prod(x.shape[1:]))

    def to_onnx(self, g: GraphWriter, x: str) -> str:
        return g.node("Flatten", x, axis=1)

    @classmethod
    def from_onnx(cls, m: Match) -> tuple[Self, dict[str, FloatArray]] | None:
        if not m.flattens(0):
            raise m.refuse(0, f"it must keep the batch and flatten the rest of the input {m.input_shape} (axis 1)")
        return cls(name=m.name), {}

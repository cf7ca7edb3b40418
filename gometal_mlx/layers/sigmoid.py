"""Sigmoid."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

import mlx.core as mx

from .._types import FloatArray, Params
from ._exp import sigmoid
from .base import Activation, GraphWriter, Match


@dataclass(frozen=True, kw_only=True)
class Sigmoid(Activation):
    """``1 / (1 + exp(-x))``.

    Shapes: any.
    ONNX: ``Sigmoid``.
    Source: go-metal layers/layer.go.
    """

    code: ClassVar[int] = 9
    few_digits: ClassVar[bool] = True
    onnx_patterns: ClassVar[tuple[tuple[str, ...], ...]] = (("Sigmoid",),)

    def forward(self, p: Params, x: mx.array, *, training: bool, key: mx.array | None) -> mx.array:
        return sigmoid(x)

    def to_onnx(self, g: GraphWriter, x: str) -> str:
        return g.node("Sigmoid", x)

    @classmethod
    def from_onnx(cls, m: Match) -> tuple[Self, dict[str, FloatArray]] | None:
        return cls(name=m.name), {}

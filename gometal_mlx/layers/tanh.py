"""Tanh."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

import mlx.core as mx

from .._types import FloatArray, Params
from ._exp import tanh
from .base import Activation, GraphWriter, Match


@dataclass(frozen=True, kw_only=True)
class Tanh(Activation):
    """``tanh(x)``.

    Shapes: any.
    ONNX: ``Tanh``.
    Source: go-metal layers/layer.go.
    """

    code: ClassVar[int] = 10
    few_digits: ClassVar[bool] = True
    onnx_patterns: ClassVar[tuple[tuple[str, ...], ...]] = (("Tanh",),)
    go_metal_limit = "go-metal can run it, but not train it or save its checkpoints"

    def forward(self, p: Params, x: mx.array, *, training: bool, key: mx.array | None) -> mx.array:
        return tanh(x)

    def to_onnx(self, g: GraphWriter, x: str) -> str:
        return g.node("Tanh", x)

    @classmethod
    def from_onnx(cls, m: Match) -> tuple[Self, dict[str, FloatArray]] | None:
        return cls(name=m.name), {}

"""Swish (SiLU)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

import mlx.core as mx

from .._types import FloatArray, Params
from ._exp import sigmoid
from .base import Activation, GraphWriter, Match


@dataclass(frozen=True, kw_only=True)
class Swish(Activation):
    """``x * sigmoid(x)`` (Ramachandran et al. 2017 with beta 1; also called SiLU).

    Shapes: any.
    ONNX: ``Sigmoid`` and ``Mul``.
    Source: go-metal layers/layer.go.
    """

    code: ClassVar[int] = 11
    onnx_patterns: ClassVar[tuple[tuple[str, ...], ...]] = (("Sigmoid", "Mul"),)
    few_digits: ClassVar[bool] = True
    go_metal_limit = "go-metal can run it, but not train it or save its checkpoints"

    def forward(self, p: Params, x: mx.array, *, training: bool, key: mx.array | None) -> mx.array:
        return x * sigmoid(x)

    def to_onnx(self, g: GraphWriter, x: str) -> str:
        return g.node("Mul", x, g.node("Sigmoid", x))

    @classmethod
    def from_onnx(cls, m: Match) -> tuple[Self, dict[str, FloatArray]] | None:
        return None if m.consts(1) else (cls(name=m.name), {})

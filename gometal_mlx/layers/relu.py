"""ReLU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self, cast

import mlx.core as mx

from .._types import FloatArray, Params
from ._device import on_cpu
from .base import Activation, GraphWriter, Match


@mx.custom_function
def _on_cpu(x: mx.array) -> mx.array:
    return mx.maximum(x, 0)


@_on_cpu.vjp
def _choose(x: mx.array, g: mx.array, y: mx.array) -> mx.array:
    """MLX multiplies by ``x > 0`` as a number, for which g++ finds no vector instructions; it does for a choice."""
    return mx.where(y > 0, g, 0)


@dataclass(frozen=True, kw_only=True)
class ReLU(Activation):
    """``max(x, 0)``.

    Shapes: any.
    ONNX: ``Relu``.
    Source: go-metal layers/layer.go.
    """

    code: ClassVar[int] = 2
    onnx_patterns: ClassVar[tuple[tuple[str, ...], ...]] = (("Relu",),)

    def forward(self, p: Params, x: mx.array, *, training: bool, key: mx.array | None) -> mx.array:
        # in evaluation without a gradient of its own, for which MLX would hold on to x instead of writing into it
        return cast(mx.array, _on_cpu(x)) if training and on_cpu() else mx.maximum(x, 0)

    def to_onnx(self, g: GraphWriter, x: str) -> str:
        return g.node("Relu", x)

    @classmethod
    def from_onnx(cls, m: Match) -> tuple[Self, dict[str, FloatArray]] | None:
        return cls(name=m.name), {}

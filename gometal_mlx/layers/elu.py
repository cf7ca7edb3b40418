"""ELU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

import mlx.core as mx

from .._types import FloatArray, Params
from ._exp import elu
from .base import Activation, GraphWriter, Match


@dataclass(frozen=True, kw_only=True)
class ELU(Activation):
    """``x`` for x > 0, ``alpha * (exp(x) - 1)`` otherwise (Clevert et al. 2016).

    Shapes: any.
    Args:
        alpha: the value approached for x far below 0 is ``-alpha``.
    ONNX: ``Elu``.
    Source: go-metal layers/layer.go.
    """

    code: ClassVar[int] = 8
    onnx_patterns: ClassVar[tuple[tuple[str, ...], ...]] = (("Elu",),)
    go_metal_limit = "go-metal can run and train it, but not save its checkpoints"

    alpha: float = 1.0

    def forward(self, p: Params, x: mx.array, *, training: bool, key: mx.array | None) -> mx.array:
        return elu(x, self.alpha)

    def to_onnx(self, g: GraphWriter, x: str) -> str:
        return g.node("Elu", x, alpha=self.alpha)

    @classmethod
    def from_onnx(cls, m: Match) -> tuple[Self, dict[str, FloatArray]] | None:
        return cls(name=m.name, alpha=m.attr(0, "alpha", 1.0)), {}

"""Global average pooling."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

import mlx.core as mx

from .._types import FloatArray, Params, Shape
from ..errors import ShapeError
from .base import GraphWriter, Layer, Match


@dataclass(frozen=True, kw_only=True)
class GlobalAvgPool2D(Layer):
    """Mean of each channel over height and width (Lin et al. 2013).

    Shapes: input ``(N, C, H, W)``; output ``(N, C, 1, 1)``, which a Dense layer takes.
    ONNX: ``GlobalAveragePool``; also reads ``ReduceMean`` over both axes (one that drops them becomes two layers).
    Raises: ShapeError if the input is not 4-D.
    Source: the ONNX operator GlobalAveragePool.
    """

    code: ClassVar[int] = 102
    onnx_patterns: ClassVar[tuple[tuple[str, ...], ...]] = (("GlobalAveragePool",), ("ReduceMean",))

    def output_shape(self, x: Shape) -> Shape:
        if len(x) != 4:
            kind = f"GlobalAvgPool2D {self.name!r}"
            raise ShapeError(f"{kind}: input needs rank 4 (batch, channels, height, width), got shape {x}")
        return (*x[:2], 1, 1)

    def forward(self, p: Params, x: mx.array, *, training: bool, key: mx.array | None) -> mx.array:
        return mx.mean(x.astype(mx.float32), axis=(1, 2), keepdims=True).astype(x.dtype)  # float16 ends at 65,504

    def to_onnx(self, g: GraphWriter, x: str) -> str:
        return g.node("GlobalAveragePool", x)

    @classmethod
    def from_onnx(cls, m: Match) -> tuple[Self, dict[str, FloatArray]] | None:
        if m.ops[0] == "ReduceMean":
            axes = m.attr(0, "axes", m.ints(0) or [])
            if len(m.input_shape) != 4 or sorted(a % 4 for a in axes) != [2, 3] or m.attr(0, "keepdims", 1) != 1:
                raise m.refuse(0, f"only a mean over height and width is supported, got axes {axes}")
        return cls(name=m.name), {}

"""Per-channel scale and shift."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Self

import mlx.core as mx
import numpy as np

from .._types import FloatArray, Params, Shape
from ..errors import ShapeError
from .base import GraphWriter, Layer, Match, Param, constant

_OPS = ("Mul", "Add", "Sub", "Div")


@dataclass(frozen=True, kw_only=True)
class Affine(Layer):
    """``y = weight * x + bias`` with one number of each a channel; starts as the identity.

    Shapes: input ``(N, C, ...)``, rank >= 2; output alike; weight and bias ``(C,)``.
    ONNX: ``Mul`` and ``Add``; also reads any one or two of Mul, Add, Sub, Div with a constant for each channel, which
        is how exporters write the normalisation of inputs.
    Raises: ShapeError if the input has rank < 2.
    Source: the ONNX operators Mul and Add.
    """

    code: ClassVar[int] = 105
    any_layout: ClassVar[bool] = True
    onnx_patterns: ClassVar[tuple[tuple[str, ...], ...]] = tuple((a, b) for a in _OPS for b in _OPS) + tuple(
        (op,) for op in _OPS
    )

    def output_shape(self, x: Shape) -> Shape:
        if len(x) < 2:
            raise ShapeError(f"Affine {self.name!r}: input needs rank >= 2 (batch, channels, ...), got shape {x}")
        return x

    def params(self, x: Shape) -> dict[str, Param]:
        shape = (x[1],)
        return {
            "weight": Param(shape, "weight", constant(shape, 1.0)),
            "bias": Param(shape, "bias", constant(shape, 0.0)),
        }

    def forward(self, p: Params, x: mx.array, *, training: bool, key: mx.array | None) -> mx.array:
        return x * p["weight"] + p["bias"]

    def to_onnx(self, g: GraphWriter, x: str) -> str:
        shape = (-1, *([1] * (len(g.shape()) - 2)))
        return g.node("Add", g.node("Mul", x, g.weight("weight", shape)), g.weight("bias", shape))

    @classmethod
    def from_onnx(cls, m: Match) -> tuple[Self, dict[str, FloatArray]] | None:
        channels, rank = m.input_shape[1], len(m.input_shape)
        scale: Any = np.ones(1, np.float64)
        shift: Any = np.zeros(1, np.float64)
        for node, op in enumerate(m.ops):
            consts = m.consts(node)
            if len(consts) != 1 or consts[0].ndim > rank:
                return None
            c = consts[0].reshape((1,) * (rank - consts[0].ndim) + consts[0].shape)
            if c.size != 1 and (c.shape[1] != channels or c.size != channels):
                raise m.refuse(node, f"its constant {consts[0].shape} is not one value for each of {channels} channels")
            with np.errstate(invalid="ignore"):  # a NaN; whoever reads the weights finds it
                c = c.reshape(-1).astype(np.float64)
            scale, shift = _combined(op, scale, shift, c, first=m.data_first(node))
            if scale is None:
                raise m.refuse(node, "divides by the data")
        with np.errstate(over="ignore"):  # as in _combined
            arrays = {"weight": scale.astype(np.float32), "bias": shift.astype(np.float32)}
        return cls(name=m.name), {k: np.broadcast_to(v, (channels,)) for k, v in arrays.items()}


def _combined(op: str, scale: Any, shift: Any, c: Any, *, first: bool) -> tuple[Any, Any]:
    """Scale and shift after one more operation; ``first``: the data is the left operand."""
    with np.errstate(all="ignore"):  # whoever reads the weights checks that they are finite
        if op == "Mul":
            return scale * c, shift * c
        if op == "Div":
            return (scale / c, shift / c) if first else (None, None)
        if op == "Add":
            return scale, np.where(shift == 0, c, shift + c)  # 0 + -0 would be 0
        return (scale, shift - c) if first else (-scale, c - shift)

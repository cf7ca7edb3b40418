"""Dense (fully connected) layer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Self

import mlx.core as mx
import numpy as np

from .._types import FloatArray, Params, Shape
from ..errors import ShapeError
from ._device import on_cpu
from ._layout import rows_internal, to_public
from ._product import product
from .base import FLATTEN_OPS, GraphWriter, Layer, Match, Param, constant, he_normal


@dataclass(frozen=True, kw_only=True)
class Dense(Layer):
    """Affine map of the flattened input: ``y = flatten(x) @ W + b``.

    Shapes: input ``(N, d1, ...)``, rank >= 2, flattened in C, H, W order; output ``(N, output_size)``;
        weight ``(d1 * d2 * ..., output_size)``; bias ``(output_size,)``.
    Args:
        output_size: features out, at least 1.
        use_bias: add a learned bias (starts at 0). The weight starts He-normal over the input features.
    ONNX: writes ``Flatten`` (rank > 2) and ``Gemm``, or ``MatMul`` and ``Add`` on request; reads both.
    Raises: SpecError for a size below 1; ShapeError for an input of rank < 2.
    Source: go-metal layers/layer.go, computeDenseInfo.
    """

    code: ClassVar[int] = 0
    any_layout: ClassVar[bool] = True
    derived_keys: ClassVar[tuple[str, ...]] = ("input_size",)
    onnx_patterns: ClassVar[tuple[tuple[str, ...], ...]] = tuple(
        (*flatten, *core)
        for core in (("MatMul", "Add"), ("MatMul",), ("Gemm",))
        for flatten in (*((op,) for op in FLATTEN_OPS), ())
    )

    output_size: int
    use_bias: bool = True

    def check(self) -> None:
        if self.output_size < 1:
            raise self.error(f"output_size must be at least 1, got {self.output_size}")

    def output_shape(self, x: Shape) -> Shape:
        if len(x) < 2:
            raise ShapeError(f"Dense {self.name!r}: input needs rank >= 2 (batch, features...), got shape {x}")
        return (x[0], self.output_size)

    def operations_per_row(self, x: Shape) -> int:
        return math.prod(x[1:]) * self.output_size

    def derived(self, x: Shape) -> dict[str, int]:
        return {"input_size": math.prod(x[1:])}

    def params(self, x: Shape) -> dict[str, Param]:
        size = math.prod(x[1:])
        shape = (size, self.output_size)
        p = {"weight": Param(shape, "weight", he_normal(shape, size))}
        if self.use_bias:
            p["bias"] = Param((self.output_size,), "bias", constant((self.output_size,), 0.0))
        return p

    def prepares(self, x: Shape) -> bool:
        return len(x) > 2

    def prepared(self, weight: mx.array, x: Shape) -> dict[str, mx.array]:
        return {"prepared": rows_internal(weight, x)}  # so that images need not be flattened in C, H, W order

    def forward(self, p: Params, x: mx.array, *, training: bool, key: mx.array | None) -> mx.array:
        weight = p.get("prepared", p["weight"])
        if x.ndim > 2:
            x = x if "prepared" in p else to_public(x)
            x = x.reshape(x.shape[0], math.prod(x.shape[1:]))  # -1 cannot be inferred for no rows
        if self.use_bias and not on_cpu():
            return mx.addmm(p["bias"], x, weight)
        y = x @ weight if training else product(x, weight)
        return y + p["bias"] if self.use_bias else y  # on a CPU in one loop with an activation

    def to_onnx(self, g: GraphWriter, x: str) -> str:
        if len(g.shape()) > 2:
            x = g.node("Flatten", x, axis=1)
        if g.gemm:
            return g.node("Gemm", x, g.weight("weight"), *([g.weight("bias")] if self.use_bias else []))
        y = g.node("MatMul", x, g.weight("weight"))
        return g.node("Add", y, g.weight("bias")) if self.use_bias else y

    @classmethod
    def from_onnx(cls, m: Match) -> tuple[Self, dict[str, FloatArray]] | None:
        at = 1 if m.ops[0] in FLATTEN_OPS else 0
        if at and not m.flattens(0):
            raise m.refuse(0, f"it must keep the batch and flatten the rest of the input {m.input_shape} (axis 1)")
        if not at and len(m.input_shape) != 2 and not m.from_gometal:
            raise m.refuse(at, f"input of rank {len(m.input_shape)}; a Dense layer needs rank 2 or a Flatten before it")
        consts = m.consts(at)
        if not m.data_first(at) or not consts or consts[0].ndim != 2:
            raise m.refuse(at, "its right operand must be a constant matrix")
        weight, bias = _gemm(m, at, consts) if m.ops[at] == "Gemm" else (_oriented(m, at, consts[0]), None)
        if m.ops[-1] == "Add":
            if not m.consts(at + 1):
                return None  # adds data; the product alone is a layer
            bias = m.consts(at + 1)[0]
        features = math.prod(m.input_shape[1:])
        if weight.shape[0] != features:
            raise m.refuse(at, f"weight {weight.shape} does not fit {features} input features")
        if bias is None:
            return cls(name=m.name, output_size=weight.shape[1], use_bias=False), {"weight": weight}
        if bias.size not in (1, weight.shape[1]) or bias.ndim > 2 or bias.shape[-1:] not in ((bias.size,), ()):
            raise m.refuse(len(m.ops) - 1, f"bias {bias.shape} is not one value for each of {weight.shape[1]} outputs")
        bias = np.broadcast_to(bias.reshape(-1), (weight.shape[1],))
        return cls(name=m.name, output_size=weight.shape[1]), {"weight": weight, "bias": bias}


def _gemm(m: Match, at: int, consts: list[FloatArray]) -> tuple[FloatArray, FloatArray | None]:
    """Weight and bias of a Gemm, its scalings multiplied in."""
    if m.attr(at, "transA", 0):
        raise m.refuse(at, "transA = 1 multiplies the transposed batch")
    weight = consts[0].T if m.attr(at, "transB", 0) else consts[0]
    alpha, beta = np.float32(m.attr(at, "alpha", 1.0)), np.float32(m.attr(at, "beta", 1.0))
    with np.errstate(over="ignore", invalid="ignore"):  # whoever reads the weights checks that they are finite
        bias = beta * consts[1] if len(consts) > 1 else None
        return weight if alpha == 1 else alpha * weight, bias


def _oriented(m: Match, at: int, weight: FloatArray) -> FloatArray:
    """A MatMul's weight as (in, out); go-metal writes (out, in), which only its own files may."""
    features = math.prod(m.input_shape[1:])
    square = weight.shape[0] == weight.shape[1]
    if not m.from_gometal or weight.shape[1] != features or (weight.shape[0] == features and not square):
        return weight
    m.note("transposed its weight: go-metal writes MatMul weights as (out, in)")
    return weight.T

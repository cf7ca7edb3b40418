"""Two-dimensional convolution."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Self

import mlx.core as mx

from .._types import FloatArray, Params, Shape
from ._conv import conv2d, prepared
from ._layout import oihw_to_ohwi
from ._window import square_window, window_shape
from .base import GraphWriter, Layer, Match, Param, constant, he_normal


@dataclass(frozen=True, kw_only=True)
class Conv2D(Layer):
    """Cross-correlation of an image with square kernels: ``y[o] = sum_c x[c] * w[o, c] + b[o]``.

    Shapes: input ``(N, C, H, W)``; output ``(N, output_channels, H', W')`` with
        ``H' = (H + 2 * padding - kernel_size) // stride + 1``, W' alike; weight ``(output_channels, C, k, k)``;
        bias ``(output_channels,)``.
    Args:
        output_channels, kernel_size, stride: at least 1 (kernel and stride hold for both axes).
        padding: zeros on all four sides, at least 0.
        use_bias: add a learned bias (starts at 0). The weight starts He-normal over ``C * k * k``.
    ONNX: ``Conv``.
    Raises: SpecError for values out of range; ShapeError if the input is not 4-D or smaller than the kernel.
    Source: go-metal layers/layer.go, computeConv2DInfo.
    """

    code: ClassVar[int] = 1
    aliases = {"out_channels": "output_channels", "in_channels": "input_channels"}
    derived_keys: ClassVar[tuple[str, ...]] = ("input_channels",)
    onnx_patterns: ClassVar[tuple[tuple[str, ...], ...]] = (("Conv", "Add"), ("Conv",))

    output_channels: int
    kernel_size: int
    stride: int = 1
    padding: int = 0
    use_bias: bool = True

    def check(self) -> None:
        for name in ("output_channels", "kernel_size", "stride"):
            if getattr(self, name) < 1:
                raise self.error(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.padding < 0:
            raise self.error(f"padding must be at least 0, got {self.padding}")

    def output_shape(self, x: Shape) -> Shape:
        return (x[0], self.output_channels, *window_shape(self, x, self.kernel_size, self.stride, self.padding))

    def numbers_per_row(self, x: Shape) -> int:
        _, outputs, height, width = self.output_shape(x)
        columns = x[1] * self.kernel_size**2 if self.kernel_size > 1 else 0  # windows as rows; tiles hold about as much
        return height * width * (outputs + columns)

    def operations_per_row(self, x: Shape) -> int:
        return math.prod(self.output_shape(x)[1:]) * x[1] * self.kernel_size**2

    def derived(self, x: Shape) -> dict[str, int]:
        return {"input_channels": x[1]}

    def params(self, x: Shape) -> dict[str, Param]:
        shape = (self.output_channels, x[1], self.kernel_size, self.kernel_size)
        p = {"weight": Param(shape, "weight", he_normal(shape, math.prod(shape[1:])))}
        if self.use_bias:
            p["bias"] = Param((self.output_channels,), "bias", constant((self.output_channels,), 0.0))
        return p

    def prepares(self, x: Shape) -> bool:
        return True

    def prepared(self, weight: mx.array, x: Shape) -> dict[str, mx.array]:
        return prepared(oihw_to_ohwi(weight), self.stride, self.padding)

    def forward(self, p: Params, x: mx.array, *, training: bool, key: mx.array | None) -> mx.array:
        kernels = p["kernels"] if "kernels" in p else oihw_to_ohwi(p["weight"])
        return conv2d(x, kernels, p.get("bias"), self.stride, self.padding, p.get("transformed"))

    def to_onnx(self, g: GraphWriter, x: str) -> str:
        inputs = [x, g.weight("weight"), *([g.weight("bias")] if self.use_bias else [])]
        k, s, p = self.kernel_size, self.stride, self.padding
        return g.node("Conv", *inputs, kernel_shape=[k, k], strides=[s, s], pads=[p] * 4, dilations=[1, 1], group=1)

    @classmethod
    def from_onnx(cls, m: Match) -> tuple[Self, dict[str, FloatArray]] | None:
        consts = m.consts(0)
        if not m.data_first(0) or not consts or consts[0].ndim != 4:
            raise m.refuse(0, "its kernel must be a constant of rank 4 (two-dimensional convolution)")
        weight = consts[0]
        m.only(0, "group", 1)
        kernel, stride, padding = square_window(m, list(weight.shape[2:]))
        if m.attr(0, "kernel_shape", list(weight.shape[2:])) != list(weight.shape[2:]):
            raise m.refuse(0, f"kernel_shape {kernel} contradicts the weight's shape {weight.shape}")
        if m.attr(0, "group", 1) == 1 and weight.shape[1] != m.input_shape[1]:
            raise m.refuse(
                0, f"weight {weight.shape} needs {weight.shape[1]} input channels, the input has {m.input_shape[1]}"
            )
        if m.ops[-1] == "Add":
            added = m.consts(1)
            per_channel = added and added[0].shape[-3:] == (weight.shape[0], 1, 1) and added[0].size == weight.shape[0]
            if len(consts) > 1 or not per_channel:
                return None  # the Conv alone is a layer; what is added may be another
            consts = [weight, added[0].reshape(-1)]
        layer = cls(
            name=m.name, output_channels=weight.shape[0], kernel_size=kernel, stride=stride, padding=padding,
            use_bias=len(consts) > 1,
        )  # fmt: skip
        return layer, {"weight": weight, **({"bias": consts[1]} if len(consts) > 1 else {})}

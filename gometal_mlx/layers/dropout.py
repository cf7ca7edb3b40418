"""Dropout."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

import mlx.core as mx

from .._types import FloatArray, Params
from .base import GraphWriter, Layer, Match


@dataclass(frozen=True, kw_only=True)
class Dropout(Layer):
    """In training, zeroes each element with probability ``rate`` and scales the rest by ``1 / (1 - rate)``.

    In evaluation the identity (inverted dropout, Srivastava et al. 2014).

    Shapes: any.
    Args:
        rate: probability of a zero, from 0 up to but not including 1.
    ONNX: left out unless asked for; reads ``Dropout`` (ratio as attribute or input).
    Raises: SpecError for a rate out of range.
    Source: go-metal layers/layer.go; its engine never drops anything.
    """

    code: ClassVar[int] = 5
    keeps_numbers: ClassVar[bool] = True
    any_layout: ClassVar[bool] = True
    constants = {"training": True}
    onnx_patterns: ClassVar[tuple[tuple[str, ...], ...]] = (("Dropout",),)
    go_metal_limit = "go-metal never drops anything, in training either"

    rate: float = 0.5

    def check(self) -> None:
        if not 0 <= self.rate < 1:
            raise self.error(f"rate (probability of a zero) must be from 0 up to, not including, 1, got {self.rate}")

    def forward(self, p: Params, x: mx.array, *, training: bool, key: mx.array | None) -> mx.array:
        if not training or self.rate == 0:
            return x
        keep = mx.random.bernoulli(1 - self.rate, x.shape, key=key)
        return mx.where(keep, x * (1 / (1 - self.rate)), mx.zeros((), x.dtype))

    def to_onnx(self, g: GraphWriter, x: str) -> str:
        return g.node("Dropout", x, g.scalar("ratio", self.rate)) if g.keep_dropout else x

    @classmethod
    def from_onnx(cls, m: Match) -> tuple[Self, dict[str, FloatArray]] | None:
        ratio, training = m.const(0, 1), m.const(0, 2)
        if shapes := [c.shape for c in (ratio, training) if c is not None and c.size != 1]:
            raise m.refuse(0, f"its ratio and training_mode must be single values, got {shapes}")
        if training is not None and training.item():
            raise m.refuse(0, "training_mode is true; export the model for inference")
        m.attr(0, "seed", 0)  # chooses the mask, which an inference graph never draws
        rate = m.attr(0, "ratio", 0.5) if ratio is None else float(ratio.item())
        return cls(name=m.name, rate=rate), {}

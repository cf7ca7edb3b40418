"""Batch normalisation with running statistics."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Self, cast

import mlx.core as mx
import numpy as np

from .._types import FloatArray, Params, Shape, f32
from ..errors import ShapeError
from ._device import by_itself
from .base import GraphWriter, Layer, Match, Param, constant


@dataclass(frozen=True, kw_only=True)
class BatchNorm(Layer):
    """``y = gamma * (x - mean) / sqrt(var + eps) + beta`` for each channel (Ioffe, Szegedy 2015).

    Training uses the batch's mean and biased variance and moves the running statistics,
    ``running = (1 - momentum) * running + momentum * batch`` with the unbiased variance; evaluation uses the running
    ones. A batch that holds one value a channel has no variance: it is normalised by the running statistics.

    Shapes: input ``(N, C, ...)``, rank >= 2; output alike; weight (gamma), bias (beta) and both statistics ``(C,)``.
    Args:
        num_features: C; 0 means: take it from the input.
        eps: added to the variance, > 0.
        momentum: weight of the NEW batch, from 0 to 1 (PyTorch's convention; ONNX gets ``1 - momentum``).
        affine: learn gamma (starts at 1) and beta (starts at 0).
    ONNX: ``BatchNormalization`` with the running statistics.
    Raises: SpecError for values out of range; ShapeError if the channel count differs.
    Source: go-metal layers/layer.go, computeBatchNormInfo; training mode as documented there, not as its engine runs.
    """

    code: ClassVar[int] = 6
    aliases = {"epsilon": "eps"}
    constants = {"track_running_stats": True, "training": True}
    onnx_patterns: ClassVar[tuple[tuple[str, ...], ...]] = (("BatchNormalization",),)
    go_metal_limit = "go-metal keeps the statistics as they are, in training too"

    num_features: int = 0
    eps: float = 1e-5
    momentum: float = 0.1
    affine: bool = True

    def check(self) -> None:
        if self.num_features < 0:
            raise self.error(f"num_features must be at least 1 (or 0: take it from the input), got {self.num_features}")
        if self.eps <= 0:
            raise self.error(f"eps must be greater than 0, got {self.eps}")
        if not 0 <= self.momentum <= 1:
            raise self.error(f"momentum (weight of the new batch) must be from 0 to 1, got {self.momentum}")

    def resolve(self, x: Shape) -> Self:
        return replace(self, num_features=x[1]) if not self.num_features and len(x) > 1 else self

    def output_shape(self, x: Shape) -> Shape:
        if len(x) < 2:
            raise ShapeError(f"BatchNorm {self.name!r}: input needs rank >= 2 (batch, channels, ...), got shape {x}")
        if self.num_features not in (0, x[1]):
            raise ShapeError(
                f"BatchNorm {self.name!r}: num_features is {self.num_features}, but the input {x} has {x[1]} channels"
            )
        return x

    def params(self, x: Shape) -> dict[str, Param]:
        shape = (x[1],)
        learned = {
            "weight": Param(shape, "gamma", constant(shape, 1.0)),
            "bias": Param(shape, "beta", constant(shape, 0.0)),
        }
        statistics = {
            "running_mean": Param(shape, "running_mean", constant(shape, 0.0)),
            "running_var": Param(shape, "running_var", constant(shape, 1.0)),
        }
        return {**(learned if self.affine else {}), **statistics}

    def rows_apart(self, x: Shape, *, training: bool) -> bool:
        return not training

    def forward(self, p: Params, x: mx.array, *, training: bool, key: mx.array | None) -> mx.array:
        rows = x.reshape(-1, x.shape[-1]).astype(mx.float32)  # float16 has too few digits for means over many rows
        n, learned = rows.shape[0], [p[k].astype(mx.float32) for k in ("weight", "bias") if self.affine]
        if training and n > 1:
            mean, var = (mx.stop_gradient(s(rows, axis=0)) for s in (mx.mean, mx.var))
            m = self.momentum
            p["running_mean"] = (1 - m) * p["running_mean"] + m * mean
            p["running_var"] = (1 - m) * p["running_var"] + m * (var * (n / (n - 1)))
            y = _by_batch(self.eps)(rows, mean, var, *learned)
        else:
            y = _normalised(rows, p["running_mean"], p["running_var"], self.eps, *learned)
        return y.reshape(x.shape).astype(x.dtype)

    def to_onnx(self, g: GraphWriter, x: str) -> str:
        if self.affine:
            scale, bias = g.weight("weight"), g.weight("bias")
        else:
            scale = g.constant("weight", np.ones(self.num_features, np.float32))
            bias = g.constant("bias", np.zeros(self.num_features, np.float32))
        return g.node(
            "BatchNormalization", x, scale, bias, g.weight("running_mean"), g.weight("running_var"),
            epsilon=self.eps, momentum=f32(1 - self.momentum),
        )  # fmt: skip

    @classmethod
    def from_onnx(cls, m: Match) -> tuple[Self, dict[str, FloatArray]] | None:
        consts = m.consts(0)
        if not m.data_first(0) or len(consts) != 4 or {c.shape for c in consts} != {m.input_shape[1:2]}:
            shapes = [c.shape for c in consts]
            raise m.refuse(0, f"scale, B, mean and var must be constants of {m.input_shape[1:2]}, got {shapes}")
        m.only(0, "training_mode", 0)
        m.only(0, "spatial", 1)  # 0 normalises each position by itself
        momentum = m.attr(0, "momentum", 0.9)
        momentum = momentum if m.from_gometal else f32(1 - f32(momentum))  # ONNX keeps the weight of the OLD value
        layer = cls(name=m.name, num_features=m.input_shape[1], eps=m.attr(0, "epsilon", 1e-5), momentum=momentum)
        return layer, dict(zip(("weight", "bias", "running_mean", "running_var"), consts, strict=True))


def _normalised(rows: mx.array, mean: mx.array, var: mx.array, eps: float, *learned: mx.array) -> mx.array:
    scale = mx.rsqrt(var + eps)
    y = (rows - mean) * by_itself(scale * learned[0] if learned else scale)
    return y + learned[1] if learned else y


def _by_batch(eps: float) -> Callable[..., mx.array]:
    """Normalisation by the rows' own statistics, which come as constants; the gradient knows that they are not.

    With ``h = (x - mean) / sqrt(var + eps)``: ``dx = gamma / sqrt(var + eps) * (g - mean(g) - h mean(g h))``.
    """

    @mx.custom_function
    def normalise(rows: mx.array, mean: mx.array, var: mx.array, *learned: mx.array) -> mx.array:
        return _normalised(rows, mean, var, eps, *learned)

    @normalise.vjp
    def gradients(primals: Sequence[mx.array], g: mx.array, _: mx.array) -> tuple[mx.array, ...]:
        rows, mean, var, *learned = primals
        n, inverse = rows.shape[0], mx.rsqrt(var + eps)
        centred = rows - mean
        total, along = mx.sum(g, axis=0), mx.sum(g * centred, axis=0) * inverse
        scale = by_itself(inverse * learned[0] if learned else inverse)
        dx = (g - by_itself(total / n) - centred * by_itself(along * inverse / n)) * scale
        return dx, mx.zeros_like(mean), mx.zeros_like(var), *([along, total] if learned else [])

    return cast(Callable[..., mx.array], normalise)

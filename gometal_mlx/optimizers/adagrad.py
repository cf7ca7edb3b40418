"""AdaGrad."""

from __future__ import annotations

from typing import ClassVar

import mlx.core as mx

from .._types import Params
from .base import Optimizer, Schedule


class AdaGrad(Optimizer):
    """``g' = g + wd w``; ``G = G + g'^2``; ``w -= lr g' / (sqrt(G) + eps)`` (Duchi et al. 2011).

    Args:
        learning_rate: > 0; default 0.01.
        epsilon: outside the root, >= 1e-30; default 1e-10.
        weight_decay: coupled (L2), >= 0; default 0.
    Raises: SpecError for a value out of range.
    Source: go-metal optimizer/adagrad.go and bridge_optimizer.m. G is a sum, although files call it an average.
    """

    code: ClassVar[int] = 4
    json_type: ClassVar[str] = "AdaGrad"
    epsilon: float
    weight_decay: float

    def __init__(
        self, learning_rate: float | Schedule = 0.01, *, epsilon: float = 1e-10, weight_decay: float = 0.0
    ) -> None:
        super().__init__(learning_rate, epsilon=epsilon, weight_decay=weight_decay)

    def slots(self) -> tuple[str, ...]:
        return ("squared_grad_avg",)

    def rule(self, w: mx.array, g: mx.array, s: Params, step: mx.array, lr: mx.array) -> mx.array:
        if self.weight_decay > 0:
            g = g + self.weight_decay * w
        total = s["squared_grad_avg"] = s["squared_grad_avg"] + mx.square(g)
        return w - lr * g / (mx.sqrt(total) + self.epsilon)

"""AdaDelta."""

from __future__ import annotations

from typing import ClassVar

import mlx.core as mx

from .._types import Params
from .base import Optimizer


class AdaDelta(Optimizer):
    """``d = sqrt(D + eps) / sqrt(E + eps) g'``; ``w -= d`` with running means E of ``g'^2`` and D of ``d^2``.

    ``E = rho E + (1 - rho) g'^2`` before, ``D = rho D + (1 - rho) d^2`` after; ``g' = g + wd w``.
    There is no learning rate (Zeiler 2012); one that is set is ignored.

    Args:
        rho: between 0 and 1; default 0.95.
        epsilon: >= 1e-30; default 1e-6.
        weight_decay: coupled (L2), >= 0; default 0.
    Raises: SpecError for a value out of range.
    Source: go-metal optimizer/adadelta.go and bridge_optimizer.m.
    """

    code: ClassVar[int] = 5
    json_type: ClassVar[str] = "AdaDelta"
    uses_learning_rate: ClassVar[bool] = False
    config_names = {"rho": ("alpha",)}  # go-metal has its rho in Alpha
    rho: float
    epsilon: float
    weight_decay: float

    def __init__(self, *, rho: float = 0.95, epsilon: float = 1e-6, weight_decay: float = 0.0) -> None:
        super().__init__(None, rho=rho, epsilon=epsilon, weight_decay=weight_decay)

    def slots(self) -> tuple[str, ...]:
        return ("squared_grad_avg", "squared_update_avg")

    def rule(self, w: mx.array, g: mx.array, s: Params, step: mx.array, lr: mx.array) -> mx.array:
        if self.weight_decay > 0:
            g = g + self.weight_decay * w
        squares = s["squared_grad_avg"] = self.rho * s["squared_grad_avg"] + (1 - self.rho) * mx.square(g)
        update = mx.sqrt(s["squared_update_avg"] + self.epsilon) * mx.rsqrt(squares + self.epsilon) * g
        s["squared_update_avg"] = self.rho * s["squared_update_avg"] + (1 - self.rho) * mx.square(update)
        return w - update

"""Stochastic gradient descent."""

from __future__ import annotations

from typing import ClassVar

import mlx.core as mx

from .._types import Params
from .base import Optimizer, Schedule


class SGD(Optimizer):
    """``g' = g + wd * w``; ``m = momentum * m + g'``; ``w -= lr * m``, Nesterov: ``w -= lr * (momentum * m + g')``.

    Without momentum ``w -= lr * g'``. No dampening: the first step has ``m = g'``.

    Args:
        learning_rate: > 0; default 0.01.
        momentum: 0 to 1; default 0.
        weight_decay: coupled (L2), >= 0; default 0.
        nesterov: look ahead (Sutskever et al. 2013); default False.
    Raises: SpecError for a value out of range.
    Source: go-metal optimizer/sgd.go and bridge_optimizer.m, execute_sgd_step_mpsgraph.
    """

    code: ClassVar[int] = 0
    json_type: ClassVar[str] = "SGD"
    config_names = {"momentum": ("momentum", "beta1")}  # go-metal has its momentum in Beta1
    momentum: float
    weight_decay: float
    nesterov: bool

    def __init__(
        self,
        learning_rate: float | Schedule = 0.01,
        *,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
    ) -> None:
        super().__init__(learning_rate, momentum=momentum, weight_decay=weight_decay, nesterov=nesterov)

    def slots(self) -> tuple[str, ...]:
        return ("momentum",) if self.momentum > 0 else ()

    def rule(self, w: mx.array, g: mx.array, s: Params, step: mx.array, lr: mx.array) -> mx.array:
        if self.weight_decay > 0:
            g = g + self.weight_decay * w
        if self.momentum == 0:
            return w - lr * g
        m = s["momentum"] = self.momentum * s["momentum"] + g
        return w - lr * (self.momentum * m + g if self.nesterov else m)

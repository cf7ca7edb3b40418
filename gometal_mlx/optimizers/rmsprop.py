"""RMSProp, optionally centered and with momentum."""

from __future__ import annotations

from typing import ClassVar

import mlx.core as mx

from .._types import Params
from .base import Optimizer, Schedule


class RMSProp(Optimizer):
    """``s = a s + (1 - a) g^2``; ``u = g / sqrt(s + eps)``; ``w -= lr (u + wd w)``.

    Centered: ``q = a q + (1 - a) g`` and ``u = g / sqrt(max(s - q^2, 0) + eps)`` (Graves 2013). With momentum
    ``b = momentum b + u`` takes the place of u. eps stands inside the root; the decay is decoupled.

    Args:
        learning_rate: > 0; default 0.01.
        alpha: smoothing, 0 up to 1; default 0.99.
        epsilon: >= 1e-30; default 1e-8.
        weight_decay: >= 0; default 0.
        momentum: 0 to 1; default 0.
        centered: subtract the squared mean of the gradient; default False.
    Raises: SpecError for a value out of range.
    Source: Tieleman, Hinton 2012; go-metal optimizer/rmsprop.go and bridge_optimizer.m.
    """

    code: ClassVar[int] = 2
    json_type: ClassVar[str] = "RMSProp"
    alpha: float
    epsilon: float
    weight_decay: float
    momentum: float
    centered: bool

    def __init__(
        self, learning_rate: float | Schedule = 0.01, *, alpha: float = 0.99, epsilon: float = 1e-8,
        weight_decay: float = 0.0, momentum: float = 0.0, centered: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(
            learning_rate, alpha=alpha, epsilon=epsilon, weight_decay=weight_decay, momentum=momentum, centered=centered
        )

    def slots(self) -> tuple[str, ...]:
        velocity = ("momentum",) if self.momentum > 0 else ()
        return ("squared_grad_avg", *velocity, *(("gradient_avg",) if self.centered else ()))

    def rule(self, w: mx.array, g: mx.array, s: Params, step: mx.array, lr: mx.array) -> mx.array:
        spread = s["squared_grad_avg"] = self.alpha * s["squared_grad_avg"] + (1 - self.alpha) * mx.square(g)
        if self.centered:
            mean = s["gradient_avg"] = self.alpha * s["gradient_avg"] + (1 - self.alpha) * g
            spread = mx.maximum(spread - mx.square(mean), 0.0)  # rounding can leave it just below 0
        update = g * mx.rsqrt(spread + self.epsilon)
        if self.momentum > 0:
            update = s["momentum"] = self.momentum * s["momentum"] + update
        return w - lr * (update + self.weight_decay * w if self.weight_decay > 0 else update)

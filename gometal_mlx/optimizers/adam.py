"""Adam with decoupled weight decay."""

from __future__ import annotations

from typing import ClassVar

import mlx.core as mx

from .._types import Params
from ..layers._device import by_itself
from .base import Optimizer, Schedule


class Adam(Optimizer):
    """``m = b1 m + (1 - b1) g``; ``v = b2 v + (1 - b2) g^2``; ``w -= lr (mh / (sqrt(vh) + eps) + wd w)``.

    ``mh = m / (1 - b1^t)`` and ``vh = v / (1 - b2^t)`` with t from 1 (Kingma, Ba 2015); the decay is decoupled and
    scaled by the learning rate (Loshchilov, Hutter 2019).

    Args:
        learning_rate: > 0; default 0.001.
        beta1, beta2: 0 up to 1; default 0.9, 0.999.
        epsilon: outside the root, >= 1e-30; default 1e-8.
        weight_decay: >= 0; default 0.
    Raises: SpecError for a value out of range.
    Source: go-metal optimizer/adam.go and bridge_optimizer.m, execute_adam_step_mpsgraph.
    """

    code: ClassVar[int] = 1
    json_type: ClassVar[str] = "Adam"
    beta1: float
    beta2: float
    epsilon: float
    weight_decay: float

    def __init__(
        self, learning_rate: float | Schedule = 0.001, *, beta1: float = 0.9, beta2: float = 0.999,
        epsilon: float = 1e-8, weight_decay: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__(learning_rate, beta1=beta1, beta2=beta2, epsilon=epsilon, weight_decay=weight_decay)

    def slots(self) -> tuple[str, ...]:
        return ("momentum", "variance")

    def rule(self, w: mx.array, g: mx.array, s: Params, step: mx.array, lr: mx.array) -> mx.array:
        m = s["momentum"] = self.beta1 * s["momentum"] + (1 - self.beta1) * g
        v = s["variance"] = self.beta2 * s["variance"] + (1 - self.beta2) * mx.square(g)
        # both corrections as factors of scalars: a compiled kernel would else divide every number by them
        root = by_itself(mx.sqrt(1 - self.beta2**step))
        update = by_itself(lr * root / (1 - self.beta1**step)) * m / (mx.sqrt(v) + by_itself(self.epsilon * root))
        return w - update - lr * self.weight_decay * w if self.weight_decay > 0 else w - update

"""Nadam, with go-metal's momentum schedule."""

from __future__ import annotations

from typing import ClassVar

import mlx.core as mx

from .._types import Params
from ..layers._device import by_itself
from .base import Optimizer, Schedule


class Nadam(Optimizer):
    """Adam with a Nesterov look-ahead (Dozat 2016) in go-metal's form.

    m, v and ``vh`` as in Adam; ``mu = b1 (1 - 0.5 * 0.96^(0.004 (t + 1)))``;
    ``mb = (mu m + (1 - mu) g) / (1 - b1^t)``; ``w -= lr (mb / (sqrt(vh) + eps) + wd w)``.
    There is no running product of the mu's, so results differ from the NAdam of PyTorch and Keras.

    Args:
        learning_rate: > 0; default 0.002.
        beta1, beta2: 0 up to 1; default 0.9, 0.999.
        epsilon: >= 1e-30; default 1e-8.
        weight_decay: decoupled, >= 0; default 0.
    Raises: SpecError for a value out of range.
    Source: go-metal optimizer/nadam.go and bridge_optimizer.m.
    """

    code: ClassVar[int] = 6
    json_type: ClassVar[str] = "Nadam"
    beta1: float
    beta2: float
    epsilon: float
    weight_decay: float

    def __init__(
        self, learning_rate: float | Schedule = 0.002, *, beta1: float = 0.9, beta2: float = 0.999,
        epsilon: float = 1e-8, weight_decay: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__(learning_rate, beta1=beta1, beta2=beta2, epsilon=epsilon, weight_decay=weight_decay)

    def slots(self) -> tuple[str, ...]:
        return ("momentum", "variance")

    def rule(self, w: mx.array, g: mx.array, s: Params, step: mx.array, lr: mx.array) -> mx.array:
        m = s["momentum"] = self.beta1 * s["momentum"] + (1 - self.beta1) * g
        v = s["variance"] = self.beta2 * s["variance"] + (1 - self.beta2) * mx.square(g)
        mu = by_itself(self.beta1 * (1 - 0.5 * 0.96 ** (0.004 * (step + 1))))
        root = by_itself(mx.sqrt(1 - self.beta2**step))  # scalar factors, as in Adam
        rate = by_itself(lr * root / (1 - self.beta1**step))
        update = rate * (mu * m + (1 - mu) * g) / (mx.sqrt(v) + by_itself(self.epsilon * root))
        return w - update - lr * self.weight_decay * w if self.weight_decay > 0 else w - update

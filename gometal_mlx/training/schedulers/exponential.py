"""ExponentialLR."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .base import LRScheduler


@dataclass
class ExponentialLRScheduler(LRScheduler):
    """``base * gamma^epoch``.

    Args:
        gamma: factor of each epoch, between 0 and 1; default 0.95.
    Raises: SpecError for a value out of range.
    Source: go-metal training/scheduler.go.
    """

    name: ClassVar[str] = "ExponentialLR"
    gamma: float = 0.95

    def check(self) -> None:
        self.require("gamma", 0 < self.gamma < 1, "between 0 and 1")

    def get_lr(self, epoch: int, step: int, base_lr: float) -> float:
        return base_lr * self.gamma**epoch

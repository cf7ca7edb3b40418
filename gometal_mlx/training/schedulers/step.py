"""StepLR."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .base import LRScheduler


@dataclass
class StepLRScheduler(LRScheduler):
    """``base * gamma^(epoch // step_size)``.

    Args:
        step_size: epochs between two cuts, at least 1; default 30.
        gamma: factor of each cut, between 0 and 1; default 0.1.
    Raises: SpecError for values out of range (go-metal silently takes the defaults).
    Source: go-metal training/scheduler.go.
    """

    name: ClassVar[str] = "StepLR"
    step_size: int = 30
    gamma: float = 0.1

    def check(self) -> None:
        self.require("step_size", self.step_size >= 1, "at least 1")
        self.require("gamma", 0 < self.gamma < 1, "between 0 and 1")

    def get_lr(self, epoch: int, step: int, base_lr: float) -> float:
        return base_lr * self.gamma ** (epoch // self.step_size)

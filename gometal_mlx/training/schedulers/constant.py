"""ConstantLR."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .base import LRScheduler


@dataclass
class ConstantLRScheduler(LRScheduler):
    """The base rate, always.

    Source: go-metal training/scheduler.go, NoOpScheduler.
    """

    name: ClassVar[str] = "ConstantLR"

    def get_lr(self, epoch: int, step: int, base_lr: float) -> float:
        return base_lr


NoOpScheduler = ConstantLRScheduler  # go-metal's name of the class

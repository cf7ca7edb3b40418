"""CosineAnnealingLR."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from .base import LRScheduler


@dataclass
class CosineAnnealingLRScheduler(LRScheduler):
    """``eta_min + (base - eta_min) (1 + cos(pi epoch / t_max)) / 2``, and eta_min from epoch t_max on.

    Args:
        t_max: epochs of the half wave, at least 1; default 100.
        eta_min: the rate at its end, at least 0; default 0.
    Raises: SpecError for values out of range.
    Source: Loshchilov, Hutter 2017 (without restarts); go-metal training/scheduler.go.
    """

    name: ClassVar[str] = "CosineAnnealingLR"
    t_max: int = 100
    eta_min: float = 0.0

    def check(self) -> None:
        self.require("t_max", self.t_max >= 1, "at least 1")
        self.require("eta_min", self.eta_min >= 0, "at least 0")

    def get_lr(self, epoch: int, step: int, base_lr: float) -> float:
        if epoch >= self.t_max:
            return self.eta_min
        return self.eta_min + (base_lr - self.eta_min) * (1 + math.cos(math.pi * epoch / self.t_max)) / 2

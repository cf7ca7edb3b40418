"""One-cycle schedule."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from .base import LRScheduler


@dataclass
class OneCycleScheduler(LRScheduler):
    """Up from ``base / div_factor`` to the base rate, down to ``base / div_factor / final_div_factor``, in half waves.

    Args:
        total_steps: of the whole run, at least 2; the lowest rate holds after them.
        pct_start: share of the steps that go up, between 0 and 1; default 0.3.
        div_factor: at least 1; default 25.
        final_div_factor: at least 1; default 1e4.
    Raises: SpecError for values out of range.
    Source: Smith, Topin 2018; as torch.optim.lr_scheduler.OneCycleLR with ``max_lr`` as the base rate.
    """

    name: ClassVar[str] = "OneCycle"
    per_step: ClassVar[bool] = True
    total_steps: int = 1000
    pct_start: float = 0.3
    div_factor: float = 25.0
    final_div_factor: float = 1e4

    def check(self) -> None:
        self.require("total_steps", self.total_steps >= 2, "at least 2")
        self.require("pct_start", 0 < self.pct_start < 1, "between 0 and 1")
        self.require("div_factor", self.div_factor >= 1, "at least 1")
        self.require("final_div_factor", self.final_div_factor >= 1, "at least 1")

    def get_lr(self, epoch: int, step: int, base_lr: float) -> float:
        first = base_lr / self.div_factor
        top = max(self.pct_start * self.total_steps - 1, 1e-9)
        if step <= top:
            return _half_wave(first, base_lr, step / top)
        return _half_wave(base_lr, first / self.final_div_factor, min((step - top) / (self.total_steps - 1 - top), 1.0))


def _half_wave(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2

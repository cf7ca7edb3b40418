"""Linear warm-up before another schedule."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from .base import LRScheduler


@dataclass
class WarmupScheduler(LRScheduler):
    """From ``start_factor * base`` linearly to the full rate over the first steps, times what ``after`` says.

    Args:
        warmup_steps: at least 1.
        start_factor: of the first step, 0 to 1; default 0.01.
        after: the schedule whose rate is warmed up (it runs from the first epoch on); None: the base rate.
    Raises: SpecError for values out of range.
    Source: Goyal et al. 2017.
    """

    name: ClassVar[str] = "Warmup"
    per_step: ClassVar[bool] = True
    warmup_steps: int = 100
    start_factor: float = 0.01
    after: LRScheduler | None = None

    def check(self) -> None:
        self.require("warmup_steps", self.warmup_steps >= 1, "at least 1")
        self.require("after", isinstance(self.after, LRScheduler | None), "a schedule or None")
        self.require("start_factor", 0 < self.start_factor <= 1, "above 0 and at most 1")

    def get_lr(self, epoch: int, step: int, base_lr: float) -> float:
        rate = base_lr if self.after is None else self.after.get_lr(epoch, step, base_lr)
        done = min(step / self.warmup_steps, 1.0)
        return rate * (self.start_factor + (1 - self.start_factor) * done)

    @property
    def follows_metric(self) -> bool:
        return self.after is not None and self.after.follows_metric

    def take_metric(self, metric: float, current_lr: float) -> None:
        if self.after is not None:
            self.after.take_metric(metric, current_lr)

    def observe(self, metrics: Mapping[str, float], current_lr: float) -> None:
        if self.after is not None:
            self.after.observe(metrics, current_lr)

    def state_dict(self) -> dict[str, Any]:
        return {} if self.after is None else self.after.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if self.after is not None:
            self.after.load_state_dict(state)

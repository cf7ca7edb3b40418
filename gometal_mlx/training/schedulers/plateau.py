"""ReduceLROnPlateau."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from numbers import Real
from typing import Any, ClassVar

from ...errors import SpecError, shown
from .base import LRScheduler


@dataclass
class ReduceLROnPlateauScheduler(LRScheduler):
    """Multiplies the rate by ``factor`` when a metric has not improved for ``patience`` epochs.

    Improved means: below ``best - threshold`` (mode min) or above ``best + threshold`` (mode max).

    Args:
        factor: between 0 and 1; default 0.1.
        patience: epochs without improvement, at least 1; default 10. The cut comes with the last of them, one epoch
            earlier than in PyTorch.
        threshold: absolute, at least 0; default 1e-4.
        mode: "min" or "max"; default "min".
        monitor: the metric; None takes val_loss, or loss where there is no validation (val_accuracy, accuracy for max).
        min_lr: the rate is not cut below it; default 0.
    Raises: SpecError for values out of range.
    Source: go-metal training/scheduler.go.
    """

    name: ClassVar[str] = "ReduceLROnPlateau"
    factor: float = 0.1
    patience: int = 10
    threshold: float = 1e-4
    mode: str = "min"
    monitor: str | None = None
    min_lr: float = 0.0
    best: float | None = field(default=None, init=False)
    waited: int = field(default=0, init=False)
    scale: float = field(default=1.0, init=False)  # product of all cuts, on the base rate

    def check(self) -> None:
        self.require("factor", 0 < self.factor < 1, "between 0 and 1")
        self.require("patience", self.patience >= 1, "at least 1")
        self.require("threshold", self.threshold >= 0, "at least 0")
        self.require("monitor", self.monitor is None or isinstance(self.monitor, str), "a metric's name")
        self.require("mode", self.mode in ("min", "max"), "'min' or 'max'")
        self.require("min_lr", self.min_lr >= 0, "at least 0")

    def get_lr(self, epoch: int, step: int, base_lr: float) -> float:
        return max(base_lr * self.scale, min(self.min_lr, base_lr))

    @property
    def follows_metric(self) -> bool:
        return True

    def take_metric(self, metric: float, current_lr: float) -> None:
        self.step(metric, current_lr)

    def observe(self, metrics: Mapping[str, float], current_lr: float) -> None:
        usual = ("val_loss", "loss") if self.mode == "min" else ("val_accuracy", "accuracy")
        names = usual if self.monitor is None else (self.monitor,)
        value = next((metrics[n] for n in names if n in metrics), None)
        if value is None:
            raise SpecError(f"{self.name}: {' or '.join(names)} was not recorded; recorded: {', '.join(metrics)}")
        self.step(value, current_lr)

    def step(self, metric: float, current_lr: float) -> float:
        """Take the metric of an epoch into account; returns the rate that follows from the present one."""
        if not isinstance(metric, Real):
            try:
                metric = float(metric)  # of an array with one number
            except (TypeError, ValueError) as e:
                raise SpecError(f"{self.name}: a metric must be a number, got {shown(metric)}") from e
        sign = 1 if self.mode == "min" else -1
        if math.isfinite(metric) and (self.best is None or sign * metric < sign * self.best - self.threshold):
            self.best, self.waited = metric, 0
            return current_lr
        self.waited += 1  # also for NaN and infinity, which never are an improvement
        if self.waited < self.patience:
            return current_lr
        self.waited = 0
        self.scale *= self.factor
        return max(current_lr * self.factor, min(self.min_lr, current_lr))

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "waited": self.waited, "scale": self.scale}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        best, waited, scale = state.get("best"), state.get("waited"), state.get("scale")
        fits = (
            (best is None or isinstance(best, int | float))
            and isinstance(waited, int)
            and isinstance(scale, int | float)
        )
        if not fits:
            raise SpecError(f"{self.name}: best, waited and scale needed as its state, got {shown(dict(state))}")
        self.best, self.waited, self.scale = best, waited or 0, float(scale or 0)

"""A schedule that is a function, as MLX's optimizers take it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import mlx.core as mx

from ...errors import SpecError, shown
from .base import LRScheduler


@dataclass
class FunctionScheduler(LRScheduler):
    """``rate = function(step)``, the steps counted from 0; the base rate is not used.

    No file holds a function: to go on from one, make the trainer with the same function and ``restore`` the checkpoint.

    Args:
        function: from an MLX scalar to a rate, such as ``mlx.optimizers.cosine_decay(0.1, 1000)``; None where a file
            had one.
    Raises: SpecError for what is no function, and for a rate without one.
    Source: mlx.optimizers.schedulers.
    """

    name: ClassVar[str] = "Function"
    per_step: ClassVar[bool] = True
    function: Callable[[mx.array], Any] | None = None

    def check(self) -> None:
        self.require("function", self.function is None or callable(self.function), "a function of the step")

    def get_lr(self, epoch: int, step: int, base_lr: float) -> float:
        if self.function is None:
            told = "files do not hold the function; make the trainer with it, and restore() the checkpoint"
            raise SpecError(f"{self.name}: {told}")
        found = self.function(mx.array(step))
        try:
            rate = float(found)
        except (TypeError, ValueError):
            rate = math.nan
        if not 0 <= rate < math.inf:
            raise SpecError(f"{self.name}: a rate of at least 0 is needed in step {step}, got {shown(found)}")
        return rate

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name}

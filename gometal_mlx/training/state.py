"""What a checkpoint's ``extras`` hold of a training run: everything go-metal has no field for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from ..errors import CheckpointError
from .config import TrainerConfig


@dataclass(frozen=True)
class RunState:
    """The part of a trainer's state that only gometal_mlx reads.

    Args:
        config: of the trainer.
        rng: the two words of the random key of the next step.
        best_loss, best_accuracy: exact, where go-metal keeps float32.
        history: one record an epoch.
        run_start: the epoch at which an unfinished ``fit`` began; None between two fits.
        data: the loader's position in that fit.
        totals: sums over the unfinished epoch.
    """

    config: TrainerConfig
    rng: tuple[int, int]
    best_loss: float = math.inf
    best_accuracy: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)
    run_start: int | None = None
    data: dict[str, Any] | None = None
    totals: tuple[float, ...] = (0.0, 0.0, 0.0)

    def to_extras(self) -> dict[str, Any]:
        """JSON values; what is not known is left out."""
        values: dict[str, Any] = {
            "config": self.config.to_dict(),
            "rng": list(self.rng),
            "best_loss": self.best_loss if math.isfinite(self.best_loss) else None,
            "best_accuracy": self.best_accuracy,
            "history": self.history,
            "run_start": self.run_start,
            "data": self.data,
            "totals": list(self.totals) if self.data else None,
        }
        return {k: v for k, v in values.items() if v is not None}

    @classmethod
    def from_extras(cls, extras: Mapping[str, Any]) -> Self | None:
        """The inverse of ``to_extras``; None if no trainer wrote them.

        Raises: CheckpointError naming the field that is damaged.
        """
        if "config" not in extras:
            return None

        def get(name: str, kind: type | tuple[type, ...], default: Any, needed: str) -> Any:
            value = extras.get(name, default)
            if value is not default and (not isinstance(value, kind) or isinstance(value, bool)):
                raise CheckpointError(f"gometal_mlx.{name}: {needed} needed, got {value!r:.80}")
            return value

        rng = get("rng", list, None, "two words of 32 bits")
        if rng is None or len(rng) != 2 or not all(isinstance(w, int) and 0 <= w < 2**32 for w in rng):
            raise CheckpointError(f"gometal_mlx.rng: two words of 32 bits needed, got {rng!r:.80}")
        totals = get("totals", list, [0.0] * 3, "three numbers")
        if len(totals) != 3 or not all(isinstance(t, int | float) for t in totals):
            raise CheckpointError(f"gometal_mlx.totals: three numbers needed, got {totals!r:.80}")
        history = get("history", list, [], "a list of records")
        if not all(isinstance(r, dict) for r in history):
            raise CheckpointError("gometal_mlx.history: a list of records needed")
        return cls(
            config=TrainerConfig.from_dict(get("config", dict, None, "a map")),
            rng=(rng[0], rng[1]),
            best_loss=float(get("best_loss", (int, float), math.inf, "a number")),
            best_accuracy=float(get("best_accuracy", (int, float), 0.0, "a number")),
            history=history,
            run_start=get("run_start", int, None, "an epoch"),
            data=get("data", dict, None, "a map"),
            totals=tuple(float(t) for t in totals),
        )

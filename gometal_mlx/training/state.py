"""What a checkpoint's ``extras`` hold of a training run: everything go-metal has no field for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np

from .._types import fits_float32, is_int
from ..errors import CheckpointError, SpecError, shown
from ..optimizers import optimizer_class
from .config import OptimizerType, TrainerConfig
from .step import Carried

NOT_FINITE = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}  # which JSON has no numbers for


@dataclass(frozen=True)
class RunState:
    """The part of a trainer's state that only gometal_mlx reads.

    Args:
        config: of the trainer.
        carried: random key, totals of the unfinished epoch, loss scale, accumulated gradients.
        base_learning_rate: exact; what a schedule scales.
        best_loss, best_accuracy: exact, where go-metal keeps float32.
        history: one record an epoch; numbers that are not finite (a validation may give such) are written as text.
        scheduler: state of the schedule.
        optimizer: state of an optimizer that go-metal's files have no place for.
        run_start: the epoch at which an unfinished ``fit`` began; None between two fits.
        data: the loader's position in that fit.
        callbacks: class name and state of that fit's callbacks.
        stopping: a callback has asked that fit to stop.
        unknown: settings in the file that this version does not have.
    """

    config: TrainerConfig
    carried: Carried
    base_learning_rate: float = 0.0
    best_loss: float = math.inf
    best_accuracy: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)
    scheduler: dict[str, Any] = field(default_factory=dict)
    optimizer: dict[str, Any] = field(default_factory=dict)
    run_start: int | None = None
    data: dict[str, Any] | None = None
    callbacks: list[dict[str, Any]] = field(default_factory=list)
    stopping: bool = False
    unknown: tuple[str, ...] = ()

    def to_extras(self) -> dict[str, Any]:
        """JSON values and float32 arrays; what is not known is left out."""
        c = self.carried
        values: dict[str, Any] = {
            "config": self.config.to_dict(),
            "rng": list(c.key),
            "totals": list(c.totals) if self.data else None,
            "loss_scale": list(c.scaling) if self.config.use_mixed_precision else None,
            "accumulated": self._accumulated() if c.accumulated else None,
            "base_learning_rate": self.base_learning_rate,
            "best_loss": self.best_loss if math.isfinite(self.best_loss) else None,
            "best_accuracy": self.best_accuracy,
            "history": [{k: _written(v) for k, v in record.items()} for record in self.history],
            "scheduler": self.scheduler or None,
            "optimizer": self.optimizer or None,
            "run_start": self.run_start,
            "data": self.data,
            "callbacks": self.callbacks or None,
            "stopping": self.stopping or None,
        }
        return {k: v for k, v in values.items() if v is not None}

    def _accumulated(self) -> dict[str, Any]:
        """Gradients that wait; where float16 has overflowed, so that their update will be passed over, only that."""
        gradients = self.carried.accumulated or {}
        batches, weight = self.carried.waiting
        found = {"waiting": [batches, int(weight) if weight == int(weight) else weight], "gradients": gradients}
        if not self.config.scales_loss or all(np.isfinite(g).all() for g in gradients.values()):
            return found
        return found | {"gradients": {k: np.zeros_like(g) for k, g in gradients.items()}, "overflowed": True}

    @classmethod
    def from_extras(cls, extras: Mapping[str, Any]) -> Self | None:
        """The inverse of ``to_extras``; None if no trainer wrote them.

        Raises: CheckpointError naming the field that is damaged.
        """
        if "config" not in extras:
            return None
        read = _Reader(extras)
        waiting = read.map("accumulated")
        gradients = waiting.get("gradients")
        if not isinstance(gradients, dict | None) or not all(
            isinstance(g, np.ndarray) for g in (gradients or {}).values()
        ):
            raise CheckpointError("gometal_mlx.accumulated: arrays needed")
        if waiting.get("overflowed") is True:
            gradients = {k: np.full_like(g, np.inf) for k, g in (gradients or {}).items()}
        carried = Carried(
            _key(extras.get("rng")),
            read.numbers("totals", 3, (0.0, 0.0, 0.0)),
            read.numbers("loss_scale", 2, (1.0, 0.0)),
            gradients,
            _waiting(waiting.get("waiting", [0, 0])),
        )
        try:
            settings = read.map("config")
            unknown = [n for n in settings if n not in TrainerConfig.__dataclass_fields__]
            kind = OptimizerType.of(settings.get("optimizer_type", OptimizerType.Adam), "optimizer_type")
            if optimizer_class(int(kind)).needs_closure:  # files may ask for what never had an effect
                unknown += [n for n in settings if n.startswith("gradient_clip_")]
            config = TrainerConfig.from_dict({k: v for k, v in settings.items() if k not in unknown})
        except SpecError as e:
            raise CheckpointError(f"gometal_mlx.config: {e}") from e
        start = extras.get("run_start")
        if start is not None and (not is_int(start) or start < 0):
            raise CheckpointError(f"gometal_mlx.run_start: an epoch needed, got {shown(start)}")
        return cls(
            config=config,
            carried=carried,
            base_learning_rate=read.number("base_learning_rate", 0.0),
            best_loss=read.number("best_loss", math.inf),
            best_accuracy=read.number("best_accuracy", 0.0),
            history=[{k: _read(v) for k, v in record.items()} for record in read.records("history")],
            scheduler=read.map("scheduler"),
            optimizer=read.map("optimizer"),
            run_start=start,
            data=read.map("data") or None,
            callbacks=read.callbacks(),
            stopping=extras.get("stopping") is True,
            unknown=tuple(unknown),
        )


class _Reader:
    """The extras' fields by type; CheckpointError for any other."""

    def __init__(self, extras: Mapping[str, Any]) -> None:
        self.extras = extras

    def _of(self, name: str, kind: type | tuple[type, ...], default: Any, needed: str) -> Any:
        value = self.extras.get(name, default)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise CheckpointError(f"gometal_mlx.{name}: {needed} needed, got {shown(value)}")
        return value

    def number(self, name: str, default: float) -> float:
        return float(self._of(name, (int, float), default, "a number"))

    def map(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = self._of(name, dict, {}, "a map")
        return found

    def records(self, name: str) -> list[dict[str, Any]]:
        found: list[Any] = self._of(name, list, [], "a list of maps")
        if not all(isinstance(r, dict) for r in found):
            raise CheckpointError(f"gometal_mlx.{name}: a list of maps needed, got {shown(found)}")
        return found

    def callbacks(self) -> list[dict[str, Any]]:
        found = self.records("callbacks")
        for record in found:
            if not isinstance(record.get("class"), str) or not isinstance(record.get("state"), dict):
                raise CheckpointError(f"gometal_mlx.callbacks: a class and its state needed, got {shown(record)}")
        return found

    def numbers(self, name: str, count: int, default: tuple[float, ...]) -> tuple[float, ...]:
        found = self._of(name, list, list(default), f"{count} numbers")
        if len(found) != count or not all(isinstance(v, int | float) and not isinstance(v, bool) for v in found):
            raise CheckpointError(f"gometal_mlx.{name}: {count} numbers needed, got {shown(found)}")
        return tuple(float(v) for v in found)


def _written(value: Any) -> Any:
    return value if not isinstance(value, float) or math.isfinite(value) else NOT_FINITE[str(value)]


def _read(value: Any) -> Any:
    return float(value) if value in NOT_FINITE.values() else value


def _key(words: Any) -> tuple[int, int]:
    fits = isinstance(words, list) and len(words) == 2 and all(isinstance(w, int) and 0 <= w < 2**32 for w in words)
    if not fits:
        raise CheckpointError(f"gometal_mlx.rng: two words of 32 bits needed, got {shown(words)}")
    return words[0], words[1]


def _waiting(values: Any) -> tuple[int, float]:
    real = isinstance(values, list) and len(values) == 2 and not any(isinstance(v, bool) for v in values)
    fits = real and isinstance(values[0], int) and isinstance(values[1], int | float) and fits_float32(values[1])
    if not fits or values[0] < 0 or values[1] < 0 or (values[0] > 0) != (values[1] > 0):
        raise CheckpointError(f"gometal_mlx.accumulated.waiting: a count and a number needed, got {shown(values)}")
    return values[0], values[1]

"""What a learning-rate schedule is: a factor on the base rate, from epoch and step alone unless it keeps state."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import mlx.core as mx

from ..._types import is_int, is_number
from ...errors import SpecError, shown, suggest

SCHEDULERS: dict[str, type[LRScheduler]] = {}  # go-metal's name -> class; filled by LRScheduler.__init_subclass__

KINDS: dict[str, tuple[str, Callable[[object], bool], type]] = {  # of fields that are checked, by their annotation
    "int": ("an int", is_int, int),
    "float": ("a number", is_number, float),
}


@dataclass
class LRScheduler:
    """Base of all schedules; a subclass is registered by its ``name`` (its own, if it gives none) when it is made.

    Epochs and steps count from 0: they are the epochs and steps finished when the rate is asked for.
    """

    name: ClassVar[str]
    per_step: ClassVar[bool] = False  # asked before every step, else before every epoch

    def __init_subclass__(cls) -> None:
        cls.name = cls.__dict__.get("name", cls.__name__)
        SCHEDULERS[cls.name] = cls

    def __post_init__(self) -> None:
        for f in dataclasses.fields(self):
            if str(f.type) not in KINDS:
                continue
            value, (needed, allowed, kind) = getattr(self, f.name), KINDS[str(f.type)]
            if not allowed(value):
                raise SpecError(f"{self.name}: {f.name} must be {needed}, got {shown(value)}")
            object.__setattr__(self, f.name, kind(value))  # numpy's numbers are no JSON values
        self.check()

    def check(self) -> None:
        """Raise SpecError for settings out of range."""

    def require(self, name: str, allowed: bool, needed: str) -> None:
        """Raise SpecError for a field unless its value is allowed."""
        if not allowed:
            raise SpecError(f"{self.name}: {name} must be {needed}, got {shown(getattr(self, name))}")

    def get_lr(self, epoch: int, step: int, base_lr: float) -> float:
        """The rate for the next step, after so many finished epochs and steps."""
        raise NotImplementedError  # every registered schedule overrides it

    def get_name(self) -> str:
        """go-metal's name of the schedule."""
        return self.name

    @property
    def follows_metric(self) -> bool:
        """Whether the rate depends on metrics of epochs."""
        return False

    def take_metric(self, metric: float, current_lr: float) -> None:
        """Take an epoch's metric, whatever it is called; only schedules that follow one do anything."""

    def observe(self, metrics: Mapping[str, float], current_lr: float) -> None:
        """Look at an epoch's metrics; only schedules that follow a metric do anything."""

    def state_dict(self) -> dict[str, Any]:
        """What changed since the schedule was made; empty for most."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a ``state_dict``; SpecError if it is damaged."""

    def to_dict(self) -> dict[str, Any]:
        """Name and settings as JSON values."""
        settings = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.init}
        return {"name": self.name} | {k: v.to_dict() if isinstance(v, LRScheduler) else v for k, v in settings.items()}

    def as_mlx(self, base_lr: float, steps_per_epoch: int) -> Callable[[mx.array], mx.array]:
        """The schedule as MLX optimizers take it: a function of the step (called outside of compiled functions).

        Args:
            base_lr: the rate that the schedule scales.
            steps_per_epoch: turns the step into an epoch.
        """

        def schedule(step: mx.array) -> mx.array:
            n = int(step.item())  # type: ignore[arg-type]
            return mx.array(self.get_lr(n // steps_per_epoch, n, base_lr))

        return schedule


def as_scheduler(value: Any, where: str) -> LRScheduler | None:
    """The schedule that a user means: an LRScheduler, its ``to_dict``, a function of the step, or None for none."""
    if value is None or isinstance(value, LRScheduler):
        return value
    if isinstance(value, Mapping):
        return make_scheduler(value)
    if callable(value) and not isinstance(value, type):
        return SCHEDULERS["Function"](value)  # type: ignore[call-arg]
    raise SpecError(f"{where} must be an LRScheduler or a function of the step, got {shown(value, 60)}")


def make_scheduler(settings: Mapping[str, Any]) -> LRScheduler:
    """The inverse of ``LRScheduler.to_dict``; SpecError for an unknown name or setting."""
    values = dict(settings)
    name = values.pop("name", None)
    if not isinstance(name, str) or name not in SCHEDULERS:
        raise SpecError(f"scheduler: unknown name {name!r}{suggest(str(name), list(SCHEDULERS))}")
    kind = SCHEDULERS[name]
    known = [f.name for f in dataclasses.fields(kind) if f.init]
    for key in values:
        if key not in known:
            raise SpecError(f"{name}: unknown setting {key!r}{suggest(key, known)}")
    return kind(**{k: make_scheduler(v) if isinstance(v, Mapping) else v for k, v in values.items()})

"""TrainerConfig and its enums: everything a training run is told before it starts."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Self, TypeVar

from .._types import f32, is_int, is_number
from ..errors import SpecError, shown, suggest
from ..optimizers import optimizer_class
from ..optimizers.base import TINY, Schedule
from .losses import LOSSES
from .schedulers import LRScheduler, as_scheduler

E = TypeVar("E", bound="NamedEnum")


class NamedEnum(IntEnum):
    """An IntEnum with go-metal's names and numbers that also takes names as texts, in any spelling of case and _."""

    @classmethod
    def of(cls: type[E], value: int | str, where: str) -> E:
        """The member for a number or name; SpecError (with the nearest name) for anything else."""
        if isinstance(value, str):
            spelled = {name.replace("_", "").casefold(): m for name, m in cls.__members__.items()}
            if (found := spelled.get(value.replace("_", "").replace("-", "").casefold())) is not None:
                return found
            raise SpecError(f"{where}: unknown name {value!r}{suggest(value, [m.name for m in cls])}")
        if not is_int(value) or value not in list(cls):
            raise SpecError(f"{where}: {value!r} is none of {', '.join(f'{m.value} {m.name}' for m in cls)}")
        return cls(value)

    def __str__(self) -> str:
        return self.name


class OptimizerType(NamedEnum):
    """go-metal's optimizers (source: cgo_bridge/bridge.go). AdamW is Adam, whose weight decay is decoupled."""

    SGD = 0
    Adam = 1
    RMSProp = 2
    LBFGS = 3
    AdaGrad = 4
    AdaDelta = 5
    Nadam = 6
    ADAM = 1
    AdamW = 1
    ADAMW = 1
    RMSPROP = 2
    ADAGRAD = 4
    ADADELTA = 5
    NADAM = 6


class EngineType(NamedEnum):
    """go-metal's engines; here they all mean MLX."""

    Auto = 0
    Hybrid = 1
    Dynamic = 2
    AUTO = 0
    HYBRID = 1
    DYNAMIC = 2


class ProblemType(NamedEnum):
    """What the outputs mean."""

    Classification = 0
    Regression = 1
    CLASSIFICATION = 0
    REGRESSION = 1


class LossFunction(NamedEnum):
    """go-metal's losses (source: training/simple_trainer.go)."""

    CrossEntropy = 0
    SparseCrossEntropy = 1
    BinaryCrossEntropy = 2
    BCEWithLogits = 3
    CategoricalCrossEntropy = 4
    MeanSquaredError = 5
    MeanAbsoluteError = 6
    Huber = 7
    CROSS_ENTROPY = 0
    SPARSE_CROSS_ENTROPY = 1
    BINARY_CROSS_ENTROPY = 2
    BCE_WITH_LOGITS = 3
    CATEGORICAL_CROSS_ENTROPY = 4
    MEAN_SQUARED_ERROR = 5
    MEAN_ABSOLUTE_ERROR = 6
    HUBER = 7


@dataclass(frozen=True)
class TrainerConfig:
    """Settings of a training run, with go-metal's names.

    Enums may be given as members, names or numbers. None means the default that the optimizer documents.

    Args:
        batch_size: rows in a batch when ``fit`` is handed arrays.
        learning_rate: > 0; None: the optimizer's default.
        optimizer_type, loss_function, problem_type: what to train with; the usual loss follows from the problem.
        beta1: Adam, Nadam; for SGD it is the momentum where ``momentum`` is not given (go-metal's rule).
        beta2, epsilon, weight_decay: as the optimizer documents.
        alpha: RMSProp's smoothing; AdaDelta's rho.
        momentum: SGD, RMSProp.
        centered: RMSProp.
        nesterov: SGD.
        history_size, max_line_search: L-BFGS.
        scheduler: a learning-rate schedule: an LRScheduler, its ``to_dict``, or a function of the step as
            mlx.optimizers has them.
        label_smoothing: share of a target spread over all classes, 0 up to 1.
        class_weights: one weight > 0 for each class, in their order or as {class: weight}; used in training only.
        gradient_clip_norm, gradient_clip_value: limits of the gradient's global norm, of each of its elements; > 0.
        accumulation_steps: batches that share one update, which takes the mean over all their rows.
        frozen_layers: names of layers whose weights stay as they are; a BatchNorm's statistics follow the batches all
            the same, as in PyTorch.
        use_mixed_precision: compute in ``precision`` from float32 weights.
        precision: float16 (with loss scaling) or bfloat16.
        initial_loss_scale, loss_scale_growth_factor, loss_scale_backoff_factor, loss_scale_growth_interval: float16;
            the scale is multiplied by the backoff factor when a gradient overflows (that step is skipped) and by the
            growth factor after so many good steps.
        stop_on_nan: raise TrainingError when the loss is NaN or infinite, keeping the last good state.
        metrics: names of metrics that ``evaluate`` and validation compute beside loss and accuracy.
        engine_type, use_hybrid_engine, use_dynamic_engine, inference_only: accepted; there is one engine, MLX.
        seed: of the initial weights, Dropout and shuffling; None draws one.
    Raises: SpecError for values out of range or a loss that does not fit the problem.
    Source: go-metal training/simple_trainer.go, TrainerConfig.
    """

    batch_size: int = 32
    learning_rate: float | None = None
    optimizer_type: OptimizerType | str | int = OptimizerType.Adam
    loss_function: LossFunction | str | int | None = None
    problem_type: ProblemType | str | int = ProblemType.Classification
    beta1: float | None = None
    beta2: float | None = None
    epsilon: float | None = None
    weight_decay: float | None = None
    alpha: float | None = None
    momentum: float | None = None
    centered: bool = False
    nesterov: bool = False
    history_size: int | None = None
    max_line_search: int | None = None
    scheduler: LRScheduler | Mapping[str, Any] | Schedule | None = None
    label_smoothing: float = 0.0
    class_weights: Sequence[float] | Mapping[int, float] | None = None
    gradient_clip_norm: float | None = None
    gradient_clip_value: float | None = None
    accumulation_steps: int = 1
    frozen_layers: Sequence[str] = ()
    use_mixed_precision: bool = False
    precision: str = "float16"
    initial_loss_scale: float = 65536.0
    loss_scale_growth_factor: float = 2.0
    loss_scale_backoff_factor: float = 0.5
    loss_scale_growth_interval: int = 2000
    stop_on_nan: bool = True
    metrics: Sequence[str] = ()
    engine_type: EngineType | str | int = EngineType.Auto
    use_hybrid_engine: bool = False
    use_dynamic_engine: bool = False
    inference_only: bool = False
    seed: int | None = None

    def __post_init__(self) -> None:
        self._put("optimizer_type", OptimizerType.of(self.optimizer_type, "TrainerConfig.optimizer_type"))
        self._put("problem_type", ProblemType.of(self.problem_type, "TrainerConfig.problem_type"))
        self._put("engine_type", EngineType.of(self.engine_type, "TrainerConfig.engine_type"))
        regression = self.problem_type == ProblemType.Regression
        usual = LossFunction.MeanSquaredError if regression else LossFunction.CrossEntropy
        given = usual if self.loss_function is None else self.loss_function
        self._put("loss_function", loss := LossFunction.of(given, "TrainerConfig.loss_function"))
        if LOSSES[int(loss)].classification == regression:
            wanted = "MeanSquaredError, MeanAbsoluteError or Huber" if regression else "a cross-entropy"
            other = ProblemType.Classification if regression else ProblemType.Regression
            told = f"{loss} does not fit problem_type {self.problem_type}; use {wanted}, or problem_type={str(other)!r}"
            raise SpecError(f"TrainerConfig: {told}")
        for name, (needed, allowed) in _INTEGERS.items():
            self._check(name, True, needed, allowed)
        for name, (needed, allowed) in _NUMBERS.items():
            self._check(name, False, needed, allowed)
        for name in _SWITCHES:
            if not isinstance(getattr(self, name), bool):
                raise SpecError(f"TrainerConfig: {name} must be True or False, got {getattr(self, name)!r}")
        if self.precision not in PRECISIONS:
            raise SpecError(f"TrainerConfig: precision must be one of {', '.join(PRECISIONS)}, got {self.precision!r}")
        self._check_lists()
        self._put("scheduler", as_scheduler(self.scheduler, "TrainerConfig: scheduler"))
        self._check_closure()

    def _check_closure(self) -> None:
        if not optimizer_class(int(self.optimizer_type)).needs_closure:
            return
        clips = self.gradient_clip_norm is not None or self.gradient_clip_value is not None
        if clips or self.use_mixed_precision or self.accumulation_steps > 1:
            told = f"{self.optimizer_type} works on the gradients of one float32 batch as they are"
            raise SpecError(f"TrainerConfig: {told}; no mixed precision, no accumulation, no clipping")

    def _put(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def _check(self, name: str, whole: bool, needed: str, allowed: Callable[[Any], bool]) -> None:
        value = getattr(self, name)
        if value is None and type(self).__dataclass_fields__[name].default is None:
            return
        number = int(value) if whole and is_int(value) else f32(value) if not whole and is_number(value) else None
        if number is None or not allowed(number):
            raise SpecError(f"TrainerConfig: {name} must be {needed}, got {shown(value, 60)}")
        self._put(name, number)

    def _check_lists(self) -> None:
        for name in ("frozen_layers", "metrics"):
            given = getattr(self, name)
            values = tuple(given) if isinstance(given, Iterable) and not isinstance(given, str) else (None,)
            if not all(isinstance(v, str) for v in values):
                raise SpecError(f"TrainerConfig: {name} must be a list of names, got {shown(given, 60)}")
            self._put(name, values)
        if (chosen := self.class_weights) is not None:
            if isinstance(chosen, Mapping) and set(chosen) == set(range(len(chosen))):
                chosen = [chosen[i] for i in range(len(chosen))]
            odd = isinstance(chosen, str | Mapping | Set) or not isinstance(chosen, Iterable)  # without an order
            weights = [] if odd else list(chosen)
            real = [is_number(w) and f32(w) > 0 for w in weights]
            if not weights or not all(real):
                told = "numbers greater than 0, in the order of the classes or as {0: ..., 1: ...}"
                raise SpecError(f"TrainerConfig: class_weights must be {told}, got {shown(chosen, 60)}")
            self._put("class_weights", tuple(f32(w) for w in weights))

    @property
    def scales_loss(self) -> bool:
        """Whether the loss is scaled, for float16; bfloat16 has float32's range and needs no scale."""
        return self.use_mixed_precision and self.precision == "float16"

    def to_dict(self) -> dict[str, Any]:
        """JSON values, enums by name; what is None is left out."""
        return {f.name: v for f in dataclasses.fields(self) if (v := _json_value(getattr(self, f.name))) is not None}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of ``to_dict``; SpecError for unknown names."""
        known = [f.name for f in dataclasses.fields(cls)]
        for name in values:
            if name not in known:
                raise SpecError(f"TrainerConfig: unknown field {name!r}{suggest(name, known)}")
        return cls(**values)


PRECISIONS = ("float16", "bfloat16")
_AT_LEAST_1 = ("an int of at least 1", lambda v: v >= 1)
_POSITIVE = ("a number greater than 0, and no denormal one", lambda v: v >= TINY)
_ANY = ("a number", lambda _: True)  # the optimizer, which knows the range, checks it
_INTEGERS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "batch_size": _AT_LEAST_1,
    "accumulation_steps": _AT_LEAST_1,
    "loss_scale_growth_interval": _AT_LEAST_1,
    "history_size": _AT_LEAST_1,
    "max_line_search": _AT_LEAST_1,
    "seed": ("an int of at least 0 and below 2**64", lambda v: 0 <= v < 2**64),
}
_NUMBERS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "learning_rate": _POSITIVE,
    **dict.fromkeys(("beta1", "beta2", "epsilon", "weight_decay", "alpha", "momentum"), _ANY),
    "label_smoothing": ("a number from 0 up to, not including, 1", lambda v: 0 <= v < 1),
    "gradient_clip_norm": _POSITIVE,
    "gradient_clip_value": _POSITIVE,
    "initial_loss_scale": _POSITIVE,
    "loss_scale_growth_factor": ("a number of at least 1", lambda v: v >= 1),
    "loss_scale_backoff_factor": ("a number between 0 and 1", lambda v: 0 < v < 1),
}
_SWITCHES = (
    "centered",
    "nesterov",
    "use_mixed_precision",
    "stop_on_nan",
    "use_hybrid_engine",
    "use_dynamic_engine",
    "inference_only",
)


def _json_value(value: Any) -> Any:
    if isinstance(value, NamedEnum):
        return value.name
    if isinstance(value, LRScheduler):
        return value.to_dict()
    return list(value) if isinstance(value, tuple) else value

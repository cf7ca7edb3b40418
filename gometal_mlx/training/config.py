"""TrainerConfig and its enums: everything a training run is told before it starts."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Self, TypeVar

from .._types import f32
from ..errors import SpecError
from ..layers.base import suggest

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
        if isinstance(value, bool) or value not in list(cls):
            raise SpecError(f"{where}: {value!r} is none of {', '.join(f'{m.value} {m.name}' for m in cls)}")
        return cls(value)

    def __str__(self) -> str:
        return self.name


class OptimizerType(NamedEnum):
    """go-metal's optimizers (source: cgo_bridge/bridge.go)."""

    SGD = 0
    Adam = 1
    RMSProp = 2
    LBFGS = 3
    AdaGrad = 4
    AdaDelta = 5
    Nadam = 6
    ADAM = 1
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
        optimizer_type, loss_function, problem_type: what to train with.
        beta1: Adam, Nadam; for SGD it is the momentum where ``momentum`` is not given (go-metal's rule).
        beta2, epsilon, weight_decay: as the optimizer documents.
        alpha: RMSProp's smoothing; AdaDelta's rho.
        momentum: SGD, RMSProp.
        centered: RMSProp.
        nesterov: SGD.
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
    engine_type: EngineType | str | int = EngineType.Auto
    use_hybrid_engine: bool = False
    use_dynamic_engine: bool = False
    inference_only: bool = False
    seed: int | None = None

    def __post_init__(self) -> None:
        def put(name: str, value: Any) -> None:
            object.__setattr__(self, name, value)

        put("optimizer_type", OptimizerType.of(self.optimizer_type, "TrainerConfig.optimizer_type"))
        put("problem_type", ProblemType.of(self.problem_type, "TrainerConfig.problem_type"))
        put("engine_type", EngineType.of(self.engine_type, "TrainerConfig.engine_type"))
        regression = self.problem_type == ProblemType.Regression
        default = LossFunction.MeanSquaredError if regression else LossFunction.CrossEntropy
        given = default if self.loss_function is None else self.loss_function
        put("loss_function", LossFunction.of(given, "TrainerConfig.loss_function"))
        if (self.loss_function >= LossFunction.MeanSquaredError) != regression:  # type: ignore[operator]
            wanted = "MeanSquaredError, MeanAbsoluteError or Huber" if regression else "a cross-entropy"
            raise SpecError(f"TrainerConfig: {self.loss_function} does not fit {self.problem_type}; use {wanted}")
        for name, least in (("batch_size", 1), ("seed", 0)):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
                raise SpecError(f"TrainerConfig: {name} must be an int of at least {least}, got {value!r}")
        for name in ("learning_rate", "beta1", "beta2", "epsilon", "weight_decay", "alpha", "momentum"):
            value = getattr(self, name)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise SpecError(f"TrainerConfig: {name} must be a number, got {value!r}")
            put(name, f32(value))

    def to_dict(self) -> dict[str, Any]:
        """JSON values, enums by name, only what differs from the defaults or was chosen."""
        return {
            f.name: str(v) if isinstance(v := getattr(self, f.name), NamedEnum) else v
            for f in dataclasses.fields(self)
            if getattr(self, f.name) is not None
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of ``to_dict``; SpecError for unknown names."""
        known = [f.name for f in dataclasses.fields(cls)]
        for name in values:
            if name not in known:
                raise SpecError(f"TrainerConfig: unknown field {name!r}{suggest(name, known)}")
        return cls(**values)

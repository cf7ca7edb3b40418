"""TrainerConfig: what it takes, what it refuses, and its way into a file and back."""

import dataclasses
import json
from typing import Any

import numpy as np
import pytest

from gometal_mlx.errors import SpecError
from gometal_mlx.layers import ModelBuilder
from gometal_mlx.training import (
    EngineType,
    LossFunction,
    ModelTrainer,
    OptimizerType,
    ProblemType,
    StepLRScheduler,
    TrainerConfig,
)

ENUMS = (OptimizerType, LossFunction, ProblemType, EngineType)
# the reference, section 1.1
NUMBERS = {
    OptimizerType: ["SGD", "Adam", "RMSProp", "LBFGS", "AdaGrad", "AdaDelta", "Nadam"],
    LossFunction: [
        "CrossEntropy", "SparseCrossEntropy", "BinaryCrossEntropy", "BCEWithLogits", "CategoricalCrossEntropy",
        "MeanSquaredError", "MeanAbsoluteError", "Huber",
    ],
    ProblemType: ["Classification", "Regression"],
    EngineType: ["Auto", "Hybrid", "Dynamic"],
}  # fmt: skip


@pytest.mark.parametrize("kind", ENUMS)
def test_enums_have_go_metal_numbers(kind: type) -> None:
    assert [kind(i).name for i in range(len(NUMBERS[kind]))] == NUMBERS[kind]
    assert [str(m) for m in kind] == [m.name for m in kind]


@pytest.mark.parametrize(
    ("kind", "text", "member"),
    [
        (OptimizerType, "adam", OptimizerType.Adam),
        (OptimizerType, "ADAM", OptimizerType.Adam),
        (OptimizerType, "RmsProp", OptimizerType.RMSProp),
        (OptimizerType, "rms_prop", OptimizerType.RMSProp),
        (OptimizerType, "l-bfgs", OptimizerType.LBFGS),
        (LossFunction, "cross_entropy", LossFunction.CrossEntropy),
        (LossFunction, "BCE_WITH_LOGITS", LossFunction.BCEWithLogits),
        (LossFunction, "bce-with-logits", LossFunction.BCEWithLogits),
        (LossFunction, "meanSquaredError", LossFunction.MeanSquaredError),
        (ProblemType, "REGRESSION", ProblemType.Regression),
        (EngineType, "hybrid", EngineType.Hybrid),
    ],
)
def test_names_in_any_spelling(kind: Any, text: str, member: Any) -> None:
    assert kind.of(text, "here") is member


@pytest.mark.parametrize("kind", ENUMS)
def test_constants_in_capitals_are_the_same_members(kind: Any) -> None:
    for name, member in kind.__members__.items():
        assert kind.of(name, "here") is kind.of(int(member), "here") is member
    assert sum(name.isupper() for name in kind.__members__) >= len(list(kind))


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("optimizer_type", "Adan", "unknown name 'Adan'; did you mean 'Adam'?"),
        ("optimizer_type", "rmspropp", "unknown name 'rmspropp'; did you mean 'RMSProp'?"),
        ("loss_function", "crossentropi", "unknown name 'crossentropi'; did you mean 'CrossEntropy'?"),
        ("problem_type", "regresion", "unknown name 'regresion'; did you mean 'Regression'?"),
        ("engine_type", "xyz", "unknown name 'xyz'; known: Auto, Hybrid, Dynamic"),
        ("engine_type", "", "unknown name ''; known: Auto, Hybrid, Dynamic"),
        ("problem_type", 2, "2 is none of 0 Classification, 1 Regression"),
        ("problem_type", True, "True is none of 0 Classification, 1 Regression"),
        ("problem_type", None, "None is none of 0 Classification, 1 Regression"),
        ("problem_type", [1], "[1] is none of 0 Classification, 1 Regression"),
    ],
)
def test_refuses_what_is_no_member(field: str, value: Any, told: str) -> None:
    with pytest.raises(SpecError) as e:
        TrainerConfig(**{field: value})
    assert str(e.value) == f"TrainerConfig.{field}: {told}"


def test_defaults() -> None:
    config = TrainerConfig()
    assert (config.batch_size, config.optimizer_type, config.loss_function) == (32, OptimizerType.Adam, LossFunction(0))
    regression = TrainerConfig(problem_type="Regression")
    assert regression.loss_function is LossFunction.MeanSquaredError


@pytest.mark.parametrize("loss", list(LossFunction))
@pytest.mark.parametrize("problem", list(ProblemType))
def test_loss_must_fit_the_problem(loss: LossFunction, problem: ProblemType) -> None:
    if (loss >= 5) == (problem is ProblemType.Regression):
        assert TrainerConfig(loss_function=loss, problem_type=problem).loss_function is loss
        return
    told = f"^TrainerConfig: {loss.name} does not fit problem_type {problem.name}; use .*, or problem_type='[CR].*'$"
    with pytest.raises(SpecError, match=told):
        TrainerConfig(loss_function=loss, problem_type=problem)


NAN, INF = float("nan"), float("inf")
NUMBER_FIELDS = ("learning_rate", "beta1", "beta2", "epsilon", "weight_decay", "alpha", "momentum")


@pytest.mark.parametrize("field", NUMBER_FIELDS)
@pytest.mark.parametrize("value", [NAN, INF, -INF, "0.1", True, [0.1], 1e60])
def test_refuses_what_is_no_number(field: str, value: Any) -> None:
    """1e60 is infinite as the float32 that files and arithmetic have."""
    with pytest.raises(SpecError, match=f"^TrainerConfig: {field} must be .*, got ") as e:
        TrainerConfig(**{field: value})
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [("batch_size", 0), ("batch_size", -1), ("batch_size", 2.5), ("batch_size", True), ("batch_size", "8"),
     ("seed", -1), ("seed", 0.5), ("seed", "1"), ("seed", True)],
)  # fmt: skip
def test_refuses_what_is_no_count(field: str, value: Any) -> None:
    with pytest.raises(SpecError, match=f"^TrainerConfig: {field} must be an int of at least [01].*, got {value!r}$"):
        TrainerConfig(**{field: value})


@pytest.mark.parametrize("field", ["centered", "nesterov", "use_hybrid_engine", "use_dynamic_engine", "inference_only"])
@pytest.mark.parametrize("value", ["yes", 1, None])
def test_refuses_a_switch_that_is_no_bool(field: str, value: Any) -> None:
    with pytest.raises(SpecError, match=f"^TrainerConfig: {field} must be .*, got {value!r}$"):
        TrainerConfig(**{field: value})


OUT_OF_RANGE = [
    ("Adam", {"learning_rate": 0}), ("Adam", {"learning_rate": -0.1}), ("Adam", {"beta1": 1}), ("Adam", {"beta2": -1}),
    ("Adam", {"epsilon": 0}), ("Adam", {"weight_decay": -1}), ("SGD", {"momentum": 1.1}), ("SGD", {"beta1": 1.1}),
    ("RMSProp", {"alpha": 1}), ("AdaDelta", {"alpha": 0}), ("Nadam", {"beta1": 1}), ("AdaGrad", {"epsilon": -1}),
]  # fmt: skip


@pytest.mark.parametrize(("optimizer", "setting"), OUT_OF_RANGE)
def test_out_of_range_never_trains(optimizer: str, setting: dict[str, float]) -> None:
    spec = ModelBuilder((2, 3)).add_dense(2).compile()
    with pytest.raises(SpecError, match=f"{next(iter(setting))}|momentum|rho") as e:
        ModelTrainer(spec, TrainerConfig(optimizer_type=optimizer, **setting))  # type: ignore[arg-type]
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("value", [0, -0.1])
def test_refuses_a_learning_rate_out_of_range_itself(value: float) -> None:
    """Documented as > 0 for every optimizer, so there is nothing to wait for."""
    with pytest.raises(SpecError, match=r"^TrainerConfig: learning_rate must be a number greater than 0"):
        TrainerConfig(learning_rate=value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("label_smoothing", 1), ("label_smoothing", -0.1), ("label_smoothing", None), ("gradient_clip_norm", 0),
        ("gradient_clip_value", -1), ("accumulation_steps", 0), ("accumulation_steps", None), ("history_size", 0),
        ("max_line_search", 1.5), ("precision", "float8"), ("precision", None), ("initial_loss_scale", 0),
        ("loss_scale_growth_factor", 0.5), ("loss_scale_backoff_factor", 1), ("loss_scale_growth_interval", 0),
        ("class_weights", []), ("class_weights", [1, 0]), ("class_weights", [1, NAN]), ("class_weights", ["a"]),
        ("class_weights", 5), ("frozen_layers", "fc1"), ("frozen_layers", [1]), ("frozen_layers", 5),
        ("frozen_layers", None), ("metrics", "MAE"), ("metrics", 5), ("scheduler", 5), ("scheduler", "StepLRScheduler"),
        ("scheduler", {}), ("stop_on_nan", 1), ("use_mixed_precision", "yes"),
    ],
)  # fmt: skip
def test_refuses_settings_of_the_step(field: str, value: Any) -> None:
    with pytest.raises(SpecError, match=field if field != "scheduler" else "schedul") as e:
        TrainerConfig(**{field: value})
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    "setting", [{"use_mixed_precision": True}, {"accumulation_steps": 2}, {"gradient_clip_norm": 1.0}]
)
def test_lbfgs_takes_whole_float32_batches(setting: dict[str, Any]) -> None:
    with pytest.raises(
        SpecError, match=r"^TrainerConfig: LBFGS works on the gradients of one float32 batch as they are; "
    ):
        TrainerConfig(optimizer_type="LBFGS", **setting)


def test_any_accepted_seed_trains() -> None:
    spec = ModelBuilder((2, 3)).add_dense(2).compile()
    for seed in (0, 2**32, 2**63, 2**64 - 1):
        assert ModelTrainer(spec, TrainerConfig(seed=seed)).config.seed == seed
    with pytest.raises(SpecError, match="seed"):
        ModelTrainer(spec, TrainerConfig(seed=2**64))


def test_numbers_are_those_of_float32() -> None:
    """What was typed, stored and read again is the same number."""
    assert TrainerConfig(learning_rate=0.1).learning_rate == 0.1
    assert TrainerConfig(learning_rate=float(np.float32(0.1))).learning_rate == 0.1
    assert TrainerConfig(learning_rate=1).learning_rate == 1.0


def test_takes_numpy_numbers() -> None:
    config = TrainerConfig(learning_rate=np.float32(0.1), batch_size=np.int64(8), seed=np.uint32(3))  # type: ignore[arg-type]
    assert json.loads(json.dumps(config.to_dict())) == TrainerConfig(learning_rate=0.1, batch_size=8, seed=3).to_dict()


def test_frozen() -> None:
    config = TrainerConfig()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.batch_size = 5  # type: ignore[misc]


FIELDS = dataclasses.fields(TrainerConfig)
FULL = TrainerConfig(
    batch_size=7, learning_rate=0.3, optimizer_type="RMSProp", loss_function="Huber", problem_type="Regression",
    beta1=0.5, beta2=0.25, epsilon=1e-5, weight_decay=0.01, alpha=0.8, momentum=0.7, centered=True, nesterov=True,
    engine_type="Dynamic", use_hybrid_engine=True, use_dynamic_engine=True, inference_only=True, seed=9,
    history_size=5, max_line_search=6, scheduler=StepLRScheduler(2, 0.5), gradient_clip_norm=1.5,
    gradient_clip_value=0.3, accumulation_steps=2, frozen_layers=["fc1", "fc2"], use_mixed_precision=True,
    precision="bfloat16",
    initial_loss_scale=8, loss_scale_growth_factor=3, loss_scale_backoff_factor=0.1, loss_scale_growth_interval=7,
    stop_on_nan=False, metrics=["MAE"],
)  # fmt: skip


SMOOTHED = TrainerConfig(label_smoothing=0.1, class_weights=[1, 0.5, 0.1])


def test_the_round_trip_has_every_field() -> None:
    default, chosen = TrainerConfig(), {f.name: [getattr(c, f.name) for c in (FULL, SMOOTHED)] for f in FIELDS}
    assert [f.name for f in FIELDS if all(v == getattr(default, f.name) for v in chosen[f.name])] == []


@pytest.mark.parametrize("config", [TrainerConfig(), FULL, SMOOTHED, TrainerConfig(seed=0, momentum=0.0)])
def test_dict_round_trip(config: TrainerConfig) -> None:
    values = config.to_dict()
    assert TrainerConfig.from_dict(json.loads(json.dumps(values))) == config
    assert dataclasses.replace(config) == config
    assert values["optimizer_type"] == config.optimizer_type.name  # type: ignore[union-attr]


def test_dict_keeps_what_was_chosen_and_no_none() -> None:
    assert None not in TrainerConfig(learning_rate=0.5).to_dict().values()
    assert FULL.to_dict()["loss_function"] == "Huber"
    assert TrainerConfig(momentum=0.0).to_dict()["momentum"] == 0.0


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("learning_rat", "; did you mean 'learning_rate'?"),
        ("Momentum", "; did you mean 'momentum'?"),
        ("zzz", "; known: batch_size, "),
    ],
)
def test_unknown_fields_are_refused(name: str, told: str) -> None:
    with pytest.raises(SpecError) as e:
        TrainerConfig.from_dict({name: 1})
    assert str(e.value).startswith(f"TrainerConfig: unknown field {name!r}{told}")

"""Schedules: go-metal's vectors, the formulas, their own state, MLX and PyTorch conventions."""

from __future__ import annotations

import math

import mlx.core as mx
import mlx.optimizers as optim
import numpy as np
import pytest
from training_support import assert_same, blobs, mlp

import gometal_mlx as gm
from gometal_mlx.errors import SpecError
from gometal_mlx.training import (
    ConstantLRScheduler,
    CosineAnnealingLRScheduler,
    ExponentialLRScheduler,
    FunctionScheduler,
    ModelTrainer,
    NoOpScheduler,
    OneCycleScheduler,
    OptimizerType,
    ReduceLROnPlateauScheduler,
    StepLRScheduler,
    TrainerConfig,
    WarmupScheduler,
)
from gometal_mlx.training.schedulers import SCHEDULERS, make_scheduler

CASES = {
    "StepLR": StepLRScheduler(2, 0.1),
    "ExponentialLR": ExponentialLRScheduler(0.9),
    "CosineAnnealingLR": CosineAnnealingLRScheduler(5, 1e-4),
    "ReduceLROnPlateau": ReduceLROnPlateauScheduler(0.5, 2, 0.01, "min"),
    "ConstantLR": ConstantLRScheduler(),
    "Warmup": WarmupScheduler(10, 0.1, after=StepLRScheduler(1, 0.5)),
    "OneCycle": OneCycleScheduler(100),
    "Function": FunctionScheduler(optim.cosine_decay(0.1, 50)),
}


def test_every_registered_schedule_has_a_case():
    ours = {
        name for name, kind in SCHEDULERS.items() if kind.__module__.startswith("gometal_mlx.")
    }  # not of other tests
    assert CASES.keys() == ours
    assert NoOpScheduler is ConstantLRScheduler


@pytest.mark.parametrize("schedule", [c for n, c in CASES.items() if n != "Function"], ids=str)
def test_settings_survive_json_values(schedule):
    again = make_scheduler(schedule.to_dict())
    assert again == schedule
    assert again.get_name() == schedule.get_name() == schedule.to_dict()["name"]
    rates = [(e, s) for e in range(6) for s in (0, 5, 50, 500)]
    assert [again.get_lr(e, s, 0.1) for e, s in rates] == [schedule.get_lr(e, s, 0.1) for e, s in rates]


@pytest.mark.parametrize(
    ("schedule", "base", "expected"),
    [
        (StepLRScheduler(2, 0.1), 0.1, [0.1, 0.1, 0.01, 0.01, 0.001, 0.001, 0.0001]),
        (ExponentialLRScheduler(0.9), 0.1, [0.1, 0.09, 0.081, 0.0729]),
        (CosineAnnealingLRScheduler(5, 1e-4), 0.01, [0.01, 0.00905463, 0.00657963, 0.00352037, 0.00104537, 1e-4, 1e-4]),
        (ConstantLRScheduler(), 0.3, [0.3, 0.3]),
    ],
)
def test_go_metal_vectors(schedule, base, expected):
    # the vectors have six digits
    assert [schedule.get_lr(e, 0, base) for e in range(len(expected))] == pytest.approx(expected, rel=1e-5)


def test_plateau_vector():
    schedule = ReduceLROnPlateauScheduler(0.5, 2, 0.01, "min")
    rates, rate = [], 0.1
    for metric in (1.0, 0.98, 0.99, 0.99):
        rate = schedule.step(metric, rate)
        rates.append(rate)
    assert rates == [0.1, 0.1, 0.1, 0.05]
    assert schedule.get_lr(9, 9, 0.1) == 0.05


def test_plateau_in_max_mode_waits_resets_and_stops_at_min_lr():
    schedule = ReduceLROnPlateauScheduler(0.1, 1, 0.0, "max", min_lr=0.01)
    for metric in (0.5, 0.6, 0.6, 0.7, math.nan, 0.1):
        schedule.observe({"val_accuracy": metric}, 0.0)
    assert schedule.best == 0.7
    assert schedule.scale == pytest.approx(1e-3)  # three epochs did not improve
    assert schedule.get_lr(0, 0, 1.0) == 0.01
    with pytest.raises(SpecError, match="val_accuracy or accuracy was not recorded; recorded: loss"):
        schedule.observe({"loss": 1.0}, 0.0)


def test_plateau_state_survives():
    a = ReduceLROnPlateauScheduler(0.5, 3)
    for metric in (1.0, 1.1, 1.2):
        a.step(metric, 0.1)
    b = ReduceLROnPlateauScheduler(0.5, 3)
    b.load_state_dict(a.state_dict())
    assert a.step(1.3, 0.1) == b.step(1.3, 0.1) == 0.05
    with pytest.raises(SpecError, match="best, waited and scale needed"):
        b.load_state_dict({"best": 1.0})


def test_warmup_is_linear_then_follows():
    schedule = WarmupScheduler(4, 0.2, after=StepLRScheduler(1, 0.5))
    assert [schedule.get_lr(0, s, 1.0) for s in range(6)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])
    assert schedule.get_lr(2, 100, 1.0) == 0.25


def test_one_cycle_rises_and_falls():
    schedule = OneCycleScheduler(100, pct_start=0.3, div_factor=25, final_div_factor=1e4)
    rates = [schedule.get_lr(0, s, 1.0) for s in range(101)]
    assert rates[0] == pytest.approx(0.04)
    assert max(rates) == pytest.approx(1.0)
    assert rates.index(max(rates)) == 29
    assert rates[99] == rates[100] == pytest.approx(0.04 / 1e4)


def decayed(**settings):
    return ModelTrainer(mlp(), TrainerConfig(seed=0, batch_size=8, **settings))


@pytest.mark.parametrize("given", ["in the configuration", "later"])
def test_a_schedule_of_mlx_gives_the_rate_of_every_step(given):
    """A function, MLX's or one's own, as mlx.optimizers take it; the rates are those that MLX's optimizer has."""
    function = optim.join_schedules([optim.linear_schedule(0.0, 0.1, 3), optim.exponential_decay(0.1, 0.9)], [3])
    run = decayed(scheduler=function if given == "in the configuration" else None)
    if given == "later":
        run.set_lr_scheduler(function)
    assert run.get_scheduler_info().startswith("Function scheduler")
    x, y = blobs(8)
    theirs, rates = optim.SGD(function), []
    parameters = {"w": mx.array([1.0])}
    for _ in range(8):
        run.train_batch(x, y)
        parameters = theirs.apply_gradients({"w": mx.array([0.0])}, parameters)
        rates.append(run.learning_rate)
        assert rates[-1] == pytest.approx(max(theirs.learning_rate.item(), np.finfo(np.float32).tiny))
    assert len(set(rates)) == 8


def test_a_run_with_a_function_goes_on_where_it_is_given_again(tmp_path):
    function = optim.cosine_decay(0.1, 40)
    data, file = blobs(32), tmp_path / "a.json"
    unbroken, broken = decayed(scheduler=function), decayed(scheduler=function)
    unbroken.fit(data, 5)
    broken.fit(data, 2)
    broken.save(file)
    with pytest.raises(SpecError, match=r"a\.json: Function: files do not hold the function; make the trainer with it"):
        ModelTrainer.resume(file)
    again = decayed(scheduler=function)
    again.restore(gm.load(file))
    again.fit(data, 3)
    assert_same(again, unbroken)


@pytest.mark.parametrize("schedule", ["StepLR", 5, StepLRScheduler, {"name": []}])
def test_what_is_no_schedule(schedule):
    with pytest.raises(
        SpecError, match=r"scheduler must be an LRScheduler or a function of the step|unknown name \[\]"
    ):
        decayed(scheduler=schedule)
    with pytest.raises(
        SpecError, match=r"scheduler must be an LRScheduler or a function of the step|unknown name \[\]"
    ):
        decayed().set_lr_scheduler(schedule)


def test_adamw_is_adam():
    assert OptimizerType.AdamW is OptimizerType.of("adamw", "x") is OptimizerType.Adam
    assert decayed(optimizer_type="AdamW", weight_decay=0.1).optimizer_state.type == "Adam"


def test_as_mlx_schedule():
    schedule = StepLRScheduler(2, 0.1).as_mlx(0.1, steps_per_epoch=5)
    optimizer = optim.SGD(schedule)
    parameters = {"w": mx.array([1.0])}
    rates = []
    for _ in range(11):
        parameters = optimizer.apply_gradients({"w": mx.array([0.0])}, parameters)
        rates.append(optimizer.learning_rate.item())
    assert rates == pytest.approx([0.1] * 10 + [0.01], rel=1e-6)  # float32


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: StepLRScheduler(0), "StepLR: step_size must be at least 1, got 0"),
        (lambda: StepLRScheduler(1, 1.0), "StepLR: gamma must be between 0 and 1, got 1.0"),
        (lambda: ExponentialLRScheduler(-1), "ExponentialLR: gamma"),
        (lambda: CosineAnnealingLRScheduler(0), "CosineAnnealingLR: t_max"),
        (lambda: CosineAnnealingLRScheduler(5, -1), "CosineAnnealingLR: eta_min"),
        (lambda: ReduceLROnPlateauScheduler(mode="up"), "mode must be 'min' or 'max', got 'up'"),
        (lambda: ReduceLROnPlateauScheduler(patience=0), "patience"),
        (lambda: WarmupScheduler(0), "warmup_steps"),
        (lambda: OneCycleScheduler(1), "total_steps"),
        (lambda: make_scheduler({"name": "StepLRR"}), "unknown name 'StepLRR'; did you mean 'StepLR'"),
        (lambda: make_scheduler({"name": "StepLR", "gama": 1}), "unknown setting 'gama'; did you mean 'gamma'"),
    ],
)
def test_bad_arguments_are_refused(make, text):
    with pytest.raises(SpecError, match=text) as caught:
        make()
    assert "\n" not in str(caught.value)

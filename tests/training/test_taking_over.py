"""What one trainer, run or setting hands to the next, and what it must not."""

import math
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from training_support import arrays, blobs, mlp, noisy

from gometal_mlx.checkpoints import save
from gometal_mlx.errors import CheckpointError, SpecError, TrainingError
from gometal_mlx.inference import Predictor
from gometal_mlx.layers import Model
from gometal_mlx.training import (
    Callback,
    CheckpointConfig,
    CheckpointManager,
    EarlyStopping,
    Event,
    LRScheduler,
    ModelTrainer,
    ReduceLROnPlateauScheduler,
    StepLRScheduler,
    TrainerConfig,
    WarmupScheduler,
)

X, Y = blobs(80)


def trainer(**settings: Any) -> ModelTrainer:
    return ModelTrainer(mlp(), TrainerConfig(**{"seed": 0, "batch_size": 8, **settings}))


def resumed(run: ModelTrainer, folder: Path) -> ModelTrainer:
    run.save(folder / "a.json")
    return ModelTrainer.resume(folder / "a.json")


def rates(run: ModelTrainer) -> list[float]:
    return list(run.history["learning_rate"])


class Press(Callback):
    """Ctrl-C after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, event: Event) -> None:
        if event.trainer.step == self.step:
            signal.raise_signal(signal.SIGINT)


# ------------------------------------------------------------------------------------------------------ schedules


@pytest.mark.parametrize("then", [StepLRScheduler(1, 0.5), None])
def test_a_schedule_that_was_set_later_is_resumed(then: StepLRScheduler | None, tmp_path: Path) -> None:
    before = None if then else StepLRScheduler(2, 0.25)
    alone, broken = (trainer(learning_rate=0.1, scheduler=before) for _ in range(2))
    for run in (alone, broken):
        run.set_lr_scheduler(then)
    alone.fit((X, Y), 4)
    broken.fit((X, Y), 2)
    again = resumed(broken, tmp_path)
    again.fit((X, Y), 2)
    assert rates(again) == rates(alone) == ([0.1, 0.05, 0.025, 0.0125] if then else [0.1] * 4)


@pytest.mark.parametrize("through_a_file", [True, False])
def test_a_rate_set_within_an_epoch_stays_when_the_epoch_is_taken_up_again(
    through_a_file: bool, tmp_path: Path
) -> None:
    class Set(Callback):
        def on_step_end(self, event: Event) -> None:
            if event.trainer.step == 12:
                event.trainer.learning_rate = 0.2

    alone, broken = (trainer(learning_rate=0.1, scheduler=StepLRScheduler(1, 0.5)) for _ in range(2))
    alone.fit((X, Y), 3, callbacks=[Set()])
    broken.fit((X, Y), 3, callbacks=[Set(), Press(14)])
    again = resumed(broken, tmp_path) if through_a_file else broken
    again.fit((X, Y), 3, callbacks=[Set()])
    assert rates(again) == rates(alone) == [0.1, 0.2, 0.05]
    assert all(np.array_equal(v, arrays(again)[k]) for k, v in arrays(alone).items())


def test_a_plateau_within_a_warm_up_takes_metrics_by_hand() -> None:
    for wrapped in (False, True):
        plateau = ReduceLROnPlateauScheduler(factor=0.5, patience=1)
        run = trainer(learning_rate=0.1, scheduler=WarmupScheduler(1, 1.0, plateau) if wrapped else plateau)
        for metric in (1.0, 2.0, 2.0):
            run.step_scheduler_with_metric(metric)
        assert run.learning_rate == pytest.approx(0.025)
    run = trainer(learning_rate=0.1, scheduler=StepLRScheduler(1, 0.5))
    run.step_scheduler_with_metric(1.0)
    assert run.learning_rate == pytest.approx(0.1)


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_a_plateau_that_begins_without_a_number_can_be_saved(value: float, tmp_path: Path) -> None:
    plateau = ReduceLROnPlateauScheduler(factor=0.5, patience=2)
    run = trainer(learning_rate=0.1, scheduler=plateau)
    run.step_scheduler_with_metric(value)
    assert resumed(run, tmp_path).learning_rate == pytest.approx(0.1)
    run.step_scheduler_with_metric(value)
    assert run.learning_rate == pytest.approx(0.05)


# ------------------------------------------------------------------------------------------- waiting gradients


@pytest.mark.parametrize("weights", [None, [1.0, 5.0, 0.2]])
def test_accumulated_batches_move_as_one_batch_of_their_rows(weights: list[float] | None, tmp_path: Path) -> None:
    whole = trainer(optimizer_type="SGD", learning_rate=0.1, class_weights=weights)
    parts = trainer(optimizer_type="SGD", learning_rate=0.1, class_weights=weights, accumulation_steps=3)
    whole.train_batch(X[:20], Y[:20])
    for rows in (slice(0, 8), slice(8, 16)):
        parts.train_batch(X[rows], Y[rows])
    again = resumed(parts, tmp_path)
    for run in (parts, again):
        run.train_batch(X[16:20], Y[16:20])
        for name, moved in arrays(whole).items():
            np.testing.assert_allclose(arrays(run)[name], moved, rtol=1e-5, atol=1e-6)
    assert all(np.array_equal(v, arrays(again)[k]) for k, v in arrays(parts).items())


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_waiting_gradients_in_a_trainer_that_waits_for_others(steps: int) -> None:
    broken = trainer(accumulation_steps=5)
    for _ in range(3):
        broken.train_batch(X[:8], Y[:8])
    run = trainer(accumulation_steps=steps)
    report = run.restore(broken.checkpoint())
    assert bool(report.ignored) == (steps == 1)
    before = run.step
    for _ in range(10):
        run.train_batch(X[:8], Y[:8])
    assert run.step - before == {1: 10, 2: 5, 5: 2}[steps]  # with 2, four batches make the first update
    run.checkpoint()


@pytest.mark.parametrize("frozen", [{"accumulation": ["hidden"], "own": []}, {"accumulation": [], "own": ["hidden"]}])
def test_waiting_gradients_of_other_weights_are_left_out(frozen: dict[str, list[str]]) -> None:
    broken = trainer(accumulation_steps=2, frozen_layers=frozen["accumulation"])
    broken.train_batch(X[:8], Y[:8])
    run = trainer(accumulation_steps=2, frozen_layers=frozen["own"])
    assert run.restore(broken.checkpoint()).ignored == ("gradients of 1 batches that waited for their update",)
    before = np.array(run.model["hidden"]["weight"])
    for _ in range(4):
        run.train_batch(X[:8], Y[:8])
    assert np.array_equal(before, np.array(run.model["hidden"]["weight"])) == bool(frozen["own"])
    assert run.step == 2


def test_gradients_that_waited_here_do_not_move_restored_weights() -> None:
    """A file of go-metal, which has none of our extras."""
    checkpoint = trainer(seed=5).checkpoint()
    checkpoint.extras = {}
    fresh, used = (trainer(accumulation_steps=2) for _ in range(2))
    used.train_batch(X[:8] * 3, Y[:8])
    for run in (fresh, used):
        run.restore(checkpoint)
        for _ in range(2):
            run.train_batch(X[:8], Y[:8])
    assert all(np.array_equal(v, arrays(used)[k]) for k, v in arrays(fresh).items())


@pytest.mark.parametrize("waiting", [[2, 0], [0, 8], [-1, 8], [True, 8], [1, 10**400], [1.5, 8], "two", [1]])
def test_damaged_counts_are_named(waiting: Any) -> None:
    broken = trainer(accumulation_steps=5)
    broken.train_batch(X[:8], Y[:8])
    checkpoint = broken.checkpoint()
    checkpoint.extras["accumulated"]["waiting"] = waiting
    with pytest.raises(CheckpointError, match=r"gometal_mlx\.accumulated\.waiting: a count and a number needed, got"):
        trainer(accumulation_steps=5).restore(checkpoint)


def test_a_gradient_of_another_shape_is_named() -> None:
    broken = trainer(accumulation_steps=5)
    broken.train_batch(X[:8], Y[:8])
    checkpoint = broken.checkpoint()
    checkpoint.extras["accumulated"]["gradients"]["out.bias"] = np.zeros(4, np.float32)
    with pytest.raises(CheckpointError, match=r"gradients: out\.bias: shape \(3,\) needed, got \(4,\)"):
        trainer(accumulation_steps=5).restore(checkpoint)


def test_the_loss_scale_is_that_of_the_precision() -> None:
    half = {"use_mixed_precision": True, "initial_loss_scale": 1024.0}
    plain, scaled = trainer(), trainer(**half)
    assert trainer(**half).restore(plain.checkpoint()).ignored == ()
    run = trainer(**half)
    run.restore(plain.checkpoint())
    assert run._training_step.loss_scale == 1024
    assert plain.restore(scaled.checkpoint()).ignored == ("loss scale",)
    assert plain._training_step.loss_scale == 1
    again = trainer(use_mixed_precision=True)
    again.restore(scaled.checkpoint())
    assert again._training_step.loss_scale == 1024


# ---------------------------------------------------------------------------------------------------- divergence


def test_what_is_undone_beyond_the_epochs_beginning_is_told() -> None:
    class Ruin(Callback):
        def on_step_end(self, event: Event) -> None:
            if event.trainer.step == 9:
                event.trainer.learning_rate = 1e38  # for the epoch's last step

    run = trainer(optimizer_type="SGD", learning_rate=0.1)
    told = r"epoch 2, batch 1: .* last was finite; .*; the last 1 of the epoch before will not be done again"
    with pytest.raises(TrainingError, match=told):
        run.fit((X, Y), 2, callbacks=[Ruin()])
    assert (run.epoch, run.step) == (1, 9)
    run.learning_rate = 0.1
    run.fit((X, Y), 1)


# ------------------------------------------------------------------------------------------------- frozen layers


def test_layers_frozen_in_the_model_stay_frozen_when_resumed(tmp_path: Path) -> None:
    model = Model(mlp(), seed=0)
    model["hidden"].freeze()
    run = ModelTrainer(model, TrainerConfig(seed=0, frozen_layers=["hidden"]))
    assert run.config.frozen_layers == ("hidden",)
    run = ModelTrainer(model, TrainerConfig(seed=0))
    assert run.config.frozen_layers == ("hidden",)
    again, before = resumed(run, tmp_path), np.array(model["hidden"]["weight"])
    again.fit((X, Y), 1)
    assert np.array_equal(np.array(again.model["hidden"]["weight"]), before)


def test_a_layer_frozen_in_part_is_refused() -> None:
    """No file could say so."""
    model = Model(noisy(), seed=0)
    model["hidden"].freeze(keys=["bias"])
    with pytest.raises(SpecError, match="of layer 'hidden' only weight can be trained; freeze all of its weights, or"):
        ModelTrainer(model)


@pytest.mark.parametrize("trained", [0, 2])
@pytest.mark.parametrize("change", ["freeze", "unfreeze"])
def test_what_is_trained_does_not_change_under_a_trainer(change: str, trained: int) -> None:
    run = trainer(frozen_layers=["out"])
    for _ in range(trained):
        run.train_batch(X[:8], Y[:8])
    before = arrays(run)
    if change == "freeze":
        run.model["hidden"].freeze()
    else:
        run.model.unfreeze()
    with pytest.raises(SpecError, match="other weights are frozen than when the trainer was made; make a new one"):
        run.train_batch(X[:8], Y[:8])
    assert all(np.array_equal(v, arrays(run)[k]) for k, v in before.items())


# ----------------------------------------------------------------------------------------------------- optimizers


@pytest.mark.parametrize("stop_on_nan", [True, False])
def test_lbfgs_remembers_the_same_after_a_batch_without_a_loss(stop_on_nan: bool) -> None:
    alone, disturbed = (trainer(optimizer_type="LBFGS", stop_on_nan=stop_on_nan) for _ in range(2))
    for run in (alone, disturbed):
        for _ in range(4):
            run.train_batch(X, Y)
    bad = np.full_like(X, np.nan)
    if stop_on_nan:
        with pytest.raises(Exception, match="nothing was changed"):
            disturbed.train_batch(bad, Y)
    else:
        disturbed.train_batch(bad, Y)
    losses = [[run.train_batch(X, Y).loss for _ in range(3)] for run in (alone, disturbed)]
    assert losses[0] == losses[1]


# ------------------------------------------------------------------------------------------------------- callbacks


def test_a_manager_of_another_trainer_is_refused(tmp_path: Path) -> None:
    one, other = trainer(), trainer()
    with CheckpointManager(one, CheckpointConfig(str(tmp_path))) as manager:
        for given in ({"checkpoints": manager}, {"callbacks": [manager]}):
            with pytest.raises(SpecError, match="this manager saves another trainer; close it, and make one of this"):
                other.fit((X, Y), 1, **given)  # type: ignore[arg-type]
        assert (other.step, list(tmp_path.glob("*.json"))) == (0, [])
        one.fit((X, Y), 1, checkpoints=manager)
    with pytest.raises(SpecError, match=r"a CheckpointManager is needed, got CheckpointConfig\("):
        one.fit((X, Y), 1, checkpoints=CheckpointConfig(str(tmp_path)))  # type: ignore[arg-type]


def test_a_callbacks_wish_to_stop_outlives_ctrl_c() -> None:
    class Once(Callback):
        def on_epoch_end(self, event: Event) -> None:
            if event.epoch == 2:
                event.trainer.should_stop = True
                signal.raise_signal(signal.SIGINT)

    run = trainer()
    run.fit((X, Y), 5, callbacks=[Once()])
    run.fit((X, Y), 5, callbacks=[Once()])
    assert run.epoch == 2


@pytest.mark.parametrize("name", ["val_specificity", "accuracy", "val_f1", "r2", "npv"])
def test_more_of_it_is_better(name: str) -> None:
    class Rising(Callback):
        def on_epoch_end(self, event: Event) -> None:
            assert event.metrics is not None
            event.metrics[name] = event.epoch / 10  # type: ignore[index]

    run = trainer()
    run.fit((X, Y), 5, callbacks=[Rising(), EarlyStopping(name, patience=2)])
    assert run.epoch == 5


# ---------------------------------------------------------------------------------------- what only a class can say


class Halving(LRScheduler):
    """A user's own, without a name."""

    def get_lr(self, epoch: int, step: int, base_lr: float) -> float:
        return base_lr * 0.5**epoch


def test_a_schedule_of_the_users_own(tmp_path: Path) -> None:
    run = trainer(learning_rate=0.1)
    run.set_lr_scheduler(Halving())
    run.fit((X, Y), 2)
    again = resumed(run, tmp_path)
    again.fit((X, Y), 2)
    assert rates(again) == [0.1, 0.05, 0.025, 0.0125]
    gone = run.checkpoint()
    gone.extras["config"]["scheduler"]["name"] = "Nobody's"
    save(gone, tmp_path / "gone.json")
    with pytest.raises(CheckpointError, match=r"gone\.json: gometal_mlx\.config: scheduler: unknown name"):
        ModelTrainer.resume(tmp_path / "gone.json")
    assert np.array_equal(Predictor(tmp_path / "gone.json").predict(X), run.predict(X))  # which needs none


def test_clipping_that_never_had_an_effect_is_left_out() -> None:
    checkpoint = trainer(optimizer_type="LBFGS").checkpoint()
    checkpoint.extras["config"]["gradient_clip_norm"] = 1.0
    report = trainer(optimizer_type="LBFGS").restore(checkpoint)
    assert report.ignored == ("config.gradient_clip_norm (unknown)",)


def test_a_generators_state_in_a_callback(tmp_path: Path) -> None:
    class Draws(Callback):
        def __init__(self) -> None:
            self.generator = np.random.default_rng(3)

        def state_dict(self) -> dict[str, Any]:
            return {"rng": self.generator.bit_generator.state}

        def load_state_dict(self, state: Any) -> None:
            self.generator.bit_generator.state = state["rng"]

        def on_epoch_end(self, event: Event) -> None:
            self.generator.random()

    run = trainer()
    run.fit((X, Y), 3, callbacks=[Draws(), Press(14)])
    ours = Draws()
    resumed(run, tmp_path).fit((X, Y), 3, callbacks=[ours])
    wanted = np.random.default_rng(3)
    wanted.random(3)
    assert ours.generator.random() == wanted.random()


def test_restoring_does_not_take_over_what_is_frozen() -> None:
    run = trainer(frozen_layers=["out"])
    checkpoint = run.checkpoint()
    run.model.unfreeze()
    with pytest.raises(SpecError, match="other weights are frozen than when the trainer was made"):
        run.restore(checkpoint)
    run.model["out"].freeze()
    run.restore(checkpoint)
    run.fit((X, Y), 1)


def test_a_wish_to_stop_is_saved_again(tmp_path: Path) -> None:
    class Stop(Callback):
        def on_epoch_end(self, event: Event) -> None:
            event.trainer.should_stop = True
            signal.raise_signal(signal.SIGINT)

    run = trainer()
    run.fit((X, Y), 5, callbacks=[Stop()])
    run = resumed(resumed(run, tmp_path), tmp_path)
    run.fit((X, Y), 5)
    assert run.epoch == 1


@pytest.mark.parametrize("optimizer", ["LBFGS", "AdaDelta"])
def test_a_schedule_keeps_its_base_where_the_file_has_no_rate(optimizer: str) -> None:
    """Both use none, and write 0."""
    before = ModelTrainer(mlp(), TrainerConfig(optimizer_type=optimizer, seed=0))
    before.fit((X, Y), 1)
    found = before.checkpoint()
    schedule = StepLRScheduler(10, 0.5)
    after = ModelTrainer(mlp(), TrainerConfig(optimizer_type="Adam", learning_rate=0.01, scheduler=schedule, seed=0))
    after.restore(found, reset_optimizer=True)  # whose state it is does not matter then
    assert (after.learning_rate, after.base_learning_rate) == (0.01, 0.01)
    assert after.fit((X, Y), 3)["learning_rate"][-2:] == [0.01, 0.01]


def test_another_optimizers_state_is_no_obstacle_to_a_fresh_one() -> None:
    before = ModelTrainer(mlp(), TrainerConfig(optimizer_type="SGD", beta1=0.9, seed=0))
    before.fit((X, Y), 1)
    after = ModelTrainer(mlp(), TrainerConfig(optimizer_type="Adam", seed=0))
    with pytest.raises(CheckpointError, match="the optimizer state is of SGD, the trainer uses Adam"):
        after.restore(before.checkpoint())
    assert "weights" in after.restore(before.checkpoint(), reset_optimizer=True).restored

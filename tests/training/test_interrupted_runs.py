"""Runs that end before their time for every reason, finished by the same call: they are the unbroken run."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from training_support import assert_same, blobs, mlp, weights

from gometal_mlx.data import ArrayDataset, DataLoader
from gometal_mlx.errors import CheckpointError, SpecError
from gometal_mlx.layers import ModelBuilder
from gometal_mlx.training import (
    Callback,
    CheckpointConfig,
    CheckpointManager,
    EarlyStopping,
    ModelTrainer,
    OneCycleScheduler,
    TrainerConfig,
)
from gometal_mlx.training.callbacks import Event

X, Y = blobs(64)


def trainer(**settings: object) -> ModelTrainer:
    return ModelTrainer(mlp(), TrainerConfig(seed=0, batch_size=8, **settings))  # type: ignore[arg-type]


class At(Callback):
    """Does something after a batch."""

    def __init__(self, epoch: int, batch: int, action: Callable[[ModelTrainer], object]) -> None:
        self.epoch, self.batch, self.action = epoch, batch, action

    def on_step_end(self, event: Event) -> None:
        if (event.epoch, event.batch) == (self.epoch, self.batch):
            self.action(event.trainer)  # type: ignore[arg-type]


class FailsOnce:
    """A dataset whose storage fails at one of the calls."""

    def __init__(self, at: int = 0) -> None:
        self.calls, self.at = 0, at

    def __len__(self) -> int:
        return 64

    def rows(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        self.calls += 1
        if self.calls == self.at:
            raise OSError("the network drive is gone")
        return X[indices], Y[indices]


def interrupt(_: ModelTrainer) -> None:
    os.kill(os.getpid(), signal.SIGINT)


def shuffled(at: int = 0) -> DataLoader:
    return DataLoader(FailsOnce(at), 8, shuffle=True, seed=1)


@pytest.mark.parametrize("wrong", ["no callback", "other data"])
def test_a_call_that_is_refused_loses_no_run(wrong: str, tmp_path: Path) -> None:
    unbroken = trainer()
    unbroken.fit((X, Y), 5, callbacks=[EarlyStopping()])
    file = tmp_path / "mid.json"
    trainer().fit((X, Y), 5, callbacks=[EarlyStopping(), At(2, 3, lambda t: t.save(file))])
    resumed = ModelTrainer.resume(file)
    rows, callbacks = (64, []) if wrong == "no callback" else (40, [EarlyStopping()])
    with pytest.raises(SpecError, match="the run to be finished"):
        resumed.fit((X[:rows], Y[:rows]), 5, callbacks=callbacks)
    resumed.fit((X, Y), 5, callbacks=[EarlyStopping()])
    assert_same(resumed, unbroken)


@pytest.mark.parametrize("through_a_file", [False, True])
def test_early_stopping_leaves_the_weights_of_a_broken_run(through_a_file: bool, tmp_path: Path) -> None:
    settings = {"optimizer_type": "SGD", "learning_rate": 2.0}  # so that the best epoch is not the last one
    unbroken = trainer(**settings)
    unbroken.fit((X, Y), 9, callbacks=[EarlyStopping(patience=20)])
    broken, stopping = trainer(**settings), EarlyStopping(patience=20)
    broken.fit((X, Y), 9, callbacks=[stopping, At(6, 3, interrupt)])
    assert broken.epoch == 5
    assert 0 < stopping.best_epoch < 5
    if through_a_file:
        broken.save(tmp_path / "a.json")
        broken, stopping = ModelTrainer.resume(tmp_path / "a.json"), EarlyStopping(patience=20)
    broken.fit((X, Y), 9, callbacks=[stopping])
    assert_same(broken, unbroken)


@pytest.mark.parametrize("where", ["training", "validation"])
def test_data_that_cannot_be_read_once(where: str, tmp_path: Path) -> None:
    unbroken = trainer()
    unbroken.fit(shuffled(), 4, (X, Y))
    broken, training = trainer(), where == "training"
    validation = (X, Y) if training else DataLoader(FailsOnce(10), 8)
    with CheckpointManager(broken, CheckpointConfig(tmp_path)) as manager, pytest.raises(OSError, match="network"):
        broken.fit(shuffled(12 if training else 0), 4, validation, checkpoints=manager)
    resumed = ModelTrainer.resume(tmp_path)
    assert (resumed.epoch, resumed.step) == (1, 11 if training else 16)
    resumed.fit(shuffled(), 4, (X, Y))
    assert_same(resumed, unbroken)


def test_a_rate_that_changes_with_every_step_is_recorded_as_it_was(tmp_path: Path) -> None:
    file = tmp_path / "last.safetensors"
    unbroken = trainer(scheduler=OneCycleScheduler(24))
    unbroken.fit((X, Y), 3, callbacks=[At(2, 8, lambda t: t.save(file))])  # the last batch of an epoch
    resumed = ModelTrainer.resume(file)
    resumed.fit((X, Y), 3)
    assert_same(resumed, unbroken)


def test_validation_judges_the_same_rows_in_every_epoch_and_after_a_restart(tmp_path: Path) -> None:
    def validation() -> DataLoader:
        return DataLoader(ArrayDataset(X[:60], Y[:60]), 8, shuffle=True, seed=3, drop_last=True)

    file, unbroken = tmp_path / "v.json", trainer()
    unbroken.fit((X, Y), 4, validation(), callbacks=[At(3, 4, lambda t: t.save(file))])
    resumed = ModelTrainer.resume(file)
    resumed.fit((X, Y), 4, validation())
    assert_same(resumed, unbroken)


def test_files_hold_the_state_of_callbacks_after_the_manager(tmp_path: Path) -> None:
    def stopping() -> EarlyStopping:
        return EarlyStopping(patience=2, min_delta=0.05)

    unbroken = trainer(learning_rate=0.1)
    unbroken.fit((X, Y), 12, callbacks=[stopping()])
    broken, config = trainer(learning_rate=0.1), CheckpointConfig(tmp_path, save_frequency=2, save_on_interrupt=False)

    def fail(_: ModelTrainer) -> None:
        raise ZeroDivisionError

    with CheckpointManager(broken, config) as manager, pytest.raises(ZeroDivisionError):
        broken.fit((X, Y), 12, callbacks=[manager, stopping(), At(3, 1, fail)])
    resumed = ModelTrainer.resume(tmp_path)
    assert resumed.epoch == 2
    state = resumed.checkpoint().extras["callbacks"][-1]["state"]
    assert state["best_epoch"] + state["waited"] == 2
    resumed.fit((X, Y), 12, callbacks=[stopping()])
    assert_same(resumed, unbroken)


def test_a_callback_begins_anew_with_another_run() -> None:
    first, second, stopping = trainer(learning_rate=0.01), trainer(learning_rate=1e-4), EarlyStopping(patience=50)
    first.fit((X, Y), 8, callbacks=[stopping])
    second.fit((X, Y), 3, callbacks=[stopping])
    assert stopping.best == pytest.approx(min(second.history["loss"]))
    assert not np.array_equal(first.predict(X), second.predict(X))


class _NanFirst:
    """Rows with a NaN in the first pass only."""

    def __init__(self) -> None:
        self.passes = 0

    def __len__(self) -> int:
        return 64

    def rows(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        self.passes += 1
        return (np.where(np.arange(64)[:, None] == 3, np.nan, X) if self.passes == 1 else X)[indices], Y[indices]


def test_a_loss_that_is_not_a_number_is_no_improvement_and_can_be_saved(tmp_path: Path) -> None:
    stopping, run = EarlyStopping(patience=3), trainer(learning_rate=0.01)
    run.fit((X, Y), 10, DataLoader(_NanFirst(), 64), callbacks=[stopping])
    assert run.epoch == stopping.best_epoch == 10
    assert np.isnan(run.history["val_loss"][0])
    for name in ("a.json", "a.safetensors"):
        run.save(tmp_path / name)
        again = ModelTrainer.resume(tmp_path / name).history
        np.testing.assert_array_equal(again["val_loss"], run.history["val_loss"])


@pytest.mark.parametrize("batch_size", [32, 64])
def test_a_look_at_a_batch_takes_none_away(batch_size: int) -> None:
    loader, run = DataLoader(ArrayDataset(X, Y), batch_size), trainer()
    next(iter(loader))
    assert run.evaluate(loader) == pytest.approx(run.evaluate((X, Y)))
    assert loader.batch == 1
    run.fit(loader, 2)
    assert run.step == 2 * len(loader)


def test_an_evaluation_leaves_the_training_where_it_is() -> None:
    class Watch(Callback):
        def on_step_end(self, event: Event) -> None:
            event.trainer.evaluate(loader)

    loader, plain, watched = shuffled(), trainer(), trainer()
    watched.fit(loader, 2, callbacks=[Watch()])
    plain.fit(shuffled(), 2)
    assert_same(watched, plain)


@pytest.mark.parametrize("suffix", ["json", "safetensors"])
def test_an_overflow_that_waits_for_its_update_is_saved(suffix: str, tmp_path: Path) -> None:
    """Of float16: the update is passed over and the scale halved, as without the interruption."""
    settings = {"use_mixed_precision": True, "accumulation_steps": 4, "initial_loss_scale": 2.0**24}
    file, unbroken = tmp_path / f"a.{suffix}", trainer(**settings)
    waiting = []

    def save(t: ModelTrainer) -> None:
        waiting.append([np.isfinite(g).all() for g in (t._training_step.carried().accumulated or {}).values()])
        t.save(file)

    unbroken.fit((X, Y), 3, callbacks=[At(1, 2, save)])
    assert not all(waiting[0])
    resumed = ModelTrainer.resume(file)
    resumed.fit((X, Y), 3)
    assert resumed._training_step.loss_scale == unbroken._training_step.loss_scale < 2.0**24
    assert_same(resumed, unbroken)


def test_an_overflow_is_not_clipped_into_an_update() -> None:
    config = TrainerConfig(seed=0, use_mixed_precision=True, gradient_clip_value=0.1, initial_loss_scale=2.0**24)
    run = ModelTrainer(ModelBuilder((1, 6)).add_dense(3).compile(), config)
    before = weights(run)
    run.train_batch(np.ones((1, 6), np.float32), [0])  # one row of ones: gradients of infinity, none that is NaN
    assert run._training_step.loss_scale == 2.0**23
    after = weights(run)
    assert all(np.array_equal(before[n], after[n]) for n in before)


class Fails(Callback):
    """Fails in one of its methods, as often as is said."""

    def __init__(self, method: str, times: int = 1, error: Exception | None = None) -> None:
        self.times, self.error = times, error or CheckpointError("the folder is locked")
        setattr(self, method, self._fail)

    def _fail(self, event: Event) -> None:
        self.times -= 1
        if self.times >= 0:
            raise self.error


@pytest.mark.parametrize("through_a_file", [False, True])
def test_a_run_that_could_not_begin_is_begun_by_the_next_call(through_a_file: bool, tmp_path: Path) -> None:
    unbroken, file = trainer(), tmp_path / "a.json"
    unbroken.fit((X, Y), 5, callbacks=[EarlyStopping()])
    broken, stopping = trainer(), EarlyStopping()
    broken.fit((X, Y), 5, callbacks=[stopping, At(3, 2, interrupt)])
    if through_a_file:
        broken.save(file)
        broken, stopping = ModelTrainer.resume(file), EarlyStopping()
    with pytest.raises(CheckpointError, match="locked"):
        broken.fit((X, Y), 5, callbacks=[stopping, Fails("on_fit_begin")])
    assert broken.checkpoint().extras["data"]["batch"] == 2
    broken.fit((X, Y), 5, callbacks=[stopping])
    assert_same(broken, unbroken)


def test_a_first_run_that_could_not_begin_leaves_no_run_behind() -> None:
    run = trainer()
    with pytest.raises(CheckpointError, match="locked"):
        run.fit((X, Y), 5, callbacks=[Fails("on_fit_begin")])
    assert not {"run_start", "data"} & set(run.checkpoint().extras)


def test_who_fails_when_a_run_ends_keeps_nobody_from_saving(tmp_path: Path) -> None:
    def fail(_: ModelTrainer) -> None:
        raise KeyError("a bug")

    unbroken, broken, stopping = trainer(learning_rate=0.1), trainer(learning_rate=0.1), EarlyStopping(patience=20)
    unbroken.fit((X, Y), 9, callbacks=[EarlyStopping(patience=20)])
    others = [Fails("on_interrupt"), Fails("on_fit_end"), stopping, At(6, 3, fail)]
    with CheckpointManager(broken, CheckpointConfig(tmp_path)) as manager, pytest.raises(KeyError) as e:
        broken.fit((X, Y), 9, callbacks=others, checkpoints=manager)
    assert e.value.args == ("a bug",)
    assert e.value.__notes__ == [
        f"Fails.{m}: CheckpointError: the folder is locked" for m in ("on_interrupt", "on_fit_end")
    ]
    resumed = ModelTrainer.resume(tmp_path / "rescue_checkpoint.json")
    resumed.fit((X, Y), 9, callbacks=[EarlyStopping(patience=20)])
    assert_same(resumed, unbroken)


def test_who_fails_at_ctrl_c_is_told_when_everybody_has_heard_of_it(tmp_path: Path) -> None:
    broken = trainer()
    callbacks = [Fails("on_interrupt"), Fails("on_interrupt", error=KeyError("second")), At(2, 3, interrupt)]
    with CheckpointManager(broken, CheckpointConfig(tmp_path)) as manager, pytest.raises(CheckpointError) as e:
        broken.fit((X, Y), 4, callbacks=callbacks, checkpoints=manager)
    assert e.value.__notes__ == ["Fails.on_interrupt: KeyError: 'second'"]
    unbroken = trainer()
    unbroken.fit((X, Y), 4)
    resumed = ModelTrainer.resume(tmp_path / "rescue_checkpoint.json")
    for run in (broken, resumed):  # the trainer itself can go on, too
        run.fit((X, Y), 4)
        assert_same(run, unbroken)


def test_a_process_that_is_asked_to_end_ends_whatever_else_goes_wrong() -> None:
    with pytest.raises(SystemExit) as e:
        trainer().fit(
            (X, Y), 4, callbacks=[Fails("on_interrupt"), At(1, 2, lambda _: os.kill(os.getpid(), signal.SIGTERM))]
        )
    assert e.value.code == 128 + signal.SIGTERM

"""What other threads and callbacks ask of a trainer while ``fit`` runs."""

import threading
from pathlib import Path

import numpy as np
import pytest
from training_support import blobs, mlp

from gometal_mlx.errors import TrainingError
from gometal_mlx.training import Callback, Event, ModelTrainer, TrainerConfig


def test_another_thread_is_refused_and_the_run_goes_on() -> None:
    """MLX ends the process when two threads evaluate the same arrays."""
    trainer, told, done = ModelTrainer(mlp(), TrainerConfig(seed=0, batch_size=8)), [], threading.Event()

    def watch() -> None:
        while not done.is_set():
            for ask in (lambda: trainer.step, trainer.checkpoint, trainer.get_stats):
                try:
                    ask()
                except TrainingError as e:
                    told.append(str(e))

    class Watched(Callback):
        def on_fit_begin(self, event: Event) -> None:
            thread.start()

        def on_epoch_end(self, event: Event) -> None:
            assert trainer.step == trainer.checkpoint().training_state.step  # its own thread may ask

        def on_fit_end(self, event: Event) -> None:
            done.set()
            thread.join()

    thread = threading.Thread(target=watch)
    trainer.fit(blobs(64), 20, callbacks=[Watched()])
    assert set(told) == {
        "another thread trains this model, and MLX's arrays belong to the thread that computes them; ask in a callback"
    }
    assert trainer.step == 160
    other = ModelTrainer(mlp(), TrainerConfig(seed=0, batch_size=8))
    other.fit(blobs(64), 20)
    assert trainer.history["loss"] == other.history["loss"]


def test_restoring_is_refused(tmp_path: Path) -> None:
    trainer = ModelTrainer(mlp(), TrainerConfig(seed=0))
    first = trainer.checkpoint()

    class Back(Callback):
        def on_epoch_end(self, event: Event) -> None:
            trainer.restore(first)

    with pytest.raises(TrainingError, match="restore: fit is running; restore when it has returned"):
        trainer.fit(blobs(24), 2, callbacks=[Back()])
    trainer.restore(first)
    assert trainer.step == 0
    assert np.isfinite(trainer.fit(blobs(24), 2)["loss"]).all()

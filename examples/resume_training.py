"""Five epochs, a file, and five more from the file: bit for bit as if there had been no file in between.

Without arguments both phases run, one after the other; ``start`` or ``go-on`` runs one of them.
"""

import sys

import numpy as np

import gometal_mlx as gm
from gometal_mlx.training import ProgressPrinter

FILE = "resume_training.json"


def data() -> tuple[np.ndarray, np.ndarray]:
    """Points around ten centres; both phases need the same ones."""
    rng = np.random.default_rng(13)
    labels = rng.integers(0, 10, 800)
    return (rng.standard_normal((10, 64))[labels] + rng.standard_normal((800, 64))).astype(np.float32), labels


def new_trainer() -> gm.ModelTrainer:
    """A network with BatchNorm and Dropout: statistics and random numbers have to be resumed, too."""
    builder = gm.ModelBuilder((32, 64)).add_dense(128, name="hidden").add_batch_norm(name="norm").add_relu()
    spec = builder.add_dropout(0.3).add_dense(10, name="output").compile()
    return gm.ModelTrainer(spec, gm.TrainerConfig(batch_size=32, seed=1))


def start() -> None:
    """Five epochs, then the file that holds everything."""
    trainer = new_trainer()
    trainer.fit(data(), epochs=5, callbacks=[ProgressPrinter()])
    trainer.save(FILE)


def go_on() -> gm.ModelTrainer:
    """The next five, from the file alone."""
    trainer = gm.ModelTrainer.resume(FILE)
    print(f"{FILE}: epoch {trainer.epoch}, step {trainer.step}; going on with epoch {trainer.epoch + 1}")
    trainer.fit(data(), epochs=5, callbacks=[ProgressPrinter()])
    return trainer


phases = {"start": (start,), "go-on": (go_on,)}.get(sys.argv[-1], (start, go_on))
for phase in phases:
    resumed = phase()
if len(phases) == 2:
    whole = new_trainer()
    whole.fit(data(), epochs=5)
    whole.fit(data(), epochs=5)
    assert resumed.history["epoch"] == list(range(1, 11))
    assert resumed.history["loss"] == whole.history["loss"]
    assert np.array_equal(resumed.predict(data()[0]), whole.predict(data()[0]))
    print("with and without the file in between: the same, bit for bit")

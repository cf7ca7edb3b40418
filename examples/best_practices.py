"""Checkpoints in daily use: names, how often, what is kept, and errors that do not stop training."""

import os
import time
import warnings
from pathlib import Path

import numpy as np

import gometal_mlx as gm
from gometal_mlx.training import Callback, CheckpointConfig, CheckpointManager, Event

rng = np.random.default_rng(17)
labels = rng.integers(0, 5, 640)
x = (rng.standard_normal((5, 32))[labels] + rng.standard_normal((640, 32))).astype(np.float32)


def new_trainer() -> gm.ModelTrainer:
    """A small network; a real one trains longer between two files."""
    spec = gm.ModelBuilder((32, 32)).add_dense(64, name="hidden").add_relu().add_dense(5, name="output").compile()
    return gm.ModelTrainer(spec, gm.TrainerConfig(batch_size=32, seed=1))


# 1. Naming: one folder a run, named by what it is; the pattern says what the two numbers are.
run = Path(f"best_practices/mlp64_lr0.001_{time.strftime('%Y%m%d_%H%M%S')}_{os.getpid()}")

# 2. Frequency: by steps rather than epochs when epochs are long, and never more than 5 % of the time.
# 3. Clean-up: the three latest and the two best stay; files the manager did not write are never touched.
# 4. Errors: told as warnings, training goes on, and the files there are stay as they are.
config = CheckpointConfig(
    run,
    filename_pattern="mlp64_epoch_%d_step_%d",
    save_frequency=1,
    every_steps=15,
    budget=0.05,
    max_checkpoints=3,
    keep_best=2,
    format="SAFETENSORS",
    async_save=True,
    on_error="warn",
)


class BreakDisk(Callback):
    """Stands for a full disk: in the third epoch nothing can be written."""

    def on_epoch_begin(self, event: Event) -> None:
        """A folder of the manifest's name cannot be replaced by a file."""
        if event.epoch == 3:
            (run / "manifest.json").rename(run / "manifest.saved")
            (run / "manifest.json").mkdir()
        if event.epoch == 4:
            (run / "manifest.json").rmdir()
            (run / "manifest.saved").rename(run / "manifest.json")


trainer = new_trainer()
with warnings.catch_warnings(record=True) as told, CheckpointManager(trainer, config) as manager:
    warnings.simplefilter("always")
    trainer.fit((x[:512], labels[:512]), 6, (x[512:], labels[512:]), callbacks=[BreakDisk()], checkpoints=manager)
    kept = manager.list()
print(f"{len(told)} warnings, the first: {told[0].message}")
for entry in kept:
    print(f"{entry.kind:<9} epoch {entry.epoch} step {entry.step:>2}  {entry.name}")

# 5. Before a file is trusted, look at it: whole, of the right run, and without notes.
newest = gm.load(run / kept[0].name)
resumed = gm.ModelTrainer.resume(run)
print(f"resumed at epoch {resumed.epoch}, step {resumed.step}: {newest.metadata.description!r}")

assert trainer.epoch == 6, "the broken disk must not stop training"
assert "training goes on" in str(told[0].message)
assert not newest.notes
assert [sum(e.kind == kind for e in kept) for kind in ("periodic", "best")] == [3, 2]
assert np.array_equal(resumed.predict(x), trainer.predict(x)), "the newest file is the state after the last epoch"

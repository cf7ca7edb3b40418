"""The guide's checkpoint program: a 784-512-256-128-10 network, a file every three epochs, the best one, five kept.

Data: random points around ten centres, so that there is something to learn without a download.
"""

import numpy as np

import gometal_mlx as gm
from gometal_mlx.training import CheckpointConfig, CheckpointManager, ProgressPrinter

rng = np.random.default_rng(11)
labels = rng.integers(0, 10, 480)
x = (rng.standard_normal((10, 784))[labels] + 2 * rng.standard_normal((480, 784))).astype(np.float32)
training, held = (x[:320], labels[:320]), (x[320:], labels[320:])

builder = gm.ModelBuilder((32, 784))
for size in (512, 256, 128):
    builder.add_dense(size, name=f"fc_{size}").add_relu(f"relu_{size}")
spec = builder.add_dense(10, name="output").compile()
trainer = gm.ModelTrainer(spec, gm.TrainerConfig(batch_size=32, learning_rate=0.0003, seed=1))

config = CheckpointConfig(
    save_directory="managed_checkpoints",
    save_frequency=3,
    save_best=True,
    max_checkpoints=5,
    format="SAFETENSORS",
    async_save=True,
)
with CheckpointManager(trainer, config) as manager:
    trainer.fit(training, epochs=18, validation_data=held, callbacks=[ProgressPrinter()], checkpoints=manager)
    for entry in manager.list():
        print(f"{entry.kind:<9} epoch {entry.epoch:>2}  {entry.size:>9,} bytes  {entry.name}")
    periodic = sorted(e.epoch for e in manager.list() if e.kind == "periodic")
    best = gm.load(manager.best())

losses = trainer.history["val_loss"]
print(f"best epoch {best.training_state.epoch}: {best.metadata.description}")
assert periodic == [6, 9, 12, 15, 18], "six were written, the oldest was deleted"
assert best.training_state.epoch == 1 + losses.index(min(losses))

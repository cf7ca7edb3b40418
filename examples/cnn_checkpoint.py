"""The guide's CNN on 3x32x32 images, and a checkpoint that holds everything: weights, optimizer, training state, notes.

Data: random colour gradients, ten classes by direction and hue.
"""

import numpy as np

import gometal_mlx as gm
from gometal_mlx.training import ProgressPrinter


def make_images(rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Gradients in one of five directions, strongest in one of two colour channels, with noise."""
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 10, rows)
    angle = (labels % 5) * np.pi / 5
    row, column = np.mgrid[-1:1:32j, -1:1:32j]
    waves = np.sin(6 * (np.cos(angle)[:, None, None] * column + np.sin(angle)[:, None, None] * row))
    images = 0.5 * rng.standard_normal((rows, 3, 32, 32))
    images[np.arange(rows), labels // 5] += waves
    return images.astype(np.float32), labels


x, y = make_images(320)
spec = (
    gm.ModelBuilder((32, 3, 32, 32))
    .add_conv2d(32, 3, 1, 1, True, "conv1")
    .add_relu("relu1")
    .add_conv2d(64, 3, 2, 1, True, "conv2")
    .add_relu("relu2")
    .add_dense(128, True, "fc1")
    .add_relu("relu3")
    .add_dense(10, True, "fc2")
    .compile()
)
trainer = gm.ModelTrainer(spec, gm.TrainerConfig(batch_size=32, learning_rate=0.001, seed=1))
trainer.fit((x[:256], y[:256]), epochs=2, validation_data=(x[256:], y[256:]), callbacks=[ProgressPrinter()])

checkpoint = trainer.checkpoint(description="CNN after two epochs", tags=["cnn", "guide"])
gm.save(checkpoint, "cnn_checkpoint.json")

loaded = gm.load("cnn_checkpoint.json")
print(loaded)
print(f"metadata     {loaded.metadata.description!r}, tags {loaded.metadata.tags}, {loaded.metadata.created_at}")
print(f"training     epoch {loaded.training_state.epoch}, step {loaded.training_state.step}")
print(f"optimizer    {loaded.optimizer_state.type}, {len(loaded.optimizer_state.state_data)} state tensors")
for weight in loaded.weights:
    print(f"weight       {weight.name:<14} {weight.shape!s:<16} {weight.type}")
resumed = gm.ModelTrainer.resume("cnn_checkpoint.json")
assert np.array_equal(resumed.predict(x[256:]), trainer.predict(x[256:])), "must be where we stopped"
print("resumed at epoch", resumed.epoch)

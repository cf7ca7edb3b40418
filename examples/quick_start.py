"""The guide's first program: a 784-128-10 network, trained, saved as JSON, loaded again and used.

Data: random points around ten centres, so that there is something to learn without a download.
"""

import numpy as np

import gometal_mlx as gm
from gometal_mlx.training import Callback, Event


def make_data(rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows around one of ten random centres of 784 dimensions each."""
    rng = np.random.default_rng(7)
    centres = rng.standard_normal((10, 784))
    labels = rng.integers(0, 10, rows)
    return (centres[labels] + 3 * rng.standard_normal((rows, 784))).astype(np.float32), labels


class PrintEpochs(Callback):
    """One line an epoch."""

    def on_epoch_end(self, event: Event) -> None:
        """Print what the epoch gave."""
        loss, accuracy = event.metrics["loss"], event.metrics["accuracy"]
        print(f"Epoch {event.epoch}/{event.epochs}  loss {loss:.4f}  accuracy {accuracy:.2%}")


x, y = make_data(2000)
spec = (
    gm.ModelBuilder((32, 784)).add_dense(128, True, "hidden1").add_relu("relu1").add_dense(10, True, "output").compile()
)
print(spec.summary())
trainer = gm.ModelTrainer(spec, gm.TrainerConfig(batch_size=32, learning_rate=0.001, optimizer_type="Adam", seed=1))
trainer.fit((x[:1600], y[:1600]), epochs=5, callbacks=[PrintEpochs()])
trainer.save("quick_start.json")

predictor = gm.Predictor("quick_start.json")
probabilities = predictor.predict(x[1600:])
print(f"loaded again: {np.mean(probabilities.argmax(axis=1) == y[1600:]):.2%} of 400 unseen rows are right")
assert np.array_equal(probabilities, trainer.predict(x[1600:])), "the loaded model must be the trained one, bit for bit"

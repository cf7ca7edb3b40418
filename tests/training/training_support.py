"""Small models, data and comparisons that the training tests share."""

from __future__ import annotations

from typing import Any

import numpy as np
from mlx.utils import tree_flatten

from gometal_mlx.layers import ModelBuilder, ModelSpec
from gometal_mlx.training import ModelTrainer


def blobs(rows: int = 90, features: int = 6, classes: int = 3, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Points around one centre a class."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, rows)
    centres = 2 * rng.standard_normal((classes, features))
    return (centres[labels] + rng.standard_normal((rows, features))).astype(np.float32), labels


def mlp(features: int = 6, classes: int = 3) -> ModelSpec:
    return (
        ModelBuilder((8, features))
        .add_dense(16, name="hidden")
        .add_relu("relu")
        .add_dense(classes, name="out")
        .compile()
    )


def noisy(features: int = 6, classes: int = 3) -> ModelSpec:
    """A model in which everything that can go wrong in a resumed run is present: Dropout and BatchNorm."""
    builder = ModelBuilder((8, features)).add_dense(16, name="hidden").add_batch_norm(name="bn").add_relu("relu")
    return builder.add_dropout(0.4, "drop").add_dense(classes, name="out").compile()


def arrays(trainer: ModelTrainer) -> dict[str, np.ndarray]:
    """Every array a trainer's future depends on: weights, statistics, optimizer state."""
    trees: list[Any] = [trainer.model.parameters(), trainer.optimizer.state]
    return {f"{i}.{n}": np.array(a) for i, tree in enumerate(trees) for n, a in tree_flatten(tree)}


def assert_same(a: ModelTrainer, b: ModelTrainer) -> None:
    """Bit for bit."""
    left, right = arrays(a), arrays(b)
    assert left.keys() == right.keys()
    different = [n for n in left if not np.array_equal(left[n], right[n])]
    assert not different
    assert a.history.records == b.history.records
    assert (a.epoch, a.step, a.learning_rate) == (b.epoch, b.step, b.learning_rate)
    assert a.optimizer.saved_extras().keys() == b.optimizer.saved_extras().keys()
    assert np.array_equal(np.asarray(a._training_step.carried().key), np.asarray(b._training_step.carried().key))


def weights(trainer: ModelTrainer) -> dict[str, np.ndarray]:
    return {n: np.array(a) for n, a in tree_flatten(trainer.model.parameters())}

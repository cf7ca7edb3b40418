"""Every optimizer trains the digits MLP; mixed precision is as good as float32."""

from __future__ import annotations

from functools import cache

import pytest

from gometal_mlx.data import load_digits
from gometal_mlx.layers import ModelBuilder
from gometal_mlx.training import ModelTrainer, TrainerConfig

TRAIN, TEST = load_digits(images=False)


@cache
def accuracy(optimizer: str, epochs: int, rate: float | None = None, precision: str | None = None) -> float:
    spec = ModelBuilder((32, 64)).add_dense(128).add_relu().add_dense(64).add_relu().add_dense(10).compile()
    config = TrainerConfig(
        optimizer_type=optimizer, learning_rate=rate, seed=1, batch_size=len(TRAIN) if optimizer == "LBFGS" else 32,
        use_mixed_precision=precision is not None, precision=precision or "float16",
    )  # fmt: skip
    trainer = ModelTrainer(spec, config)
    trainer.fit((TRAIN.x, TRAIN.y), epochs)
    return trainer.evaluate((TEST.x, TEST.y))["accuracy"]


@pytest.mark.parametrize(
    ("optimizer", "rate", "epochs"),
    [
        ("SGD", 0.1, 15), ("Adam", None, 15), ("RMSProp", 0.001, 15), ("AdaGrad", 0.05, 15), ("AdaDelta", None, 30),
        ("Nadam", None, 15), ("LBFGS", None, 60),
    ],
)  # fmt: skip
def test_every_optimizer_reaches_95_percent(optimizer: str, rate: float | None, epochs: int) -> None:
    assert accuracy(optimizer, epochs, rate) > 0.95


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_mixed_precision_is_as_good(precision: str) -> None:
    # two of the 360 test images
    assert accuracy("Adam", 15, None, precision) >= accuracy("Adam", 15) - 2 / 360 - 1e-9

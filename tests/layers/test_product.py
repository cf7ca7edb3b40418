"""The product of a few rows: the same numbers in slices, which are made where they were measured to help."""

import mlx.core as mx
import numpy as np
import pytest

from gometal_mlx import ModelBuilder, ModelTrainer, TrainerConfig
from gometal_mlx.layers import _product
from gometal_mlx.layers._product import product

# float32 has 24 bits (6e-8); thousands of products added in another order
TOLERANCE = 3e-6


@pytest.fixture(autouse=True)
def _avx512_on_two_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if BLAS were OpenBLAS with kernels for AVX-512, two threads, on a CPU."""
    monkeypatch.setattr(_product, "unpacked_product", lambda: 2**19)
    monkeypatch.setattr(_product, "threads", lambda: 2)
    monkeypatch.setattr(_product, "on_cpu", lambda: True)


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 9])
@pytest.mark.parametrize("shape", [(16384, 128), (1024, 1000), (5, 7), (784, 512), (2310, 900), (4099, 300)])
def test_value(rows: int, shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(rows)
    x, w = rng.standard_normal((rows, shape[0])).astype("f"), rng.standard_normal(shape).astype("f")
    expected = x.astype(np.float64) @ w
    found = np.array(product(mx.array(x), mx.array(w)))
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= TOLERANCE * np.sqrt(shape[0]) * np.abs(expected).std()


@pytest.mark.parametrize(
    ("rows", "shape", "slices"),
    [
        (1, (16384, 128), 16),  # of 2**17 numbers
        (4, (16384, 128), 16),
        (1, (784, 512), 1),  # BLAS copies nothing for so small a product
        (2, (784, 512), 4),
        (1, (1100, 1000), 10),  # 9 would be enough, and does not divide it
        (5, (16384, 128), 1),
        (0, (16384, 128), 1),
        (1, (4096, 4096), 1),  # from memory
        (4, (4099, 300), 1),  # a prime number
        (1, (64, 16384), 1),  # slices of less than 64
    ],
)
def test_number_of_slices(rows: int, shape: tuple[int, int], slices: int) -> None:
    assert _product._slices(rows, *shape) == slices


@pytest.mark.parametrize(("name", "value"), [("unpacked_product", 0), ("threads", 4), ("on_cpu", False)])
def test_elsewhere_it_is_one_product(name: str, value: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_product, name, lambda: value)
    x, w = mx.random.normal((1, 16384)), mx.random.normal((16384, 128))
    assert mx.array_equal(product(x, w), x @ w)


def test_a_dense_layer_uses_it_in_evaluation_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = []
    monkeypatch.setattr("gometal_mlx.layers.dense.product", lambda x, w: rows.append(x.shape[0]) or x @ w)
    with mx.stream(mx.cpu):
        trainer = ModelTrainer(ModelBuilder((3, 4)).add_dense(2).compile(), TrainerConfig(seed=0))
        trainer.train_batch(np.ones((3, 4), "f"), np.zeros(3, int))
        assert rows == []
        trainer.predict(np.ones((2, 4), "f"))
    assert rows == [2]

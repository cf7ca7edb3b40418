import mlx.core as mx
import numpy as np
import pytest
from contracts import Arrays, Case, LayerContract

from gometal_mlx.layers import Model, ModelSpec, ReLU6


def reference(layer: ReLU6, p: Arrays, x: np.ndarray, training: bool) -> np.ndarray:
    return np.minimum(np.maximum(x, 0), 6)


CASES = [Case(ReLU6(name="a"), shape, reference) for shape in [(2, 5), (1, 3, 4), (2, 3, 2, 5), (1, 2, 3, 2, 2)]]


class TestReLU6(LayerContract):
    cases = CASES


@pytest.mark.parametrize(("x", "y"), [(-2.0, 0.0), (0.0, 0.0), (3.0, 3.0), (6.0, 6.0), (6.5, 6.0), (1e30, 6.0)])
def test_vector(x: float, y: float) -> None:
    value = Model(ModelSpec.from_layers([ReLU6(name="a")], (1, 1)))(mx.array([[x]]))
    assert value.item() == y


@pytest.mark.parametrize(("x", "slope"), [(-1.0, 0.0), (3.0, 1.0), (7.0, 0.0)])
def test_slope(x: float, slope: float) -> None:
    def value(x: mx.array) -> mx.array:
        return ReLU6(name="a").forward({}, x, training=True, key=None).sum()

    assert mx.grad(value)(mx.array([[x]])).item() == slope


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
def test_keeps_the_precision_of_its_input(dtype: mx.Dtype) -> None:
    assert ReLU6(name="a").forward({}, mx.ones((1, 2), dtype), training=False, key=None).dtype == dtype

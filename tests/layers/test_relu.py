import mlx.core as mx
import numpy as np
import pytest
from contracts import Arrays, Case, LayerContract

from gometal_mlx.layers import Model, ModelSpec, ReLU


def reference(layer: ReLU, p: Arrays, x: np.ndarray, training: bool) -> np.ndarray:
    return np.maximum(x, 0)


CASES = [Case(ReLU(name="a"), shape, reference) for shape in [(2, 5), (1, 3, 4), (2, 3, 2, 5), (1, 2, 3, 2, 2)]]


class TestReLU(LayerContract):
    cases = CASES


@pytest.mark.parametrize(("x", "y"), [(-2.0, 0.0), (0.0, 0.0), (3.0, 3.0), (-1e30, 0.0)])
def test_vector(x: float, y: float) -> None:
    value = Model(ModelSpec.from_layers([ReLU(name="a")], (1, 1)))(mx.array([[x]]))
    assert value.item() == pytest.approx(y, rel=1e-6)  # the vectors have 7 digits, as float32 has

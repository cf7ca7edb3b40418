import mlx.core as mx
import numpy as np
import pytest
from contracts import Arrays, Case, LayerContract

from gometal_mlx.layers import Model, ModelSpec, Tanh


def reference(layer: Tanh, p: Arrays, x: np.ndarray, training: bool) -> np.ndarray:
    return np.tanh(x)


CASES = [Case(Tanh(name="a"), shape, reference) for shape in [(2, 5), (1, 3, 4), (2, 3, 2, 5), (1, 2, 3, 2, 2)]]


class TestTanh(LayerContract):
    cases = CASES


@pytest.mark.parametrize(
    ("x", "y"), [(0.0, 0.0), (1.0, 0.7615942), (-1.0, -0.7615942), (1e-4, 1e-4), (200.0, 1.0), (-200.0, -1.0)]
)
def test_vector(x: float, y: float) -> None:
    value = Model(ModelSpec.from_layers([Tanh(name="a")], (1, 1)))(mx.array([[x]]))
    assert value.item() == pytest.approx(y, rel=1e-6)  # the vectors have 7 digits, as float32 has

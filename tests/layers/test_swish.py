import mlx.core as mx
import numpy as np
import pytest
from contracts import Arrays, Case, LayerContract

from gometal_mlx.layers import Model, ModelSpec, Swish


def reference(layer: Swish, p: Arrays, x: np.ndarray, training: bool) -> np.ndarray:
    return x / (1 + np.exp(-x))


CASES = [Case(Swish(name="a"), shape, reference) for shape in [(2, 5), (1, 3, 4), (2, 3, 2, 5), (1, 2, 3, 2, 2)]]


class TestSwish(LayerContract):
    cases = CASES


@pytest.mark.parametrize(("x", "y"), [(0.0, 0.0), (1.0, 0.7310586), (-1.0, -0.2689414), (200.0, 200.0), (-200.0, 0.0)])
def test_vector(x: float, y: float) -> None:
    value = Model(ModelSpec.from_layers([Swish(name="a")], (1, 1)))(mx.array([[x]]))
    assert value.item() == pytest.approx(y, rel=1e-6)  # the vectors have 7 digits, as float32 has

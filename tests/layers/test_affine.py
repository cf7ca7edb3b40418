import mlx.core as mx
import numpy as np
import pytest
from contracts import Arrays, Case, LayerContract, randomise

from gometal_mlx.errors import ShapeError
from gometal_mlx.layers import Affine, Model, ModelSpec


def reference(layer: Affine, p: Arrays, x: np.ndarray, training: bool) -> np.ndarray:
    wide = (1, -1, *[1] * (x.ndim - 2))
    return x * p["weight"].reshape(wide) + p["bias"].reshape(wide)


CASES = [
    Case(Affine(name="a"), shape, reference)
    for shape in [(2, 5), (1, 1), (2, 3, 4), (2, 3, 4, 5), (1, 4, 4, 4), (1, 2, 3, 2, 2)]
]


class TestAffine(LayerContract):
    cases = CASES


@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 4), (2, 3, 4, 4)])
def test_starts_as_the_identity(shape: tuple[int, ...]) -> None:
    x = mx.random.normal(shape, key=mx.random.key(0))
    np.testing.assert_array_equal(np.array(Model(ModelSpec.from_layers([Affine(name="a")], shape))(x)), np.array(x))


def test_the_numbers_belong_to_the_channels() -> None:
    """A square image, so that a wrong axis would fit, too."""
    model = Model(ModelSpec.from_layers([Affine(name="a")], (1, 2, 2, 2)))
    model["a"].update({"weight": mx.array([2.0, 3.0]), "bias": mx.array([0.0, 10.0])})
    y = np.array(model(mx.ones((1, 2, 2, 2))))
    assert y[0].tolist() == [[[2, 2], [2, 2]], [[13, 13], [13, 13]]]


def test_is_trained() -> None:
    model = Model(ModelSpec.from_layers([Affine(name="a")], (1, 3)))
    randomise(model)
    assert set(model.trainable_parameters()["a"]) == {"weight", "bias"}
    assert model.spec.parameter_shapes == ((3,), (3,))


def test_refuses_an_input_without_channels() -> None:
    with pytest.raises(ShapeError, match=r"Affine 'a': input needs rank >= 2 \(batch, channels, \.\.\.\), got shape"):
        Affine(name="a").output_shape((2,))

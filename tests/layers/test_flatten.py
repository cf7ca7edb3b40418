import mlx.core as mx
import numpy as np
import pytest
from contracts import Arrays, Case, LayerContract, randomise

from gometal_mlx.errors import ShapeError
from gometal_mlx.layers import Conv2D, Dense, Flatten, Layer, Model, ModelSpec


def reference(layer: Flatten, p: Arrays, x: np.ndarray, training: bool) -> np.ndarray:
    return x.reshape(len(x), -1)


CASES = [
    Case(Flatten(name="f"), shape, reference)
    for shape in [(2, 5), (1, 1), (2, 3, 4), (1, 3, 1), (2, 3, 4, 5), (1, 2, 1, 1), (1, 2, 3, 2, 2)]
]


class TestFlatten(LayerContract):
    cases = CASES


def test_is_in_channel_height_width_order() -> None:
    x = np.arange(48, dtype=np.float32).reshape(2, 3, 4, 2)
    y = Model(ModelSpec.from_layers([Flatten(name="f")], (1, 3, 4, 2)))(mx.array(x))
    np.testing.assert_array_equal(np.array(y), x.reshape(2, 24))


def test_takes_a_batch_of_nothing() -> None:
    model = Model(ModelSpec.from_layers([Flatten(name="f")], (1, 3, 4, 2)))
    assert model(mx.zeros((0, 3, 4, 2))).shape == (0, 24)


def test_before_a_dense_layer_it_changes_nothing() -> None:
    conv, dense = Conv2D(name="c", output_channels=2, kernel_size=2), Dense(name="d", output_size=3)
    stacks: list[list[Layer]] = [[conv, dense], [conv, Flatten(name="f"), dense]]
    plain, flattened = (Model(ModelSpec.from_layers(layers, (1, 3, 4, 5))) for layers in stacks)
    randomise(plain)
    randomise(flattened)
    x = mx.random.normal((2, 3, 4, 5), key=mx.random.key(0))
    np.testing.assert_array_equal(np.array(plain(x)), np.array(flattened(x)))


@pytest.mark.parametrize("shape", [(2,), ()])
def test_refuses_an_input_without_features(shape: tuple[int, ...]) -> None:
    told = r"Flatten 'f': input needs rank >= 2 \(batch, \.\.\.\), got shape \(" + ("2,\\)$" if shape else "\\)$")
    with pytest.raises(ShapeError, match=told):
        Flatten(name="f").output_shape(shape)

import mlx.core as mx
import numpy as np
import pytest
from contracts import Arrays, Case, LayerContract

from gometal_mlx.errors import ShapeError
from gometal_mlx.layers import Dense, GlobalAvgPool2D, Model, ModelSpec


def reference(layer: GlobalAvgPool2D, p: Arrays, x: np.ndarray, training: bool) -> np.ndarray:
    return x.mean((2, 3), keepdims=True)


CASES = [
    Case(GlobalAvgPool2D(name="g"), shape, reference)
    for shape in [(2, 3, 4, 5), (1, 1, 1, 1), (1, 4, 1, 7), (2, 2, 6, 1), (1, 1, 9, 9)]
]


class TestGlobalAvgPool2D(LayerContract):
    cases = CASES


def test_means_each_channel_by_itself() -> None:
    x = mx.array(np.arange(12, dtype=np.float32).reshape(1, 3, 2, 2))
    y = Model(ModelSpec.from_layers([GlobalAvgPool2D(name="g")], (1, 3, 2, 2)))(x)
    assert np.array(y).tolist() == [[[[1.5]], [[5.5]], [[9.5]]]]


def test_a_dense_layer_takes_its_output() -> None:
    spec = ModelSpec.from_layers([GlobalAvgPool2D(name="g"), Dense(name="d", output_size=2)], (1, 3, 4, 5))
    assert spec.parameter_shapes == ((3, 2), (2,))
    assert spec.output_shape == (1, 2)


@pytest.mark.parametrize("shape", [(2,), (2, 3), (2, 3, 4), (2, 3, 4, 5, 6)])
def test_refuses_other_ranks_than_4(shape: tuple[int, ...]) -> None:
    told = r"GlobalAvgPool2D 'g': input needs rank 4 \(batch, channels, height, width\), got shape \("
    with pytest.raises(ShapeError, match=told):
        ModelSpec.from_layers([GlobalAvgPool2D(name="g")], shape)


def test_a_sum_beyond_float16_is_no_infinity() -> None:
    x = mx.full((1, 64, 64, 1), 20.0, mx.float16)
    y = GlobalAvgPool2D(name="p").forward({}, x, training=True, key=None)
    assert (y.dtype, y.item()) == (mx.float16, 20)

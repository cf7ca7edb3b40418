import mlx.core as mx
import numpy as np
import pytest
from contracts import Arrays, Case, LayerContract

from gometal_mlx.errors import ShapeError, SpecError
from gometal_mlx.layers import MaxPool2D, Model, ModelSpec


def reference(layer: MaxPool2D, p: Arrays, x: np.ndarray, training: bool) -> np.ndarray:
    k, s, pad = layer.pool_size, layer.stride or layer.pool_size, layer.padding
    x = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)), constant_values=-np.inf)
    height, width = ((d - k) // s + 1 for d in x.shape[2:])
    y = np.zeros((*x.shape[:2], height, width))
    for i in range(height):
        for j in range(width):
            y[:, :, i, j] = x[:, :, i * s : i * s + k, j * s : j * s + k].max(axis=(2, 3))
    return y


CASES = [
    Case(MaxPool2D(name="m", **settings), shape, reference)
    for settings, shape in [
        ({}, (2, 3, 6, 4)),
        ({}, (1, 2, 5, 7)),  # the last row and column are left out
        ({"pool_size": 3, "stride": 2, "padding": 1}, (1, 2, 7, 6)),
        ({"pool_size": 2, "stride": 1, "padding": 1}, (1, 1, 3, 3)),
        ({"pool_size": 3, "stride": 1}, (1, 2, 3, 4)),
        ({"pool_size": 1}, (1, 2, 2, 3)),
        ({"pool_size": 2, "stride": 3}, (1, 1, 8, 5)),  # pixels between the windows
    ]
]


class TestMaxPool2D(LayerContract):
    cases = CASES


def pooled(x: np.ndarray, **settings: int) -> np.ndarray:
    return np.array(Model(ModelSpec.from_layers([MaxPool2D(name="m", **settings)], x.shape))(mx.array(x)))


def test_padding_never_wins() -> None:
    """Padding is minus infinity: zeros would be larger than these."""
    x = np.full((1, 1, 2, 2), -5, np.float32)
    np.testing.assert_array_equal(pooled(x, pool_size=2, stride=1, padding=1), np.full((1, 1, 3, 3), -5))


def test_stride_0_means_the_window() -> None:
    assert MaxPool2D(name="m", pool_size=3).resolve((1, 1, 6, 6)).stride == 3
    assert ModelSpec.from_layers([MaxPool2D(name="m", pool_size=3)], (1, 1, 6, 6)).layers[0].parameters["stride"] == 3


def test_has_no_parameters() -> None:
    assert ModelSpec.from_layers([MaxPool2D(name="m")], (1, 1, 2, 2)).total_parameters == 0


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"pool_size": 0}, "pool_size must be at least 1, got 0"),
        ({"pool_size": -2}, "pool_size must be at least 1, got -2"),
        ({"stride": -1}, r"stride must be at least 1 \(or 0 for pool_size\), got -1"),
        ({"padding": -1}, r"padding must be from 0 to half the window \(1\), got -1"),
        ({"pool_size": 3, "padding": 2}, r"padding must be from 0 to half the window \(1\), got 2"),
    ],
)
def test_refuses(settings: dict[str, int], told: str) -> None:
    with pytest.raises(SpecError, match=f"^MaxPool2D 'm': {told}$"):
        MaxPool2D(name="m", **settings)


def test_refuses_what_the_window_does_not_fit() -> None:
    with pytest.raises(ShapeError, match=r"MaxPool2D 'm': window 3 is larger than the padded input 4x2 \+ 2\*0$"):
        ModelSpec.from_layers([MaxPool2D(name="m", pool_size=3)], (1, 1, 4, 2))
    with pytest.raises(ShapeError, match="MaxPool2D 'm': input needs rank 4"):
        ModelSpec.from_layers([MaxPool2D(name="m")], (1, 4))

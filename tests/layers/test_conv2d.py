import mlx.core as mx
import numpy as np
import pytest
from contracts import Arrays, Case, LayerContract

from gometal_mlx.errors import ShapeError, SpecError
from gometal_mlx.layers import Conv2D, Model, ModelSpec


def reference(layer: Conv2D, p: Arrays, x: np.ndarray, training: bool) -> np.ndarray:
    k, s, pad = layer.kernel_size, layer.stride, layer.padding
    x = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    height, width = ((d - k) // s + 1 for d in x.shape[2:])
    y = np.zeros((len(x), layer.output_channels, height, width))
    for i in range(height):
        for j in range(width):
            window = x[:, :, i * s : i * s + k, j * s : j * s + k]
            y[:, :, i, j] = np.tensordot(window, p["weight"], axes=([1, 2, 3], [1, 2, 3]))
    return y + p["bias"][None, :, None, None] if layer.use_bias else y


CASES = [
    Case(Conv2D(name="c", **settings), shape, reference)
    for settings, shape in [
        ({"output_channels": 4, "kernel_size": 3, "padding": 1}, (2, 3, 8, 8)),
        ({"output_channels": 5, "kernel_size": 3, "stride": 2, "padding": 1, "use_bias": False}, (2, 4, 7, 5)),
        ({"output_channels": 2, "kernel_size": 1}, (1, 3, 2, 5)),
        ({"output_channels": 3, "kernel_size": 2, "stride": 3}, (1, 1, 9, 6)),
        ({"output_channels": 2, "kernel_size": 5, "padding": 2}, (1, 2, 1, 3)),  # kernel larger than the image
        ({"output_channels": 1, "kernel_size": 4, "stride": 2}, (1, 2, 4, 4)),  # one position
        ({"output_channels": 2, "kernel_size": 2, "padding": 3}, (1, 2, 3, 2)),  # windows that see padding only
    ]
]


class TestConv2D(LayerContract):
    cases = CASES


def test_is_cross_correlation_in_public_layout() -> None:
    """A kernel with one 1 picks one input channel at one offset: no flip, OIHW, NCHW."""
    model = Model(ModelSpec.from_layers([Conv2D(name="c", output_channels=2, kernel_size=2)], (1, 3, 4, 5)))
    weight = np.zeros((2, 3, 2, 2), np.float32)
    weight[1, 2, 0, 1] = 1
    model["c"].update({"weight": mx.array(weight), "bias": mx.array([7.0, 0.0])})
    x = np.arange(60, dtype=np.float32).reshape(1, 3, 4, 5)
    y = np.array(model(mx.array(x)))
    np.testing.assert_array_equal(y[0, 1], x[0, 2, :3, 1:])
    np.testing.assert_array_equal(y[0, 0], np.full((3, 4), 7))


@pytest.mark.parametrize(
    ("setting", "value", "told"),
    [
        ("output_channels", 0, "output_channels must be at least 1, got 0"),
        ("output_channels", -2, "output_channels must be at least 1, got -2"),
        ("kernel_size", 0, "kernel_size must be at least 1, got 0"),
        ("kernel_size", -3, "kernel_size must be at least 1, got -3"),
        ("stride", 0, "stride must be at least 1, got 0"),
        ("stride", -1, "stride must be at least 1, got -1"),
        ("padding", -1, "padding must be at least 0, got -1"),
        ("padding", 0.5, "padding must be an int, got 0.5"),
        ("stride", (1, 1), r"stride must be an int, got \(1, 1\)"),
        ("use_bias", 1, "use_bias must be a bool, got 1"),
    ],
)
def test_refuses(setting: str, value: object, told: str) -> None:
    settings = {"output_channels": 1, "kernel_size": 1, setting: value}
    with pytest.raises(SpecError, match=f"^Conv2D 'c': {told}$"):
        Conv2D(name="c", **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("stride", [1, 100])  # go-metal makes a 1x1 of it at stride 100
def test_refuses_a_kernel_larger_than_the_padded_input(stride: int) -> None:
    layer = Conv2D(name="c", output_channels=1, kernel_size=6, stride=stride, padding=1)
    with pytest.raises(ShapeError, match=r"Conv2D 'c': window 6 is larger than the padded input 9x3 \+ 2\*1$"):
        ModelSpec.from_layers([layer], (1, 1, 9, 3))


@pytest.mark.parametrize("shape", [(2,), (2, 3), (2, 3, 4), (2, 3, 4, 5, 6)])
def test_refuses_other_ranks_than_4(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match=r"Conv2D 'c': input needs rank 4 \(batch, channels, height, width\)"):
        ModelSpec.from_layers([Conv2D(name="c", output_channels=1, kernel_size=1)], shape)

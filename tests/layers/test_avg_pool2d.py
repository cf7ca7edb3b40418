import mlx.core as mx
import numpy as np
import pytest
from contracts import Arrays, Case, LayerContract

from gometal_mlx.errors import ShapeError, SpecError
from gometal_mlx.layers import AvgPool2D, Model, ModelSpec


def reference(layer: AvgPool2D, p: Arrays, x: np.ndarray, training: bool) -> np.ndarray:
    k, s, pad = layer.pool_size, layer.stride, layer.padding
    outside = ((0, 0), (0, 0), (pad, pad), (pad, pad))
    count = np.pad(np.ones_like(x), outside, constant_values=1.0 if layer.count_include_pad else 0.0)
    x = np.pad(x, outside)
    height, width = ((d - k) // s + 1 for d in x.shape[2:])
    y = np.zeros((*x.shape[:2], height, width))
    for i in range(height):
        for j in range(width):
            at = (..., slice(i * s, i * s + k), slice(j * s, j * s + k))
            y[:, :, i, j] = x[at].sum((2, 3)) / count[at].sum((2, 3))
    return y


CASES = [
    Case(AvgPool2D(name="p", **settings), shape, reference)
    for settings, shape in [
        ({}, (2, 3, 6, 8)),
        ({}, (1, 2, 5, 7)),  # the last row and column are left out
        ({"pool_size": 3, "stride": 2, "padding": 1}, (2, 3, 7, 5)),
        ({"pool_size": 3, "stride": 2, "padding": 1, "count_include_pad": False}, (2, 3, 7, 5)),
        ({"pool_size": 3, "stride": 1, "padding": 1, "count_include_pad": False}, (1, 2, 4, 4)),
        ({"pool_size": 4, "stride": 3, "padding": 2, "count_include_pad": False}, (1, 2, 3, 6)),
        ({"pool_size": 2, "stride": 3}, (1, 2, 8, 8)),  # windows with gaps between them
        ({"pool_size": 3, "stride": 1}, (1, 1, 3, 3)),  # one window
        ({"pool_size": 1, "stride": 2}, (1, 2, 5, 5)),
        ({"pool_size": 4, "padding": 2, "stride": 5, "count_include_pad": False}, (1, 1, 1, 1)),
    ]
]


class TestAvgPool2D(LayerContract):
    cases = CASES


@pytest.mark.parametrize(("include", "corner"), [(True, 1.0), (False, 2.25)])
def test_a_corner_counts_the_padding_or_not(include: bool, corner: float) -> None:
    """Window of 9 with 4 inside: 9 / 9 or 9 / 4."""
    layer = AvgPool2D(name="p", pool_size=3, stride=1, padding=1, count_include_pad=include)
    x = mx.array([[0.0, 1.0, 0.0], [3.0, 5.0, 0.0], [0.0, 0.0, 0.0]]).reshape(1, 1, 3, 3)
    y = np.array(Model(ModelSpec.from_layers([layer], (1, 1, 3, 3)))(x))
    assert y[0, 0, 0, 0] == pytest.approx(corner, rel=1e-6)  # one rounding of float32
    assert y[0, 0, 1, 1] == pytest.approx(1.0, rel=1e-6)


def test_a_constant_image_stays_constant_without_the_padding() -> None:
    layer = AvgPool2D(name="p", pool_size=5, stride=2, padding=2, count_include_pad=False)
    y = np.array(Model(ModelSpec.from_layers([layer], (1, 2, 9, 6)))(mx.full((3, 2, 9, 6), 7.0)))
    np.testing.assert_allclose(y, 7, rtol=1e-6)  # 25 summands, a product


def test_no_stride_means_the_window() -> None:
    assert AvgPool2D(name="p", pool_size=3).resolve((1, 2, 6, 6)) == AvgPool2D(name="p", pool_size=3, stride=3)


@pytest.mark.parametrize("include", [True, False])
@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
def test_keeps_the_precision_of_its_input(dtype: mx.Dtype, include: bool) -> None:
    layer = AvgPool2D(name="p", pool_size=3, stride=1, padding=1, count_include_pad=include)
    y = layer.forward({}, mx.ones((1, 4, 4, 2), dtype), training=False, key=None)
    assert y.dtype == dtype


@pytest.mark.parametrize(
    ("setting", "value", "told"),
    [
        ("pool_size", 0, "pool_size must be at least 1, got 0"),
        ("pool_size", -2, "pool_size must be at least 1, got -2"),
        ("stride", -1, r"stride must be at least 1 \(or 0 for pool_size\), got -1"),
        ("padding", -1, r"padding must be from 0 to half the window \(1\), got -1"),
        ("padding", 2, r"padding must be from 0 to half the window \(1\), got 2"),
        ("padding", 0.5, "padding must be an int, got 0.5"),
        ("pool_size", (2, 2), r"pool_size must be an int, got \(2, 2\)"),
        ("count_include_pad", 1, "count_include_pad must be a bool, got 1"),
    ],
)
def test_refuses(setting: str, value: object, told: str) -> None:
    with pytest.raises(SpecError, match=f"^AvgPool2D 'p': {told}$"):
        AvgPool2D(name="p", **{setting: value})  # type: ignore[arg-type]


def test_refuses_a_window_larger_than_the_padded_input() -> None:
    with pytest.raises(ShapeError, match=r"AvgPool2D 'p': window 5 is larger than the padded input 2x9 \+ 2\*1$"):
        ModelSpec.from_layers([AvgPool2D(name="p", pool_size=5, padding=1)], (1, 1, 2, 9))


@pytest.mark.parametrize("shape", [(2,), (2, 3), (2, 3, 4), (2, 3, 4, 5, 6)])
def test_refuses_other_ranks_than_4(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match=r"AvgPool2D 'p': input needs rank 4 \(batch, channels, height, width\)"):
        ModelSpec.from_layers([AvgPool2D(name="p")], shape)


@pytest.mark.parametrize("include", [True, False])
def test_a_sum_beyond_float16_is_no_infinity(include: bool) -> None:
    layer = AvgPool2D(name="p", pool_size=8, padding=1, count_include_pad=include)
    y = layer.forward({}, mx.full((1, 30, 30, 1), 2000.0, mx.float16), training=True, key=None)
    assert (y.dtype, y[0, 1, 1, 0].item()) == (mx.float16, 2000)

import mlx.core as mx
import numpy as np
import pytest
from contracts import Arrays, Case, LayerContract

from gometal_mlx.errors import ShapeError, SpecError
from gometal_mlx.layers import LogSoftmax, Model, ModelSpec, Softmax


def reference(layer: LogSoftmax, p: Arrays, x: np.ndarray, training: bool) -> np.ndarray:
    high = x.max(layer.axis, keepdims=True)
    return x - high - np.log(np.exp(x - high).sum(layer.axis, keepdims=True))


CASES = [
    Case(LogSoftmax(name="s", axis=axis), shape, reference)
    for axis, shape in [
        (-1, (2, 5)), (0, (2, 3)),
        (-1, (2, 3, 4)), (1, (2, 3, 4)), (-3, (2, 3, 4)),
        (1, (2, 3, 4, 5)), (2, (2, 3, 4, 5)), (-1, (2, 3, 4, 5)), (-3, (2, 3, 4, 5)), (0, (2, 3, 4, 5)),
        (1, (1, 2, 3, 2, 2)), (3, (1, 2, 3, 2, 2)),
    ]
]  # fmt: skip


class TestLogSoftmax(LayerContract):
    cases = CASES


def log_softmax(x: mx.array, axis: int = -1) -> np.ndarray:
    return np.array(Model(ModelSpec.from_layers([LogSoftmax(name="s", axis=axis)], tuple(x.shape)))(x))


@pytest.mark.parametrize("axis", range(-4, 4))
def test_is_the_logarithm_of_softmax_along_the_public_axis(axis: int) -> None:
    x = mx.random.normal((2, 3, 4, 5), key=mx.random.key(0))
    softmax = Model(ModelSpec.from_layers([Softmax(name="s", axis=axis)], (2, 3, 4, 5)))(x)
    np.testing.assert_allclose(np.exp(log_softmax(x, axis)), np.array(softmax), rtol=1e-5)  # exp after a rounding


def test_large_inputs_do_not_overflow() -> None:
    np.testing.assert_allclose(
        log_softmax(mx.array([[1e4, 1e4, -1e4]])), [[-np.log(2), -np.log(2), -2e4]], rtol=1e-4
    )  # -2e4 - 0.7
    assert log_softmax(mx.array([[3e37, -3e37]]))[0].tolist() == [0, -np.float32(6e37)]


@pytest.mark.parametrize("shift", [0.0, 1e4, -1e4])
def test_large_inputs_keep_their_digits(shift: float) -> None:
    """Differences that float32 holds exactly beside the shift come out as without it."""
    x = np.array([[0.0, 1.0, 2.0, 3.0]], np.float32)
    expected = x - np.log(np.exp(x.astype(np.float64)).sum())
    np.testing.assert_allclose(log_softmax(mx.array(x + np.float32(shift))), expected, rtol=1e-6)  # two roundings


def test_one_class_is_certain() -> None:
    assert log_softmax(mx.array([[5.0], [-3.0]])).tolist() == [[0.0], [0.0]]


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
def test_sums_in_float32_and_keeps_the_precision_of_its_input(dtype: mx.Dtype) -> None:
    """4096 summands of 1: a float16 sum would stop growing at 2048."""
    y = LogSoftmax(name="s").forward({}, mx.zeros((1, 4096), dtype), training=False, key=None)
    assert y.dtype == dtype
    np.testing.assert_allclose(np.array(y.astype(mx.float32)), -np.log(4096), rtol=4e-3)  # 8 bits of bfloat16


@pytest.mark.parametrize(("axis", "shape"), [(2, (2, 3)), (-3, (2, 3)), (4, (1, 2, 3, 4)), (-5, (1, 2, 3, 4))])
def test_refuses_an_axis_outside_the_input(axis: int, shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match=rf"^layer 1 of 1: LogSoftmax 's': axis {axis} is outside the input shape \("):
        ModelSpec.from_layers([LogSoftmax(name="s", axis=axis)], shape)


def test_refuses_an_axis_that_is_no_int() -> None:
    with pytest.raises(SpecError, match=r"^LogSoftmax 's': axis must be an int, got 0.5$"):
        LogSoftmax(name="s", axis=0.5)  # type: ignore[arg-type]

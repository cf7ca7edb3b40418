import mlx.core as mx
import numpy as np
import pytest
from contracts import Arrays, Case, LayerContract

from gometal_mlx.errors import ShapeError, SpecError
from gometal_mlx.layers import Model, ModelSpec, Softmax


def reference(layer: Softmax, p: Arrays, x: np.ndarray, training: bool) -> np.ndarray:
    e = np.exp(x - x.max(layer.axis, keepdims=True))
    return e / e.sum(layer.axis, keepdims=True)


CASES = [
    Case(Softmax(name="s", axis=axis), shape, reference)
    for axis, shape in [
        (-1, (2, 5)), (1, (2, 1)), (0, (2, 3)),
        (-1, (2, 3, 4)), (1, (2, 3, 4)), (-3, (2, 3, 4)),
        (1, (2, 3, 4, 5)), (2, (2, 3, 4, 5)), (-1, (2, 3, 4, 5)), (-3, (2, 3, 4, 5)), (0, (2, 3, 4, 5)),
        (1, (1, 2, 3, 2, 2)), (3, (1, 2, 3, 2, 2)),
    ]
]  # fmt: skip


class TestSoftmax(LayerContract):
    cases = CASES


@pytest.mark.parametrize("axis", range(-4, 4))
def test_sums_to_1_along_the_public_axis(axis: int) -> None:
    x = mx.random.normal((2, 3, 4, 5), key=mx.random.key(0))
    y = np.array(Model(ModelSpec.from_layers([Softmax(name="s", axis=axis)], (2, 3, 4, 5)))(x))
    np.testing.assert_allclose(y.sum(axis), 1, rtol=1e-6)  # 5 float32 summands
    others = [a for a in range(4) if a != axis % 4]
    assert not any(np.allclose(y.sum(a), 1) for a in others)


def test_large_inputs_do_not_overflow() -> None:
    y = Model(ModelSpec.from_layers([Softmax(name="s")], (1, 3)))(mx.array([[1e4, 1e4, -1e4]]))
    assert y.tolist() == [[0.5, 0.5, 0]]


@pytest.mark.parametrize(("axis", "shape"), [(2, (2, 3)), (-3, (2, 3)), (4, (1, 2, 3, 4)), (-5, (1, 2, 3, 4))])
def test_refuses_an_axis_outside_the_input(axis: int, shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match=rf"^layer 1 of 1: Softmax 's': axis {axis} is outside the input shape \("):
        ModelSpec.from_layers([Softmax(name="s", axis=axis)], shape)


def test_refuses_an_axis_that_is_no_int() -> None:
    with pytest.raises(SpecError, match=r"^Softmax 's': axis must be an int, got 0.5$"):
        Softmax(name="s", axis=0.5)  # type: ignore[arg-type]

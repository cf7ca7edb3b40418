import mlx.core as mx
import numpy as np
import pytest
from contracts import Arrays, Case, LayerContract

from gometal_mlx.errors import SpecError
from gometal_mlx.layers import LeakyReLU, Model, ModelSpec


def reference(layer: LeakyReLU, p: Arrays, x: np.ndarray, training: bool) -> np.ndarray:
    return np.where(x > 0, x, layer.negative_slope * x)


CASES = [
    Case(LeakyReLU(name="l", negative_slope=slope), shape, reference)
    for slope, shape in [
        (0.01, (2, 5)), (0.2, (1, 3, 4)), (0.0, (2, 3, 2, 5)), (3.0, (2, 7)), (-0.5, (1, 2, 3, 2, 2)), (1.0, (1, 4)),
    ]
]  # fmt: skip


class TestLeakyReLU(LayerContract):
    cases = CASES


def value(x: float, **settings: float) -> float:
    return float(Model(ModelSpec.from_layers([LeakyReLU(name="l", **settings)], (1, 1)))(mx.array([[x]])).item())


@pytest.mark.parametrize(("x", "slope", "y"), [(-2.0, 0.2, -0.4), (2.0, 0.2, 2.0), (-2.0, 2.0, -4.0), (2.0, 3.0, 2.0)])
def test_vector(x: float, slope: float, y: float) -> None:
    assert value(x, negative_slope=slope) == pytest.approx(y, rel=1e-6)  # one float32 product


def test_slope_is_a_hundredth_by_default() -> None:
    assert value(-100.0) == pytest.approx(-1, rel=1e-6)  # 0.01 as float32


@pytest.mark.parametrize("slope", [float("nan"), float("-inf"), 1e39, "1", None, True])
def test_refuses_a_slope_that_is_no_float32(slope: object) -> None:
    with pytest.raises(SpecError, match=r"^LeakyReLU 'l': negative_slope must be a float, got "):
        LeakyReLU(name="l", negative_slope=slope)  # type: ignore[arg-type]

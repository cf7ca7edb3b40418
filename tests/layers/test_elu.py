import mlx.core as mx
import numpy as np
import pytest
from contracts import Arrays, Case, LayerContract

from gometal_mlx.errors import SpecError
from gometal_mlx.layers import ELU, Model, ModelSpec


def reference(layer: ELU, p: Arrays, x: np.ndarray, training: bool) -> np.ndarray:
    return np.where(x > 0, x, layer.alpha * np.expm1(np.minimum(x, 0)))


CASES = [
    Case(ELU(name="e", alpha=alpha), shape, reference)
    for alpha, shape in [(1.0, (2, 5)), (0.5, (1, 3, 4)), (0.0, (2, 3, 2, 5)), (100.0, (2, 7)), (-1.5, (1, 2, 3, 2, 2))]
]


class TestELU(LayerContract):
    cases = CASES


def value(x: float, **settings: float) -> float:
    return float(Model(ModelSpec.from_layers([ELU(name="e", **settings)], (1, 1)))(mx.array([[x]])).item())


@pytest.mark.parametrize(
    ("x", "alpha", "y"),
    [(-1.0, 0.5, -0.3160603), (-200.0, 2.0, -2.0), (200.0, 1.0, 200.0), (3.0, 0.5, 3.0), (-1e-6, 1.0, -1e-6)],
)
def test_vector(x: float, alpha: float, y: float) -> None:
    assert value(x, alpha=alpha) == pytest.approx(y, rel=1e-6)  # the vectors have 7 digits, as float32 has


def test_alpha_is_1_by_default() -> None:
    assert value(-200.0) == -1


@pytest.mark.parametrize("alpha", [float("nan"), float("inf"), 1e39, "1", None, False])
def test_refuses_alpha_that_is_no_float32(alpha: object) -> None:
    with pytest.raises(SpecError, match=r"^ELU 'e': alpha must be a float, got "):
        ELU(name="e", alpha=alpha)  # type: ignore[arg-type]

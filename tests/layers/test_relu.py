import mlx.core as mx
import numpy as np
import pytest
from contracts import Arrays, Case, LayerContract

from gometal_mlx.layers import Model, ModelSpec, ReLU, relu


def reference(layer: ReLU, p: Arrays, x: np.ndarray, training: bool) -> np.ndarray:
    return np.maximum(x, 0)


CASES = [Case(ReLU(name="a"), shape, reference) for shape in [(2, 5), (1, 3, 4), (2, 3, 2, 5), (1, 2, 3, 2, 2)]]


class TestReLU(LayerContract):
    cases = CASES


@pytest.mark.parametrize(("x", "y"), [(-2.0, 0.0), (0.0, 0.0), (3.0, 3.0), (-1e30, 0.0)])
def test_vector(x: float, y: float) -> None:
    value = Model(ModelSpec.from_layers([ReLU(name="a")], (1, 1)))(mx.array([[x]]))
    assert value.item() == pytest.approx(y, rel=1e-6)  # the vectors have 7 digits, as float32 has


# ------------------------------------------------------------------------------- its own gradient on a CPU

X = [-np.inf, -1.5, -1e-40, -0.0, 0.0, 1e-40, 1.5, np.inf, np.nan]


def ours(x: mx.array) -> mx.array:
    return ReLU(name="r").forward({}, x, training=True, key=None)


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16])
def test_value_and_gradient_are_those_of_mx(dtype: mx.Dtype, compiled: None) -> None:
    x, g = mx.array(X).astype(dtype), mx.array(np.linspace(-2, 2, len(X))).astype(dtype)
    for function in (lambda f: f, mx.compile):
        found, wanted = (
            function(lambda x, g, f=f: [f(x), *mx.vjp(f, [x], [g])[1]])(x, g)
            for f in (ours, lambda v: mx.maximum(v, 0))
        )
        for a, b in zip(found, wanted, strict=True):
            assert a.dtype == dtype
            np.testing.assert_array_equal(np.array(a.astype(mx.float32)), np.array(b.astype(mx.float32)))


def test_it_can_be_differentiated_twice() -> None:
    slope = mx.grad(lambda x: (ours(x) ** 3).sum())
    assert mx.grad(lambda x: slope(x).sum())(mx.array([-2.0, 2.0])).tolist() == [0, 12]


def test_metal_keeps_that_of_mlx(monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[bool] = []
    original = relu._on_cpu
    monkeypatch.setattr(relu, "_on_cpu", lambda x: used.append(True) or original(x))
    for cpu in (True, False):
        monkeypatch.setattr(relu, "on_cpu", lambda cpu=cpu: cpu)
        assert ours(mx.array([-1.0, 2.0])).tolist() == [0, 2]
    assert used == [True]

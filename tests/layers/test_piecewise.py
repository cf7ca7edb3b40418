"""Activations of linear pieces: in training they bring a gradient of their own."""

from collections.abc import Callable

import mlx.core as mx
import numpy as np
import pytest

from gometal_mlx.layers import LeakyReLU, ReLU, ReLU6, _piecewise
from gometal_mlx.layers.base import Activation

Function = Callable[[mx.array], mx.array]
X = [-6e3, -1.5, -1e-40, -0.0, 0.0, 1e-40, 1.5, 6.0, 7.0, 6e3]
CASES: list[tuple[Activation, Function]] = [
    (ReLU(name="r"), lambda x: mx.maximum(x, 0)),
    (ReLU6(name="r"), lambda x: mx.minimum(mx.maximum(x, 0), 6)),
    *(
        (LeakyReLU(name="r", negative_slope=s), lambda x, s=s: (mx.maximum if s <= 1 else mx.minimum)(x, s * x))
        for s in (0.0, 0.25, -0.5, 3.0)
    ),
]
each = pytest.mark.parametrize(("layer", "plain"), CASES, ids=[str(a) for a, _ in CASES])


def trained(layer: Activation) -> Function:
    return lambda x: layer.forward({}, x, training=True, key=None)


@each
@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16])
def test_value_and_gradient_are_those_of_mx(
    layer: Activation, plain: Function, dtype: mx.Dtype, compiled: None
) -> None:
    x, g = mx.array(X).astype(dtype), mx.array(np.linspace(-2, 2.5, len(X))).astype(dtype)
    for function in (lambda f: f, mx.compile):
        found, wanted = (
            function(lambda x, g, f=f: [f(x), *mx.vjp(f, [x], [g])[1]])(x, g) for f in (trained(layer), plain)
        )
        for a, b in zip(found, wanted, strict=True):
            assert a.dtype == dtype
            np.testing.assert_array_equal(np.array(a.astype(mx.float32)), np.array(b.astype(mx.float32)))


@each
def test_slope_at_infinity(layer: Activation, plain: Function) -> None:
    """That of the piece; MLX's own is the sum of both where both are infinite."""
    _, (slope,) = mx.vjp(trained(layer), [mx.array([-np.inf, np.inf])], [mx.ones(2)])
    assert slope.tolist() == [getattr(layer, "negative_slope", 0), not isinstance(layer, ReLU6)]


@each
def test_nan_comes_out_as_nan(layer: Activation, plain: Function) -> None:
    assert np.isnan(trained(layer)(mx.array([np.nan])).item())


@each
def test_it_can_be_differentiated_twice(layer: Activation, plain: Function) -> None:
    def second(f: Function) -> list[float]:
        slope = mx.grad(lambda x: (f(x) ** 3).sum())
        return mx.grad(lambda x: slope(x).sum())(mx.array([-2.0, 2.0])).tolist()

    assert second(trained(layer)) == second(plain)
    assert second(plain)[1] == 12


@pytest.mark.parametrize("training", [True, False])
def test_where_the_gradient_is_its_own(training: bool) -> None:
    used: list[bool] = []

    def gradient(x: mx.array, g: mx.array, y: mx.array) -> mx.array:
        used.append(True)
        return g

    def value(x: mx.array) -> mx.array:
        return _piecewise.piecewise(mx.abs, gradient, x, training=training)

    assert value(mx.array(-2.0)).item() == 2
    assert mx.grad(value)(mx.array(-2.0)).item() == (1 if training else -1)
    assert bool(used) == training

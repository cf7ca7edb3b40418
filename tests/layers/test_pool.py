"""Pools against MLX's own, which gather windows: values and gradients, whatever the windows leave over."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gometal_mlx.layers import AvgPool2D, MaxPool2D


@given(
    n=st.integers(1, 3), height=st.integers(1, 9), width=st.integers(1, 9), size=st.integers(1, 4),
    stride=st.integers(1, 5), padding=st.integers(0, 2),
)  # fmt: skip
@example(n=2, height=8, width=9, size=3, stride=2, padding=1)
@example(n=2, height=8, width=9, size=2, stride=2, padding=1)
@example(n=2, height=8, width=9, size=3, stride=3, padding=0)
@settings(deadline=None)  # no deadline: the machine is shared
def test_values_and_gradients_are_those_of_mlx(
    n: int, height: int, width: int, size: int, stride: int, padding: int
) -> None:
    padding = min(padding, size // 2)
    size = min(size, height + 2 * padding, width + 2 * padding)
    padding = min(padding, size // 2)
    rng = np.random.default_rng(0)
    numbers = rng.permutation(n * height * width * 2)  # no ties: each formulation may choose another of equal numbers
    x = mx.array((numbers - numbers.size // 2).reshape(n, height, width, 2).astype(np.float32))
    for layer, theirs in (
        (MaxPool2D(name="p", pool_size=size, stride=stride, padding=padding), nn.MaxPool2d(size, stride, padding)),
        (AvgPool2D(name="p", pool_size=size, stride=stride, padding=padding), nn.AvgPool2d(size, stride, padding)),
    ):

        def ours(x: mx.array, layer: MaxPool2D | AvgPool2D = layer) -> mx.array:
            return layer.forward({}, x, training=True, key=None)

        np.testing.assert_allclose(np.array(ours(x)), np.array(theirs(x)), rtol=1e-6, atol=1e-5)
        mask = mx.array(rng.integers(-9, 9, ours(x).shape))
        gradients = [np.array(mx.grad(lambda x, f=f, mask=mask: (f(x) * mask).sum())(x)) for f in (ours, theirs)]
        np.testing.assert_allclose(*gradients, rtol=1e-6, atol=1e-5)

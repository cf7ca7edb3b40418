import math

import mlx.core as mx
import numpy as np
import pytest
from contracts import Arrays, Case, LayerContract, randomise

from gometal_mlx.errors import ShapeError, SpecError
from gometal_mlx.layers import Conv2D, Dense, Model, ModelSpec, dense


def reference(layer: Dense, p: Arrays, x: np.ndarray, training: bool) -> np.ndarray:
    y = x.reshape(len(x), math.prod(x.shape[1:])) @ p["weight"]
    return y + p["bias"] if layer.use_bias else y


CASES = [
    Case(Dense(name="d", **settings), shape, reference)
    for settings, shape in [
        ({"output_size": 5}, (2, 3)),
        ({"output_size": 4}, (2, 4)),  # square: a transposed weight would fit
        ({"output_size": 1}, (1, 1)),
        ({"output_size": 5, "use_bias": False}, (2, 7)),
        ({"output_size": 3}, (2, 3, 4)),
        ({"output_size": 2}, (2, 3, 5, 4)),
        ({"output_size": 3, "use_bias": False}, (2, 2, 3, 1, 2)),
    ]
]


class TestDense(LayerContract):
    cases = CASES


def test_flattens_channels_height_width() -> None:
    c, h, w = 2, 3, 4
    model = Model(ModelSpec.from_layers([Dense(name="d", output_size=c * h * w, use_bias=False)], (1, c, h, w)))
    model["d"]["weight"] = mx.eye(c * h * w)
    x = np.arange(2 * c * h * w, dtype=np.float32).reshape(2, c, h, w)
    y = np.array(model(mx.array(x)))
    assert y[1, 1 * h * w + 2 * w + 3] == x[1, 1, 2, 3]
    np.testing.assert_array_equal(y, x.reshape(2, -1))


def test_flattens_a_convolution_in_channels_height_width_order() -> None:
    layers = [Conv2D(name="c", output_channels=3, kernel_size=2), Dense(name="d", output_size=5)]
    model = Model(ModelSpec.from_layers(layers, (1, 2, 4, 3)))
    randomise(model)
    x = np.random.default_rng(0).standard_normal((2, 2, 4, 3)).astype(np.float32)
    image = Model(ModelSpec.from_layers(layers[:1], (1, 2, 4, 3)))
    image["c"] = model["c"]
    flat = np.array(image(mx.array(x))).reshape(2, -1)  # NCHW out of the model, so this is C, H, W order
    expected = flat @ np.array(model["d"]["weight"]) + np.array(model["d"]["bias"])
    np.testing.assert_allclose(np.array(model(mx.array(x))), expected, rtol=0, atol=1e-5)  # sums of 18 float32 products


@pytest.mark.parametrize("size", [0, -3, 2.5, True, "4", None, float("nan")])
def test_refuses_a_size_that_is_none(size: object) -> None:
    with pytest.raises(SpecError, match=r"^Dense 'd': output_size must be "):
        Dense(name="d", output_size=size)  # type: ignore[arg-type]


@pytest.mark.parametrize("use_bias", [True, False])
def test_a_gpu_gets_the_same_values(use_bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = Dense(name="d", output_size=3, use_bias=use_bias), mx.random.normal((5, 4))
    p = {"weight": mx.random.normal((4, 3)), "bias": mx.random.normal((3,))}
    found = []
    for cpu in (True, False):
        monkeypatch.setattr(dense, "on_cpu", lambda cpu=cpu: cpu)
        found.append(np.array(layer.forward(p, x, training=False, key=None)))
    np.testing.assert_allclose(*found, rtol=0, atol=2e-6)


def test_refuses_rank_1() -> None:
    with pytest.raises(ShapeError, match=r"^layer 1 of 1: Dense 'd': input needs rank >= 2 .*, got shape \(3,\)$"):
        ModelSpec.from_layers([Dense(name="d", output_size=2)], (3,))

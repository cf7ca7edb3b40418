from dataclasses import replace

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from contracts import Arrays, Case, LayerContract, bits, randomise

from gometal_mlx.errors import ShapeError, SpecError
from gometal_mlx.layers import BatchNorm, Model, ModelSpec


def reference(layer: BatchNorm, p: Arrays, x: np.ndarray, training: bool) -> np.ndarray:
    axes = (0, *range(2, x.ndim))
    wide = (1, -1, *[1] * (x.ndim - 2))
    mean, var = p["running_mean"], p["running_var"]
    if training and x.size // x.shape[1] > 1:
        mean, var = x.mean(axes), x.var(axes)
    y = (x - mean.reshape(wide)) / np.sqrt(var.reshape(wide) + layer.eps)
    return y * p["weight"].reshape(wide) + p["bias"].reshape(wide) if layer.affine else y


CASES = [
    Case(BatchNorm(name="b", **settings), shape, reference)
    for settings, shape in [
        ({}, (2, 4)),
        ({"num_features": 3, "eps": 1e-3, "momentum": 0.3}, (2, 3, 5, 4)),
        ({"affine": False}, (2, 3, 4, 4)),
        ({"affine": False}, (2, 5)),
        ({}, (2, 3, 7)),
        ({"eps": 0.1, "momentum": 1.0}, (1, 2, 2, 3, 2)),
        ({"momentum": 0.0}, (1, 1, 1, 3)),
    ]
]


class TestBatchNorm(LayerContract):
    cases = CASES

    @staticmethod
    def imported(layer: BatchNorm) -> BatchNorm:
        return replace(layer, affine=True)  # ONNX has no BatchNormalization without scale and bias


def model_of(shape: tuple[int, ...], **settings: object) -> Model:
    model = Model(ModelSpec.from_layers([BatchNorm(name="b", **settings)], shape))  # type: ignore[arg-type]
    randomise(model)
    return model.train()


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("shape", [(8, 3), (4, 3, 2, 5)])
@pytest.mark.parametrize("momentum", [0.0, 0.1, 1.0])
def test_training_moves_the_running_statistics(shape: tuple[int, ...], momentum: float, affine: bool) -> None:
    """The weight ``momentum`` belongs to the NEW batch, whose variance is the unbiased one."""
    model = model_of(shape, momentum=momentum, affine=affine)
    before = {n: np.array(model["b"][n], np.float64) for n in ("running_mean", "running_var")}
    x = np.random.default_rng(3).normal(2, 3, shape).astype(np.float32)
    model(mx.array(x))
    axes = (0, *range(2, len(shape)))
    batch = {"running_mean": x.mean(axes, np.float64), "running_var": x.var(axes, np.float64, ddof=1)}
    for name, old in before.items():
        expected = (1 - momentum) * old + momentum * batch[name]
        np.testing.assert_allclose(np.array(model["b"][name]), expected, rtol=1e-5, atol=1e-6)  # float32 means


def test_training_normalises_with_the_biased_variance() -> None:
    model = model_of((2, 1), affine=False)
    y = np.array(model(mx.array([[0.0], [2.0]])))  # mean 1, variance 1 (unbiased: 2)
    np.testing.assert_allclose(y, [[-1], [1]], atol=1e-5)  # eps = 1e-5 takes 5e-6 off


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("shape", [(1, 3), (1, 3, 1, 1)])
def test_one_value_a_channel_uses_the_running_statistics_and_leaves_them(shape: tuple[int, ...], affine: bool) -> None:
    model = model_of(shape, affine=affine)
    before = {n: bits(model["b"][n]) for n in ("running_mean", "running_var")}
    x = mx.random.normal(shape, key=mx.random.key(0))
    trained = np.array(model(x))
    assert {n: bits(model["b"][n]) for n in before} == before
    assert bits(trained) == bits(np.array(model.eval()(x)))
    assert np.isfinite(trained).all()


def test_one_image_of_several_pixels_is_a_batch() -> None:
    model = model_of((1, 2, 2, 2), affine=False)
    y = np.array(model(mx.random.normal((1, 2, 2, 2), key=mx.random.key(0))))
    np.testing.assert_allclose(y.mean((0, 2, 3)), 0, atol=1e-6)  # float32 mean of 4 values around 1


def test_evaluation_leaves_the_running_statistics() -> None:
    model = model_of((4, 3)).eval()
    before = {n: bits(model["b"][n]) for n in ("running_mean", "running_var")}
    model(mx.random.normal((4, 3)))
    assert {n: bits(model["b"][n]) for n in before} == before


def test_statistics_have_no_gradient() -> None:
    model = model_of((4, 3))
    _, gradients = nn.value_and_grad(model, lambda x: (model(x) ** 2).sum())(mx.random.normal((4, 3)))
    assert sorted(gradients["b"]) == ["bias", "weight"]


def test_no_gradient_flows_through_the_running_statistics() -> None:
    """A later pass that uses them must not reach back into the batch that moved them."""
    model = model_of((4, 3), momentum=0.5, affine=False)

    def later(x: mx.array) -> mx.array:
        model(x)
        return model(mx.ones((1, 3))).sum()

    assert not np.array(mx.grad(later)(mx.random.normal((4, 3)))).any()


def test_large_offset_keeps_its_variance() -> None:
    """E[x^2] - E[x]^2 in float32 would lose everything here."""
    x = 1e4 + np.random.default_rng(0).standard_normal((64, 2))
    y = np.array(model_of((64, 2), affine=False)(mx.array(x.astype(np.float32))))
    np.testing.assert_allclose(y.std(0), 1, rtol=1e-3)  # float32 holds 1e4 to within 5e-4


def test_vector_of_the_reference() -> None:
    """eps 1e-3, gamma 2, beta 1, fresh statistics: x = 3 gives 6.997002 (layers reference, 9.4)."""
    model = Model(ModelSpec.from_layers([BatchNorm(name="b", eps=1e-3)], (1, 1))).eval()
    model["b"].update({"weight": mx.array([2.0]), "bias": mx.array([1.0])})
    assert model(mx.array([[3.0]])).item() == pytest.approx(6.997002, abs=1e-6)  # the vector has 6 decimals


def test_starts_as_the_identity() -> None:
    fresh = Model(ModelSpec.from_layers([BatchNorm(name="b")], (1, 2)))["b"]
    assert {n: a.tolist() for n, a in fresh.items()} == {
        "weight": [1, 1], "bias": [0, 0], "running_mean": [0, 0], "running_var": [1, 1],
    }  # fmt: skip


def test_features_come_from_the_input() -> None:
    spec = ModelSpec.from_layers([BatchNorm(name="b")], (2, 7, 3, 3))
    assert spec.layers[0].parameters["num_features"] == 7
    assert spec.parameter_shapes == ((7,), (7,))


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"num_features": -1}, r"num_features must be at least 1 \(or 0: take it from the input\), got -1"),
        ({"eps": 0}, "eps must be greater than 0, got 0.0"),
        ({"eps": -1e-5}, "eps must be greater than 0, got -1e-05"),
        ({"eps": 1e-60}, "eps must be greater than 0, got 0.0"),  # 0 as the float32 that files hold
        ({"eps": float("inf")}, "eps must be a float, got inf"),
        ({"momentum": -0.1}, r"momentum \(weight of the new batch\) must be from 0 to 1, got -0.1"),
        ({"momentum": 1.5}, r"momentum \(weight of the new batch\) must be from 0 to 1, got 1.5"),
        ({"affine": "yes"}, "affine must be a bool, got 'yes'"),
    ],
)
def test_refuses(settings: dict[str, object], told: str) -> None:
    with pytest.raises(SpecError, match=f"^BatchNorm 'b': {told}$"):
        BatchNorm(name="b", **settings)  # type: ignore[arg-type]


def test_refuses_other_inputs() -> None:
    with pytest.raises(ShapeError, match=r"BatchNorm 'b': num_features is 4, but the input \(2, 3\) has 3 channels$"):
        ModelSpec.from_layers([BatchNorm(name="b", num_features=4)], (2, 3))
    with pytest.raises(ShapeError, match=r"BatchNorm 'b': input needs rank >= 2 .*, got shape \(3,\)$"):
        ModelSpec.from_layers([BatchNorm(name="b")], (3,))

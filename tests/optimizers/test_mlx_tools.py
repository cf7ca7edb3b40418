"""The optimizers inside MLX: modules, schedules, clipping, MultiOptimizer, mx.compile."""

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
import pytest
from numpy_reference import CASES, RULES
from small_problem import SLOTS, Hyper, arrays, gradients, noise, start, train

from gometal_mlx.optimizers import OPTIMIZERS, SGD, AdaDelta, Adam, Optimizer

KINDS = sorted(RULES)
RATED = [k for k in KINDS if OPTIMIZERS[k].uses_learning_rate]
# a fused kernel may round a product and a sum once instead of twice
COMPILE_TOLERANCE = 1e-6


def flat(weights: Any) -> np.ndarray:
    return np.concatenate([np.array(weights[layer][name]).reshape(-1) for layer, name, _ in SLOTS])


def linear(seed: int = 0) -> nn.Linear:
    mx.random.seed(seed)
    return nn.Linear(3, 2)


def regression(model: nn.Linear) -> Any:
    """(loss and gradient function, inputs, targets) of a problem that a Linear solves exactly."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((32, 3)).astype(np.float32)
    y = x @ rng.standard_normal((3, 2)).astype(np.float32) + 1

    def loss(x: mx.array, y: mx.array) -> mx.array:
        return mx.mean((model(x) - y) ** 2)

    return nn.value_and_grad(model, loss), mx.array(x), mx.array(y)


@pytest.mark.parametrize("kind", KINDS)
def test_trains_any_mlx_module(kind: str) -> None:
    model = linear()
    step, x, y = regression(model)
    optimizer = OPTIMIZERS[kind](**({"learning_rate": 0.05} if kind in RATED else {"epsilon": 1e-3}))
    losses = []
    for _ in range(30):
        loss, gradient = step(x, y)
        optimizer.update(model, gradient)
        mx.eval(model.parameters(), optimizer.state)
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16], ids=str)
def test_keeps_the_precision_of_the_module(kind: str, dtype: mx.Dtype) -> None:
    model = linear()
    model.set_dtype(dtype)
    OPTIMIZERS[kind](**CASES[kind][-1]).update(model, {"weight": mx.ones((2, 3), dtype), "bias": mx.ones(2, dtype)})
    assert {model.weight.dtype, model.bias.dtype} == {dtype}


@pytest.mark.parametrize("kind", RATED)
def test_follows_a_schedule(kind: str) -> None:
    schedule = optim.cosine_decay(0.1, 8)
    optimizer, by_hand = OPTIMIZERS[kind](schedule), OPTIMIZERS[kind](0.1)
    weights = other = arrays(start())
    for step in range(8):
        by_hand.rate = float(schedule(mx.array(step)))
        weights, other = train(optimizer, weights, range(step, step + 1)), train(by_hand, other, range(step, step + 1))
        assert optimizer.rate == by_hand.rate
    np.testing.assert_array_equal(flat(weights), flat(other))
    assert optimizer.rate < 0.01  # the cosine has come down


def test_saves_the_rate_a_schedule_has_reached() -> None:
    optimizer = SGD(optim.step_decay(0.1, 0.5, 2))
    train(optimizer, arrays(start()), range(5))
    # step 4 was the last: two halvings; computed in float32
    assert optimizer.saved_parameters()["learning_rate"] == pytest.approx(0.025, rel=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_takes_clipped_gradients(kind: str) -> None:
    weights = arrays(start())
    full = gradients(weights, 0)
    clipped, norm = optim.clip_grad_norm(full, max_norm=0.5)
    assert norm.item() > 0.5
    by_hand = {layer: {n: g * (0.5 / norm) for n, g in params.items()} for layer, params in full.items()}
    found, expected = (OPTIMIZERS[kind]().apply_gradients(g, weights) for g in (clipped, by_hand))
    np.testing.assert_allclose(flat(found), flat(expected), rtol=0, atol=1e-6)  # MLX divides by norm + 1e-6


def test_works_in_a_multi_optimizer() -> None:
    model, alone = linear(), {kind: linear() for kind in ("Adam", "SGD")}
    multi = optim.MultiOptimizer([Adam(0.1), SGD(0.2, momentum=0.9)], [lambda name, _: name == "weight"])
    single = {"Adam": Adam(0.1), "SGD": SGD(0.2, momentum=0.9)}
    gradient = {"weight": mx.full((2, 3), 0.5), "bias": mx.array([1.0, -1.0])}
    for _ in range(3):
        multi.update(model, gradient)
        for kind, optimizer in single.items():
            optimizer.update(alone[kind], gradient)
    np.testing.assert_array_equal(np.array(model.weight), np.array(alone["Adam"].weight))
    np.testing.assert_array_equal(np.array(model.bias), np.array(alone["SGD"].bias))


# ----------------------------------------------------------------------------------------------------- compiled


def compiled_step(optimizer: Optimizer, weights: dict[str, Any]) -> Any:
    """A step whose weights and optimizer state go in and out of the compiled function."""
    optimizer.init(weights)
    state = [weights, optimizer.state]

    def step(noise: dict[str, Any]) -> None:
        found = {layer: {n: 0.5 * w + noise[layer][n] for n, w in p.items()} for layer, p in weights.items()}
        weights.update(optimizer.apply_gradients(found, weights))

    return mx.compile(step, inputs=state, outputs=state)


@pytest.mark.parametrize("kind", KINDS)
def test_compiled_step_is_the_eager_one(kind: str, compiled: None) -> None:
    hyper: Hyper = CASES[kind][-1]
    weights, eager = arrays(start()), OPTIMIZERS[kind](**hyper)
    optimizer = OPTIMIZERS[kind](**hyper)
    step = compiled_step(optimizer, weights)
    for i in range(4):
        step(arrays(noise(i)))
    expected = train(eager, arrays(start()), range(4))
    np.testing.assert_allclose(
        flat(weights), flat(expected), rtol=0, atol=COMPILE_TOLERANCE * 10
    )  # 4 steps, values < 4
    assert optimizer.step.item() == 4
    for name, kind_, data in eager.saved_tensors(SLOTS):
        found = {n: d for n, k, d in optimizer.saved_tensors(SLOTS) if k == kind_}[name]
        np.testing.assert_allclose(found, data, rtol=0, atol=COMPILE_TOLERANCE * max(1, np.abs(data).max()))


@pytest.mark.parametrize("kind", RATED)
def test_compiled_step_follows_a_changed_rate(kind: str, compiled: None) -> None:
    weights = arrays(start())
    optimizer = OPTIMIZERS[kind](0.1)
    step = compiled_step(optimizer, weights)
    step(arrays(noise(0)))
    before = flat(weights)
    optimizer.rate = 1e-30  # too small to change any float32 near 1
    step(arrays(noise(1)))
    np.testing.assert_array_equal(flat(weights), before)
    optimizer.rate = 0.1
    step(arrays(noise(2)))
    assert (flat(weights) != before).all()


def test_compiled_step_follows_a_schedule(compiled: None) -> None:
    schedule = optim.step_decay(0.1, 0.5, 2)
    weights, eager = arrays(start()), SGD(schedule)
    optimizer = SGD(schedule)
    step = compiled_step(optimizer, weights)
    rates = []
    for i in range(5):
        step(arrays(noise(i)))
        rates.append(optimizer.rate)
    assert rates == pytest.approx([0.1, 0.1, 0.05, 0.05, 0.025], rel=1e-6)  # halved in float32
    expected = train(eager, arrays(start()), range(5))
    np.testing.assert_allclose(
        flat(weights), flat(expected), rtol=0, atol=COMPILE_TOLERANCE * 10
    )  # 5 steps, values < 4


# --------------------------------------------------------------------------------------------------------- rate


@pytest.mark.parametrize("kind", RATED)
def test_rate_can_be_read_and_set(kind: str) -> None:
    optimizer = OPTIMIZERS[kind](0.1)
    assert optimizer.rate == 0.1
    optimizer.rate = 0.3
    assert optimizer.rate == 0.3
    assert optimizer.learning_rate.item() == np.float32(0.3)


@pytest.mark.parametrize("value", [0, -1, float("nan"), "0.1", 1e-40])
def test_refuses_a_rate_out_of_range(value: Any) -> None:
    optimizer = SGD(0.5)
    with pytest.raises(ValueError, match=r"^SGD: learning_rate must be greater than 0 and no denormal number, got "):
        optimizer.rate = value
    assert optimizer.rate == 0.5


def test_setting_the_rate_of_adadelta_does_nothing() -> None:
    optimizer, other = AdaDelta(), AdaDelta()
    optimizer.rate = 5
    assert optimizer.rate == 0
    found, expected = (train(o, arrays(start()), range(3)) for o in (optimizer, other))
    np.testing.assert_array_equal(flat(found), flat(expected))

"""The CPU's own exponential functions against float64."""

from collections.abc import Callable, Iterator

import mlx.core as mx
import numpy as np
import pytest

from gometal_mlx._compile import compiling
from gometal_mlx.layers import _exp

# of MLX's exponential, which multiplies x by log2(e) in 24 bits
ERROR = 1e-6  # where |x| < 20
FAR_ERROR = 4e-6  # where the answer is below 1e-9

FUNCTIONS: dict[str, tuple[Callable[[mx.array], mx.array], Callable[[np.ndarray], np.ndarray]]] = {
    "sigmoid": (_exp.sigmoid, lambda x: 1 / (1 + np.exp(-x))),
    "tanh": (_exp.tanh, np.tanh),
    "elu": (lambda x: _exp.elu(x, 1.0), lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0)))),
}
SLOPES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "sigmoid": lambda x: 1 / (2 + np.exp(x) + np.exp(-x)),
    "tanh": lambda x: 1 / np.cosh(x) ** 2,
    "elu": lambda x: np.exp(np.minimum(x, 0)),
}


@pytest.fixture(autouse=True)
def _on_cpu() -> Iterator[None]:
    with mx.stream(mx.cpu):
        yield


def points() -> np.ndarray:
    small = np.geomspace(1e-30, 1, 20_001)
    return np.concatenate([np.linspace(-80, 80, 200_001), small, -small, [0]]).astype(np.float32)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_six_digits(name: str) -> None:
    ours, exact = FUNCTIONS[name]
    for near, error in ((True, ERROR), (False, FAR_ERROR)):
        x = points()
        x = x[(np.abs(x) < 20) == near]
        expected = exact(x.astype(np.float64))
        # relative: also near 0, where tanh is about x
        np.testing.assert_allclose(np.array(ours(mx.array(x)), np.float64), expected, rtol=error, atol=1e-37)


@pytest.mark.parametrize("cpu", [True, False])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_slope(name: str, cpu: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_exp, "on_cpu", lambda: cpu)
    x = points()
    x = x[x < 20]
    found = np.array(mx.grad(lambda v: FUNCTIONS[name][0](v).sum())(mx.array(x)), np.float64)
    expected = SLOPES[name](x.astype(np.float64))
    # 1 - y * y doubles the error of y and cancels where y is near 1, as in MLX's own gradients: absolute there
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=4e-7)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_limits_and_nan(name: str) -> None:
    low, high, nan = np.array(FUNCTIONS[name][0](mx.array([-np.inf, np.inf, np.nan])))
    assert low == pytest.approx({"sigmoid": 0, "tanh": -1, "elu": -1}[name], abs=1e-30)
    assert high == (np.inf if name == "elu" else 1)
    assert np.isnan(nan)


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_half_precision_is_rounded_once(name: str, dtype: mx.Dtype) -> None:
    ours, _ = FUNCTIONS[name]
    x = mx.array(np.linspace(-5, 5, 101, dtype=np.float32)).astype(dtype)
    assert ours(x).dtype == dtype
    assert mx.array_equal(ours(x), ours(x.astype(mx.float32)).astype(dtype))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_compiled_is_eager(name: str, compiled: None) -> None:
    ours, _ = FUNCTIONS[name]

    def both(x: mx.array) -> list[mx.array]:
        return [ours(x), mx.grad(lambda v: ours(v).sum())(x)]

    x = mx.array(np.linspace(-9, 9, 1001, dtype=np.float32))
    was = compiling()
    mx.disable_compile()
    eager = both(x)
    mx.eval(eager)
    if was:
        mx.enable_compile()
    for a, b in zip(mx.compile(both)(x), eager, strict=True):
        # a fused kernel may round once instead of twice
        np.testing.assert_allclose(np.array(a), np.array(b), rtol=1e-6, atol=1e-7)


def test_metal_keeps_the_functions_of_mlx(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_exp, "on_cpu", lambda: False)
    x = mx.array(np.linspace(-5, 5, 101, dtype=np.float32))
    theirs = {"sigmoid": mx.sigmoid, "tanh": mx.tanh}
    theirs["elu"] = lambda x: mx.maximum(x, 0) + mx.expm1(mx.minimum(x, 0))
    for name, (ours, _) in FUNCTIONS.items():
        assert mx.array_equal(ours(x), theirs[name](x)), name
    rows = mx.random.normal((100, 100))
    assert mx.array_equal(_exp.softmax(rows, 1), mx.softmax(rows, axis=1, precise=True))
    assert mx.array_equal(_exp.logsumexp(rows, 1), mx.logsumexp(rows, axis=1, keepdims=True))


@pytest.mark.parametrize("alpha", [0.0, 0.5, 3.0, -1.0])
def test_elu_of_any_alpha(alpha: float) -> None:
    x = points()
    expected = np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0).astype(np.float64)))
    np.testing.assert_allclose(np.array(_exp.elu(mx.array(x), alpha)), expected, rtol=ERROR, atol=1e-37)
    slope = np.array(mx.grad(lambda v: _exp.elu(v, alpha).sum())(mx.array(x)), np.float64)
    expected = np.where(x > 0, 1, alpha * np.exp(np.minimum(x, 0).astype(np.float64)))
    np.testing.assert_allclose(slope, expected, rtol=1e-6, atol=4e-7 * abs(alpha))


Along = Callable[[mx.array, int], mx.array]
ALONG: dict[str, tuple[Along, Callable[[np.ndarray, int], np.ndarray]]] = {
    "softmax": (_exp.softmax, lambda x, axis: np.exp(x) / np.exp(x).sum(axis=axis, keepdims=True)),
    "logsumexp": (_exp.logsumexp, lambda x, axis: np.log(np.exp(x).sum(axis=axis, keepdims=True))),
}


@pytest.mark.parametrize("name", ALONG)
@pytest.mark.parametrize(("shape", "axis"), [((100, 100), 1), ((100, 100), 0), ((3, 3000), -1), ((20, 30, 40), 1)])
@pytest.mark.parametrize("many", [0, 10**9], ids=["ours", "of mx"])
def test_along_an_axis(
    name: str, shape: tuple[int, ...], axis: int, many: int, compiled: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Value and gradient."""
    monkeypatch.setattr(_exp, "MANY", many)
    ours, exact = ALONG[name]
    x = (np.random.default_rng(0).standard_normal(shape) * 3).astype(np.float32)
    wide, mask = x.astype(np.float64), np.random.default_rng(1).standard_normal(exact(x, axis).shape)
    e = exact(wide, axis)

    def both(v: mx.array) -> list[mx.array]:
        (y,), (slope,) = mx.vjp(lambda u: ours(u, axis), [v], [mx.array(mask.astype(np.float32))])
        return [y, slope]

    if name == "softmax":
        expected = e * (mask - (mask * e).sum(axis=axis, keepdims=True))
    else:
        expected = mask * ALONG["softmax"][1](wide, axis)
    for run in (both, mx.compile(both)):
        found, slope = run(mx.array(x))
        # the distance from the largest has 24 bits: 2e-6 where it is 30
        np.testing.assert_allclose(np.array(found), e, rtol=3e-6, atol=1e-37)
        np.testing.assert_allclose(np.array(slope), expected, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("name", ALONG)
def test_along_an_axis_limits_and_half_precision(name: str) -> None:
    ours, _ = ALONG[name]
    x = np.zeros((2, 5000), np.float32)
    x[0, 1], x[1, 2], x[1, 3] = 3e38, -np.inf, -1e30
    found = np.array(ours(mx.array(x), 1))
    if name == "softmax":
        assert found[0, 1] == 1
        np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-6)
        assert found[0, 0] < 1e-37
        assert found[1, 2:4].max() < 1e-37
    else:
        np.testing.assert_allclose(found[:, 0], [3e38, np.log(4998)], rtol=1e-6)
        for infinity in (np.inf, -np.inf):
            x = np.full((2, 5000), -np.inf, np.float32)
            x[0, 3], x[1] = infinity, 0
            np.testing.assert_allclose(np.array(ours(mx.array(x), 1))[:, 0], [infinity, np.log(5000)], rtol=1e-6)
    half = mx.array(np.linspace(-5, 5, 10_000, dtype=np.float32)).astype(mx.bfloat16).reshape(2, 5000)
    assert ours(half, 1).dtype == mx.bfloat16
    assert mx.array_equal(ours(half, 1), ours(half.astype(mx.float32), 1).astype(mx.bfloat16))
    half = half.at[0, 0].add(mx.nan)
    assert mx.isnan(ours(half, 1)[0]).any()
    assert not mx.isnan(ours(half, 1)[1]).any()

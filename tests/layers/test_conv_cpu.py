"""The CPU's own convolution against mx.conv2d, which is slow there but right."""

from collections.abc import Callable, Iterator
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from gometal_mlx import _lanes
from gometal_mlx._compile import compiling, evaluated
from gometal_mlx.layers import Model, ModelBuilder, _conv

# float32 has 24 bits (6e-8); up to a thousand products added in another order lose a digit and a half,
# relative to the largest sum
TOLERANCE = 3e-6

Convolution = Callable[..., mx.array]


@pytest.fixture(autouse=True)
def _on_cpu() -> Iterator[None]:
    with mx.stream(mx.cpu):
        yield


def close(a: mx.array, b: mx.array, tolerance: float = TOLERANCE) -> None:
    assert a.shape == b.shape
    assert a.dtype == b.dtype
    found, expected = np.array(a.astype(mx.float32)), np.array(b.astype(mx.float32))
    largest = max(np.abs(expected).max(), 1)  # the terms of the sums are about 1, also where they cancel
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * largest)


def arrays(n: int, size: tuple[int, int], c: int, o: int, k: int, seed: int = 0) -> tuple[mx.array, mx.array]:
    keys = mx.random.split(mx.random.key(seed), 2)
    return mx.random.normal((n, *size, c), key=keys[0]), mx.random.normal((o, k, k, c), key=keys[1])


@pytest.fixture
def in_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Winograd's algorithm wherever it can be used."""
    monkeypatch.setattr(_conv, "PIXELS", 0)
    monkeypatch.setattr(_conv, "CHANNELS", 0)
    monkeypatch.setattr(_conv, "makes_kernels", lambda: True)
    monkeypatch.setattr(_conv.sys, "platform", "linux")
    monkeypatch.setattr(_conv, "_as_products", None)


def ours(stride: int, padding: int) -> Convolution:
    return lambda x, w, b=None: _conv.conv2d(x, w, b, stride, padding)


def theirs(stride: int, padding: int) -> Convolution:
    return lambda x, w, b=0: mx.conv2d(x, w, stride, padding) + b


def value_and_gradients(convolution: Convolution, *given: mx.array) -> list[mx.array]:
    """The output, and what it gives for the images, kernels and bias when it arrives with random weights."""
    y = convolution(*given)
    mask = mx.random.normal(y.shape, key=mx.random.key(9)).astype(y.dtype)
    gradients = mx.grad(lambda *a: (convolution(*a) * mask).sum(), argnums=tuple(range(len(given))))(*given)
    return [y, *gradients]


def check(n: int, size: tuple[int, int], c: int, o: int, k: int, stride: int, padding: int) -> None:
    x, w = arrays(n, size, c, o, k)
    for bias in ([], [mx.random.normal((o,), key=mx.random.key(3))]):
        found = value_and_gradients(ours(stride, padding), x, w, *bias)
        for a, b in zip(found, value_and_gradients(theirs(stride, padding), x, w, *bias), strict=True):
            close(a, b)


@given(
    n=st.integers(1, 3), height=st.integers(1, 11), width=st.integers(1, 11), c=st.integers(1, 5), o=st.integers(1, 11),
    k=st.integers(1, 5), stride=st.integers(1, 4), padding=st.integers(0, 5),
)  # fmt: skip
@example(n=2, height=7, width=6, c=2, o=3, k=2, stride=4, padding=1)  # the stride passes over pixels
@example(n=2, height=7, width=6, c=1, o=3, k=2, stride=4, padding=1)  # alike, by taps
@example(n=1, height=8, width=9, c=3, o=2, k=3, stride=3, padding=0)  # a border that no window covers
@example(n=1, height=2, width=3, c=2, o=2, k=3, stride=2, padding=4)  # windows that see padding alone
@example(n=2, height=5, width=5, c=4, o=3, k=1, stride=2, padding=1)  # one pixel
@example(n=3, height=5, width=4, c=2, o=5, k=5, stride=1, padding=2)
@settings(deadline=None, max_examples=150)  # no deadline: the machine is shared
def test_value_and_gradients_are_those_of_mx(
    n: int, height: int, width: int, c: int, o: int, k: int, stride: int, padding: int
) -> None:
    k = min(k, height + 2 * padding, width + 2 * padding)
    check(n, (height, width), c, o, k, stride, padding)


@given(
    n=st.integers(1, 3), height=st.integers(1, 9), width=st.integers(1, 9), c=st.integers(1, 6), o=st.integers(1, 6),
    padding=st.integers(0, 2),
)  # fmt: skip
@example(n=2, height=1, width=1, c=2, o=3, padding=1)  # padding alone but for the middle
@example(n=2, height=3, width=4, c=2, o=3, padding=0)  # one line
@settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.usefixtures("in_tiles")
def test_value_and_gradients_in_tiles(n: int, height: int, width: int, c: int, o: int, padding: int) -> None:
    size = max(height, 3 - 2 * padding), max(width, 3 - 2 * padding)
    check(n, size, c, o, 3, 1, padding)


@pytest.mark.parametrize("images", [1, 2, 5])
@pytest.mark.usefixtures("in_tiles")
def test_a_large_batch_of_tiles_goes_in_pieces(monkeypatch: pytest.MonkeyPatch, images: int) -> None:
    made = []
    tiles = _conv.winograd.tiles
    monkeypatch.setattr(_conv.winograd, "tiles", lambda x, **turned: made.append(x.shape[0]) or tiles(x, **turned))
    monkeypatch.setattr(_conv, "PIECE_BYTES", images * 16 * 6 * (2 + 3) * 4)  # tiles * channels * bytes
    check(5, (4, 6), 2, 3, 3, 1, 1)
    assert max(made) == images
    check(5, (3, 5), 2, 3, 3, 1, 1)  # of which as many tiles are made


@pytest.mark.usefixtures("in_tiles", "compiled")
@pytest.mark.parametrize("channels", [3, 4])
def test_a_step_makes_the_same_tiles_once(channels: int, tmp_path: Path) -> None:
    """Of the images for the value and the kernels' gradient, and of the arriving gradient: 4 views each."""
    x, w = arrays(2, (6, 6), channels, 4, 3)
    step = mx.compile(lambda x, w: value_and_gradients(ours(1, 1), x, w))
    evaluated(lambda: mx.eval(step(x, w)))
    if not compiling():
        pytest.skip("MLX cannot compile here, and then looks for nothing that is made twice")
    mx.export_to_dot(str(tmp_path / "graph"), *step(x, w))
    tiles, images, gradients = 4, 9, 4
    assert (tmp_path / "graph").read_text().count('"AsStrided') == 2 * tiles + 2 * images + gradients


@pytest.mark.usefixtures("in_tiles")
def test_tiles_are_as_exact_as_products() -> None:
    keys = mx.random.split(mx.random.key(0), 2)
    x, w = mx.random.normal((2, 16, 16, 64), key=keys[0]), mx.random.normal((64, 3, 3, 64), key=keys[1])
    padded = np.pad(np.array(x, np.float64), [(0, 0), (1, 1), (1, 1), (0, 0)])
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))
    exact = np.einsum("nhwcij,oijc->nhwo", windows, np.array(w, np.float64))
    errors = [np.abs(np.array(c(x, w)) - exact).mean() for c in (ours(1, 1), theirs(1, 1))]
    assert errors[0] < 2 * errors[1]


def test_tiles_are_used_where_they_pay(monkeypatch: pytest.MonkeyPatch) -> None:
    def used(shape: tuple[int, ...], o: int, k: int = 3, stride: int = 1, padding: int = 1) -> bool:
        x, w = mx.zeros(shape), mx.zeros((o, k, k, shape[3]))
        return _conv._fit(w, stride, padding) and _conv._many(x, w, padding)

    monkeypatch.setattr(_conv, "makes_kernels", lambda: True)
    monkeypatch.setattr(_conv.sys, "platform", "linux")
    for count in (1, 2, None):  # None: what MLX's wheel brings, or a BLAS that cannot be told
        monkeypatch.setattr(_conv, "threads", lambda count=count: count)
        assert used((2, 16, 16, 32), 32)
        assert not used((1, 16, 16, 256), 256)  # few pixels
        assert not used((4, 16, 16, 32), 31)  # few channels
        assert not used((4, 16, 16, 3), 64)
        assert not used((4, 18, 18, 32), 32, k=5, padding=2)
        assert not used((4, 32, 32, 32), 32, stride=2)
        assert used((3, 16, 16, 32), 32, padding=0)
        assert not used((2, 16, 16, 32), 32, padding=0)  # 14 by 14 come of it
        assert not used((9, 16, 16, 32), 32, padding=3)
        with _lanes.side_by_side(1 if count is None else count):  # in lanes, of whatever thread, as outside
            assert used((2, 16, 16, 32), 32)
    monkeypatch.setattr(_conv, "threads", lambda: 4)
    assert used((8, 16, 16, 64), 64)
    assert not used((8, 16, 16, 63), 63)  # the transforms take one thread, the products have four
    monkeypatch.setattr(_conv, "threads", lambda: 1)
    monkeypatch.setattr(_conv.sys, "platform", "darwin")
    assert not used((32, 16, 16, 32), 32)
    monkeypatch.setattr(_conv.sys, "platform", "linux")
    monkeypatch.setattr(_conv, "makes_kernels", lambda: False)
    assert not used((32, 16, 16, 32), 32)


@pytest.mark.parametrize("tiles", [False, True])
@pytest.mark.parametrize("padding", [0, 1, 2])
@pytest.mark.parametrize("side", [5, 6])
@pytest.mark.parametrize("channels", [3, 4])
def test_gradient_of_a_gradient(
    tiles: bool, padding: int, side: int, channels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a penalty has it. Images padded in pairs, of an even number of channels, have one of their own gradient."""
    monkeypatch.setattr(_conv, "_fit", lambda *_: tiles)
    monkeypatch.setattr(_conv, "PIXELS", 0)
    x, w = arrays(2, (side, side), channels, 6, 3)
    wanted = (0,) if padding and channels % 2 == 0 else (0, 1)

    def penalty(convolution: Convolution) -> Convolution:
        gradient = mx.grad(lambda x, w: mx.tanh(convolution(x, w) / 8).sum(), argnums=wanted)
        return lambda x, w: sum((a * mx.sin(a)).sum() for a in gradient(x, w))

    found, expected = (mx.grad(penalty(c(1, padding)), argnums=(0, 1))(x, w) for c in (ours, theirs))
    for a, b in zip(found, expected, strict=True):
        close(a, b, 1e-5)


@pytest.mark.parametrize("pieces", [1, 3, 5])
def test_a_large_batch_goes_in_pieces(monkeypatch: pytest.MonkeyPatch, pieces: int) -> None:
    monkeypatch.setattr(_conv, "PIECE_BYTES", 5 // pieces * 4 * 4 * 2 * 9 * 4)  # rows * windows * columns * bytes
    for stride, outputs in ((1, 2), (1, 7), (2, 2)):
        size = (4, 4) if stride == 1 else (8, 8)
        check(5, size, 2, outputs, 3, stride, 1)


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
@pytest.mark.parametrize("kernel", [1, 3])
def test_half_precision_is_computed_in_float32(dtype: mx.Dtype, kernel: int) -> None:
    check_half_precision(dtype, kernel, stride=2)


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
@pytest.mark.usefixtures("in_tiles")
def test_half_precision_in_tiles(dtype: mx.Dtype) -> None:
    check_half_precision(dtype, 3, stride=1)


def check_half_precision(dtype: mx.Dtype, kernel: int, stride: int) -> None:
    x, w = (a.astype(dtype) for a in arrays(2, (6, 6), 3, 4, kernel))
    found = value_and_gradients(ours(stride, 1), x, w)
    # the mask of value_and_gradients is rounded to the dtype, so that float32 has the same one
    y = ours(stride, 1)(x, w)
    mask = mx.random.normal(y.shape, key=mx.random.key(9)).astype(dtype).astype(mx.float32)
    x32, w32 = x.astype(mx.float32), w.astype(mx.float32)
    exact = [theirs(stride, 1)(x32, w32)]
    exact += mx.grad(lambda x, w: (theirs(stride, 1)(x, w) * mask).sum(), argnums=(0, 1))(x32, w32)
    for a, b in zip(found, exact, strict=True):
        assert a.dtype == dtype
        # rounded once; the largest value has 11 or 8 bits
        close(a.astype(mx.float32), b, 2.0**-11 if dtype == mx.float16 else 2.0**-8)


@pytest.mark.parametrize(("stride", "outputs"), [(1, 3), (1, 8), (2, 3), (2, 8)])
def test_compiled_is_eager(stride: int, outputs: int) -> None:
    check_compiled(stride, outputs)


@pytest.mark.usefixtures("in_tiles", "compiled")
def test_compiled_tiles_are_eager_ones() -> None:
    check_compiled(1, 5)


def check_compiled(stride: int, outputs: int) -> None:
    x, w = arrays(3, (7, 6), 3, outputs, 3)
    convolution = ours(stride, 1)
    eager = value_and_gradients(convolution, x, w)
    compiled = mx.compile(lambda x, w: value_and_gradients(convolution, x, w))(x, w)
    for a, b in zip(compiled, eager, strict=True):
        close(a, b, 1e-6)  # a fused kernel may round once instead of twice


def test_images_need_not_lie_in_order() -> None:
    x, w = arrays(2, (5, 6), 3, 4, 3)
    channels_first = mx.contiguous(x.transpose(0, 3, 1, 2))
    for view in (channels_first.transpose(0, 2, 3, 1), mx.repeat(x, 2, axis=0)[::2]):
        for a, b in zip(value_and_gradients(ours(1, 1), view, w), value_and_gradients(ours(1, 1), x, w), strict=True):
            close(a, b)


def test_no_work_for_the_images_where_only_kernels_learn() -> None:
    x, w = arrays(64, (16, 16), 8, 8, 3)
    peaks = []
    for wanted in (1, (0, 1)):
        gradient = mx.grad(lambda x, w: ours(1, 1)(x, w).square().sum(), argnums=wanted)
        mx.eval(gradient(x, w))
        mx.reset_peak_memory()
        mx.eval(gradient(x, w))
        peaks.append(mx.get_peak_memory())
    assert peaks[0] < peaks[1]


def test_metal_keeps_the_convolution_of_mlx(monkeypatch: pytest.MonkeyPatch) -> None:
    x, w = arrays(1, (5, 5), 2, 3, 3)
    used = []
    monkeypatch.setattr(mx, "conv2d", lambda x, w, stride, padding: used.append((stride, padding)) or x)
    _conv.conv2d(x, w, None, 1, 1)
    assert not used
    monkeypatch.setattr(_conv, "on_cpu", lambda: False)
    _conv.conv2d(x, w, None, 2, 1)
    assert used == [(2, 1)]


def test_the_layer_uses_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> mx.array:
        raise AssertionError

    model = Model(ModelBuilder((1, 3, 6, 6)).add_conv2d(4, 3, 2, 1).compile(), seed=0)
    monkeypatch.setattr(mx, "conv2d", fail)
    assert model(mx.zeros((2, 3, 6, 6))).shape == (2, 4, 3, 3)


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("padding", [0, 1])
def test_an_image_is_copied_for_padding_alone(k: int, padding: int, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    pad = mx.pad
    monkeypatch.setattr(_conv.mx, "pad", lambda *a, **named: calls.append(1) or pad(*a, **named))
    x, w = arrays(1, (5, 5), 2, 3, k)
    _conv.conv2d(x, w, None, 1, padding)
    assert len(calls) == padding

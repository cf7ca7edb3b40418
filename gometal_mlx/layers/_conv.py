"""Convolution of channels-last images, chosen per device.

On Metal and CUDA it is ``mx.conv2d``. MLX's own CPU convolution has a good forward pass, but its gradient for the input
spreads a strided image with zeros and convolves that: 10 to 25 times slower than needed for stride 2. So on the CPU the
convolution is written as matrix products, with its own backward pass (``benchmarks/step_time.md`` has the figures).
For many windows of 3 x 3 with many channels Winograd's algorithm multiplies less (``_winograd.py``). It is as exact,
but where an infinity among the inputs would give infinity it may give NaN.
"""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Callable, Sequence
from functools import reduce
from operator import add
from typing import cast

import mlx.core as mx

from .._blas import threads
from .._compile import makes_kernels
from . import _winograd as winograd
from ._device import on_cpu
from ._layout import copied

# Columns made at a time, a bound for the memory of a large batch: below the 32 MiB from which on glibc takes every
# buffer afresh from the system, and large enough for a usual batch in one piece.
PIECE_BYTES = 16 << 20

# From which on Winograd's algorithm pays: pixels of all outputs; channels i of the images and o of the output, as
# i o / (i + o) for each thread of BLAS, two at least, so 32 and 32. Measured with one thread and with two.
PIXELS, CHANNELS = 512, 8

Span = tuple[int, int]
Convolution = Callable[[mx.array, mx.array], mx.array]  # of the images and the kernels


def conv2d(
    x: mx.array, w: mx.array, bias: mx.array | None, stride: int, padding: int, transformed: mx.array | None = None
) -> mx.array:
    """Cross-correlation with square kernels, as ``mx.conv2d``; the device is looked at while tracing.

    Shapes: x ``(N, H, W, C)``, w ``(O, k, k, C)``, bias ``(O,)``; the value ``(N, H', W', O)``.
    Args:
        transformed: what ``prepared`` has made of w, if it has.
    """
    if not on_cpu():
        y = mx.conv2d(x, w, stride, padding)
    elif (dtype := mx.result_type(x, w)) in (mx.float16, mx.bfloat16):
        # BLAS has no such product, MLX's own is 50 times slower than float32
        y = _on_cpu(x.astype(mx.float32), w.astype(mx.float32), stride, padding, None).astype(dtype)
    else:
        y = _on_cpu(x, w, stride, padding, transformed)
    return y if bias is None else y + bias  # in one loop with an activation


def prepared(w: mx.array, stride: int, padding: int) -> dict[str, mx.array]:
    """The kernels laid out for many evaluations on a CPU: as they are for a few images, transformed for many."""
    return {"kernels": w, **({"transformed": winograd.kernels(w)} if _fit(w, stride, padding) else {})}


def _on_cpu(x: mx.array, w: mx.array, stride: int, padding: int, transformed: mx.array | None) -> mx.array:
    if w.shape[1] == 1:
        return _pointwise(stride, padding)(x, w)
    if _fit(w, stride, padding) and _many(x, w, padding):
        return _in_tiles(padding)(x, winograd.kernels(w) if transformed is None else transformed)
    return _as_products(stride, padding)(x, w)


def _pointwise(stride: int, padding: int) -> Convolution:
    """Kernels of one pixel: a product of each pixel's channels; MLX's gradients are fine here."""

    def convolve(x: mx.array, w: mx.array) -> mx.array:
        padded = mx.pad(x, [(0, 0), *[(padding, padding)] * 2, (0, 0)]) if padding else x  # MLX copies for 0, too
        pixels = padded[:, ::stride, ::stride].reshape(-1, w.shape[3])
        return (pixels @ w.reshape(w.shape[0], -1).T).reshape(_output_shape(x, w, stride, padding))

    return convolve


def _as_products(stride: int, padding: int) -> Convolution:
    """Larger kernels: every window as a row, and one product of all rows with the kernels."""

    @mx.custom_function
    def convolve(x: mx.array, w: mx.array) -> mx.array:
        kernels, k = w.reshape(w.shape[0], -1).T, w.shape[1]
        rows = [_windows(piece, k, k, stride) @ kernels for piece in _pieces(x, w, stride, padding)]
        return mx.concatenate(rows).reshape(_output_shape(x, w, stride, padding))

    @convolve.vjp
    def gradients(primals: Sequence[mx.array], g: mx.array, _: mx.array) -> tuple[mx.array, ...]:
        # The columns are made again: as quick as keeping them, and mx.compile finds those of the forward pass anyway.
        x, w = primals
        outputs, k = w.shape[0], w.shape[1]
        images = _pieces(x, w, stride, padding)
        arriving = _split(g, images[0].shape[0])
        dx = [_input_gradient(part, w, (x.shape[1], x.shape[2]), stride, padding) for part in arriving]
        pairs = zip(images, arriving, strict=True)
        dw = [part.reshape(-1, outputs).T @ _windows(image, k, k, stride) for image, part in pairs]
        return mx.concatenate(dx), reduce(add, dw).reshape(w.shape)

    return cast(Convolution, convolve)


def _fit(w: mx.array, stride: int, padding: int) -> bool:
    """Whether Winograd's algorithm can be used for these kernels, and may be worth its transforms.

    Those take one thread, however many multiply, and loops that are compiled: uncompiled they take more than they save.
    The answer hangs on what stays as it is while Python runs, not on lanes that another thread may have opened: the
    same run shall give the same bits. Accelerate, on a Mac, multiplies too fast.
    """
    outputs, k, _, inputs = w.shape
    if sys.platform == "darwin" or (k, stride) != (3, 1) or padding > 2:
        return False
    return inputs * outputs >= CHANNELS * max(2, threads() or 1) * (inputs + outputs) and makes_kernels()


def _many(x: mx.array, w: mx.array, padding: int) -> bool:
    """Whether there are windows enough for it."""
    return math.prod(_output_shape(x, w, 1, padding)[:3]) >= PIXELS


def _in_tiles(padding: int) -> Convolution:
    """Winograd's algorithm, with kernels that it has transformed."""

    def correlate(x: mx.array, k: mx.array, padding: int, *, turned: bool = False) -> mx.array:
        pieces = _even_pieces(x, k.shape[2], padding, pairs=not turned)  # a gradient has a gradient
        parts = [winograd.images(winograd.tiles(p, turned=turned) @ k, p, turned=turned) for p in pieces]
        y = mx.concatenate(parts)
        return y[:, : x.shape[1] + 2 * padding - 2, : x.shape[2] + 2 * padding - 2]

    @mx.custom_function
    def convolve(x: mx.array, k: mx.array) -> mx.array:
        return correlate(x, k.swapaxes(1, 2), padding)

    @convolve.vjp
    def gradients(primals: Sequence[mx.array], g: mx.array, _: mx.array) -> tuple[mx.array, ...]:
        x, k = primals
        images = _even_pieces(x, k.shape[1], padding)  # mx.compile finds their tiles in the forward pass
        arriving = _split(_pad(g, *((0, d % 2) for d in g.shape[1:3]), pairs=False), images[0].shape[0])
        pairs = zip(images, arriving, strict=True)
        dk = [winograd.gradients(part).swapaxes(1, 2) @ winograd.tiles(image) for image, part in pairs]
        return correlate(g, k, 2 - padding, turned=True), reduce(add, dk)

    return cast(Convolution, convolve)


def _even_pieces(x: mx.array, outputs: int, padding: int, *, pairs: bool = True) -> list[mx.array]:
    """The padded images, with sides of even length, so many at a time that their tiles are PIECE_BYTES."""
    padded = _pad(x, *((padding, padding + d % 2) for d in x.shape[1:3]), pairs=pairs and padding > 0)
    _, height, width, inputs = padded.shape
    bytes_per_image = 4 * (height - 2) * (width - 2) * (inputs + outputs) * x.itemsize  # each number is in four tiles
    return _split(padded, max(1, PIECE_BYTES // bytes_per_image))


def _output_shape(x: mx.array, w: mx.array, stride: int, padding: int) -> tuple[int, int, int, int]:
    height, width = ((d + 2 * padding - w.shape[1]) // stride + 1 for d in x.shape[1:3])
    return x.shape[0], height, width, w.shape[0]


def _pieces(x: mx.array, w: mx.array, stride: int, padding: int) -> list[mx.array]:
    """The padded images, so many at a time that their columns are PIECE_BYTES."""
    _, height, width, outputs = _output_shape(x, w, stride, padding)
    bytes_per_image = height * width * (w.size // outputs) * x.itemsize
    return _split(_pad(x, (padding, padding), (padding, padding)), max(1, PIECE_BYTES // max(bytes_per_image, 1)))


def _split(a: mx.array, size: int) -> list[mx.array]:
    return [a] if a.shape[0] <= size else [a[i : i + size] for i in range(0, a.shape[0], size)]


def _pad(x: mx.array, down: Span, across: Span, *, pairs: bool = True) -> mx.array:
    """The image with zeros around it.

    MLX copies number by number here, so pairs of them are copied as one: a third less time, and no gradient.
    """
    if not any((*down, *across)):
        return x
    pairs = pairs and x.dtype == mx.float32 and x.shape[3] % 2 == 0
    padded = mx.pad(x.view(mx.int64) if pairs else x, [(0, 0), down, across, (0, 0)])
    return padded.view(mx.float32) if pairs else padded


def _windows(x: mx.array, height: int, width: int, stride: int) -> mx.array:
    """Every window of an image as a row, shape ``(windows, height * width * C)`` (im2col)."""
    n, h, w, c = x.shape
    down, across = (h - height) // stride + 1, (w - width) // stride + 1
    # contiguous: as_strided refuses some slices of one pixel; it copies nothing else
    # a window's line is one run of width * C numbers, which copies faster than single pixels
    strides = (h * w * c, stride * w * c, stride * c, w * c, 1)
    view = mx.as_strided(mx.contiguous(x), (n, down, across, height, width * c), strides)
    return copied(view).reshape(n * down * across, height * width * c)


def _input_gradient(g: mx.array, w: mx.array, size: tuple[int, int], stride: int, padding: int) -> mx.array:
    """What an output's gradient ``g`` gives for the input of that height and width.

    ``dx[v] = sum_i g[(v + padding - i) / stride] w[i]`` over the taps i for which that is whole. Those are the same for
    all pixels v of one phase, v mod stride; the phases are computed apart and then interleaved.
    """
    down, across = (-(-d // stride) for d in size)
    # With few input channels, narrow products by tap and their sum cost less than wide windows of g.
    phase = _by_taps if 2 * w.shape[3] <= w.shape[0] else _by_correlation
    shifts = [divmod(q + padding, stride) for q in range(stride)]  # how far g is shifted, and the first tap

    def part(q: int, r: int) -> mx.array:
        (y, i), (x, j) = shifts[q], shifts[r]
        return phase(g, w[:, i::stride, j::stride], (y, y + down), (x, x + across))

    if stride == 1:
        return part(0, 0)
    # writing each part into its place copies once, stacking them twice
    pixels = mx.zeros((g.shape[0], down, stride, across, stride, w.shape[3]), g.dtype)
    for q, r in itertools.product(range(stride), repeat=2):
        pixels[:, :, q, :, r] = part(q, r)
    return pixels.reshape(g.shape[0], down * stride, across * stride, -1)[:, : size[0], : size[1]]


def _by_correlation(g: mx.array, taps: mx.array, rows: Span, columns: Span) -> mx.array:
    """``sum_i g[t - i] taps[i]`` for t in the spans: a correlation with the reversed taps."""
    _, height, width, c = taps.shape
    if not height * width:  # a stride larger than the kernel passes over some pixels
        return mx.zeros(_shape(g, rows, columns, c), g.dtype)
    g = _cut(g, (rows[0] - height + 1, rows[1]), (columns[0] - width + 1, columns[1]))
    kernels = taps[:, ::-1, ::-1].transpose(1, 2, 0, 3).reshape(-1, c)
    return (_windows(g, height, width, 1) @ kernels).reshape(_shape(g, rows, columns, c))


def _by_taps(g: mx.array, taps: mx.array, rows: Span, columns: Span) -> mx.array:
    """The same sum: the products of g with all taps at once, moved into place and added."""
    outputs, height, width, c = taps.shape
    if not height * width:
        return mx.zeros(_shape(g, rows, columns, c), g.dtype)
    down, across = rows[1] - rows[0], columns[1] - columns[0]
    g = _cut(g, (rows[0] - height + 1, rows[1]), (columns[0] - width + 1, columns[1]))
    products = (g.reshape(-1, outputs) @ taps.reshape(outputs, -1)).reshape(*g.shape[:3], -1)
    places = enumerate(itertools.product(reversed(range(height)), reversed(range(width))))
    moved = (products[:, y : y + down, x : x + across, i * c : (i + 1) * c] for i, (y, x) in places)
    return reduce(add, moved)


def _shape(g: mx.array, rows: Span, columns: Span, channels: int) -> tuple[int, int, int, int]:
    return g.shape[0], rows[1] - rows[0], columns[1] - columns[0], channels


def _cut(a: mx.array, rows: Span, columns: Span) -> mx.array:
    """``a[:, rows, columns]``, with zeros for what lies outside."""
    inside, pads = [], []
    for (start, stop), length in zip((rows, columns), a.shape[1:3], strict=True):
        first, last = min(max(start, 0), length), min(max(stop, 0), length)
        inside.append(slice(first, last))
        pads.append((first - start, stop - last) if first < last else (stop - start, 0))
    a = a[:, inside[0], inside[1]]
    return mx.pad(a, [(0, 0), *pads, (0, 0)]) if any(map(any, pads)) else a

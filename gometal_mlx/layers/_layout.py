"""The only place that knows both layouts: NCHW in public, channels last inside a Model.

MLX convolves NHWC images with OHWI kernels; go-metal, its files and ONNX use NCHW and OIHW. A Model moves the channel
axis once at its border, so that a stack of convolutions, activations and pools runs without a transposition in between.
"""

import mlx.core as mx

from .._types import Shape


def to_internal(x: mx.array) -> mx.array:
    """``(N, C, d1, ...)`` -> ``(N, d1, ..., C)``; arrays of rank 1 or 2 are returned as they are."""
    return mx.moveaxis(x, 1, -1) if x.ndim > 2 else x


def to_public(x: mx.array) -> mx.array:
    """``(N, d1, ..., C)`` -> ``(N, C, d1, ...)``; arrays of rank 1 or 2 are returned as they are."""
    return mx.moveaxis(x, -1, 1) if x.ndim > 2 else x


def rows_internal(w: mx.array, x: Shape) -> mx.array:
    """A matrix with a row for every number of a flattened NCHW image, its rows in the order of ``to_internal``."""
    return w.reshape(x[1], -1, w.shape[1]).swapaxes(0, 1).reshape(w.shape)


def internal_axis(axis: int, rank: int) -> int:
    """The position, channels last, of a public axis of a tensor of that rank."""
    axis %= rank
    if rank <= 2 or axis == 0:
        return axis
    return rank - 1 if axis == 1 else axis - 1


def oihw_to_ohwi(w: mx.array) -> mx.array:
    """A go-metal convolution kernel as MLX's convolution wants it."""
    return w.transpose(0, 2, 3, 1)


def copied(view: mx.array) -> mx.array:
    """The same numbers, lying in order.

    In a compiled function this is a loop that g++ makes vectors of, and takes half the time of MLX's own copy.
    """
    return mx.negative(mx.negative(view))

"""Square windows that move over an image: their shape rule, and how ONNX states them."""

from __future__ import annotations

import math

from .._types import Shape
from ..errors import ShapeError
from .base import Layer, Match


def window_shape(layer: Layer, x: Shape, kernel: int, stride: int, padding: int) -> Shape:
    """The height and width a square window leaves of an NCHW shape."""
    kind = type(layer).__name__
    if len(x) != 4:
        raise ShapeError(f"{kind} {layer.name!r}: input needs rank 4 (batch, channels, height, width), got shape {x}")
    if min(x[2:]) + 2 * padding < kernel:
        raise ShapeError(
            f"{kind} {layer.name!r}: window {kernel} is larger than the padded input {x[2]}x{x[3]} + 2*{padding}"
        )
    return tuple((d + 2 * padding - kernel) // stride + 1 for d in x[2:])


def square_window(m: Match, default_kernel: list[int]) -> tuple[int, int, int]:
    """kernel, stride and padding of a matched convolution or pooling node; objects to any but a square window."""
    if len(m.input_shape) != 4:
        raise m.refuse(0, f"input of rank {len(m.input_shape)}; only two-dimensional windows are supported")
    m.only(0, "dilations", 1)
    kernel, strides = m.attr(0, "kernel_shape", default_kernel), m.attr(0, "strides", [1, 1])
    for name, values in (("kernel_shape", kernel), ("strides", strides)):
        if len(values) != 2 or min(values) < 1:
            raise m.refuse(0, f"{name} = {list(values)}; two positive numbers needed")
    pads = _pads(m, kernel, strides)
    if len(pads) != 4:
        raise m.refuse(0, f"pads = {list(pads)}; four numbers needed")
    for name, values in (("kernel_shape", kernel), ("strides", strides), ("pads", pads)):
        if len(set(values)) != 1:
            m.problem(0, f"{name} = {list(values)}; one value for all sides needed")
    return kernel[0], strides[0], pads[0]


def _pads(m: Match, kernel: list[int], strides: list[int]) -> list[int]:
    """Zeros before and after each axis; ``SAME_...`` spreads what ``ceil(size / stride)`` windows lack."""
    auto = m.attr(0, "auto_pad", "NOTSET")
    if auto not in ("SAME_UPPER", "SAME_LOWER"):
        pads: list[int] = m.attr(0, "pads", [0, 0, 0, 0])
        return [0, 0, 0, 0] if auto == "VALID" else pads
    sizes = zip(m.input_shape[2:], kernel, strides, strict=True)
    lacking = [max((math.ceil(size / s) - 1) * s + k - size, 0) for size, k, s in sizes]
    less, more = [n // 2 for n in lacking], [n - n // 2 for n in lacking]
    return [*less, *more] if auto == "SAME_UPPER" else [*more, *less]

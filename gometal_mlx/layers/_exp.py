"""Functions made of exponentials, chosen per device.

On the CPU, MLX by itself takes 10 to 16 ns for each exponential: a fifth of the step of a small network with sigmoids,
a third of a CNN's with ELU, half of a classifier's with a thousand classes. In a compiled kernel, with our options
(_compile.py), it takes 1 ns. But MLX compiles no kernel for a single operation, and has none for softmax. So functions
are written here as several operations, few enough for one kernel: MLX joins eleven deep. Metal and CUDA have good ones
of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import mlx.core as mx

from ._device import on_cpu

Function = Callable[[mx.array], mx.array]

MANY = 2**10  # numbers from which on a softmax is worth the handful of kernels that it is made of


def sigmoid(x: mx.array) -> mx.array:
    """``1 / (1 + exp(-x))``."""
    return _in_float32(_sigmoid, x) if on_cpu() else mx.sigmoid(x)


def tanh(x: mx.array) -> mx.array:
    """``1 - 2 / (exp(2x) + 1)``, and near 0, where this has no digits, its series."""
    return _in_float32(_tanh, x) if on_cpu() else mx.tanh(x)


def elu(x: mx.array, alpha: float) -> mx.array:
    """``x`` for x > 0, ``alpha * (exp(x) - 1)`` otherwise."""
    expm1 = _expm1 if on_cpu() else mx.expm1
    # x < 0 here and x > 0 below: one comparison would be stored for both, and truth values and numbers make slow loops
    custom = mx.custom_function(lambda x: mx.where(x < 0, alpha * expm1(x), x))
    custom.vjp(lambda x, g, y: mx.where(x > 0, g, g * (y + alpha)))
    return _in_float32(cast(Function, custom), x)


def softmax(x: mx.array, axis: int) -> mx.array:
    """``exp(x) / sum(exp(x))`` along the axis."""
    if not on_cpu() or x.size < MANY:
        return mx.softmax(x, axis=axis, precise=True)
    custom = mx.custom_function(lambda x: _softmax(x, axis))
    custom.vjp(lambda _, g, y: y * (g - mx.sum(g * y, axis=axis, keepdims=True)))
    return _in_float32(cast(Function, custom), x)


def logsumexp(x: mx.array, axis: int) -> mx.array:
    """``log(sum(exp(x)))`` along the axis, which stays with length 1."""
    if not on_cpu() or x.size < MANY:
        return mx.logsumexp(x, axis=axis, keepdims=True)

    def value(x: mx.array) -> mx.array:
        largest, e = _exp_below_largest(x, axis)
        # infinity less infinity is no number
        return mx.where(mx.isinf(largest), largest, largest + mx.log(mx.sum(e, axis=axis, keepdims=True)))

    custom = mx.custom_function(value)
    custom.vjp(lambda x, g, _: g * _softmax(x, axis))  # the compiler finds the exponentials of the value
    return _in_float32(cast(Function, custom), x)


def log_softmax(x: mx.array, axis: int) -> mx.array:
    """``x - log(sum(exp(x)))`` along the axis; the largest number is taken off first, or it swallows the sum."""
    low = x - mx.stop_gradient(mx.max(x, axis=axis, keepdims=True))
    return low - logsumexp(low, axis)


def _softmax(x: mx.array, axis: int) -> mx.array:
    _, e = _exp_below_largest(x, axis)
    return e / mx.sum(e, axis=axis, keepdims=True)


def _exp_below_largest(x: mx.array, axis: int) -> tuple[mx.array, mx.array]:
    """The largest numbers along the axis, and ``exp(x - largest)``."""
    largest = mx.max(x, axis=axis, keepdims=True)
    return largest, mx.exp(x - largest)


def _in_float32(function: Function, x: mx.array) -> mx.array:
    return function(x.astype(mx.float32)).astype(x.dtype)


def _with_gradient(function: Function, slope: Function) -> Function:
    """A function whose slope follows from its value."""
    custom = mx.custom_function(function)
    custom.vjp(lambda _, g, y: g * slope(y))
    return cast(Function, custom)


def _expm1(x: mx.array) -> mx.array:
    """``exp(x) - 1``; near 0, where this has no digits, its Taylor series, in Estrin's order."""
    xx = x * x
    series = x * ((1 + x * (1 / 2)) + xx * ((1 / 6 + x * (1 / 24)) + xx * (1 / 120)))
    return mx.where(mx.abs(x) < 0.1, series, mx.exp(x) - 1)


def _hyperbolic(x: mx.array) -> mx.array:
    xx = x * x
    series = x + (x * xx) * (xx * (2 / 15 - xx * (17 / 315)) - 1 / 3)
    return mx.where(mx.abs(x) < 0.2, series, 1 - 2 / (mx.exp(2 * x) + 1))


_sigmoid = _with_gradient(lambda x: 1 / (1 + mx.exp(-x)), lambda y: y * (1 - y))
_tanh = _with_gradient(_hyperbolic, lambda y: 1 - y * y)

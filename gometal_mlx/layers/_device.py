"""Where MLX will compute, and what its CPU compiler should not see in one piece."""

from collections.abc import Callable
from typing import cast

import mlx.core as mx


def on_cpu() -> bool:
    """Whether what is traced now will run on the CPU: the one question by which layers choose between formulations."""
    return bool(mx.default_device().type == mx.cpu)


def by_itself(x: mx.array) -> mx.array:
    """``x``, on a CPU not compiled together with what is done to it next.

    ``mx.compile`` computes a vector anew for each row that it is applied to, and a scalar for each number. A GPU has
    the time for that.
    """
    return mx.contiguous(x) if on_cpu() else x


def piecewise(
    function: Callable[[mx.array], mx.array],
    gradient: Callable[[mx.array, mx.array, mx.array], mx.array],
    x: mx.array,
    *,
    training: bool,
) -> mx.array:
    """``function(x)``, whose pieces are linear; in training on a CPU with a gradient that chooses between slopes.

    MLX's own multiplies by a comparison's result, for which g++ finds no vector instructions: twice as slow.

    Args:
        gradient: from x, the gradient of the function's value, and that value.
    """
    if not (training and on_cpu()):  # a custom function holds on to x, and nothing could be written into it
        return function(x)
    chosen = mx.custom_function(function)
    chosen.vjp(gradient)
    return cast(mx.array, chosen(x))

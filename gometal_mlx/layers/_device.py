"""Where MLX will compute, and what its CPU compiler should not see in one piece."""

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

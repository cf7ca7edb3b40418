"""The order in which what MLX computes with on a CPU is set up: malloc, BLAS, MLX's own thread."""

from __future__ import annotations

from . import _malloc as _malloc
from ._denormals import denormals_are_zeros

with denormals_are_zeros():  # in the threads that are started here, BLAS's and MLX's
    from . import _blas as _blas  # before mlx.core, which then finds its BLAS loaded

    # isort: split
    import mlx.core as mx

    mx.eval(mx.add(1, 1, stream=mx.cpu))


def flushes_denormals() -> bool:
    """Whether MLX's CPU thread takes denormal numbers for zeros; not if MLX computed before this package came."""
    return mx.multiply(mx.array(2.0**-130), 1.0, stream=mx.cpu).item() == 0

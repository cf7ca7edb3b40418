"""The product of few rows with a matrix, chosen by what BLAS does with them."""

from __future__ import annotations

import mlx.core as mx

from .._blas import threads, unpacked_product
from ._device import on_cpu

ROWS = 4  # at most; measured: with eight there is as much to win as to lose
DEPTH = 64  # of a slice, at least
LARGEST = 2**23  # numbers of a matrix: larger ones come from memory, which two threads read faster than one
THREADS = 2  # with more of them the packing is shared out well enough (by calculation; not measured)


def product(x: mx.array, w: mx.array) -> mx.array:
    """``x @ w`` in evaluation; shapes ``(N, in)``, ``(in, out)`` and ``(N, out)``.

    OpenBLAS copies a large matrix into another order before it multiplies, which for a few rows takes longer than to
    multiply. With kernels for AVX-512 it does not copy a small one. So on such a processor a few rows are multiplied in
    slices of the matrix, ``sum_i x[:, i] @ w[i]``: a row with 16,384 x 128 numbers in 160 instead of 215 us.
    """
    count = _slices(x.shape[0], *w.shape) if on_cpu() else 1
    if count == 1:
        return x @ w
    parts = x.reshape(x.shape[0], count, -1).swapaxes(0, 1) @ w.reshape(count, -1, w.shape[1])
    return parts.sum(axis=0)


def _slices(rows: int, depth: int, columns: int) -> int:
    """How many; 1 where they would not help."""
    limit = unpacked_product()
    if not 0 < rows <= ROWS or not limit or rows * depth * columns <= limit or depth * columns > LARGEST:
        return 1
    if (threads() or 1) > THREADS:
        return 1
    enough = -(-ROWS * depth * columns // limit)
    return next((n for n in range(enough, depth // DEPTH + 1) if depth % n == 0), 1)

"""Winograd's minimal filtering F(2 x 2, 3 x 3): kernels of 3 x 3, stride 1, with 16 multiplications instead of 36.

A tile of 2 x 2 outputs comes of 4 x 4 inputs. Both and the kernel are transformed, multiplied number by number, and
summed over the channels: 16 products of matrices, each of all tiles at once::

    y = A' [(G w G') * (B' x B)] A

Every transform is one sum of strided views, so that MLX compiles it into one loop. Where a sign or factor depends on
the line, it is an array, as long as there are channels: g++ makes vectors only where the strides of all arrays are 1.

Source: Lavin and Gray, Fast Algorithms for Convolutional Neural Networks, CVPR 2016, whose B and A have the other sign
in the last line.
"""

from __future__ import annotations

import functools

import mlx.core as mx
import numpy as np

from ._layout import copied

# Constants are arrays made once: mx.compile then finds that a step makes the same tiles forwards and backwards.
G = np.array([[1, 0, 0], [1 / 2, 1 / 2, 1 / 2], [1 / 2, -1 / 2, 1 / 2], [0, 0, 1]], np.float32)
BOTH_WAYS = mx.array(np.kron(G, G))

# Line 2 i + j of B' x is line 2 i + j of x, plus or minus line 2 - i: steps of i and j, and the beginning. G w has the
# lines 0 and 3 exchanged where w is turned; so have the others in their place.
LINES, TURNED = ((2, 1, 0), (-1, 0, 2)), ((-1, -2, 3), (0, 1, 1))
INPUT_SIGNS = ((-1, 1), (-1, -1))
# Line i of A' m is line 3 i of m, plus line 1, plus or minus line 2: step and beginning
ENDS, TURNED_ENDS, PLUS, EITHER = (3, 0), (-3, 3), (0, 1), (0, 2)
OUTPUT_SIGNS = (1, -1)
# Line i of A g is so many times line 0 of g, and so many times line 1
TOP, BOTTOM = (1, 1, 1, 0), (0, 1, -1, 1)


def kernels(w: mx.array) -> mx.array:
    """``G w G'``: of ``(O, 3, 3, C)``, ``(16, O, C)``."""
    k = BOTH_WAYS @ copied(w).reshape(w.shape[0], 9, w.shape[3])
    return copied(k.swapaxes(0, 1))


def tiles(x: mx.array, *, turned: bool = False) -> mx.array:
    """``B' x B`` of padded images: of ``(N, 2 t + 2, 2 s + 2, C)``, ``(16, N t s, C)``.

    Args:
        turned: in the order for kernels that are turned by 180 degrees.
    """
    n, height, width, c = x.shape
    t, s, row = height // 2 - 1, width // 2 - 1, width * c
    x = mx.contiguous(x)  # as in _conv._windows

    def lines(down: tuple[int, int, int], across: tuple[int, int, int]) -> mx.array:
        (i, j, top), (k, m, left) = down, across
        strides = (i * row, j * row, k * c, m * c, height * row, 2 * row, 2 * c, 1)
        return mx.as_strided(x, (2, 2, 2, 2, n, t, s, c), strides, top * row + left * c)

    down, across = (_factors(INPUT_SIGNS, axis, 8, c) for axis in (0, 2))
    first, second = TURNED if turned else LINES
    left, right = (lines(first, side) + down * lines(second, side) for side in (first, second))
    return (left + across * right).reshape(16, n * t * s, c)


def images(m: mx.array, x: mx.array, *, turned: bool = False) -> mx.array:
    """``A' m A`` of what has come of ``tiles(x)``: of ``(16, N t s, O)``, ``(N, 2 t, 2 s, O)``."""
    ends = TURNED_ENDS if turned else ENDS
    n, t, s, o = x.shape[0], x.shape[1] // 2 - 1, x.shape[2] // 2 - 1, m.shape[2]
    size = n * t * s * o

    def lines(down: tuple[int, int], across: tuple[int, int]) -> mx.array:
        (i, top), (j, left) = down, across
        strides = (t * s * o, s * o, 4 * i * size, o, j * size, 1)
        return mx.as_strided(m, (n, t, 2, s, 2, o), strides, (4 * top + left) * size)

    def sides(down: tuple[int, int]) -> mx.array:
        return lines(down, ends) + lines(down, PLUS) + across * lines(down, EITHER)

    down, across = (_factors(OUTPUT_SIGNS, axis, 6, o) for axis in (2, 4))
    return (sides(ends) + sides(PLUS) + down * sides(EITHER)).reshape(n, 2 * t, 2 * s, o)


def gradients(g: mx.array) -> mx.array:
    """``A g A'``, what a gradient for ``images`` gives for ``m``."""
    n, height, width, o = g.shape
    t, s, row = height // 2, width // 2, width * o
    g = mx.contiguous(g)  # likewise

    def line(down: int, across: int) -> mx.array:
        strides = (0, 0, height * row, 2 * row, 2 * o, 1)
        return mx.as_strided(g, (4, 4, n, t, s, o), strides, down * row + across * o)

    (top, bottom), (left, right) = ([_factors(a, axis, 6, o) for a in (TOP, BOTTOM)] for axis in (0, 1))
    first, second = (top * line(0, side) + bottom * line(1, side) for side in (0, 1))
    return (left * first + right * second).reshape(16, n * t * s, o)


@functools.cache
def _factors(values: tuple[object, ...], axis: int, rank: int, channels: int) -> mx.array:
    """The values from that axis on, in an array of that rank, as often as there are channels."""
    a = np.array(values, np.float32)
    shape = (*[1] * axis, *a.shape, *[1] * (rank - axis - a.ndim))
    return mx.array(np.repeat(a.reshape(shape), channels, axis=-1))

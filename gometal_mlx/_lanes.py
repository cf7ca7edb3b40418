"""Lanes: streams of MLX that compute side by side on a CPU.

MLX computes what stands in one stream on one thread; only BLAS uses more, for a product. Activations, their gradients
and the windows of a convolution thus leave the other processors idle. Where rows can be dealt out, each share gets a
lane: a stream of its own, with products by BLAS's one thread. How many lanes there are is how many threads BLAS was
given; ``GOMETAL_LANES`` says otherwise, and 1 switches them off.
"""

from __future__ import annotations

import contextlib
import functools
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence

import mlx.core as mx

from ._blas import threads, use_threads
from ._denormals import denormals_are_zeros
from ._types import Shape
from .errors import SpecError, shown
from .layers._device import on_cpu

Lanes = list[mx.Stream]
begin: Callable[..., None] = mx.async_eval  # to which MLX's stubs give no types


def most() -> int:
    """How many lanes can be used where MLX computes now.

    One on a GPU, whose kernels use all of it, and in any thread but the main one: MLX's streams belong to the thread
    that made them, and whoever computes in several threads uses several processors.

    Raises: SpecError for a GOMETAL_LANES that is no number.
    """
    if not on_cpu() or threading.current_thread() is not threading.main_thread():
        return 1
    asked = os.environ.get("GOMETAL_LANES", "").strip()
    if asked and not (asked.isdecimal() and int(asked) > 0):
        raise SpecError(f"GOMETAL_LANES must be a number of at least 1, got {shown(asked)}; unset it to have it chosen")
    return int(asked or threads() or 1)


@contextlib.contextmanager
def side_by_side(count: int) -> Iterator[Lanes]:
    """That many streams, the default one first; what was begun in them must be evaluated before the block ends.

    With several of them, BLAS uses one thread a product meanwhile: its threads would wait for each other, and change
    how the processors are shared out.
    """
    if count == 1:
        yield [mx.default_stream(mx.default_device())]
        return
    lanes = [mx.default_stream(mx.cpu), *(_stream(i) for i in range(1, count))]
    use_threads(1)
    try:
        yield lanes
    except BaseException:  # Ctrl-C, say, while lanes compute: BLAS's threads must not change under a product
        for lane in lanes:
            mx.synchronize(lane)
        raise
    finally:
        use_threads(threads() or 1)


@functools.cache
def _stream(_: int) -> mx.Stream:
    with denormals_are_zeros():  # in the thread of the stream, which its first operation starts
        stream = mx.new_stream(mx.cpu)
        mx.eval(mx.add(1, 1, stream=stream))
    return stream


def spread(arrays: Iterable[mx.array], lanes: Sequence[mx.Stream]) -> dict[Shape, mx.Stream]:
    """A stream in which the arrays of each shape are updated, the largest first; for one lane there is nothing to say.

    The largest have a stream of their own beside the lanes, the others go each to the lane that has least so far. Those
    of one shape stay together: in one compiled function MLX takes a constant of one stream for the equal one of
    another, which then reads it from memory, number by number.
    """
    if len(lanes) == 1:
        return {}
    sizes: dict[Shape, int] = {}
    for a in arrays:
        sizes[a.shape] = sizes.get(a.shape, 0) + a.size
    load = [0] * len(lanes)
    found: dict[Shape, mx.Stream] = {}
    for shape in sorted(sizes, key=lambda s: -sizes[s]):
        if not found:
            found[shape] = _stream(len(lanes))
            continue
        least = load.index(min(load))
        found[shape] = lanes[least]
        load[least] += sizes[shape]
    return found

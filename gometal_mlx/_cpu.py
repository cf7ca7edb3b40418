"""How MLX computes on a CPU: with a fast BLAS, in memory that stays, and with denormal numbers as zeros.

**Memory.** On Linux MLX takes every array from malloc and gives it back. glibc returns what is free at the end of the
heap to the system, which hands it out again as pages of zeros; whether a step runs into that depends on what else lies
there (a step of ten million parameters took a fifth longer while a checkpoint was held). So up to 512 MB stay.

**Denormals.** Apple's GPUs take them for zeros. A number below 1.2e-38 costs an x86 processor a hundred times as much
as any other. Adam's first moment of a weight whose gradients have vanished shrinks to such numbers and stays there, for
0.9 times the least of them rounds to itself; a step of training then takes up to eight times as long. How a thread
treats them is part of its state, which the threads that it starts inherit. So BLAS and MLX start theirs here, in a
moment in which this one takes them for zeros; afterwards it does as before, and numpy notices nothing. Elsewhere than
on Linux and x86 nothing is done.

``GOMETAL_MALLOC=keep`` and ``GOMETAL_DENORMALS=keep`` leave things as they were; docs/performance.md has the figures.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import sys
from collections.abc import Iterator

FLUSH = 0x8040  # bits of the register MXCSR: denormal operands are zeros, and so are denormal results
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h
STAYS = 512 << 20  # bytes free at the end of the heap
LARGE = 64 << 20  # arrays from here on have memory of their own, which goes when they go
GLIBC_SETTINGS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


def keep_memory() -> bool:
    """Whether malloc was told so: on Linux with glibc, unless the user has told it something."""
    told = os.environ.get("GOMETAL_MALLOC") == "keep" or any(name in os.environ for name in GLIBC_SETTINGS)
    if sys.platform != "linux" or told:
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):  # another C library
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, LARGE) and mallopt(M_TRIM_THRESHOLD, STAYS))


@contextlib.contextmanager
def denormals_are_zeros() -> Iterator[None]:
    """In this thread, and for good in those that it starts."""
    known = sys.platform == "linux" and platform.machine() == "x86_64"
    if not known or os.environ.get("GOMETAL_DENORMALS") == "keep":
        yield
        return
    try:
        libm = ctypes.CDLL("libm.so.6")
    except OSError:
        yield
        return
    environment = (ctypes.c_uint32 * 8)()  # fenv_t: seven words of the x87 unit, then MXCSR
    libm.fegetenv(environment)
    before = environment[7]
    try:
        environment[7] = before | FLUSH
        libm.fesetenv(environment)
        yield
    finally:
        environment[7] = before
        libm.fesetenv(environment)


KEEPS_MEMORY = keep_memory()

with denormals_are_zeros():
    from . import _blas as _blas  # before mlx.core, which then finds its BLAS loaded

    # isort: split
    import mlx.core as mx

    mx.eval(mx.add(1, 1, stream=mx.cpu))


def flushes_denormals() -> bool:
    """Whether MLX's CPU thread takes denormal numbers for zeros; not if MLX computed before this package came."""
    return mx.multiply(mx.array(2.0**-130), 1.0, stream=mx.cpu).item() == 0

"""Denormal numbers as zeros in MLX's CPU threads, as Apple's GPUs take them.

A number below 1.2e-38 costs an x86 processor a hundred times as much as any other. Adam's first moment of a weight
whose gradients have vanished shrinks to such numbers and stays there, for 0.9 times the least of them rounds to itself;
a step of training then takes up to seven times as long. How a thread treats them is part of its state, which the
threads that it starts inherit. So BLAS and MLX start theirs in a moment in which the main thread takes them for
zeros (``_cpu``); afterwards that does as before, and numpy notices nothing. Elsewhere than on Linux and x86 nothing is
done. ``GOMETAL_DENORMALS=keep`` leaves all as it was; docs/performance.md has the figures.
"""

from __future__ import annotations

import contextlib
import ctypes
import platform
import sys
from collections.abc import Iterator

from ._setting import keeps

FLUSH = 0x8040  # bits of the register MXCSR: denormal operands are zeros, and so are denormal results


@contextlib.contextmanager
def denormals_are_zeros() -> Iterator[None]:
    """In this thread, and for good in those that it starts."""
    known = sys.platform == "linux" and platform.machine() == "x86_64"
    if not known or keeps("GOMETAL_DENORMALS"):
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

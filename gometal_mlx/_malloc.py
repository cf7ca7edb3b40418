"""Memory that was freed stays with the process, so that the next step has it.

On Linux MLX takes every array from malloc and gives it back. glibc returns what is free at the end of the heap to the
system, which hands it out again as pages of zeros; whether a step runs into that depends on what else lies there (a
step of ten million parameters took a fifth longer while a checkpoint was held). So up to 512 MB stay.
``GOMETAL_MALLOC=keep`` leaves malloc as it was; docs/performance.md has the figures.
"""

from __future__ import annotations

import ctypes
import os
import sys

from ._setting import keeps

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h
STAYS = 512 << 20  # bytes free at the end of the heap
LARGE = 64 << 20  # arrays from here on have memory of their own, which goes when they go
GLIBC_SETTINGS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


def keep_memory() -> bool:
    """Whether malloc was told so: on Linux with glibc, unless the user has told it something."""
    told = keeps("GOMETAL_MALLOC") or any(name in os.environ for name in GLIBC_SETTINGS)
    if sys.platform != "linux" or told:
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):  # another C library
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, LARGE) and mallopt(M_TRIM_THRESHOLD, STAYS))


KEEPS_MEMORY = keep_memory()

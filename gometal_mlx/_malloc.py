"""Memory that was freed stays with the process, so that the next step has it, and comes in large pages.

On Linux MLX takes every array from malloc and gives it back. glibc returns what is free at the end of the heap to the
system, which hands it out again as pages of zeros; whether a step runs into that depends on what else lies there (a
step of ten million parameters took a fifth longer while a checkpoint was held). So up to 512 MB stay.

A page is 4 kB, a step of a small CNN writes ten thousand of them, and on a virtual machine to look up where they are
takes a tenth of its time. So the main thread's heap is given its next 448 MB beforehand, untouched, and Linux is asked
to use pages of 2 MB for them, as numpy does for its large arrays; not where address space is limited. A system that
gives none goes on as before. ``GOMETAL_MALLOC=keep`` leaves malloc as it was; docs/performance.md has the figures.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys

from ._setting import keeps

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3  # of malloc.h
STAYS = 512 << 20  # bytes free at the end of the heap
LARGE = 64 << 20  # arrays from here on have memory of their own, which goes when they go
AHEAD = STAYS - LARGE  # bytes by which the heap grows once
USUAL_PAD = 128 << 10  # bytes by which it grows otherwise: more of them would keep the heaps of threads from shrinking
PAGES = "/sys/kernel/mm/transparent_hugepage/enabled"  # what the system says of large ones
GLIBC_SETTINGS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


def keep_memory() -> bool:
    """Whether malloc was told so: on Linux with glibc, unless the user has told it something."""
    told = keeps("GOMETAL_MALLOC") or any(name in os.environ for name in GLIBC_SETTINGS)
    if sys.platform != "linux" or told:
        return False
    try:
        libc = ctypes.CDLL("libc.so.6")
        mallopt, taken = libc.mallopt, ctypes.CDLL(None).malloc
    except (OSError, AttributeError):  # another C library
        return False
    if ctypes.cast(taken, ctypes.c_void_p).value != ctypes.cast(libc.malloc, ctypes.c_void_p).value:
        return False  # an allocator that was preloaded, which has settings of its own
    return bool(mallopt(M_MMAP_THRESHOLD, LARGE) and mallopt(M_TRIM_THRESHOLD, STAYS))


def ask_for_large_pages() -> bool:
    """Let the heap grow, and ask for large pages there; whether that was done and the system gives some."""
    if not KEEPS_MEMORY or not hasattr(mmap, "MADV_HUGEPAGE") or _is_limited():
        return False
    libc = ctypes.CDLL("libc.so.6")
    libc.sbrk.restype = libc.malloc.restype = ctypes.c_void_p
    libc.malloc_trim(ctypes.c_size_t(0))  # so that it must grow
    start = libc.sbrk(ctypes.c_ssize_t(0)) or 0
    libc.mallopt(M_TOP_PAD, AHEAD)
    libc.free(ctypes.c_void_p(libc.malloc(ctypes.c_size_t(LARGE // 2))))
    libc.mallopt(M_TOP_PAD, USUAL_PAD)
    start -= start % mmap.PAGESIZE
    grown = (libc.sbrk(ctypes.c_ssize_t(0)) or 0) - start
    if grown < AHEAD:  # refused, or another thread's heap has grown
        return False
    return not libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(grown), mmap.MADV_HUGEPAGE) and _gives_large_pages()


def _is_limited() -> bool:
    """Whether what is taken beforehand would be missing elsewhere."""
    import resource  # POSIX's

    limits = (resource.getrlimit(which)[0] for which in (resource.RLIMIT_AS, resource.RLIMIT_DATA))
    return any(limit != resource.RLIM_INFINITY for limit in limits)


def _gives_large_pages() -> bool:
    try:
        with open(PAGES) as file:
            return "[never]" not in file.read()
    except OSError:
        return False


KEEPS_MEMORY = keep_memory()
HAS_LARGE_PAGES = ask_for_large_pages()

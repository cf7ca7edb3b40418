"""Threads that have computed are gone before Python ends.

MLX keeps what a thread has compiled in the thread, and gives it back when that ends, for which it needs Python. Up to
Python 3.12 ``join`` returns a little earlier. If Python has begun to end by then, MLX ends the process with "terminate
called without an active exception".
"""

from __future__ import annotations

import atexit
import os
import threading
import time

SECONDS = 2.0  # to wait at most
PAUSE = 0.05  # where nobody tells which threads there are
TASKS = "/proc/self/task"
MANY = 1000

_here = threading.local()
_computed: set[int] = set()  # the system's numbers of threads, the main one's left out


def remember_thread() -> None:
    """Say that this thread computes with functions that were compiled."""
    if getattr(_here, "known", False):
        return
    _here.known = True
    if threading.current_thread() is threading.main_thread():
        return
    if not _computed:
        atexit.register(_wait)
    if len(_computed) >= MANY:  # a server may have one for each request
        _computed.intersection_update(map(int, os.listdir(TASKS)) if os.path.isdir(TASKS) else ())
    _computed.add(threading.get_native_id())


def _wait() -> None:
    """Until they are gone; those that Python will not end, its daemons, stay."""
    if not os.path.isdir(TASKS):
        time.sleep(PAUSE)
        return
    end = time.monotonic() + SECONDS
    staying = {thread.native_id for thread in threading.enumerate()}
    for task in _computed - staying:
        while os.path.isdir(f"{TASKS}/{task}") and time.monotonic() < end:
            time.sleep(0.001)

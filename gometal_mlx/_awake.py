"""Processors kept awake while small evaluations follow each other on a CPU.

MLX hands every evaluation to its thread and waits for it. Where the other processor has gone to sleep meanwhile, that
takes 60 us, else 15; a row through a small network takes 60 by itself. BLAS's threads keep a processor awake for a
while after they had something to do: they wait for their next product by spinning, as onnxruntime's threads do. But
OpenBLAS does not share the products of small models with them. So while evaluations follow each other closely, it is
given a larger one now and then (40 us of every 20 ms).
"""

from __future__ import annotations

import os
import time

from ._blas import wake_threads
from .layers._device import on_cpu

CLOSE = 2e-3  # seconds from one evaluation to the next, at most: a server with few requests shall not spin
SPINNING = 20e-3  # seconds: OpenBLAS's threads spin for 2**26 cycles, which are 26 ms at 2.6 GHz
SETTING = "OPENBLAS_THREAD_TIMEOUT"  # by which a user says how long they shall

_begun = _woken = 0.0  # when the last evaluation began, and when the threads last had something to do


def keep_awake() -> None:
    """Say that an evaluation in one stream begins."""
    global _begun, _woken
    now = time.perf_counter()
    close, _begun = now - _begun < CLOSE, now
    if close and now - _woken > SPINNING and SETTING not in os.environ and on_cpu():
        _woken = now
        wake_threads()

"""Processes made by fork: MLX's thread, which computes, has stayed in the other one, and MLX would wait for ever."""

from __future__ import annotations

import os

from .errors import GoMetalError

_forked: list[bool] = []
os.register_at_fork(after_in_child=lambda: _forked.append(True))


def check_process() -> None:
    """Raises: GoMetalError in a process made by fork."""
    if _forked:
        told = "MLX cannot compute in a process made by fork"
        raise GoMetalError(f"{told}; start it with multiprocessing.get_context('spawn')")

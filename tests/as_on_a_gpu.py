"""A plugin for pytest: layers and trainer take the formulations of a GPU, computed by the CPU of this machine.

``pytest -p as_on_a_gpu``, with ``tests`` on PYTHONPATH. None of our machines has a GPU, and this finds what would fail
on one for other reasons than the GPU itself. ``with mx.stream(mx.cpu)`` means the CPU here as it does there.
"""

import contextlib
import importlib
import pkgutil
from collections.abc import Iterator
from typing import Any

import gometal_mlx  # isort: skip  (before mlx, whose BLAS it chooses)
import mlx.core as mx

cpu_asked = [False]
stream = mx.stream


@contextlib.contextmanager
def noted(where: Any) -> Iterator[Any]:
    before = cpu_asked[0]
    cpu_asked[0] = before or where == mx.cpu
    try:
        with stream(where) as entered:
            yield entered
    finally:
        cpu_asked[0] = before


mx.stream = noted
for found in pkgutil.walk_packages(gometal_mlx.__path__, "gometal_mlx."):
    if not found.name.endswith("__main__"):
        module = importlib.import_module(found.name)
        if hasattr(module, "on_cpu"):
            module.on_cpu = lambda: cpu_asked[0]

"""A model's answers for any number of rows, so many at a time that memory stays bounded."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import mlx.core as mx
import numpy as np

from .._compile import evaluated
from .._types import FloatArray
from ..layers import ModelSpec
from ..layers._device import on_cpu

PREDICT_ROWS = 1024
CACHED_NUMBERS = 2**19  # 2 MB: what is made of it, columns of a convolution too, then stays in a processor's cache


def in_pieces(function: Callable[[mx.array], mx.array], x: FloatArray, rows: int) -> FloatArray:
    """A compiled function of any number of rows, applied to so many at a time, so that memory stays bounded."""

    def run(piece: FloatArray) -> FloatArray:
        return np.array(function(mx.array(piece)), np.float32)

    return np.concatenate([evaluated(partial(run, x[i : i + rows])) for i in range(0, len(x), rows)])


def piece_rows(spec: ModelSpec) -> int:
    """How many rows to predict at a time: on a CPU so few that the widest layer's output stays in its cache."""
    widest = max(math.prod(s.output_shape[1:]) for s in spec.layers)
    return max(16, min(PREDICT_ROWS, CACHED_NUMBERS // widest)) if on_cpu() else PREDICT_ROWS

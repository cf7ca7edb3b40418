"""How the rows of a batch are dealt out: in pieces, so that memory stays bounded, and to lanes, side by side."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from itertools import cycle, pairwise

import mlx.core as mx
import numpy as np

from .._awake import keep_awake
from .._compile import evaluated
from .._forked import check_process
from .._lanes import Lanes, begin, most, side_by_side
from .._leaving import remember_thread
from .._types import FloatArray, Params, Shape
from ..errors import GoMetalError
from ..layers import ModelSpec
from ..layers._device import on_cpu
from ..layers._prepared import Prepared
from ..layers._product import ROWS as FEW_ROWS

OTHER_THREAD = "another thread trains this model, and MLX's arrays belong to the thread that computes them"
PREDICT_ROWS = 1024
CACHED_NUMBERS = 2**19  # 2 MB: what is made of it, columns of a convolution too, then stays in a processor's cache
HELD_NUMBERS = 2**26  # 256 MB: what is worth holding at once where no cache is to be spared
SHARED = 2**20  # multiplications of more than a few rows that BLAS shares among its threads, which keeps them awake
LANE_NUMBERS = 2**19  # that a lane writes: fewer do not repay waking a processor


class InPieces:
    """A function of the model in evaluation mode, compiled, for any number of rows: a piece at a time, a piece a lane.

    Args:
        function: from rows of inputs, and what the layers have made of their weights, to rows of outputs.
        prepared: the model's.
    """

    def __init__(self, function: Callable[[mx.array, Mapping[str, Params]], mx.array], prepared: Prepared) -> None:
        inputs = [prepared.model.state, prepared.arrays]
        self._function = mx.compile(lambda x: function(x, prepared.arrays), inputs=inputs)
        self._prepared = prepared
        self._rows = piece_rows(prepared.model.spec, CACHED_NUMBERS if on_cpu() else HELD_NUMBERS)
        self._operations = max(s.layer().operations_per_row(s.input_shape) for s in prepared.model.spec.layers)
        self._tried: set[Shape] = set()  # for which there are kernels

    def __call__(self, x: FloatArray) -> FloatArray:
        answer = self._in_one_piece if len(x) <= self._rows else self._in_lanes
        check_process()
        remember_thread()
        try:
            with self._prepared.lock:
                if x.shape in self._tried:
                    return answer(x)
                found = evaluated(lambda: answer(x))
                self._tried.add(x.shape)
                return found
        except RuntimeError as e:
            if "in current thread" not in str(e):
                raise
            raise GoMetalError(f"{OTHER_THREAD}; save a checkpoint there and use a Predictor here") from e

    def _in_one_piece(self, x: FloatArray) -> FloatArray:
        if len(x) <= FEW_ROWS or len(x) * self._operations < SHARED:
            keep_awake()
        if not self._prepared:
            return np.array(self._function(mx.array(x)), np.float32)
        if not self._prepared.arrays:
            self._prepared.refresh()
        y = self._function(mx.array(x))
        begin(y)
        if self._prepared.refresh():  # a look that costs no time while MLX computes
            y = self._function(mx.array(x))
        return np.array(y, np.float32)

    def _in_lanes(self, x: FloatArray) -> FloatArray:
        self._prepared.refresh()
        pieces = [x[i : i + self._rows] for i in range(0, len(x), self._rows)]

        def run(lanes: Lanes) -> list[FloatArray]:
            # A lane gets its next piece when it is through with one, and waits for no other. More than one at a time
            # would take more memory than stays in the cache. A GPU has one to go on with while another is fetched.
            ahead = len(lanes) if on_cpu() else 2
            found: list[FloatArray] = []
            begun: list[mx.array] = []
            for lane, piece in zip(cycle(lanes), pieces, strict=False):
                if len(begun) == ahead:
                    found.append(np.array(begun.pop(0), np.float32))
                with mx.stream(lane):
                    begun.append(self._function(mx.array(piece)))
                    begin(begun[-1])
            return found + [np.array(y, np.float32) for y in begun]

        with side_by_side(min(most(), len(pieces))) as lanes:
            return np.concatenate(run(lanes))


def piece_rows(spec: ModelSpec, numbers: int) -> int:
    """How many rows to predict at a time: so few that the widest layer's output has at most so many numbers.

    All of them where rows depend on each other, as under a softmax along the batch.
    """
    if not spec.rows_apart(training=False):
        return sys.maxsize
    widest = max(math.prod(s.output_shape[1:]) for s in spec.layers)
    return max(16, min(PREDICT_ROWS, numbers // widest))


def lane_rows(spec: ModelSpec) -> float:
    """How many rows of a batch make a lane worth while in training; infinity where rows depend on each other.

    A lane has gradients of its own for all weights, which are then added up. So as many numbers as there are weights
    should be written in its forward pass (docs/performance.md has what was measured).
    """
    if not spec.rows_apart(training=True):
        return math.inf
    return max(spec.total_parameters, LANE_NUMBERS) / spec.numbers_per_row()


def lane_count(rows: int, least: float) -> int:
    """How many lanes share a batch, each with at least so many rows; one if fewer than half of all could be used."""
    available = most()
    count = min(available, int(rows / least))
    return count if 2 * count > available else 1


def shares(rows: int, lanes: int) -> list[slice]:
    """The rows of each lane, as equal as can be."""
    return [slice(*ends) for ends in pairwise(rows * i // lanes for i in range(lanes + 1))]

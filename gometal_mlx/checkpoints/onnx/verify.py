"""Proof that an ONNX graph is what its model is: the onnx checker, then onnxruntime against MLX."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import onnx
import onnxruntime

from ..._types import FloatArray, Shape, is_number
from ...errors import CheckpointError, one_line
from ...layers import Model

TOLERANCE = 1e-5  # relative to the largest output; float32 sums in another order differ by about 1e-6
LEAST = 0.1  # output of a Sigmoid or the like, at which it is judged: onnxruntime computes them to 1e-7, whatever it is
BATCH_SIZES = (1, 7)
EDGES = 8  # rows of edge_cases
UNCOMPARED = "check=False reads it, and verify=False writes it, all the same"
MAX_NUMBERS, MAX_OPERATIONS = 2**25, 2**33  # of a layer and of a batch: where there are more, rows go singly
MAX_ROW_NUMBERS, MAX_ROW_OPERATIONS = 2**29, 2**38  # of a single row: 2 GB, and some minutes


@dataclass(frozen=True)
class VerifyReport:
    """What a comparison of onnxruntime with MLX found.

    Args:
        batch_sizes: sizes of the random batches.
        largest_difference, largest_output: absolute, of the batch where their ratio is largest.
        tolerance: allowed ratio of the two.
        edge_rows: rows of the last batch, which is not random; see ``edge_cases``.
        least: smaller outputs are judged as if they were so large.
    """

    batch_sizes: tuple[int, ...]
    largest_difference: float
    largest_output: float
    tolerance: float
    edge_rows: int = 0
    least: float = 0.0

    @property
    def relative_difference(self) -> float:
        """largest_difference / max(largest_output, least) (the difference itself where all outputs are 0)."""
        return self.largest_difference / (max(self.largest_output, self.least) or 1.0)

    @property
    def ok(self) -> bool:
        """Whether the difference is within the tolerance; False for NaN."""
        return self.relative_difference <= self.tolerance

    def raise_if_different(self, where: str) -> None:
        """CheckpointError with the figures unless ok."""
        if math.isnan(self.largest_difference):
            raise CheckpointError(f"{where}: gives NaN, or infinity, in MLX or onnxruntime; nothing can be compared")
        if not self.ok:
            raise CheckpointError(
                f"{where}: onnxruntime differs from MLX by {self.largest_difference:.3g} at outputs up to "
                f"{self.largest_output:.3g} (relative {self.relative_difference:.2g}, allowed {self.tolerance:.2g})"
            )


def check_proto(source: bytes | Path, where: str) -> None:
    """onnx.checker with full check (shape inference included) on a model or its path; CheckpointError if it objects."""
    try:
        onnx.checker.check_model(source if isinstance(source, bytes) else str(source), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, ValueError) as e:
        raise CheckpointError(f"{where}: the onnx checker objects: {one_line(e)}") from e


def session(source: bytes | Path, where: str, threads: int = 0) -> Any:
    """An onnxruntime session on the CPU, with so many threads (0: as it likes); CheckpointError if it refuses."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4  # errors come as exceptions; warnings on stderr would only repeat them
    try:
        return onnxruntime.InferenceSession(
            source if isinstance(source, bytes) else str(source), options, providers=["CPUExecutionProvider"]
        )
    except Exception as e:  # onnxruntime's own exception types have no common base but Exception
        raise CheckpointError(f"{where}: onnxruntime refuses the model: {one_line(e)}") from e


def run(running: Any, x: FloatArray, output: str | None = None) -> FloatArray:
    """The named (or first) output for a batch."""
    given = running.get_inputs()[0]
    kind = {"tensor(double)": np.float64, "tensor(float16)": np.float16}.get(given.type, np.float32)
    result: FloatArray = running.run(output and [output], {given.name: x.astype(kind, copy=False)})[0]
    return result.astype(np.float32, copy=False)


def compare(
    source: bytes | Path,
    model: Model,
    *,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    tolerance: float = TOLERANCE,
    seed: int = 0,
    where: str = "export",
    channels_last: bool = False,
    output: str | None = None,
) -> VerifyReport:
    """Run both on the same normal random batches and on edge cases; rows so large that memory might not do go singly.

    Args:
        source: the serialised model, or its path (where tensors lie in other files).
        channels_last: the file takes (N, H, W, C).
        output: which of the file's outputs; None is the first.
    Raises: CheckpointError if onnxruntime refuses the model or a batch.
    """
    if not is_number(tolerance) or tolerance < 0:
        raise CheckpointError(f"{where}: tolerance must be a number of at least 0, got {tolerance}; 1e-5 is usual")
    spec = model.spec
    row = spec.input_shape[1:]
    numbers = max(math.prod(row), *(s.layer().numbers_per_row(s.input_shape) for s in spec.layers))
    operations = sum(s.layer().operations_per_row(s.input_shape) for s in spec.layers)
    if numbers > MAX_ROW_NUMBERS or operations > MAX_ROW_OPERATIONS:
        told = f"a row takes {operations:.2g} operations and {numbers:.2g} numbers at once"
        raise CheckpointError(f"{where}: {told}, too many to be compared; {UNCOMPARED}")
    running = session(source, where)
    baked = running.get_inputs()[0].shape[0]
    most = max(1, min(MAX_NUMBERS // numbers, MAX_OPERATIONS // max(operations, 1)))  # rows at a time
    if isinstance(baked, int):  # the file takes no other batch size
        if numbers * baked > MAX_ROW_NUMBERS or operations * baked > MAX_ROW_OPERATIONS:
            told = f"its fixed batch of {baked} rows is too large to be compared"
            raise CheckpointError(f"{where}: {told}; {UNCOMPARED}")
        batch_sizes, rows = (baked,), baked
        edges = np.resize(edge_cases(row), (-(-EDGES // baked) * baked, *row))
    elif most < max(*batch_sizes, EDGES):
        batch_sizes, edges, rows = (1,), edge_cases(row, singly=True), 1
    else:
        edges, rows = edge_cases(row), EDGES
    rng = np.random.default_rng(seed)
    groups = [[rng.standard_normal((n, *row)).astype(np.float32)] for n in batch_sizes]
    groups.append([edges[i : i + rows] for i in range(0, len(edges), rows)])  # judged as one: some give very little
    was_training = model.training
    model.eval()
    reports = []
    try:
        for group in groups:
            pairs = [_outputs(running, model, x, where, channels_last, output) for x in group]
            with np.errstate(invalid="ignore", over="ignore"):
                difference = float(np.max([np.abs(ours - theirs).max() for ours, theirs in pairs]))  # keeps NaN
            size = max(float(np.abs(ours).max()) for ours, _ in pairs)
            figures = (tuple(batch_sizes), difference, size, tolerance, min(len(edges), EDGES))
            reports.append(VerifyReport(*figures, _least(model)))
    finally:
        model.train(was_training)
    return max(reports, key=lambda r: math.inf if math.isnan(r.relative_difference) else r.relative_difference)


def _outputs(
    running: Any, model: Model, x: FloatArray, where: str, channels_last: bool, output: str | None
) -> tuple[FloatArray, FloatArray]:
    """MLX's and onnxruntime's for a batch; MLX's by the CPU, for the newest GPUs multiply with half of the digits."""
    with mx.stream(mx.cpu):
        ours = np.asarray(model(mx.array(x)))
    try:
        theirs = run(running, x.transpose(0, 2, 3, 1) if channels_last else x, output)
    except Exception as e:  # as in session
        raise CheckpointError(f"{where}: onnxruntime fails on a batch of {len(x)}: {one_line(e)}") from e
    if theirs.shape != ours.shape:
        raise CheckpointError(f"{where}: onnxruntime returns shape {theirs.shape}, MLX {ours.shape}")
    return ours, theirs


def _least(model: Model) -> float:
    """The least output that is taken for the size of all: ``LEAST`` behind a layer of few digits, else 0."""
    for layer, s in zip(reversed(model.layers), reversed(model.spec.layers), strict=True):
        if layer.few_digits:
            return LEAST
        if s.parameter_count:  # it may make large numbers of small ones
            break
    return 0.0


def edge_cases(row: Shape, *, singly: bool = False) -> FloatArray:
    """Rows unlike random ones: zeros of both signs, constants, denormal numbers, single ones, a ramp; or that alone."""
    size = math.prod(row)
    if singly:
        return np.linspace(0, 1, size, dtype=np.float32).reshape(1, *row)
    flat = np.zeros((EDGES, size), np.float32)
    flat[1], flat[2], flat[3], flat[4] = -0.0, 1.0, -1.0, 1e-40
    flat[5, 0] = flat[6, -1] = 1.0
    flat[7] = np.linspace(0, 1, size)
    return flat.reshape(EDGES, *row)

"""A model that answers through onnxruntime."""

from __future__ import annotations

import numpy as np

from .._blas import threads
from .._types import FloatArray
from ..checkpoints import Checkpoint, extract_weights
from ..errors import GoMetalError, UnsupportedError, one_line
from ..layers import Model
from ..training.losses import Loss
from ..training.pieces import HELD_NUMBERS, piece_rows

WHERE = "engine='onnxruntime'"


class OnnxRuntime:
    """The model's ONNX graph, ended as the loss says, in onnxruntime on the CPU.

    It answers up to three times as fast as MLX on a Linux CPU (docs/performance.md), and in any thread. Its numbers
    differ from MLX's in the last digits (1e-5 of the largest are allowed and checked here); weights that are changed
    later do not reach it. It has as many threads as BLAS.

    Args:
        model: in evaluation mode or not; Dropout does nothing.
        loss: tells what the outputs mean.
    Raises: UnsupportedError for a model above protobuf's 2 GB, CheckpointError if onnxruntime refuses it or answers
        differently.
    """

    def __init__(self, model: Model, loss: Loss) -> None:
        from ..checkpoints.onnx import verify, writer  # onnx and onnxruntime are not free to import

        if loss.answer is not None and not (loss.uses_logits and model.ends_in_softmax):
            model = writer.ending_in(loss.answer, model)
        export = writer.build(model, Checkpoint(model.spec, extract_weights(model, copy=False)))
        if export.nbytes > writer.MAX_PROTO_BYTES:
            raise UnsupportedError(f"{WHERE} takes models up to 2 GB, this one has {export.nbytes >> 20} MB; use 'mlx'")
        graph = b"".join(export.chunks())
        verify.compare(graph, model, where=WHERE).raise_if_different(WHERE)
        self._session = verify.session(graph, WHERE, threads() or 0)
        self._input = self._session.get_inputs()[0].name
        self._rows = piece_rows(model.spec, HELD_NUMBERS)

    def __call__(self, x: FloatArray) -> FloatArray:
        starts = range(0, len(x), self._rows)
        try:
            found = [self._session.run(None, {self._input: x[i : i + self._rows]})[0] for i in starts]
        except Exception as e:  # its own exception types have no common base but Exception
            raise GoMetalError(f"{WHERE} fails on a batch of {len(x)}: {one_line(e)}") from e
        y: FloatArray = found[0] if len(found) == 1 else np.concatenate(found)
        return y

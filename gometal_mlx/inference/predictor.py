"""Predictor: a checkpoint that answers."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy.typing as npt

from .._compile import tell_if_there_is_no_compiler
from .._types import FloatArray
from ..checkpoints import Checkpoint, load
from ..errors import SpecError, naming, shown
from ..layers import Model, ModelSpec
from ..layers._prepared import Prepared
from ..training.config import LossFunction
from ..training.losses import LOSSES
from ..training.pieces import InPieces
from .onnx_runtime import OnnxRuntime

ENGINES = ("mlx", "onnxruntime")


class Predictor:
    """Runs the model of a checkpoint in evaluation mode, for any thread, one at a time.

    Args:
        source: a Checkpoint, or the path of one in any format.
        loss_function: tells what the outputs mean; None takes it from the checkpoint. A file of go-metal does not say:
            several outputs are then taken as classes, a single one as a value.
        engine: "mlx", or "onnxruntime", which is faster on a CPU; see ``OnnxRuntime``.
    Raises: CheckpointError, SpecError, ShapeError for a file that does not hold a model that runs.
    Source: go-metal training/model_inferencer.go, without its second softmax.
    """

    def __init__(
        self, source: Checkpoint | str | os.PathLike[str], loss_function: LossFunction | str | int | None = None,
        *, engine: str = "mlx",
    ) -> None:  # fmt: skip
        if engine not in ENGINES:
            raise SpecError(f"Predictor: engine must be {' or '.join(map(repr, ENGINES))}, got {shown(engine)}")
        if isinstance(source, Checkpoint):
            self._build(source, loss_function, engine)
            return
        with naming(source):
            self._build(load(source), loss_function, engine)

    def _build(self, checkpoint: Checkpoint, loss_function: LossFunction | str | int | None, engine: str) -> None:
        self.model = Model.from_checkpoint(checkpoint)
        self.notes, self._info = checkpoint.notes, checkpoint.info
        if loss_function is None:
            stored = checkpoint.extras.get("config")
            several = len(self.spec.output_shape) == 2 and self.spec.output_shape[1] > 1
            usual = LossFunction.CrossEntropy if several else LossFunction.MeanSquaredError
            loss_function = stored.get("loss_function", usual) if isinstance(stored, Mapping) else usual
        code = LossFunction.of(loss_function, "Predictor.loss_function")
        self._loss = LOSSES[int(code)](self.spec.output_shape)
        self._answer: Callable[[FloatArray], FloatArray]
        if engine == "onnxruntime":
            self._answer = OnnxRuntime(self.model, self._loss)
            return
        run_model = self.model.logits if self._loss.uses_logits else self.model
        tell_if_there_is_no_compiler()
        self._answer = InPieces(
            lambda x, prepared: self._loss.predictions(run_model(x, prepared=prepared)), Prepared(self.model)
        )

    @property
    def spec(self) -> ModelSpec:
        """The architecture."""
        return self.model.spec

    @property
    def info(self) -> Mapping[str, Any]:
        """What the checkpoint's author says about the model, such as ``class_names``; see Checkpoint.info."""
        return self._info

    def predict(self, inputs: npt.ArrayLike) -> FloatArray:
        """Probabilities for classification, values for regression; shape ``(N, outputs)``.

        Args:
            inputs: ``(N, ...)`` as the model's input shape, any N of at least 1.
        Raises: ShapeError for inputs that do not fit.
        """
        return self._answer(self.spec.batch(inputs))

"""ModelTrainer: the trainer, with go-metal's names."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any, TextIO

import numpy as np
import numpy.typing as npt

from .._types import FloatArray, Shape, is_int
from ..errors import ShapeError, SpecError, shown
from ..layers import ModelSpec
from ..optimizers.base import Schedule
from .result import TrainingResult
from .resumable import ResumableTrainer
from .schedulers import LRScheduler, as_scheduler
from .session import ModelArchitecturePrinter, TrainingSession


class ModelTrainer(ResumableTrainer):
    """Trains a Model with one compiled step: forward, backward and update, loss and accuracy from the same pass.

    Args:
        model: a ModelSpec (weights are drawn with ``config.seed``) or a Model.
        config: default ``TrainerConfig()``.
    Raises: SpecError for settings that do not fit each other or the model.

    Below are go-metal's own names, so that a Go program can be carried over line by line: its five ways to train a
    batch are one here, and arguments that only fed Metal are ignored. go-metal hands over flat arrays with their
    shape; both are taken here.

    Source: go-metal training/model_trainer.go.

    >>> from gometal_mlx.layers import ModelBuilder
    >>> from gometal_mlx.training import TrainerConfig
    >>> trainer = ModelTrainer(ModelBuilder((8, 4)).add_dense(3).compile(), TrainerConfig(seed=0))
    >>> x, y = np.ones((8, 4), np.float32), np.zeros(8, np.int32)
    >>> losses = trainer.fit((x, y), epochs=20)["loss"]
    >>> losses[-1] < losses[0]
    True
    """

    def train_batch_unified(self, inputs: npt.ArrayLike, input_shape: Shape, labels: npt.ArrayLike) -> TrainingResult:
        """One step on a flat or shaped batch; see ``train_batch``."""
        return self.train_batch(_shaped(inputs, input_shape), labels)

    def train_batch_optimized(
        self, inputs: npt.ArrayLike, input_shape: Shape, labels: npt.ArrayLike, label_shape: Shape
    ) -> TrainingResult:
        """One step on a flat or shaped batch; see ``train_batch``."""
        return self.train_batch(_shaped(inputs, input_shape), _shaped(labels, label_shape))

    train_batch_persistent = train_batch_optimized
    train_batch_with_command_pool = train_batch_optimized
    train_batch_persistent_with_command_pool = train_batch_optimized

    def infer_batch(self, inputs: npt.ArrayLike, input_shape: Shape) -> FloatArray:
        """Predictions for a flat or shaped batch; see ``predict``."""
        return self.predict(_shaped(inputs, input_shape))

    def enable_persistent_buffers(self, input_shape: Shape) -> None:
        """Nothing to do: MLX keeps its buffers itself."""

    def cleanup(self) -> None:
        """Nothing to do: Python frees a trainer that nobody holds."""

    def set_lr_scheduler(self, scheduler: LRScheduler | Schedule | None) -> None:
        """Follow a schedule, or a function of the step, from the next step on; None keeps the present rate."""
        chosen = as_scheduler(scheduler, "set_lr_scheduler: scheduler")
        if chosen is not None:
            chosen.get_lr(self.epoch, self.step, self.base_learning_rate)  # one that cannot work is not taken
        self.config = replace(self.config, scheduler=deepcopy(chosen))
        self.scheduler = chosen
        self._follow_schedule()

    def get_lr_scheduler(self) -> LRScheduler | None:
        """The schedule in use."""
        return self.scheduler

    def get_current_learning_rate(self) -> float:
        """The rate of the next step."""
        return self.learning_rate

    def set_learning_rate(self, rate: float) -> None:
        """Change the rate, and the base that a schedule scales."""
        self.learning_rate = rate

    def set_epoch(self, epoch: int) -> None:
        """Say how many epochs are finished (``fit`` does it itself); the schedule follows.

        Raises: SpecError for a negative number.
        """
        if not is_int(epoch) or not 0 <= epoch < 2**63:
            raise SpecError(f"set_epoch: a count of finished epochs of at least 0 is needed, got {epoch!r}")
        self.epoch = int(epoch)
        self._follow_schedule()

    def step_scheduler_with_metric(self, metric: float) -> None:
        """Tell a ReduceLROnPlateau schedule an epoch's metric (``fit`` does it itself); others take no notice."""
        if self.scheduler is not None and self.scheduler.follows_metric:
            self.scheduler.take_metric(metric, self.learning_rate)
            self._follow_schedule()

    def get_scheduler_info(self) -> str:
        """One line about the schedule and where it stands."""
        if self.scheduler is None:
            return "No scheduler (constant LR)"
        place = f"epoch={self.epoch}, step={self.step}"
        return f"{self.scheduler.get_name()} scheduler: LR={self.learning_rate:.6f} ({place})"

    def get_model_spec(self) -> ModelSpec:
        """The architecture."""
        return self.spec

    def get_model_summary(self) -> str:
        """The architecture as text."""
        return self.spec.summary()

    def get_stats(self) -> dict[str, Any]:
        """Step counters, optimizer, rate and model size."""
        return {
            "current_step": self.step,
            "total_steps": self.step,
            "batch_size": self.config.batch_size,
            "optimizer_type": self.config.optimizer_type,
            "learning_rate": self.learning_rate,
            "model_summary": self.spec.summary(),
            "model_parameters": self.spec.total_parameters,
            "layer_count": len(self.spec.layers),
        }

    def create_training_session(
        self, model_name: str, epochs: int, steps_per_epoch: int, validation_steps: int
    ) -> TrainingSession:
        """Progress output for a loop of your own."""
        return TrainingSession(self, model_name, epochs, steps_per_epoch, validation_steps)

    def print_model_architecture(self, model_name: str, file: TextIO | None = None) -> None:
        """Print the architecture in PyTorch's style."""
        ModelArchitecturePrinter(model_name).print_architecture(self.spec, file)


def _shaped(values: npt.ArrayLike, shape: Sequence[int]) -> Any:
    array = np.asarray(values)
    if not isinstance(shape, Sequence | np.ndarray) or not all(is_int(d) and d > 0 for d in shape):
        raise ShapeError(f"a shape of whole numbers of at least 1 is needed, got {shown(shape)}")
    if array.size != int(np.prod(shape)):
        raise ShapeError(f"{array.size} values do not have the shape {tuple(shape)}")
    return array.reshape(tuple(shape))

"""ModelTrainer: fit, evaluate, predict, checkpoint, restore."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from .._types import FloatArray, f32, number
from ..checkpoints import (
    Checkpoint,
    CheckpointMetadata,
    OptimizerState,
    OptimizerTensor,
    TrainingState,
    extract_weights,
    load,
    save,
)
from ..data import ArrayDataset, DataLoader
from ..errors import CheckpointError, GoMetalError, SpecError
from ..layers import Model, ModelSpec
from ..layers.spec import describe_difference
from ..optimizers import make_optimizer
from .callbacks import Callback, Event
from .config import TrainerConfig
from .history import History
from .losses import LOSSES
from .state import RunState
from .step import TrainingStep, in_pieces

Data = DataLoader | tuple[npt.ArrayLike, npt.ArrayLike]

UNKNOWN_BEST_LOSS = 1e9  # what go-metal writes before any loss is known; JSON has no infinity
FRAMEWORK = "gometal_mlx"


class TrainingResult:
    """What one step gave; the numbers are computed when they are read.

    Args:
        loss: mean over the batch, before the update.
        accuracy: share of the batch classified correctly, from the same forward pass; None for regression.
        batch_size: rows in this batch.
        step_time: seconds this call took (without waiting for numbers that nobody reads).
    """

    success = True  # go-metal's field; a step that fails raises

    def __init__(self, loss: mx.array, correct: mx.array | None, batch_size: int, step_time: float) -> None:
        self._loss, self._correct = loss, correct
        self.batch_size, self.step_time = batch_size, step_time

    @cached_property
    def loss(self) -> float:
        """Mean loss of the batch."""
        return number(self._loss)

    @cached_property
    def accuracy(self) -> float | None:
        """Share of rows classified correctly, 0 to 1; None for regression."""
        return None if self._correct is None else number(self._correct) / self.batch_size

    @property
    def batch_rate(self) -> float:
        """Rows per second."""
        return self.batch_size / self.step_time if self.step_time > 0 else math.inf

    def __repr__(self) -> str:
        accuracy = "" if self.accuracy is None else f", accuracy={self.accuracy:.4f}"
        return f"TrainingResult(loss={self.loss:.6g}{accuracy}, batch_size={self.batch_size})"


@dataclass(frozen=True)
class RestoreReport:
    """What ``restore`` put back, and what the checkpoint lacks (so it starts fresh)."""

    restored: tuple[str, ...]
    missing: tuple[str, ...]
    ignored: tuple[str, ...] = ()

    def __str__(self) -> str:
        parts = (("restored", self.restored), ("missing", self.missing), ("ignored", self.ignored))
        return "; ".join(f"{title}: {', '.join(items)}" for title, items in parts if items)


class ModelTrainer:
    """Trains a Model with one compiled step: forward, backward and update, loss and accuracy from the same pass.

    Args:
        model: a ModelSpec (weights are drawn with ``config.seed``) or a Model.
        config: default ``TrainerConfig()``.
    Raises: SpecError for settings that do not fit each other or the model.
    Source: go-metal training/model_trainer.go.

    >>> from gometal_mlx.layers import ModelBuilder
    >>> trainer = ModelTrainer(ModelBuilder((8, 4)).add_dense(3).compile(), TrainerConfig(seed=0))
    >>> x, y = np.ones((8, 4), np.float32), np.zeros(8, np.int32)
    >>> losses = trainer.fit((x, y), epochs=20)["loss"]
    >>> losses[-1] < losses[0]
    True
    """

    def __init__(self, model: ModelSpec | Model, config: TrainerConfig | None = None) -> None:
        self.config = config or TrainerConfig()
        seed = _draw_seed() if self.config.seed is None else self.config.seed
        self.model = model if isinstance(model, Model) else Model(model, seed)
        self.loss = LOSSES[int(self.config.loss_function or 0)](self.spec.output_shape)
        self.optimizer = make_optimizer(int(self.config.optimizer_type), self.config.to_dict())
        self.optimizer.init(self.model.trainable_parameters())
        self.history = History()
        self.should_stop = False
        self.epoch = 0  # epochs finished
        self.best_loss, self.best_accuracy = math.inf, 0.0
        self._loader: DataLoader | None = None  # of the fit under way
        self._run_start: int | None = None  # the epoch at which the fit under way, or to be finished, began
        self._position: dict[str, Any] | None = None  # where in the data that fit is to go on
        self._step = TrainingStep(self.model, self.loss, self.optimizer, mx.random.key(seed), mx.zeros(3))

    @property
    def spec(self) -> ModelSpec:
        """The architecture."""
        return self.model.spec

    @property
    def step(self) -> int:
        """Optimizer steps so far."""
        return int(self.optimizer.step.item())

    @property
    def learning_rate(self) -> float:
        """The rate of the next step; may be set at any time. 0 for an optimizer that uses none."""
        return self.optimizer.rate

    @learning_rate.setter
    def learning_rate(self, value: float) -> None:
        self.optimizer.rate = value

    @property
    def optimizer_state(self) -> OptimizerState:
        """The optimizer's hyper-parameters and arrays in go-metal's names (a copy)."""
        tensors = [OptimizerTensor(n, (a.size,), a, kind) for n, kind, a in self.optimizer.saved_tensors(self._slots())]
        return OptimizerState(self.optimizer.json_type, self.optimizer.saved_parameters(), tensors)

    # -------------------------------------------------------------------------------------------------- training

    def train_batch(self, inputs: npt.ArrayLike, labels: npt.ArrayLike) -> TrainingResult:
        """One optimizer step on one batch of any size.

        Args:
            inputs: ``(N, ...)`` as the model's input shape.
            labels: what the loss takes; see its docstring.
        Raises: ShapeError for inputs or labels that do not fit; nothing is changed then.
        """
        start = time.perf_counter()
        x, y = self._batch(inputs, labels)
        loss, correct = self._step(x, y)
        counted = correct if self.loss.classification else None
        return TrainingResult(loss, counted, x.shape[0], time.perf_counter() - start)

    def fit(
        self, data: Data, epochs: int, validation_data: Data | None = None, callbacks: Sequence[Callback] = (),
        checkpoints: Callback | None = None,
    ) -> History:  # fmt: skip
        """Train for a number of epochs; on a resumed trainer, finish the run that was interrupted.

        Args:
            data: a DataLoader, or ``(x, y)`` arrays (then shuffled, in batches of ``config.batch_size``).
            epochs: of the whole run; a resumed trainer trains those that are left.
            validation_data: judged after every epoch, as ``val_loss`` and so on.
            callbacks: called in this order.
            checkpoints: called last; a CheckpointManager of this trainer.
        Returns: the history of all epochs so far.
        Raises: SpecError, ShapeError for data that does not fit.
        """
        if isinstance(epochs, bool) or not isinstance(epochs, int) or epochs < 0:
            raise SpecError(f"fit: epochs must be an int of at least 0, got {epochs!r}")
        loader = self._as_loader(data, shuffle=True)
        validation = None if validation_data is None else self._as_loader(validation_data, shuffle=False)
        self._take_up(loader)
        self._run_start = self.epoch if self._run_start is None else self._run_start
        self._loader, last = loader, self._run_start + epochs
        listeners = [*callbacks, *([checkpoints] if checkpoints else [])]
        self.should_stop = False

        def tell(method: str, epoch: int, **values: Any) -> None:
            event = Event(self, epoch, last, batches=len(loader), **values)
            for listener in listeners:
                getattr(listener, method)(event)

        tell("on_fit_begin", self.epoch + 1)
        try:
            while self.epoch < last and not self.should_stop:
                start = time.perf_counter()
                tell("on_epoch_begin", self.epoch + 1, batch=loader.batch)
                metrics = self._train_epoch(loader, tell if listeners else None)
                if validation is not None:
                    metrics |= {f"val_{k}": v for k, v in self.evaluate(validation).items()}
                self._finish_epoch(metrics, time.perf_counter() - start)
                tell("on_epoch_end", self.epoch, batch=len(loader), metrics=metrics)
        finally:
            tell("on_fit_end", self.epoch)
            self._loader = self._run_start = None
        return self.history

    def _train_epoch(self, loader: DataLoader, tell: Callable[..., None] | None) -> dict[str, Any]:
        if loader.batch == 0:
            self._step.reset_totals()
        for x, y in loader:
            result = self.train_batch(x, y)
            if tell:
                tell("on_step_end", self.epoch + 1, batch=loader.batch, result=result)
        loss, correct, rows = self._step.totals
        accuracy = {"accuracy": correct / rows} if self.loss.classification else {}
        return {"loss": loss / rows, **accuracy, "learning_rate": self.learning_rate}

    def _finish_epoch(self, metrics: dict[str, Any], elapsed_s: float) -> None:
        self.epoch += 1
        judged = "val_" if "val_loss" in metrics else ""
        if math.isfinite(metrics[f"{judged}loss"]):
            self.best_loss = min(self.best_loss, metrics[f"{judged}loss"])
        self.best_accuracy = max(self.best_accuracy, metrics.get(f"{judged}accuracy", 0.0))
        self.history.append({"epoch": self.epoch, **metrics}, elapsed_s=elapsed_s)

    def _as_loader(self, data: Data, *, shuffle: bool) -> DataLoader:
        if isinstance(data, DataLoader):
            loader = data
        elif isinstance(data, tuple | list) and len(data) == 2:
            loader = DataLoader(ArrayDataset(*data), self.config.batch_size, shuffle=shuffle, seed=self.config.seed)
        else:
            raise SpecError(f"data must be a DataLoader or a pair (x, y) of arrays, got {type(data).__name__}")
        if isinstance(loader.dataset, ArrayDataset):  # say now what would go wrong in the middle of an epoch
            self.spec.batch(loader.dataset.x)
            self.loss.labels(loader.dataset.y, len(loader.dataset))
        return loader

    def _take_up(self, loader: DataLoader) -> None:
        if self._position is None:
            return
        try:
            loader.load_state_dict(self._position)
        except SpecError as e:
            raise SpecError(f"fit: the run to be finished was given other data: {e}") from e
        self._position = None

    def _batch(self, inputs: npt.ArrayLike, labels: npt.ArrayLike) -> tuple[mx.array, mx.array]:
        x = self.spec.batch(inputs)
        return mx.array(x), mx.array(self.loss.labels(labels, len(x)))

    # --------------------------------------------------------------------------------------- evaluate and predict

    def evaluate(self, data: Data) -> dict[str, float]:
        """Loss and, for classification, accuracy over all rows, in evaluation mode.

        Raises: ShapeError, SpecError for data that does not fit.
        """
        totals = np.zeros(3)
        for inputs, labels in self._as_loader(data, shuffle=False):
            x, y = self._batch(inputs, labels)
            outputs = self._step.forward(x)
            correct = self.loss.correct(outputs, y)
            totals += [number(mx.sum(self.loss.per_row(outputs, y))), 0 if correct is None else number(correct), len(x)]
        loss, right, rows = totals.tolist()
        return {"loss": loss / rows, **({"accuracy": right / rows} if self.loss.classification else {})}

    def predict(self, inputs: npt.ArrayLike) -> FloatArray:
        """Probabilities for classification, values for regression, in evaluation mode; shape ``(N, outputs)``.

        Raises: ShapeError for inputs that do not fit the model.
        """
        x = self.spec.batch(inputs)
        return in_pieces(lambda piece: self.loss.predictions(self._step.forward(piece)), x)

    # -------------------------------------------------------------------------------------- checkpoint and restore

    def checkpoint(self, description: str = "", tags: Sequence[str] = ()) -> Checkpoint:
        """Everything needed to go on from here, as numpy copies that later steps do not touch."""
        best_loss = f32(self.best_loss) if math.isfinite(self.best_loss) else UNKNOWN_BEST_LOSS
        state = TrainingState(self.epoch, self.step, self.learning_rate, best_loss, f32(self.best_accuracy), self.step)
        first, second = (int(word) for word in np.asarray(self._step.key))
        position = self._loader.state_dict() if self._loader else self._position
        run = RunState(
            self.config, (first, second), self.best_loss, self.best_accuracy, self.history.records, self._run_start,
            position, tuple(self._step.totals),
        )  # fmt: skip
        metadata = CheckpointMetadata.now(description, tags)
        metadata.framework = FRAMEWORK
        return Checkpoint(
            self.spec, extract_weights(self.model), state, self.optimizer_state, metadata, run.to_extras()
        )

    def save(self, path: str | os.PathLike[str], **options: Any) -> Any:
        """Write a checkpoint in the format the suffix names; see ``checkpoints.save``."""
        return save(self.checkpoint(), path, **options)

    @classmethod
    def resume(cls, path: str | os.PathLike[str]) -> Self:
        """A trainer that stands where the file was written; the same ``fit`` call then finishes the run.

        Raises: CheckpointError if the file holds no configuration (only gometal_mlx writes one).
        """
        checkpoint = load(path)
        try:
            if (run := RunState.from_extras(checkpoint.extras)) is None:
                raise CheckpointError("holds no trainer configuration; make a ModelTrainer and use restore()")
            trainer = cls(Model.from_checkpoint(checkpoint), run.config)
            trainer.restore(checkpoint)
        except GoMetalError as e:
            raise type(e)(f"{path}: {e}") from e
        return trainer

    def restore(self, checkpoint: Checkpoint) -> RestoreReport:
        """Take over a checkpoint's weights, optimizer state, counters and random state: all of it, or none.

        What the file lacks starts fresh and is listed as missing. Hyper-parameters stored with the optimizer's state
        replace the configured ones.

        Raises: CheckpointError for another architecture (with the differences) or damaged state.
        """
        model = Model.from_checkpoint(checkpoint)
        if different := describe_difference(self.spec, model.spec):
            raise CheckpointError(f"restore: the checkpoint holds another architecture: {'; '.join(different)}")
        run = RunState.from_extras(checkpoint.extras)
        optimizer = make_optimizer(int(self.config.optimizer_type), self.config.to_dict())
        saved, state = checkpoint.optimizer_state, checkpoint.training_state
        if saved is not None and saved.type != optimizer.json_type:
            raise CheckpointError(
                f"restore: the optimizer state is of {saved.type}, the trainer uses {optimizer.json_type}"
            )
        live = saved is not None and optimizer.restore(saved.parameters, saved.state_data, self._slots())
        optimizer.init(self.model.trainable_parameters())
        if state.learning_rate > 0:
            optimizer.rate = state.learning_rate
        # from here on nothing can fail
        self.model.update({layer.name: dict(model[layer.name]) for layer in model.layers if layer.name in model})
        self.optimizer, self.epoch, self._loader = optimizer, state.epoch, None
        self.best_loss = math.inf if state.best_loss in (0, UNKNOWN_BEST_LOSS) else state.best_loss
        self.best_accuracy = state.best_accuracy
        key, totals = self._step.key, mx.zeros(3)
        if run is not None:
            key, totals = mx.array(run.rng, mx.uint32), mx.array(run.totals)
            self.best_loss, self.best_accuracy, self.history = run.best_loss, run.best_accuracy, History(run.history)
            self._run_start, self._position = run.run_start, run.data
        self._step = TrainingStep(self.model, self.loss, optimizer, key, totals)
        exact = ("random state", "history", "data position")
        restored = (
            "weights",
            "epoch",
            "learning rate",
            *(("optimizer state",) if live else ()),
            *(exact if run else ()),
        )
        fresh = "optimizer state" if saved is None else "optimizer state (all zero in the file: fresh)"
        return RestoreReport(restored, (*(() if live else (fresh,)), *(() if run else exact)))

    def _slots(self) -> list[tuple[str, str, tuple[int, ...]]]:
        """(layer, param, shape) of the learned arrays in go-metal's order, which numbers the optimizer's state."""
        return [(layer.name, name, param.shape) for layer, name, param in self.model.slots() if param.trainable]


def _draw_seed() -> int:
    return int(np.random.SeedSequence().generate_state(1)[0])

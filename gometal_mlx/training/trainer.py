"""The training loop: fit, evaluate, predict."""

from __future__ import annotations

import copy
import math
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from numbers import Real
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt
from mlx.utils import tree_flatten

from .._types import FloatArray, is_int, number
from ..data import ArrayDataset, DataLoader
from ..data.dataset import Dataset
from ..errors import SpecError, TrainingError, shown, suggest
from ..layers import Model, ModelSpec
from ..layers.base import STATISTICS
from ..optimizers import Optimizer, make_optimizer
from ..optimizers.base import TINY
from .callbacks import Callback, Listeners
from .config import TrainerConfig
from .history import History
from .losses import LOSSES
from .metrics import MetricAccumulator, resolve_metrics
from .pieces import OTHER_THREAD
from .result import TrainingResult
from .run import Interrupt, Run, interruptible
from .schedulers import LRScheduler
from .step import Carried, TrainingStep

Data = DataLoader | Dataset | tuple[npt.ArrayLike, npt.ArrayLike]


class Trainer:
    """The loop of ModelTrainer, which see: everything but checkpoints and go-metal's names."""

    def __init__(self, model: ModelSpec | Model, config: TrainerConfig | None = None) -> None:
        if not isinstance(model, Model | ModelSpec):
            told = f"a Model or a compiled ModelSpec is needed, got a {type(model).__name__}"
            raise SpecError(f"ModelTrainer: {told}; a ModelBuilder makes one by compile()")
        if not isinstance(config, TrainerConfig | None):
            raise SpecError(f"ModelTrainer: config must be a TrainerConfig, got {shown(config)}")
        config = config or TrainerConfig()
        seed = int(np.random.SeedSequence().generate_state(1)[0]) if config.seed is None else config.seed
        self.config = replace(config, seed=seed)  # a checkpoint then tells which seed was drawn
        self.model = model if isinstance(model, Model) else Model(model, seed)
        for name, weight in tree_flatten(self.model.parameters()):
            if weight.dtype != mx.float32:
                told = f"weights must be float32, {name} is {str(weight.dtype).rpartition('.')[2]}"
                raise SpecError(f"ModelTrainer: {told}; use_mixed_precision computes in float16 from them")
        self._freeze(self.config.frozen_layers)
        self.loss = LOSSES[int(self.config.loss_function or 0)](self.spec.output_shape, self.config.label_smoothing)
        self.loss.check_model(self.spec.last_layer)
        self._check_class_weights()
        self._metric_names(self.config.metrics)  # a wrong name must not wait for the first epoch's end
        self.optimizer = self._new_optimizer()
        self.optimizer.init(self.model.trainable_parameters())
        self.base_learning_rate = self.optimizer.rate  # what a schedule scales
        self.scheduler: LRScheduler | None = copy.deepcopy(self.config.scheduler)  # type: ignore[assignment]
        if self.scheduler is not None:
            self.scheduler.get_lr(0, 0, self.base_learning_rate)  # what cannot work must not wait for the first step
        self.history = History()
        self.info: dict[str, Any] = {}  # goes into every checkpoint; see Checkpoint.info
        self.should_stop = False
        self.epoch = 0  # epochs finished
        self.best_loss, self.best_accuracy = math.inf, 0.0
        self._steps_before = 0  # steps that a restored run did with an optimizer whose state is lost
        self._run: Run | None = None
        self._pending: Run | None = None  # a run that fit is to finish
        scale = self.config.initial_loss_scale if self.config.scales_loss else 1.0
        first, second = (int(word) for word in np.asarray(mx.random.key(seed)))
        self._training_step = self._new_step(self.optimizer, Carried((first, second), scaling=(scale, 0.0)))

    @property
    def spec(self) -> ModelSpec:
        """The architecture."""
        return self.model.spec

    @property
    def step(self) -> int:
        """Optimizer steps so far."""
        self._check_thread()
        return self._steps_before + int(number(self.optimizer.step))

    @property
    def learning_rate(self) -> float:
        """The rate of the next step; may be set at any time, and is then the base of the schedule, too."""
        return self.optimizer.rate

    @learning_rate.setter
    def learning_rate(self, value: float) -> None:
        self.optimizer.rate = value
        self.base_learning_rate = self.optimizer.rate

    def _check_thread(self) -> None:
        """Refuse what another thread asks while ``fit`` runs: two that evaluate the same arrays end the process."""
        if self._run is not None and self._run.thread != threading.get_ident():
            raise TrainingError(f"{OTHER_THREAD}; ask in a callback")

    def _new_optimizer(self) -> Optimizer:
        return make_optimizer(int(self.config.optimizer_type), self.config.to_dict())

    def _new_step(self, optimizer: Optimizer, carried: Carried) -> TrainingStep:
        return TrainingStep(self.model, self.loss, optimizer, self.config, carried)

    def _freeze(self, names: Sequence[str]) -> None:
        """Freeze these layers, and note in the configuration those that the model had frozen before."""
        known = [layer.name for layer in self.model.layers if layer.name in self.model]
        for name in names:
            if name not in known:
                raise SpecError(f"TrainerConfig: frozen layer {name!r} has no weights{suggest(name, known)}")
            self.model[name].freeze()
        frozen = []
        for name in known:
            learned = [n for n in self.model[name] if n not in STATISTICS]
            trained = [n for n in learned if n in self.model[name].trainable_parameters()]
            if trained and len(trained) < len(learned):
                told = f"of layer {name!r} only {', '.join(trained)} can be trained; freeze all of its weights, or none"
                raise SpecError(f"ModelTrainer: {told}")
            if learned and not trained:
                frozen.append(name)
        self.config = replace(self.config, frozen_layers=(*names, *(n for n in frozen if n not in names)))
        if not tree_flatten(self.model.trainable_parameters()):
            raise SpecError("ModelTrainer: nothing to train; the model has no weights, or all of them are frozen")

    def _metric_names(self, names: Sequence[str]) -> list[str]:
        outputs = self.spec.output_shape[-1]
        return resolve_metrics(names, self.config.problem_type, outputs, multi_label=self.loss.multi_label)

    def _check_class_weights(self) -> None:
        weights, outputs = self.config.class_weights, self.spec.output_shape[-1]
        if weights is None:
            return
        if not self.loss.classification:
            raise SpecError("TrainerConfig: class_weights are for classification")
        if self.loss.multi_label:
            told = f"class_weights weigh rows by their one class, but {outputs} outputs of {type(self.loss).__name__}"
            raise SpecError(f"TrainerConfig: {told} are each a yes or no of their own; leave them out")
        if len(weights) != max(outputs, 2):
            raise SpecError(f"TrainerConfig: class_weights needs {max(outputs, 2)} numbers, got {len(weights)}")

    # -------------------------------------------------------------------------------------------------- training

    def train_batch(self, inputs: npt.ArrayLike, labels: npt.ArrayLike) -> TrainingResult:
        """One optimizer step on one batch of any size.

        Args:
            inputs: ``(N, ...)`` as the model's input shape.
            labels: what the loss takes; see its docstring.
        Raises: ShapeError for inputs or labels that do not fit, TrainingError for a loss that is not finite; nothing is
            changed then.
        """
        return self._train(inputs, labels, last=False)

    def _train(self, inputs: npt.ArrayLike, labels: npt.ArrayLike, *, last: bool) -> TrainingResult:
        start = time.perf_counter()
        x, y = self._batch(inputs, labels)
        if self.scheduler is not None and self.scheduler.per_step:
            self._follow_schedule()
        loss, correct = self._training_step(mx.array(x), y, last=last)
        counted = correct if self.loss.classification else None
        return TrainingResult(loss, counted, len(x), time.perf_counter() - start)

    def _follow_schedule(self) -> None:
        if self.scheduler is not None and self.optimizer.uses_learning_rate:
            rate = self.scheduler.get_lr(self.epoch, self.step, self.base_learning_rate)
            self.optimizer.rate = max(rate, TINY)  # a schedule may end at 0

    def fit(
        self, data: Data, epochs: int, validation_data: Data | None = None, callbacks: Sequence[Callback] | None = (),
        checkpoints: Callback | None = None, *, validation_split: float = 0.0,
    ) -> History:  # fmt: skip
        """Train for a number of epochs; on a resumed trainer, finish the run that was interrupted.

        Ctrl-C ends it after the step under way: the history so far is returned, the trainer can go on (the same call
        finishes the run), and a second Ctrl-C interrupts at once. SIGTERM does the same and then ends the process.

        Args:
            data: a DataLoader, from its epoch's first batch on, or ``(x, y)`` arrays or a dataset (then shuffled, in
                batches of ``config.batch_size``).
            epochs: of the whole run; a resumed trainer trains those that are left.
            validation_data: judged after every epoch, as ``val_loss`` and so on.
            callbacks: called in this order, but those that save (a CheckpointManager) last.
            checkpoints: called last; a CheckpointManager of this trainer.
            validation_split: share of the arrays' rows (drawn with the seed) taken for validation instead.
        Returns: the history of all epochs so far.
        Raises: SpecError, ShapeError for data that does not fit; TrainingError for a loss that is not finite.
        """
        if not is_int(epochs) or epochs < 0:
            given = shown(epochs)
            if hasattr(epochs, "__len__"):  # as Keras has it
                given += "; inputs and labels are given as one pair: fit((x, y), epochs)"
            raise SpecError(f"fit: epochs must be an int of at least 0, got {given}")
        if validation_split:
            data, validation_data = self._split(data, validation_data, validation_split)
        loader = self._as_loader(data, shuffle=True)
        if loader is not data:
            loader.epoch = self.epoch  # five epochs and five more see the rows in the order of ten
        validation = None if validation_data is None else self._as_loader(validation_data, shuffle=False)
        listeners = self._listeners(callbacks or [], checkpoints)
        pending = self._pending
        run = self._begin(loader, listeners)
        last = run.start + int(epochs)
        told = Listeners(self, last, len(loader), listeners)
        with interruptible() as stop:
            try:
                told.tell("on_fit_begin", self.epoch + 1, resumed=run.resumed)
            except BaseException:  # nothing has begun: the call may be made again
                self._run, self._pending = None, pending
                raise
            failed: BaseException | None = None
            try:
                while self.epoch < last and not self.should_stop and not stop.requested:
                    self._epoch(loader, validation, told, stop)
            except BaseException as e:
                failed = e
            if failed is not None or (stop.requested and self.epoch < last):
                failed = told.tell_all("on_interrupt", self.epoch + 1, failed, batch=loader.batch, error=failed)
            run.stopping = self.should_stop
            self._run, self._pending = None, run if stop.requested and self.epoch < last else None
            failed = told.tell_all("on_fit_end", self.epoch, failed)
            try:
                if failed is not None:
                    raise failed
            finally:
                del failed  # else it and this frame would keep each other, and with them trainer and data
        return self.history

    def _listeners(self, callbacks: Sequence[Callback], checkpoints: Callback | None) -> list[Callback]:
        if not all(isinstance(c, Callback) for c in (callbacks if isinstance(callbacks, list | tuple) else [None])):
            raise SpecError(f"fit: callbacks must be a list of Callbacks, got {shown(callbacks)}")
        if not isinstance(checkpoints, Callback | None):
            told = f"a CheckpointManager is needed, got {shown(checkpoints)}"
            raise SpecError(f"fit: checkpoints: {told}; CheckpointManager(trainer, config) makes one")
        listeners = sorted([*callbacks, *([checkpoints] if checkpoints else [])], key=lambda c: c.saves)
        for listener in listeners:
            listener.check_trainer(self)
        return listeners

    def _begin(self, loader: DataLoader, listeners: Sequence[Callback]) -> Run:
        pending = self._pending
        run = pending.taken_up(loader, listeners, self.epoch) if pending else Run.begun(self.epoch, loader, listeners)
        self.should_stop = run.resumed and pending is not None and pending.stopping
        self._run, self._pending = run, None  # not before: a call that is refused may be made again
        return run

    def _epoch(self, loader: DataLoader, validation: DataLoader | None, told: Listeners, stop: Interrupt) -> None:
        start = time.perf_counter()
        mx.reset_peak_memory()
        if loader.batch == 0:
            self._training_step.reset_totals()
            self._follow_schedule()  # in an epoch that is taken up again the rate may have been set by hand
        told.tell("on_epoch_begin", self.epoch + 1, batch=loader.batch)
        for x, y in loader:
            try:
                result = self._train(x, y, last=loader.batch == len(loader))
            except TrainingError as e:
                at, before = loader.batch, e.undone - loader.batch
                loader.batch = max(-before, 0)  # what was undone is to be done again
                more = f"; the last {before} of the epoch before will not be done again" if before > 0 else ""
                raise TrainingError(f"epoch {self.epoch + 1}, batch {at}: {e}{more}", e.undone) from e
            except BaseException:
                loader.batch -= 1
                raise
            told.tell("on_step_end", self.epoch + 1, batch=loader.batch, result=result)
            if stop.requested and loader.batch < len(loader):
                return
        loss, correct, rows = self._training_step.totals
        accuracy = {"accuracy": correct / rows} if self.loss.classification else {}
        metrics = {"loss": loss / rows, **accuracy, "learning_rate": self.learning_rate}
        if validation is not None:
            try:
                metrics |= {f"val_{k}": v for k, v in self.evaluate(validation).items()}
            except BaseException:  # the epoch is not finished: what is left of it is to validate
                loader.epoch, loader.batch = loader.epoch - 1, len(loader)
                raise
        self._finish_epoch(metrics, time.perf_counter() - start)
        told.tell("on_epoch_end", self.epoch, batch=len(loader), metrics=metrics)

    def _finish_epoch(self, metrics: dict[str, float], elapsed_s: float) -> None:
        self.epoch += 1
        judged = "val_" if "val_loss" in metrics else ""
        if math.isfinite(metrics[f"{judged}loss"]):
            self.best_loss = min(self.best_loss, metrics[f"{judged}loss"])
        self.best_accuracy = max(self.best_accuracy, metrics.get(f"{judged}accuracy", 0.0))
        self.history.append(
            {"epoch": self.epoch, **metrics}, elapsed_s=elapsed_s, peak_memory_mb=mx.get_peak_memory() / 2**20
        )
        if self.scheduler is not None:
            self.scheduler.observe(metrics, self.learning_rate)
            self._follow_schedule()  # what is saved from here on has the rate of the next epoch

    def _as_loader(self, data: Data, *, shuffle: bool) -> DataLoader:
        if isinstance(data, DataLoader):
            loader = data
        else:
            dataset = ArrayDataset(*data) if isinstance(data, tuple | list) and len(data) == 2 else data
            if not hasattr(dataset, "rows"):
                told = f"a DataLoader, a dataset or a pair (x, y) of arrays, got {type(data).__name__}"
                raise SpecError(f"data must be {told}")
            loader = DataLoader(dataset, self.config.batch_size, shuffle, self.config.seed)
        if not len(loader):
            raise SpecError(f"data needs at least one row, the {type(loader.dataset).__name__} has none")
        if isinstance(loader.dataset, ArrayDataset):  # say now what would go wrong in the middle of an epoch
            self.spec.batch(loader.dataset.x)
            self.loss.labels(loader.dataset.y, len(loader.dataset))
        return loader

    def _split(self, data: Data, validation: Data | None, share: float) -> tuple[Data, Data]:
        pair = isinstance(data, tuple | list) and len(data) == 2
        if validation is not None or not pair or not isinstance(share, Real) or not 0 < share < 1:
            told = "validation_split (between 0 and 1) needs a pair (x, y) of arrays, and no validation_data beside it"
            raise SpecError(f"fit: {told}")
        given = ArrayDataset(*data)
        order = np.random.default_rng(self.config.seed).permutation(len(given))
        cut = max(1, round(len(given) * share))
        return given.rows(order[cut:]), given.rows(order[:cut])

    def _batch(self, inputs: npt.ArrayLike, labels: npt.ArrayLike) -> tuple[FloatArray, mx.array]:
        x = self.spec.batch(inputs)
        return x, mx.array(self.loss.labels(labels, len(x)))

    # --------------------------------------------------------------------------------------- evaluate and predict

    def evaluate(self, data: Data, metrics: Sequence[str] | None = None) -> dict[str, float]:
        """Loss and, for classification, accuracy over all rows, in evaluation mode.

        Args:
            data: a DataLoader, of which all batches of its epoch are judged and which stays where it is, or ``(x, y)``.
            metrics: names of more of them (see MetricAccumulator); None takes those of the configuration.
        Raises: ShapeError, SpecError for data or metrics that do not fit.
        """
        wanted = self._metric_names(self.config.metrics if metrics is None else metrics)
        collected = MetricAccumulator(self.config.problem_type, multi_label=self.loss.multi_label) if wanted else None
        totals = np.zeros(3)
        for inputs, labels in self._as_loader(data, shuffle=False).from_start():
            x, y = self._batch(inputs, labels)
            outputs = mx.array(self._training_step.forward(x))
            correct = self.loss.correct(outputs, y)
            totals += [number(mx.sum(self.loss.per_row(outputs, y))), 0 if correct is None else number(correct), len(x)]
            if collected is not None:
                collected.add(np.array(self.loss.predictions(outputs)), np.array(y))
        loss, right, rows = totals.tolist()
        found = {"loss": loss / rows, **({"accuracy": right / rows} if self.loss.classification else {})}
        return found | (collected.compute(wanted) if collected is not None else {})

    def predict(self, inputs: npt.ArrayLike) -> FloatArray:
        """Probabilities for classification, values for regression, in evaluation mode; shape ``(N, outputs)``.

        Raises: ShapeError for inputs that do not fit the model.
        """
        return self._training_step.predict(self.spec.batch(inputs))

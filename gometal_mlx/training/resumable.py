"""From a trainer to a checkpoint and back, all or nothing."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from mlx.utils import tree_flatten

from .._types import f32, number
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
from ..checkpoints.checkpoint import with_statistics
from ..checkpoints.folder import ANY, CheckpointFolder
from ..checkpoints.formats import is_export, refuse_export
from ..checkpoints.values import check_extras
from ..errors import CheckpointError, TrainingError, naming, printable, shown
from ..layers import Model
from ..layers.spec import describe_difference, normalise
from ..optimizers import Optimizer
from .history import History
from .run import Run
from .state import RunState
from .step import Carried
from .trainer import Trainer

UNKNOWN_BEST_LOSS = 1e9  # what go-metal writes before any loss is known; JSON has no infinity


@dataclass(frozen=True)
class RestoreReport:
    """What ``restore`` put back, what the checkpoint lacks (so it starts fresh), and what it had no use for."""

    restored: tuple[str, ...]
    missing: tuple[str, ...]
    ignored: tuple[str, ...] = ()

    @classmethod
    def of(cls, *, live: bool, optimizer_state: bool, run: bool) -> Self:
        """The report for a file with or without a used optimizer state and gometal_mlx's own extras."""
        exact = ("random state", "history", "data position")
        fresh = "optimizer state (all zero in the file: fresh)" if optimizer_state else "optimizer state"
        restored = ("weights", "epoch", "learning rate", *(("optimizer state",) if live else ()))
        return cls((*restored, *(exact if run else ())), (*(() if live else (fresh,)), *(() if run else exact)))

    def __str__(self) -> str:
        parts = (("restored", self.restored), ("missing", self.missing), ("ignored", self.ignored))
        return "; ".join(f"{title}: {', '.join(items)}" for title, items in parts if items)


def _load(path: str | os.PathLike[str]) -> tuple[Path, Checkpoint]:
    """The checkpoint in a file, or the newest one that is whole in a CheckpointManager's folder."""
    if not os.path.isdir(path):
        return Path(path), load(path)
    file = Path(path)
    folder = CheckpointFolder(file, ANY)
    if folder.entries and all(is_export(e.name) for e in folder.entries):
        refuse_export(file / folder.entries[-1].name)
    return folder.load_newest(e for e in folder.newest_first() if not is_export(e.name))


class ResumableTrainer(Trainer):
    """A Trainer whose whole state goes into a checkpoint and comes back, bit for bit."""

    @property
    def optimizer_state(self) -> OptimizerState | None:
        """A copy of the optimizer's state in go-metal's names; None for one (L-BFGS) that go-metal cannot store."""
        return self._optimizer_state(copy=True)

    def _optimizer_state(self, *, copy: bool) -> OptimizerState | None:
        optimizer = self.optimizer
        if not optimizer.in_go_metal:
            return None
        views = optimizer.saved_tensors(self._slots())
        tensors = [OptimizerTensor(n, (a.size,), a.copy() if copy else a, kind) for n, kind, a in views]
        return OptimizerState(optimizer.json_type, optimizer.saved_parameters(), tensors)

    def checkpoint(self, description: str = "", tags: Sequence[str] = (), *, copy: bool = True) -> Checkpoint:
        """Everything needed to go on from here, which later steps do not touch.

        Args:
            copy: False gives read-only views instead of numpy copies. Nothing is copied then, neither now nor later: a
                step makes new arrays, and the old ones stay for as long as the views.
        """
        self._check_thread()
        best_loss = f32(self.best_loss) if math.isfinite(self.best_loss) else UNKNOWN_BEST_LOSS
        state = TrainingState(self.epoch, self.step, self.learning_rate, best_loss, f32(self.best_accuracy), self.step)
        run = self._run or self._pending
        saved = RunState(
            config=self.config,
            carried=self._training_step.carried(),
            base_learning_rate=self.base_learning_rate,
            best_loss=self.best_loss,
            best_accuracy=self.best_accuracy,
            history=self.history.records,
            scheduler=self.scheduler.state_dict() if self.scheduler else {},
            optimizer=self.optimizer.saved_extras(),
            run_start=run.start if run else None,
            data=run.position() if run else None,
            callbacks=run.callback_states() if run else [],
            stopping=self.should_stop if self._run else run is not None and run.stopping,
        )
        weights, metadata = extract_weights(self.model, copy=copy), CheckpointMetadata.now(description, tags)
        spec = with_statistics(self.spec, weights)
        check_extras({"info": self.info})
        about = {"info": self.info} if self.info else {}
        extras = deepcopy(saved.to_extras() | about)  # history and callbacks change while a thread writes
        return Checkpoint(spec, weights, state, self._optimizer_state(copy=copy), metadata, extras)

    def save(self, path: str | os.PathLike[str], **options: Any) -> Any:
        """Write a checkpoint in the format the suffix names; see ``checkpoints.save``."""
        return save(self.checkpoint(copy=False), path, **options)

    @classmethod
    def resume(cls, path: str | os.PathLike[str]) -> Self:
        """A trainer that stands where the file was written; the same ``fit`` call then finishes the run.

        Raises: CheckpointError if the file holds no configuration (only gometal_mlx writes one).
        """
        refuse_export(path)
        path, checkpoint = _load(path)
        with naming(path):
            if (run := RunState.from_extras(checkpoint.extras)) is None:
                raise CheckpointError("holds no trainer configuration; make a ModelTrainer and use restore()")
            trainer = cls(Model.from_checkpoint(checkpoint), run.config)
            trainer.restore(checkpoint)
        return trainer

    def restore(self, checkpoint: Checkpoint, *, strict: bool = False, reset_optimizer: bool = False) -> RestoreReport:
        """Take over a checkpoint's weights, optimizer state, counters and random state: all of it, or none.

        What the file lacks starts fresh and is listed as missing. Hyper-parameters stored with the optimizer's state
        replace the configured ones.

        Args:
            strict: raise unless everything could be restored.
            reset_optimizer: start with a fresh optimizer. go-metal writes back the state that it read, however long it
                trained since; after a detour through it the moments are outdated.
        Raises: CheckpointError for another architecture (with the differences) or damaged state.
        """
        if not isinstance(checkpoint, Checkpoint):
            raise CheckpointError(f"restore: a Checkpoint is needed, got {shown(checkpoint)}; gm.load reads one")
        if self._run is not None:  # its files would have these weights under numbers of their own
            told = "fit is running; restore when it has returned (EarlyStopping ends it and puts the best weights back)"
            raise TrainingError(f"restore: {told}")
        if different := describe_difference(self.spec, normalise(checkpoint.model_spec, [])):
            raise CheckpointError(f"restore: the checkpoint holds another architecture: {'; '.join(different)}")
        self._training_step.check_frozen()
        if checkpoint.training_state.epoch < 0:
            told = f"at least 0 needed, got {checkpoint.training_state.epoch}"
            raise CheckpointError(f"restore: training_state.epoch: {told}")
        model = Model(self.spec, seed=0)
        model.assign(checkpoint.weights, checkpoint.model_spec, [])
        run = RunState.from_extras(checkpoint.extras)
        optimizer = self._new_optimizer()
        live = self._restore_optimizer(optimizer, checkpoint, run, reset_optimizer)
        scheduler = deepcopy(self.scheduler)
        ignored = [f"config.{name} (unknown)" for name in (run.unknown if run else ())]
        if run and run.scheduler and not scheduler:
            ignored.append("scheduler state (the trainer has no schedule)")
        if scheduler and run and run.scheduler:
            scheduler.load_state_dict(run.scheduler)
        carried = self._carried(run, ignored)
        report = RestoreReport.of(
            live=live, optimizer_state=checkpoint.optimizer_state is not None, run=run is not None
        )
        report = replace(report, ignored=tuple(ignored))
        if strict and (report.missing or report.ignored):
            raise CheckpointError(f"restore: not everything could be restored: {report}")
        step = self._new_step(optimizer, carried)
        # from here on nothing can fail
        self.model.update({layer.name: dict(model[layer.name]) for layer in model.layers if layer.name in model})
        state = checkpoint.training_state
        self.optimizer, self.scheduler, self.epoch, self._run = optimizer, scheduler, state.epoch, None
        # steps are counted by the optimizer; one that starts fresh has fewer than the trainer
        self._steps_before = max(state.total_steps if run else state.step, 0) - int(number(optimizer.step))
        self.best_loss = math.inf if state.best_loss in (0, UNKNOWN_BEST_LOSS) else state.best_loss
        self.best_accuracy, self._training_step = state.best_accuracy, step
        self.base_learning_rate = optimizer.rate if run is None and scheduler is None else self.base_learning_rate
        self._pending, self.info = None, deepcopy(dict(checkpoint.info)) or self.info
        if run is not None:
            self.best_loss, self.best_accuracy, self.history = run.best_loss, run.best_accuracy, History(run.history)
            self.base_learning_rate = run.base_learning_rate or self.base_learning_rate  # L-BFGS has none
            if run.run_start is not None:
                self._pending = Run(run.run_start, None, [], run.data, run.callbacks, run.stopping)
        return report

    def _carried(self, run: RunState | None, ignored: list[str]) -> Carried:
        """What the next step takes over; what this trainer has no use for is added to ``ignored``."""
        own = replace(self._training_step.carried(), accumulated=None, waiting=(0, 0))  # gradients of weights that go
        if run is None:
            return own
        found = run.carried
        if run.config.scales_loss != self.config.scales_loss:
            found = replace(found, scaling=own.scaling)
            ignored += ["loss scale"] if run.config.scales_loss else []
        if not found.accumulated:
            return replace(found, accumulated=None, waiting=(0, 0))
        trained = {k: a.shape for k, a in tree_flatten(self.model.trainable_parameters())}
        if self.config.accumulation_steps == 1 or trained.keys() != found.accumulated.keys():
            ignored.append(f"gradients of {found.waiting[0]} batches that waited for their update")
            return replace(found, accumulated=None, waiting=(0, 0))
        for name, gradient in found.accumulated.items():
            if gradient.shape != trained[name]:
                told = f"shape {trained[name]} needed, got {gradient.shape}"
                raise CheckpointError(f"restore: gometal_mlx.accumulated.gradients: {name}: {told}")
        return found

    def _restore_optimizer(
        self, optimizer: Optimizer, checkpoint: Checkpoint, run: RunState | None, reset: bool
    ) -> bool:
        """Whether the checkpoint had a state for the optimizer; its learning rate is taken over in any case."""
        saved, slots = checkpoint.optimizer_state, self._slots()
        live = False
        if saved is not None and not reset and saved.type != optimizer.json_type:
            told = f"the optimizer state is of {printable(saved.type)}, the trainer uses {optimizer.json_type}"
            raise CheckpointError(f"restore: {told}")
        if saved is not None and not reset:
            live = optimizer.restore(saved.parameters, saved.state_data, slots)
        elif not optimizer.in_go_metal and run is not None and run.optimizer and not reset:
            trained = [a.size for _, a in tree_flatten(self.model.trainable_parameters())]
            optimizer.restore_extras(run.optimizer, sum(trained))
            live = True
        optimizer.init(self.model.trainable_parameters())
        if checkpoint.training_state.learning_rate > 0:
            optimizer.rate = checkpoint.training_state.learning_rate
        return live

    def _slots(self) -> list[tuple[str, str, tuple[int, ...]]]:
        """(layer, param, shape) of the learned arrays in go-metal's order, which numbers the optimizer's state."""
        return [(layer.name, name, param.shape) for layer, name, param in self.model.slots() if param.trainable]

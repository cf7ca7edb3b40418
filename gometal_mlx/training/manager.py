"""CheckpointManager: saves a run while it goes on, keeps what is wanted, finds the way back."""

from __future__ import annotations

import contextlib
import math
import os
import time
import warnings
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any, ClassVar, Self

from .._types import is_int, is_number
from ..checkpoints import Checkpoint, CheckpointFormat, load
from ..checkpoints.checksum import checksum
from ..checkpoints.folder import DEFAULT_PATTERN, STEMS, CheckpointFolder, Entry
from ..checkpoints.formats import FORMATS, Format, is_export, refuse_export
from ..errors import CheckpointError, GoMetalError, SpecError, shown
from .callbacks import Callback, Event, monitored, usual_mode
from .resumable import RestoreReport, ResumableTrainer

Entries = list[Entry]  # the class has a method of that name


@dataclass(frozen=True)
class CheckpointConfig:
    """What a CheckpointManager saves, where, and how much of it stays.

    Args:
        save_directory: made when the first file is written.
        save_frequency: epochs between two periodic files; 0 for none.
        save_best: keep the best epochs' files beside the periodic ones.
        max_checkpoints: periodic files that stay, the latest ones; 0 for all.
        format: JSON, SAFETENSORS (the fast one) or ONNX (an export: nothing can be resumed from it).
        filename_pattern: printf pattern with two %d, epoch and step; empty means the default.
        every_steps, every_minutes: periodic files within an epoch; None for none.
        budget: largest share of the run's time that files within an epoch may take, between 0 and 1; what exceeds it
            is put off. None: no limit.
        monitor: the metric that decides what is best; None: val_loss, or loss where there is no validation.
        mode: "min" or "max"; None: by the metric's name.
        keep_best: how many of the best stay.
        best_by_either: go-metal's rule instead of ``monitor``: loss or accuracy improved.
        async_save: write in a thread of its own; errors come with the next call.
        save_on_interrupt: save once more when Ctrl-C, SIGTERM or an error ends ``fit``.
        on_error: "raise", or "warn" and go on training.
    Raises: SpecError for values out of range.
    Source: go-metal training/checkpoint_integration.go.
    """

    save_directory: str | os.PathLike[str] = "./checkpoints"
    save_frequency: int = 5
    save_best: bool = True
    max_checkpoints: int = 10
    format: CheckpointFormat | str = CheckpointFormat.JSON
    filename_pattern: str = DEFAULT_PATTERN
    every_steps: int | None = None
    every_minutes: float | None = None
    budget: float | None = None
    monitor: str | None = None
    mode: str | None = None
    keep_best: int = 1
    best_by_either: bool = False
    async_save: bool = False
    save_on_interrupt: bool = True
    on_error: str = "raise"

    def __post_init__(self) -> None:
        kinds: dict[str, tuple[Any, str]] = {
            "filename_pattern": (str, "a text"),
            "monitor": (str | None, "a metric's name"),
        }
        for name, (kind, needed) in kinds.items():
            if not isinstance(value := getattr(self, name), kind):
                raise SpecError(f"CheckpointConfig: {name} must be {needed}, got {value!r}")
        try:
            object.__setattr__(self, "format", CheckpointFormat.of(self.format))
        except CheckpointError as e:
            raise SpecError(f"CheckpointConfig: {e}") from e
        if not self.filename_pattern:
            object.__setattr__(self, "filename_pattern", DEFAULT_PATTERN)
        pattern = self.filename_pattern
        if pattern.count("%d") != 2 or pattern.count("%") != 2 or Path(pattern).name != pattern:
            raise SpecError(
                f"CheckpointConfig: filename_pattern needs two %d (epoch, step) and no folder, got {pattern!r}"
            )
        checks = {
            "save_frequency": ("an int", is_int(self.save_frequency)),
            "max_checkpoints": ("an int", is_int(self.max_checkpoints)),
            "keep_best": ("an int of at least 1", is_int(self.keep_best) and self.keep_best >= 1),
            "every_steps": ("an int of at least 1", (n := self.every_steps) is None or (is_int(n) and n >= 1)),
            "every_minutes": ("a number > 0", (m := self.every_minutes) is None or (is_number(m) and m > 0)),
            "budget": ("a number between 0 and 1", (b := self.budget) is None or (is_number(b) and 0 < b < 1)),
            "mode": ("'min' or 'max'", self.mode in (None, "min", "max")),
            "on_error": ("'raise' or 'warn'", self.on_error in ("raise", "warn")),
        }
        for name, (needed, allowed) in checks.items():
            if not allowed:
                raise SpecError(f"CheckpointConfig: {name} must be {needed}, got {getattr(self, name)!r}")
        if self.async_save and self.file_format.export:
            others = " and ".join(str(kind) for kind, row in FORMATS.items() if not row.export)
            told = f"an {self.format} export runs the model, which a thread cannot"
            raise SpecError(f"CheckpointConfig: async_save works with {others}; {told}")

    @property
    def file_format(self) -> Format:
        """What the format can."""
        return FORMATS[self.format]  # type: ignore[index]  # a member since __post_init__


def _count(name: str, value: Any) -> int:
    """An epoch or step that a caller gives."""
    if not is_int(value) or value < 0:
        raise SpecError(f"CheckpointManager: {name} must be an int of at least 0, got {value!r}")
    return int(value)


def _loss_and_accuracy(metrics: Mapping[str, Any]) -> tuple[float, float]:
    """Those that are judged: of validation where there was one."""
    loss, accuracy = (metrics.get(f"val_{k}", metrics.get(k)) for k in ("loss", "accuracy"))
    return math.nan if loss is None else float(loss), math.nan if accuracy is None else float(accuracy)


class CheckpointManager(Callback):
    """Saves a trainer's state; hand it to ``fit(checkpoints=...)`` or call its methods in a loop of your own.

    One manager writes to a folder at a time. Files appear whole or not at all, with a checksum in ``manifest.json``.

    Args:
        trainer: the one whose state is saved and restored.
        config: default ``CheckpointConfig()``.
    Source: go-metal training/checkpoint_integration.go, CheckpointManager.
    """

    saves: ClassVar[bool] = True

    def __init__(self, trainer: ResumableTrainer, config: CheckpointConfig | None = None) -> None:
        if not isinstance(trainer, ResumableTrainer):
            raise SpecError(f"CheckpointManager: a ModelTrainer is needed, got a {type(trainer).__name__}")
        if not isinstance(config, CheckpointConfig | None):
            raise SpecError(f"CheckpointManager: config must be a CheckpointConfig, got {shown(config)}")
        self.trainer, self.config = trainer, config or CheckpointConfig()
        self.folder = CheckpointFolder(self.config.save_directory, self.config.filename_pattern)
        self._worker: ThreadPoolExecutor | None = None  # where files are written with async_save; from the first on
        self._job: Future[None] | None = None
        self._complained = ""  # of what was warned last
        self._best: tuple[float, float] | None = None  # loss and accuracy, of go-metal's rule; None: see the folder
        self._best_then: tuple[float, float] | None = None  # when what is being written is there
        self._last_step, self._last_time = trainer.step, time.monotonic()
        self._began, self._spent = time.monotonic(), 0.0

    # -------------------------------------------------------------------------------------------- go-metal's methods

    def save_checkpoint(
        self, epoch: int | None = None, step: int | None = None, loss: float | None = None,
        accuracy: float | None = None, description: str = "",
    ) -> Path:  # fmt: skip
        """Save the trainer's present state as a periodic file.

        Args:
            epoch, step: numbers for the file's name and its training state; None takes the trainer's own.
            loss, accuracy: kept among the extras.
            description: for the metadata.
        Returns: the file's path.
        Raises: CheckpointError naming the file if it cannot be written; older files are as they were.
        """
        epoch = self.trainer.epoch if epoch is None else _count("epoch", epoch)
        step = self.trainer.step if step is None else _count("step", step)
        name = self.config.filename_pattern % (epoch, step)
        return self._save(name, "periodic", epoch, step, description, {"loss": loss, "accuracy": accuracy})

    def save_periodic_checkpoint(self, epoch: int, step: int, loss: float, accuracy: float) -> bool:
        """Save if the epoch is a multiple of ``save_frequency``; whether it did."""
        if self.config.save_frequency <= 0 or _count("epoch", epoch) % self.config.save_frequency:
            return False
        self.save_checkpoint(epoch, step, loss, accuracy, f"Periodic checkpoint - Epoch {epoch}")
        return True

    def save_best_checkpoint(self, epoch: int, step: int, loss: float, accuracy: float) -> bool:
        """Save if this epoch is among the best ones; whether it did."""
        for name, value in (("loss", loss), ("accuracy", accuracy)):  # a regression has no accuracy
            if not isinstance(value, Real) and not (value is None and name == "accuracy"):
                raise SpecError(f"CheckpointManager: {name} must be a number, got {shown(value)}")
        metrics = {"loss": loss, "accuracy": accuracy}
        if (self.config.monitor or "").removeprefix("val_") in metrics and self.config.monitor not in metrics:
            metrics = {f"val_{name}": value for name, value in metrics.items()}
        return self._save_best(_count("epoch", epoch), _count("step", step), metrics)

    def load_checkpoint(self, path: str | os.PathLike[str] | None = None, *, strict: bool = False) -> RestoreReport:
        """Restore the trainer from a file; None takes the latest one that is whole.

        Raises: CheckpointError for a damaged or unfitting file, or an ONNX export; the trainer is then as it was.
        """
        self.wait()
        if path is not None:
            refuse_export(path)
            return self.trainer.restore(load(path), strict=strict)
        found = self.list()
        entries = [e for e in found if not is_export(e.name)]
        if found and not entries:
            refuse_export(self.folder.path / found[0].name)
        return self.trainer.restore(self.folder.load_newest(entries)[1], strict=strict)

    # ---------------------------------------------------------------------------------------------- what there is

    def list(self) -> Entries:
        """All files of the folder, the latest first."""
        self.folder.refresh()
        return self.folder.newest_first()

    def latest(self) -> Path | None:
        """The file of the latest step that is still there; None if there is none."""
        return next((path for e in self.list() if (path := self.folder.path / e.name).exists()), None)

    def best(self) -> Path | None:
        """The file of the best epoch that is still there; None if there is none."""
        self.folder.refresh()
        found = self._best_first()
        return self.folder.path / found[0].name if found else None

    def wait(self) -> None:
        """Wait for a file that is being written; raises (or warns of) what went wrong there."""
        job, self._job = self._job, None
        best, self._best_then = self._best_then, None
        if job is None:
            return
        try:
            job.result()
        except GoMetalError as e:
            self._complain(e)
        else:
            self._best = best or self._best

    def close(self) -> None:
        """Finish what is being written and let another manager have the folder."""
        try:
            self.wait()
        finally:
            if self._worker is not None:
                self._worker.shutdown()
            self._worker = None
            self.folder.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --------------------------------------------------------------------------------------------- called by fit

    def check_trainer(self, trainer: Any) -> None:
        if trainer is not self.trainer:
            told = "this manager saves another trainer; close it, and make one of this trainer"
            raise SpecError(f"CheckpointManager: {told}")

    def on_fit_begin(self, event: Event) -> None:
        self._try(self.folder.open)
        self._last_step, self._last_time = self.trainer.step, time.monotonic()
        self._began, self._spent = time.monotonic(), 0.0

    def on_step_end(self, event: Event) -> None:
        c, step = self.config, self.trainer.step
        due = c.every_steps is not None and step - self._last_step >= c.every_steps
        due = due or (c.every_minutes is not None and time.monotonic() - self._last_time >= 60 * c.every_minutes)
        if due and not self._over_budget():
            self._try(self.save_checkpoint, description=f"After step {step}")

    def on_epoch_end(self, event: Event) -> None:
        metrics, step = event.metrics or {}, self.trainer.step
        loss, accuracy = (metrics.get(f"val_{k}", metrics.get(k, 0.0)) for k in ("loss", "accuracy"))
        self._try(self._save_best, event.epoch, step, metrics)
        self._try(self.save_periodic_checkpoint, event.epoch, step, loss, accuracy)

    def on_interrupt(self, event: Event) -> None:
        if not self.config.save_on_interrupt or self.config.file_format.export:
            return
        reason = f"{type(event.error).__name__}: {event.error}" if event.error else "interrupted"
        name = STEMS["rescue"]
        self._try(
            self._save, name, "rescue", self.trainer.epoch, self.trainer.step, f"Saved when fit ended: {reason}", {}
        )
        self._try(self.wait)

    def on_fit_end(self, event: Event) -> None:
        self._try(self.wait)

    # --------------------------------------------------------------------------------------------------- inside

    def _save_best(self, epoch: int, step: int, metrics: Mapping[str, Any]) -> bool:
        if not self.config.save_best:
            return False
        self.wait()  # the best so far may be the one that is being written
        if self.config.best_by_either:
            if self._best is None:
                self._best = self._best_there_is()
            loss, accuracy = _loss_and_accuracy(metrics)
            if not (loss < self._best[0] or accuracy > self._best[1]):
                return False
            value, best = loss, (min(self._best[0], loss), max(self._best[1], accuracy))  # NaN is none
        else:
            value = monitored(metrics, self.config.monitor, "CheckpointManager")[1]
        kept = self._best_first()
        candidate = Entry("", "best", epoch, step, "", 0, value)
        if not math.isfinite(value):
            return False
        full = len(kept) >= self.config.keep_best and not self.config.best_by_either
        if full and self._badness(candidate) >= self._badness(kept[self.config.keep_best - 1]):
            return False
        name = STEMS["best"] if self.config.keep_best == 1 else f"{STEMS['best']}_epoch_{epoch}_step_{step}"
        told = ", ".join(f"{k} {v:.6g}" for k, v in metrics.items() if isinstance(v, float) and k != "learning_rate")
        self._save(name, "best", epoch, step, f"Best checkpoint - {told}", metrics, value)
        if self.config.best_by_either:
            if self._job is None:
                self._best = best
            else:
                self._best_then = best
        return True

    def _best_there_is(self) -> tuple[float, float]:
        """The least loss and the greatest accuracy of the best files that can be read."""
        best = math.inf, 0.0
        for entry in self._best_first():
            with contextlib.suppress(GoMetalError):
                loss, accuracy = _loss_and_accuracy(load(self.folder.path / entry.name).extras.get("metrics", {}))
                best = min(best[0], loss), max(best[1], accuracy)
        return best

    def _best_first(self) -> Entries:
        """The best files that nobody has removed by hand."""
        found = [e for e in self.folder.entries if e.kind == "best" and (self.folder.path / e.name).exists()]
        return sorted(found, key=self._badness)

    def _badness(self, entry: Entry) -> float:
        if entry.metric is None or not math.isfinite(entry.metric):
            return math.inf
        name = self.config.monitor or "loss"
        return -entry.metric if (self.config.mode or usual_mode(name)) == "max" else entry.metric

    def _save(
        self, stem: str, kind: str, epoch: int, step: int, description: str, metrics: Mapping[str, Any],
        value: float | None = None,
    ) -> Path:  # fmt: skip
        start = time.monotonic()
        self.wait()
        self.folder.open()
        checkpoint = self.trainer.checkpoint(description, [f"epoch_{epoch}"], copy=False)
        checkpoint.training_state.epoch, checkpoint.training_state.step = epoch, step
        if value is not None:
            checkpoint.extras["monitored"] = value  # by which a folder without its manifest knows the best
        checkpoint.extras["metrics"] = {k: v for k, v in metrics.items() if v is not None and math.isfinite(v)}
        path = self.folder.path / f"{stem}{self.config.file_format.suffixes[0]}"
        if not self.config.async_save:
            self._write(checkpoint, path, kind, value)
        else:
            self._worker = self._worker or ThreadPoolExecutor(1, "checkpoint")
            self._job = self._worker.submit(self._write, checkpoint, path, kind, value)
        self._last_step, self._last_time = self.trainer.step, time.monotonic()
        self._spent += time.monotonic() - start
        return path

    def _write(self, checkpoint: Checkpoint, path: Path, kind: str, value: float | None) -> None:
        """Write, make durable, enter into the manifest, and only then delete what is not kept; numpy only."""
        state, written = checkpoint.training_state, self.folder.staged(path.name)
        try:
            made = self.config.file_format.save(checkpoint, written)
            found = made if isinstance(made, str) else checksum(written)  # ONNX returns the report of its proof
            size = written.stat().st_size
            self.folder.add(Entry(path.name, kind, state.epoch, state.step, found, size, value), written)
        except (GoMetalError, OSError) as e:
            if written != path:
                with contextlib.suppress(OSError):
                    written.unlink(missing_ok=True)
            told = e.strerror or e if isinstance(e, OSError) else str(e).replace(str(written), str(path))
            raise type(e)(told) if isinstance(e, GoMetalError) else CheckpointError(f"{path}: {told}") from e
        self.folder.retain(self._kept)

    def _kept(self, entries: Entries) -> Entries:
        periodic = [e for e in entries if e.kind == "periodic"]
        if self.config.max_checkpoints > 0:
            periodic = periodic[-self.config.max_checkpoints :]
        best = [e for e in entries if e.kind == "best"]
        # go-metal's rule has no order but that of time
        best = best[::-1] if self.config.best_by_either else sorted(best, key=self._badness)
        best = best[: self.config.keep_best]
        return [e for e in entries if e.kind == "rescue" or e in periodic or e in best]

    def _over_budget(self) -> bool:
        elapsed = time.monotonic() - self._began
        return self.config.budget is not None and self._spent > self.config.budget * elapsed

    def _try(self, call: Any, *args: Any, **kwargs: Any) -> None:
        try:
            call(*args, **kwargs)
        except CheckpointError as e:
            self._complain(e)

    def _complain(self, error: GoMetalError) -> None:
        if self.config.on_error == "raise":
            raise error
        if str(error) == self._complained:
            return
        self._complained = str(error)
        warnings.warn(f"{error}; training goes on", stacklevel=4)

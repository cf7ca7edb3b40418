"""go-metal's printed training: the architecture in PyTorch's layout, bars for each epoch, a summary after it."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, TextIO

from .._types import is_int
from ..errors import SpecError
from ..layers import LayerSpec, LayerType, ModelSpec
from ..layers.spec import normalise
from .progress import ProgressBar

if TYPE_CHECKING:
    from .trainer import Trainer

BYTES_PER_ELEMENT = 4  # float32
MEGABYTE = 2**20


class ModelArchitecturePrinter:
    """Writes a model as PyTorch prints one, with its parameter count and estimated sizes below.

    Sizes, 4 bytes an element: input ``a`` with the batch, parameters ``c``, and for a forward and backward pass
    ``b = 2 * (a + output + largest of the input and all layer outputs)``.

    Args:
        model_name: in front of the bracket.
    Source: go-metal training/progress.go, ModelArchitecturePrinter.
    """

    def __init__(self, model_name: str) -> None:
        self.model_name = model_name

    def text(self, spec: ModelSpec) -> str:
        """What ``print_architecture`` writes, with the blank line at its end.

        Numbers may be floats with whole values, as a JSON reader gives them.

        Raises: SpecError for a spec without shapes (not compiled) or with values that no layer takes.
        """
        if not spec.layers or not spec.input_shape:
            raise SpecError(f"model {self.model_name!r}: a compiled spec is needed to print it; call compile() first")
        whole = normalise(replace(spec, input_shape=tuple(int(d) for d in spec.input_shape)), [])
        size, parameters = _megabytes(math.prod(whole.input_shape)), whole.total_parameters
        outputs = [_megabytes(math.prod(s.output_shape)) for s in whole.layers]
        work, weights = 2 * (size + outputs[-1] + max(size, *outputs)), _megabytes(parameters)
        lines = ["Model Architecture:", f"{self.model_name}("]
        lines += [f"  ({given.name}): {_layer(s)}" for given, s in zip(spec.layers, whole.layers, strict=True)]
        lines += [
            ")",
            "",
            f"Total parameters: {_count(parameters)}",
            f"Trainable parameters: {_count(parameters)}",
            "Non-trainable parameters: 0",
            f"Input size (MB): {size:.3f}",
            f"Forward/backward pass size (MB): {work:.3f}",
            f"Params size (MB): {weights:.3f}",
            f"Estimated Total Size (MB): {size + weights + work:.3f}",
            "",
        ]
        return "\n".join(lines) + "\n"

    def print_architecture(self, spec: ModelSpec, file: TextIO | None = None) -> None:
        """Write ``text(spec)`` to a file, default standard output."""
        out = file or sys.stdout
        out.write(self.text(spec))
        out.flush()


def _layer(s: LayerSpec) -> str:
    values, x = s.parameters, s.input_shape
    bias = f"bias={'true' if values.get('use_bias') else 'false'}"
    if s.type == LayerType["Conv2D"]:
        names = ("kernel_size", "kernel_size"), ("stride", "stride"), ("padding", "padding")
        pairs = ", ".join(f"{shown}=({values[key]}, {values[key]})" for shown, key in names)
        return f"Conv2d({x[1]}, {values['output_channels']}, {pairs}, {bias})"
    if s.type == LayerType["Dense"]:
        return f"Linear(in_features={math.prod(x[1:])}, out_features={values['output_size']}, {bias})"
    if s.type == LayerType["Softmax"]:
        return f"Softmax(dim={values['axis']})"
    return f"{s.type_name}()"


def _count(parameters: int) -> str:
    if parameters >= 1_000_000:
        return f"{parameters / 1e6:.1f}M"
    return f"{parameters / 1e3:.1f}K" if parameters >= 1000 else str(parameters)


def _megabytes(elements: int) -> float:
    return elements * BYTES_PER_ELEMENT / MEGABYTE


class TrainingSession:
    """Prints a training loop of your own: architecture, a bar for each phase, a summary after each epoch.

    It trains nothing; ``start_epoch`` tells the trainer how many epochs are finished, so that its schedule moves.

    Args:
        trainer: has ``spec``, and ``set_epoch`` if it has a schedule.
        model_name: shown above the architecture.
        epochs: shown as the total.
        steps_per_epoch, validation_steps: of the bars; no validation if ``validation_steps`` is 0.
        file: where to print; default standard output.
    Raises: SpecError for calls out of order.
    Source: go-metal training/progress.go, TrainingSession.
    """

    def __init__(
        self, trainer: Trainer, model_name: str, epochs: int, steps_per_epoch: int, validation_steps: int,
        file: TextIO | None = None,
    ) -> None:  # fmt: skip
        self.trainer, self.model_name, self.epochs = trainer, model_name, epochs
        self.steps_per_epoch, self.validation_steps, self.file = steps_per_epoch, validation_steps, file
        self.epoch = 0
        self._training_bar: ProgressBar | None = None
        self._validation_bar: ProgressBar | None = None
        self._training: str | None = None  # the latest numbers, as the summary shows them
        self._validation: str | None = None

    def start_training(self) -> None:
        """Print the architecture and that training starts."""
        ModelArchitecturePrinter(self.model_name).print_architecture(self.trainer.spec, self._out())
        self._print("Starting training...")

    def start_epoch(self, epoch: int) -> None:
        """Begin an epoch, counted from 1: a new bar; the trainer is told that ``epoch - 1`` epochs are finished.

        Raises: SpecError for an epoch below 1.
        """
        if not is_int(epoch) or epoch < 1:
            raise SpecError(f"TrainingSession: epochs are counted from 1, got {epoch!r}")
        if (set_epoch := getattr(self.trainer, "set_epoch", None)) is not None:
            set_epoch(epoch - 1)
        self.epoch, self._training, self._validation = epoch, None, None
        self._training_bar, self._validation_bar = self._bar("Training", self.steps_per_epoch), None

    def update_training_progress(self, step: int, loss: float, accuracy: float | None = None) -> None:
        """Draw the training bar at a step.

        Args:
            step: steps of this epoch done.
            accuracy: 0 to 1; None or negative: not shown.
        Raises: SpecError before ``start_epoch``.
        """
        bar = self._needed(self._training_bar, "update_training_progress", "start_epoch")
        self._training = self._update(bar, step, loss, accuracy)

    def finish_training_epoch(self) -> None:
        """Fill the training bar; SpecError before ``start_epoch``."""
        self._needed(self._training_bar, "finish_training_epoch", "start_epoch").finish()
        self._training_bar = None

    def start_validation(self) -> None:
        """Begin the epoch's validation with a new bar; nothing without validation steps.

        Raises: SpecError before ``start_epoch``.
        """
        if self.validation_steps > 0:
            self._begun("start_validation")
            self._validation_bar = self._bar("Validation", self.validation_steps)

    def update_validation_progress(self, step: int, loss: float, accuracy: float | None = None) -> None:
        """Draw the validation bar at a step; arguments as ``update_training_progress``.

        Raises: SpecError before ``start_validation``, or without validation steps.
        """
        bar = self._needed(self._validation_bar, "update_validation_progress", "start_validation")
        self._validation = self._update(bar, step, loss, accuracy)

    def finish_validation_epoch(self) -> None:
        """Fill the validation bar; nothing without validation steps; SpecError before ``start_validation``."""
        if self.validation_steps > 0:
            self._needed(self._validation_bar, "finish_validation_epoch", "start_validation").finish()
            self._validation_bar = None

    def print_epoch_summary(self) -> None:
        """Print the last numbers of training and, where the epoch had one, validation.

        Raises: SpecError before ``start_epoch`` and the epoch's first ``update_training_progress``.
        """
        self._begun("print_epoch_summary")
        if self._training is None:
            raise SpecError("TrainingSession: print_epoch_summary has no numbers; call update_training_progress first")
        self._print(f"Epoch {self.epoch}/{self.epochs} Summary:")
        self._print(f"  Training   - {self._training}")
        if self._validation is not None:
            self._print(f"  Validation - {self._validation}")
        self._print("")

    def _update(self, bar: ProgressBar, step: int, loss: float, accuracy: float | None) -> str:
        shown = accuracy is not None and accuracy >= 0
        metrics = {"loss": float(loss), **({"accuracy": float(accuracy)} if accuracy is not None and shown else {})}
        bar.update(step, metrics)
        percent = f", Accuracy: {metrics['accuracy'] * 100:.2f}%" if shown else ""
        return f"Loss: {metrics['loss']:.4f}{percent}"

    def _bar(self, phase: str, total: int) -> ProgressBar:
        return ProgressBar(f"Epoch {self.epoch}/{self.epochs} ({phase})", total, file=self._out())

    def _begun(self, method: str) -> None:
        if not self.epoch:
            raise SpecError(f"TrainingSession: {method} needs an epoch under way; call start_epoch first")

    def _needed(self, bar: ProgressBar | None, method: str, start: str) -> ProgressBar:
        if bar is None:
            none = start == "start_validation" and self.validation_steps <= 0
            remedy = "but validation_steps is 0; give the number of steps" if none else f"call {start} first"
            raise SpecError(f"TrainingSession: {method} needs a bar under way; {remedy}")
        return bar

    def _out(self) -> TextIO:
        return self.file or sys.stdout

    def _print(self, line: str) -> None:
        self._out().write(f"{line}\n")
        self._out().flush()

"""What a loss is: a mean over the batch, the labels it takes, and what its outputs mean as predictions."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from ..._types import Shape, floats
from ...errors import ShapeError, SpecError
from ...layers import Layer, LayerSpec

LOSSES: dict[int, type[Loss]] = {}  # LossFunction code -> class; filled by Loss.__init_subclass__


class Loss:
    """Base of all losses; a subclass is registered by its LossFunction ``code`` when its file is imported.

    Args:
        output_shape: of the model, batch included.
        label_smoothing: share of every target that is spread over all classes, 0 up to 1.
    Raises: SpecError for outputs the loss cannot judge, or smoothing of a regression.
    """

    code: ClassVar[int]
    classification: ClassVar[bool]
    needs_last: ClassVar[tuple[str, ...]] = ()  # layer types that give what the loss judges; empty: any
    instead: ClassVar[str] = ""  # the loss for models that end otherwise
    uses_logits: ClassVar[bool] = False  # wants the output before a trailing Softmax
    answer: ClassVar[type[Layer] | None] = None  # makes probabilities of the outputs that the loss judges

    def __init_subclass__(cls) -> None:
        if "code" in cls.__dict__:
            LOSSES[cls.code] = cls

    def __init__(self, output_shape: Shape, label_smoothing: float = 0.0) -> None:
        self.outputs = output_shape[1:]
        self.label_smoothing = label_smoothing
        if label_smoothing and not self.classification:
            raise SpecError(f"{type(self).__name__}: label_smoothing is for classification, got {label_smoothing}")
        if self.classification and len(output_shape) != 2:
            raise SpecError(
                f"{type(self).__name__}: the model must end in (batch, classes), but it ends in {output_shape}"
            )

    def check_model(self, last: LayerSpec) -> None:
        """Raise SpecError if the loss wants probabilities and the model's last layer does not give them."""
        if not self.needs_last:
            return
        name, needed = type(self).__name__, " or ".join(self.needs_last)
        if last.type_name not in self.needs_last:
            raise SpecError(f"{name}: the model must end in {needed} (it ends in {last.type_name}); {self.instead}")
        if not last.layer().rows_apart(last.input_shape, training=False):
            raise SpecError(f"{name}: {last.type_name} {last.name!r} is taken along the batch; choose another axis")

    @property
    def multi_label(self) -> bool:
        """Whether each output is a yes or no of its own, several of them for a row."""
        return False

    def labels(self, y: npt.ArrayLike, rows: int) -> npt.NDArray[Any]:
        """The labels as ``per_row`` wants them; ShapeError for a wrong shape or a class out of range."""
        raise NotImplementedError  # every registered loss overrides it

    def per_row(self, outputs: mx.array, y: mx.array) -> mx.array:
        """The loss of each row, shape ``(N,)``, in float32."""
        raise NotImplementedError  # as above

    def mean(
        self, outputs: mx.array, y: mx.array, class_weights: Iterable[float] | None = None,
        weight: mx.array | None = None,
    ) -> mx.array:  # fmt: skip
        """Mean over the batch; with class weights ``sum(w l) / sum(w)``, w being that of the row's class.

        Args:
            weight: of the whole batch, if these are some of its rows; their means then add up to that of the batch.
        """
        losses = self.per_row(outputs, y)
        if class_weights is not None:
            losses = losses * self.row_weights(y, mx.array(list(class_weights)))
        elif weight is None:
            return mx.mean(losses)
        return mx.sum(losses) / (self.weight(y, class_weights) if weight is None else weight)

    def weight(self, y: mx.array, class_weights: Iterable[float] | None = None) -> mx.array:
        """What a batch counts: its rows, or the sum of their weights."""
        if class_weights is None:
            return mx.array(float(y.shape[0]))
        return mx.sum(self.row_weights(y, mx.array(list(class_weights))))

    def row_weights(self, y: mx.array, class_weights: mx.array) -> mx.array:
        """The weight of each row, from its class."""
        raise SpecError(f"{type(self).__name__}: class_weights are for classification")

    def correct(self, outputs: mx.array, y: mx.array) -> mx.array | None:
        """How many rows are classified correctly; None for regression."""
        return None

    def predictions(self, logits: mx.array) -> mx.array:
        """What ``predict`` returns for the outputs that the loss judges: probabilities or values."""
        return (
            logits if self.answer is None else self.answer(name="answer").forward({}, logits, training=False, key=None)
        )


def label_numbers(y: npt.ArrayLike, kind: str, what: str = "labels") -> npt.NDArray[Any]:
    """The labels as an array of integers, truth values or floats; ShapeError if they are something else.

    Args:
        what: else the values are, for the message.
    """
    try:
        labels = np.asarray(y)
        return labels if labels.dtype.kind in "iubf" else floats(labels)
    except (TypeError, ValueError) as e:  # text, rows of different lengths
        raise ShapeError(f"{kind}: {what} must be numbers: {e}") from e


def class_indices(y: npt.ArrayLike, rows: int, classes: int, kind: str) -> npt.NDArray[Any]:
    """Class labels as int32 ``(rows,)``, or one-hot / probability rows as float32 ``(rows, classes)``.

    Raises: ShapeError naming what is needed and the first label out of range.
    """
    labels = label_numbers(y, kind)
    if labels.ndim == 2 and labels.shape[1] == 1 != classes:
        labels = labels[:, 0]
    if labels.shape == (rows, classes) and classes > 1:
        if not (np.isfinite(labels).all() and (labels >= 0).all() and np.allclose(labels.sum(axis=1), 1, atol=1e-4)):
            raise ShapeError(f"{kind}: one-hot labels must be rows of probabilities that sum to 1")
        return labels.astype(np.float32)
    if labels.shape != (rows,):
        raise ShapeError(
            f"{kind}: labels must be ({rows},) class numbers or ({rows}, {classes}) one-hot rows, got {labels.shape}"
        )
    if labels.dtype.kind not in "iub" and not (labels == np.trunc(labels)).all():
        raise ShapeError(f"{kind}: class numbers must be whole, got {labels[labels != np.trunc(labels)][0]}")
    if rows and not 0 <= labels.min() <= labels.max() < max(classes, 2):
        bad = int(np.argmax((labels < 0) | (labels >= max(classes, 2))))
        raise ShapeError(f"{kind}: label {labels[bad]} in row {bad} is outside 0..{max(classes, 2) - 1}")
    return labels.astype(np.int32)

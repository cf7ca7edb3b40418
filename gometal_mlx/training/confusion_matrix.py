"""MetricType and ConfusionMatrix: what counting the classes of each row tells."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .._types import is_int
from ..errors import ShapeError, SpecError, shown
from .config import NamedEnum
from .losses.base import class_indices, label_numbers

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

SHOWN_CLASSES = 20  # a larger confusion matrix is described, not drawn


class MetricType(NamedEnum):
    """go-metal's metrics (source: training/metrics.go)."""

    Precision = 0
    Recall = 1
    F1Score = 2
    Specificity = 3
    NPV = 4
    MacroPrecision = 5
    MacroRecall = 6
    MacroF1 = 7
    MicroPrecision = 8
    MicroRecall = 9
    MicroF1 = 10
    AUCROC = 11
    AUCPR = 12
    MAE = 13
    MSE = 14
    RMSE = 15
    R2 = 16
    NMAE = 17
    PRECISION = 0
    RECALL = 1
    F1_SCORE = 2
    SPECIFICITY = 3
    MACRO_PRECISION = 5
    MACRO_RECALL = 6
    MACRO_F1 = 7
    MICRO_PRECISION = 8
    MICRO_RECALL = 9
    MICRO_F1 = 10
    AUC_ROC = 11
    AUC_PR = 12

    @property
    def key(self) -> str:
        """go-metal's name in its maps of results: ``f1_score``, ``auc_roc``, ``mae``."""
        return _KEYS[self]


_KEYS = {m: name.lower() for name, m in MetricType.__members__.items() if name.isupper()}  # AUC_ROC replaces AUCROC


class ClassReport(NamedTuple):
    """One class: precision, recall and F1 (0/0 is 0), and how many rows truly belong to it."""

    precision: float
    recall: float
    f1: float
    support: int


class ConfusionMatrix:
    """How often each true class was taken for each class: ``matrix[true, predicted]``.

    A single-output model has the two classes 0 and 1.

    Args:
        num_classes: at least 2.
        class_names: for display; default the class numbers.
    Raises: SpecError for fewer than 2 classes or another number of names.
    Source: go-metal training/metrics.go, ConfusionMatrix.

    >>> cm = ConfusionMatrix(2)
    >>> cm.update_from_predictions([0.9, 0.2, 0.6], [1, 0, 0])
    >>> cm.get_metric("precision"), cm.get_metric(MetricType.RECALL)
    (0.5, 1.0)
    """

    def __init__(self, num_classes: int, class_names: Sequence[str] | None = None) -> None:
        if not is_int(num_classes) or num_classes < 2:
            raise SpecError(f"ConfusionMatrix: num_classes must be an int of at least 2, got {num_classes!r}")
        if class_names is not None and not isinstance(class_names, Sequence | np.ndarray):
            raise SpecError(f"ConfusionMatrix: class_names must be a list of names, got {shown(class_names)}")
        if class_names is not None and len(class_names) != num_classes:
            raise SpecError(f"ConfusionMatrix: {num_classes} class names needed, got {len(class_names)}")
        self.num_classes = int(num_classes)
        self.class_names = [str(n) for n in (range(num_classes) if class_names is None else class_names)]
        self.reset()

    def reset(self) -> None:
        """Forget everything counted."""
        self.matrix: Ints = np.zeros((self.num_classes, self.num_classes), np.int64)

    @property
    def total_samples(self) -> int:
        """Rows counted."""
        return int(self.matrix.sum())

    def update(self, classes_predicted: npt.ArrayLike, classes_true: npt.ArrayLike) -> None:
        """Count rows by class number; both ``(N,)``.

        Raises: ShapeError for different lengths or a class out of range; nothing is counted then.
        """
        true = class_numbers(classes_true, _rows(classes_true), self.num_classes, "ConfusionMatrix: true classes")
        predicted = class_numbers(classes_predicted, len(true), self.num_classes, "ConfusionMatrix: predicted classes")
        cells = np.bincount(true * self.num_classes + predicted, minlength=self.num_classes**2)
        self.matrix += cells.reshape(self.matrix.shape)

    def update_from_predictions(
        self, predictions: npt.ArrayLike, true_labels: npt.ArrayLike, batch_size: int | None = None,
        num_classes: int | None = None, *, threshold: float = 0.5,
    ) -> None:  # fmt: skip
        """Count rows by their outputs: the first largest of several; for a single one, class 1 if above the threshold.

        Shapes: predictions ``(N, C)`` or flat ``(N * C,)``, probabilities or logits; for two classes also ``(N, 1)`` or
            ``(N,)``. Labels ``(N,)`` class numbers or ``(N, C)`` one-hot rows.
        Args:
            batch_size, num_classes: go-metal's; only compared with what came.
            threshold: of a single output; 0.5 for probabilities, 0 for logits.
        Raises: ShapeError for lengths that do not fit, labels out of range, NaN; nothing is counted then.
        """
        classes, rows = self.num_classes, _rows(true_labels)
        for name, given, real in (("batch_size", batch_size, rows), ("num_classes", num_classes, classes)):
            if given is not None and given != real:
                raise ShapeError(f"ConfusionMatrix: {name} must be {real} or left out, got {given}")
        scores = label_numbers(predictions, "ConfusionMatrix", "predictions")
        if scores.shape in ((rows, classes), (rows * classes,)):
            predicted = np.argmax(no_nan(scores, "ConfusionMatrix").reshape(rows, classes), axis=1)
        elif classes == 2 and scores.shape in ((rows, 1), (rows,)):
            predicted = (no_nan(scores, "ConfusionMatrix").reshape(rows) > threshold).astype(np.int64)
        else:
            needed = f"({rows}, {classes})" + (f" or ({rows},)" if classes == 2 else "")
            raise ShapeError(f"ConfusionMatrix: predictions must be {needed}, got {scores.shape}")
        self.update(predicted, class_numbers(true_labels, rows, classes, "ConfusionMatrix"))

    def values(self) -> dict[str, float]:
        """Every metric the matrix determines, under go-metal's keys; 0/0 is 0.

        With two classes (1 is positive): precision TP/(TP+FP), recall TP/(TP+FN), f1_score their harmonic mean,
        specificity TN/(TN+FP), npv TN/(TN+FN). Always: accuracy; micro_precision = micro_recall = micro_f1 = accuracy;
        macro_precision, the mean over classes that were predicted; macro_recall, the mean over classes that occur;
        macro_f1, the harmonic mean of these two; macro_f1_mean as the property says.
        """
        right, predicted, actual = self._counts()
        accuracy = ratio(right.sum(), predicted.sum())
        macro_p = mean(ratios(right, predicted)[predicted > 0])
        macro_r = mean(ratios(right, actual)[actual > 0])
        values = {
            "accuracy": accuracy, "macro_precision": macro_p, "macro_recall": macro_r,
            "macro_f1": ratio(2 * macro_p * macro_r, macro_p + macro_r), "macro_f1_mean": self.macro_f1_mean,
            "micro_precision": accuracy, "micro_recall": accuracy, "micro_f1": accuracy,
        }  # fmt: skip
        if self.num_classes == 2:
            (tn, fp), (fn, tp) = self.matrix
            values |= {
                "precision": ratio(tp, tp + fp), "recall": ratio(tp, tp + fn),
                "f1_score": ratio(2 * tp, 2 * tp + fp + fn), "specificity": ratio(tn, tn + fp),
                "npv": ratio(tn, tn + fn),
            }  # fmt: skip
        return values

    def get_metric(self, metric: MetricType | str | int) -> float:
        """One of go-metal's metrics; ``values`` has the formulas.

        As in go-metal, 0 for what a matrix does not determine: the binary ones unless there are two classes, areas
        under curves, regression. MetricAccumulator refuses those instead.

        Raises: SpecError for an unknown name.
        """
        return self.values().get(MetricType.of(metric, "ConfusionMatrix").key, 0.0)

    def get_accuracy(self) -> float:
        """``trace / total``; 0 when nothing was counted."""
        return self.values()["accuracy"]

    @property
    def macro_f1_mean(self) -> float:
        """Mean of the classes' F1 over those that occur or were predicted (scikit-learn's macro F1)."""
        right, predicted, actual = self._counts()
        both = predicted + actual
        return mean(ratios(2 * right, both)[both > 0])

    def per_class(self) -> list[ClassReport]:
        """Precision, recall, F1 and support of each class, in order."""
        right, predicted, actual = self._counts()
        columns = ratios(right, predicted), ratios(right, actual), ratios(2 * right, predicted + actual), actual
        return [ClassReport(*row) for row in zip(*(c.tolist() for c in columns), strict=True)]

    def _counts(self) -> tuple[Ints, Ints, Ints]:
        """Rows of each class that are right, predicted, actual."""
        return np.diagonal(self.matrix), self.matrix.sum(axis=0), self.matrix.sum(axis=1)

    def _title(self) -> str:
        rows = f"{self.total_samples:,} rows, accuracy {self.get_accuracy():.4f}"
        return f"ConfusionMatrix({self.num_classes} classes, {rows})"

    def __repr__(self) -> str:
        if self.num_classes > SHOWN_CLASSES:
            return self._title()
        table = [["true \\ predicted", *self.class_names]]
        table += [[n, *map(str, row)] for n, row in zip(self.class_names, self.matrix.tolist(), strict=True)]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = ["  ".join(c.rjust(w) for c, w in zip(row, widths, strict=True)) for row in table]
        return "\n".join([self._title(), *lines])

    def _repr_html_(self) -> str:
        if self.num_classes > SHOWN_CLASSES:
            return f"<p>{self._title()}</p>"
        names = [html.escape(n) for n in self.class_names]
        head = "".join(f"<th>{n}</th>" for n in ("true \\ predicted", *names))
        rows = "".join(
            f"<tr><th>{n}</th>{''.join(f'<td>{c}</td>' for c in row)}</tr>"
            for n, row in zip(names, self.matrix.tolist(), strict=True)
        )
        return f"<p>{self._title()}</p><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"


def _rows(labels: npt.ArrayLike) -> int:
    return len(np.atleast_1d(np.asarray(labels)))


def class_numbers(labels: npt.ArrayLike, rows: int, classes: int, kind: str) -> Ints:
    """Class numbers ``(rows,)`` from class numbers or one-hot rows; ShapeError for others."""
    y = class_indices(labels, rows, classes, kind)
    return (y if y.ndim == 1 else np.argmax(y, axis=1)).astype(np.int64)


def no_nan(values: npt.NDArray[Any], where: str) -> npt.NDArray[Any]:
    """The values themselves; ShapeError if there is a NaN among them."""
    if np.isnan(values).any():
        raise ShapeError(f"{where}: NaN among the predictions; they cannot be ranked, the model has diverged")
    return values


def ratios(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> Floats:
    """``a / b``, 0 where b is 0."""
    quotient: Floats = np.divide(a, b, out=np.zeros(a.shape), where=b != 0)
    return quotient


def ratio(a: Any, b: Any) -> float:
    """``a / b``, 0 if b is 0."""
    return float(a / b) if b else 0.0


def mean(values: npt.NDArray[Any]) -> float:
    """The mean, 0 of nothing."""
    return float(np.mean(values)) if values.size else 0.0

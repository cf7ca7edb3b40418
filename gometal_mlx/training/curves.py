"""What scores tell before a threshold makes classes of them: ROC, precision-recall, areas, top-k accuracy."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .._types import is_int
from ..errors import ShapeError, SpecError
from .confusion_matrix import Floats, Ints, class_numbers, mean, no_nan, ratio, ratios
from .losses.base import label_numbers


class ROCPoint(NamedTuple):
    """Rates when every score of at least the threshold counts as positive."""

    threshold: float
    tpr: float
    fpr: float


class PRPoint(NamedTuple):
    """Precision and recall when every score of at least the threshold counts as positive."""

    precision: float
    recall: float
    threshold: float


def roc_curve(scores: npt.ArrayLike, labels: npt.ArrayLike) -> list[ROCPoint]:
    """The ROC curve from (0, 0) at threshold infinity to (1, 1), one point for each distinct score.

    Shapes: both ``(N,)``; label 1 is positive, any other negative.
    Returns: an empty list when one class is missing.
    Raises: ShapeError for different lengths or NaN.
    Source: go-metal training/metrics.go; equal scores are one step.
    """
    thresholds, tp, fp = _ranked(scores, labels, None, "roc_curve")
    if not tp[-1] or not fp[-1]:
        return []
    columns = thresholds, tp / tp[-1], fp / fp[-1]
    return [ROCPoint(*row) for row in zip(*(c.tolist() for c in columns), strict=True)]


def pr_curve(scores: npt.ArrayLike, labels: npt.ArrayLike) -> list[PRPoint]:
    """The precision-recall curve from precision 1, recall 0 at threshold infinity, one point for each distinct score.

    Shapes: both ``(N,)``; label 1 is positive, any other negative.
    Returns: an empty list when there is no positive.
    Raises: ShapeError for different lengths or NaN.
    """
    thresholds, tp, fp = _ranked(scores, labels, None, "pr_curve")
    if not tp[-1]:
        return []
    precision = np.concatenate([[1.0], ratios(tp, tp + fp)[1:]])
    columns = precision, tp / tp[-1], thresholds
    return [PRPoint(*row) for row in zip(*(c.tolist() for c in columns), strict=True)]


def calculate_auc_roc(
    predictions: npt.ArrayLike, true_labels: npt.ArrayLike, batch_size: int | None = None
) -> float:  # fmt: skip
    """Area under the ROC curve by trapezoids: how often a positive scores above a negative, ties counting half.

    Shapes: both ``(N,)`` (or ``(N, 1)``); label 1 is positive, any other negative.
    Returns: 0.0 when one class is missing, as in go-metal.
    Raises: ShapeError for different lengths or NaN.
    Source: go-metal training/metrics.go, CalculateAUCROC; it steps through ties one by one.
    """
    _, tp, fp = _ranked(predictions, true_labels, batch_size, "calculate_auc_roc")
    return ratio(np.sum(np.diff(fp) * (tp[1:] + tp[:-1])), 2 * tp[-1] * fp[-1])


def auc_pr(predictions: npt.ArrayLike, true_labels: npt.ArrayLike, batch_size: int | None = None) -> float:
    """Average precision, ``sum_n (R_n - R_(n-1)) P_n`` over the distinct scores from the highest down.

    Shapes, errors: as calculate_auc_roc; 0.0 when there is no positive. go-metal never computes it.
    """
    _, tp, fp = _ranked(predictions, true_labels, batch_size, "auc_pr")
    return ratio(np.sum(np.diff(tp) * ratios(tp, tp + fp)[1:]), tp[-1])


def top_k_accuracy(probabilities: npt.ArrayLike, labels: npt.ArrayLike, k: int) -> float:
    """Share of rows whose class is among the k largest outputs; of equal ones the first is larger, as for argmax.

    Shapes: probabilities (or logits) ``(N, C)``, C >= 2; labels ``(N,)`` or one-hot ``(N, C)``; 0.0 for no rows.
    Raises: SpecError unless ``1 <= k <= C``; ShapeError for shapes that do not fit or NaN.
    """
    p = no_nan(label_numbers(probabilities, "top_k_accuracy", "probabilities"), "top_k_accuracy")
    if p.ndim != 2 or p.shape[1] < 2:
        raise ShapeError(f"top_k_accuracy: probabilities must be (rows, classes) of 2 classes or more, got {p.shape}")
    if not is_int(k) or not 1 <= k <= p.shape[1]:
        raise SpecError(f"top_k_accuracy: k must be from 1 to the {p.shape[1]} classes, got {k!r}")
    y = class_numbers(labels, len(p), p.shape[1], "top_k_accuracy")[:, None]
    own = np.take_along_axis(p, y, axis=1)
    ahead = np.sum((p > own) | ((p == own) & (np.arange(p.shape[1]) < y)), axis=1)
    return mean(ahead < k)


def _column(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return values[:, 0] if values.ndim == 2 and values.shape[1] == 1 else values


def _ranked(
    scores: npt.ArrayLike, labels: npt.ArrayLike, batch_size: int | None, where: str
) -> tuple[Floats, Ints, Ints]:
    """Thresholds from infinity down, and true and false positives at each; one entry for each distinct score."""
    s = _column(label_numbers(scores, where, "scores").astype(np.float64))
    y = _column(label_numbers(labels, where))
    if s.ndim != 1 or s.shape != y.shape or batch_size not in (None, len(s)):
        batch = "" if batch_size is None else f" and batch_size {batch_size}"
        raise ShapeError(f"{where}: one score and one label a row needed, got {s.shape} and {y.shape}{batch}")
    order = np.argsort(-no_nan(s, where), kind="stable")
    s, positive = s[order], (y == 1)[order]
    ends = np.flatnonzero(np.append(s[1:] != s[:-1], True)[: len(s)])  # last row of each run of equal scores
    tp = np.concatenate([[0], np.cumsum(positive)[ends]]).astype(np.int64)
    rows = np.concatenate([[0], ends + 1]).astype(np.int64)
    return np.concatenate([[np.inf], s[ends]]), tp, rows - tp

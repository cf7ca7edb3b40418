"""Metrics: everything that judges predictions, and MetricAccumulator, which collects them over a phase."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import ShapeError, SpecError, shown, suggest
from .config import ProblemType
from .confusion_matrix import ClassReport, ConfusionMatrix, MetricType, class_numbers, mean, ratio
from .curves import PRPoint, ROCPoint, auc_pr, calculate_auc_roc, pr_curve, roc_curve, top_k_accuracy
from .losses.base import label_numbers

__all__ = [
    "ClassReport", "ConfusionMatrix", "MetricAccumulator", "MetricType", "PRPoint", "ROCPoint", "RegressionMetrics",
    "auc_pr", "available_metrics", "calculate_auc_roc", "calculate_regression_metrics", "pr_curve", "resolve_metrics",
    "roc_curve", "top_k_accuracy",
]  # fmt: skip

BINARY = tuple(m.key for m in MetricType if m <= MetricType.NPV)
AVERAGED = (*(m.key for m in MetricType if MetricType.NPV < m <= MetricType.MicroF1), "macro_f1_mean")
AREAS = (MetricType.AUCROC.key, MetricType.AUCPR.key)
MACRO = {"recall": "macro_recall", "f1_score": "macro_f1", "specificity": "macro_recall"}  # for more classes than two
REGRESSION = tuple(m.key for m in MetricType if m >= MetricType.MAE)

MetricNames = Iterable[MetricType | str | int] | MetricType | str


@dataclass(frozen=True)
class RegressionMetrics:
    """Mean absolute, mean squared and root mean squared error, R squared, and MAE over the range of the truth."""

    mae: float = 0.0
    mse: float = 0.0
    rmse: float = 0.0
    r2: float = 0.0
    nmae: float = 0.0


def calculate_regression_metrics(
    predictions: npt.ArrayLike, true_values: npt.ArrayLike, batch_size: int | None = None
) -> RegressionMetrics:
    """``mae = mean|p - t|``, ``mse = mean (p - t)^2``, ``r2 = 1 - SSres / SStot``, ``nmae = mae / (max t - min t)``.

    All outputs of all rows are one pool of values, in float64. r2 and nmae are 0 when all true values are equal;
    everything is 0 when there are none.

    Shapes: both ``(N, ...)``; one of them may be flat.
    Args:
        batch_size: go-metal's; only compared with what came.
    Raises: ShapeError for shapes that do not fit.
    Source: go-metal training/metrics.go, CalculateRegressionMetrics; it looks at the first batch_size values only.
    """
    p, t = (
        label_numbers(v, "calculate_regression_metrics", what).astype(np.float64)
        for v, what in ((predictions, "predictions"), (true_values, "true values"))
    )
    if p.size != t.size or (p.ndim > 1 and t.ndim > 1 and p.shape != t.shape):
        raise ShapeError(f"calculate_regression_metrics: predictions {p.shape} and true values {t.shape} must agree")
    if batch_size is not None and (batch_size < 1 or p.size % batch_size or (p.ndim > 1 and len(p) != batch_size)):
        raise ShapeError(f"calculate_regression_metrics: batch_size {batch_size} does not fit predictions {p.shape}")
    if not p.size:
        return RegressionMetrics()
    with np.errstate(over="ignore", invalid="ignore"):  # infinite values make the metrics infinite or NaN
        error = p.ravel() - t.ravel()
        mae, mse, variance = float(np.mean(np.abs(error))), float(np.mean(error**2)), float(np.var(t))
        spread = float(np.max(t) - np.min(t))  # 0 where all are equal; the variance may be left with rounding
    r2 = 1 - mse / variance if spread and variance else 0.0
    return RegressionMetrics(mae, mse, math.sqrt(mse), r2, ratio(mae, spread))


def available_metrics(problem_type: ProblemType | str | int, outputs: int, *, multi_label: bool = False) -> list[str]:
    """Names that fit a problem, besides ``top_<k>_accuracy`` (any k up to the number of classes)."""
    if ProblemType.of(problem_type, "metrics") == ProblemType.Regression:
        return list(REGRESSION)
    return ["accuracy", *(BINARY if outputs <= 2 or multi_label else ()), *AVERAGED, *AREAS]


def resolve_metrics(
    names: MetricNames, problem_type: ProblemType | str | int, outputs: int, *, multi_label: bool = False
) -> list[str]:
    """go-metal's keys for metrics given as members or names in any spelling, checked against the problem.

    Raises: SpecError for an unknown name (with the nearest) or one that does not fit (with what does).
    """
    available = available_metrics(problem_type, outputs, multi_label=multi_label)
    given = [names] if isinstance(names, str | MetricType) else names
    if not isinstance(given, Iterable):
        raise SpecError(f"metrics: a list of names is needed, got {shown(given)}")
    keys = dict.fromkeys(_key(name) for name in given)
    for key in keys:
        if key not in available:
            _check_other(key, available, 1 if multi_label else outputs)
    return list(keys)


def _key(name: MetricType | str | int) -> str:
    if not isinstance(name, str):
        return MetricType.of(name, "metrics").key
    known = {k.replace("_", ""): k for k in ("accuracy", *(m.key for m in MetricType), "macro_f1_mean")}
    plain = re.sub("[_ -]", "", name).casefold()
    if top := re.fullmatch("top([1-9][0-9]*)accuracy", plain):
        return f"top_{top[1]}_accuracy"
    if plain not in known:
        raise SpecError(f"metrics: unknown name {name!r}{suggest(name, [*known.values(), 'top_5_accuracy'])}")
    return known[plain]


def _check_other(key: str, available: list[str], outputs: int) -> None:
    """Raise for what is not in the list, unless it is top-k accuracy of enough classes."""
    problem = "classification" if "accuracy" in available else "regression"
    if (key in REGRESSION) != (problem == "regression"):
        raise SpecError(f"metrics: {key} does not fit a {problem} problem; use one of {', '.join(available)}")
    if key in BINARY:
        macro = MACRO.get(key, "macro_precision")
        raise SpecError(f"metrics: {key} needs two classes, the model has {outputs}; use {macro}, or per_class()")
    if outputs < 2 or int(key.split("_")[1]) > outputs:
        raise SpecError(f"metrics: {key} needs at least so many outputs, one a class, got {outputs}; use accuracy")


class MetricAccumulator:
    """Collects the predictions of a phase, batch by batch, and judges all of them together.

    Classification: two classes (one or two outputs; 1 is positive, its score is the last output) have the metrics of
    ``ConfusionMatrix.values``, auc_roc and auc_pr. With more classes the two areas are one-vs-rest, averaged over the
    classes that occur, and the binary metrics are refused. With ``multi_label`` each output is a yes or no of its own,
    and all of them are pooled into one binary problem.
    Regression: as ``calculate_regression_metrics``.

    Args:
        problem_type: what the outputs mean.
        threshold: of a single output (or each, with multi_label); 0.5 for probabilities, 0 for logits.
        multi_label: the labels are ``(N, C)`` of 0..1 that need not be one-hot.
    Source: go-metal training/model_trainer.go, UpdateMetricsFromInference; it judges the last batch for some metrics.

    >>> m = MetricAccumulator("classification")
    >>> m.add([[0.9, 0.1], [0.2, 0.8]], [0, 1])
    >>> m.add([[0.4, 0.6]], [0])
    >>> m.compute(["precision", MetricType.AUCROC, "top_2_accuracy"])
    {'precision': 0.5, 'auc_roc': 1.0, 'top_2_accuracy': 1.0}
    """

    available = staticmethod(available_metrics)

    def __init__(
        self, problem_type: ProblemType | str | int = ProblemType.Classification, *, threshold: float = 0.5,
        multi_label: bool = False,
    ) -> None:  # fmt: skip
        self.problem_type = ProblemType.of(problem_type, "MetricAccumulator")
        self.threshold, self.multi_label = threshold, multi_label
        self.reset()

    def reset(self) -> None:
        """Forget everything added; the next batch may have another number of outputs."""
        self.outputs = 0
        self._predictions: list[npt.NDArray[Any]] = []
        self._labels: list[npt.NDArray[Any]] = []
        self._matrix: ConfusionMatrix | None = None
        self._finite = True

    def add(self, predictions: npt.ArrayLike, labels: npt.ArrayLike) -> None:
        """Take in a batch.

        Shapes: predictions ``(N, outputs)`` or ``(N,)``: probabilities, or values for regression. Labels: ``(N,)``
            class numbers, ``(N, C)`` one-hot rows, ``(N,)`` or ``(N, 1)`` of 0..1 for a single output, ``(N, C)`` of
            0..1 with multi_label; for regression as the predictions.
        Raises: ShapeError for shapes or labels that do not fit; nothing is taken in then.
        """
        p = label_numbers(predictions, "MetricAccumulator", "predictions").copy()
        p = p[:, None] if p.ndim == 1 else p
        outputs, classification = math.prod(p.shape[1:]), self.problem_type == ProblemType.Classification
        if p.ndim < 2 or (classification and p.ndim > 2) or outputs != (self.outputs or outputs or 1):
            raise ShapeError(
                f"MetricAccumulator: predictions must be (rows, {self.outputs or 'outputs'}), got {p.shape}"
            )
        if classification and outputs > 1 and not self.multi_label:
            y: npt.NDArray[Any] = class_numbers(labels, len(p), outputs, "MetricAccumulator")
        else:
            y = _values_like(p, labels)
            if classification:
                y = _yes_or_no(y)
            p = p.reshape(-1, 1 if classification else outputs)
        finite = bool(np.isfinite(p).all())
        if classification:
            self._matrix = self._matrix or ConfusionMatrix(max(p.shape[1], 2))
            if finite:
                self._matrix.update_from_predictions(p, y, threshold=self.threshold)
        self.outputs, self._finite = outputs, self._finite and finite
        self._predictions.append(p)
        self._labels.append(y)

    @property
    def confusion_matrix(self) -> ConfusionMatrix:
        """Of all rows so far; SpecError for regression and before the first batch."""
        if self._matrix is None:
            regression = self.problem_type == ProblemType.Regression
            why = "regression has none" if regression else "no batch was added; call add first"
            raise SpecError(f"MetricAccumulator: no confusion matrix: {why}")
        return self._matrix

    def compute(self, names: MetricNames) -> dict[str, float]:
        """The metrics of all rows so far, under go-metal's keys; all NaN if any prediction was NaN or infinite.

        Raises: SpecError as ``resolve_metrics``, and before the first batch.
        """
        if not self._predictions:
            raise SpecError("MetricAccumulator: no batch was added; call add before compute")
        keys = resolve_metrics(names, self.problem_type, self.outputs, multi_label=self.multi_label)
        if not self._finite:
            return dict.fromkeys(keys, math.nan)
        p, y = np.concatenate(self._predictions), np.concatenate(self._labels)
        if self.problem_type == ProblemType.Regression:
            values = dataclasses.asdict(calculate_regression_metrics(p, y))
        else:
            values = self.confusion_matrix.values()
        return {k: values[k] if k in values else _from_scores(k, p, y) for k in keys}


def _values_like(p: npt.NDArray[Any], labels: npt.ArrayLike) -> npt.NDArray[Any]:
    y = label_numbers(labels, "MetricAccumulator").astype(np.float64)
    if y.shape != p.shape and (y.shape != p.shape[:1] or p.size != len(p)):
        raise ShapeError(f"MetricAccumulator: labels must be {p.shape} like the predictions, got {y.shape}")
    if not np.isfinite(y).all():
        raise ShapeError("MetricAccumulator: NaN or infinity in the labels; remove those rows")
    return y.reshape(len(p), -1) if y.size else y.reshape(0, math.prod(p.shape[1:]))


def _yes_or_no(y: npt.NDArray[Any]) -> npt.NDArray[Any]:
    if (bad := y[(y < 0) | (y > 1)]).size:
        raise ShapeError(f"MetricAccumulator: labels must be from 0 to 1, got {bad[0]:g}")
    return (y > 0.5).astype(np.int64).ravel()


def _from_scores(key: str, p: npt.NDArray[Any], y: npt.NDArray[Any]) -> float:
    if key.startswith("top_"):
        return top_k_accuracy(p, y, int(key.split("_")[1]))
    area = calculate_auc_roc if key == MetricType.AUCROC.key else auc_pr
    if p.shape[1] <= 2:
        return area(p[:, -1], y)
    occur = np.unique(y)
    return mean(np.array([area(p[:, c], y == c) for c in occur]))

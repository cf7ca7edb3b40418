"""Metrics against scikit-learn and the vectors of the reference."""

import math

import numpy as np
import pytest
import sklearn.metrics as sk

from gometal_mlx.errors import ShapeError, SpecError
from gometal_mlx.training.config import ProblemType
from gometal_mlx.training.metrics import (
    ConfusionMatrix,
    MetricAccumulator,
    MetricType,
    RegressionMetrics,
    auc_pr,
    available_metrics,
    calculate_auc_roc,
    calculate_regression_metrics,
    pr_curve,
    resolve_metrics,
    roc_curve,
    top_k_accuracy,
)

EXACT = 1e-12  # both sides are float64 sums of at most a few hundred terms, in another order

BINARY = [[50, 10], [5, 35]]  # true rows, of the reference's section 12
THREE = [[10, 2, 1], [3, 15, 2], [1, 1, 8]]


def rows_of(matrix: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    """(predicted, true) class numbers that give the matrix."""
    cells = [(p, t) for t, row in enumerate(matrix) for p, n in enumerate(row) for _ in range(n)]
    predicted, true = np.array(cells).T
    return predicted, true


def filled(matrix: list[list[int]]) -> ConfusionMatrix:
    cm = ConfusionMatrix(len(matrix))
    cm.update(*rows_of(matrix))
    return cm


def drawn(seed: int, rows: int = 200, classes: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities and labels, every class among them."""
    rng = np.random.default_rng(seed)
    p = rng.dirichlet(np.ones(classes), rows)
    y = np.concatenate([np.arange(classes), rng.integers(0, classes, rows - classes)])
    return p, y


# go-metal's names


def test_metric_types_have_go_metals_numbers_and_aliases() -> None:
    names = [
        "Precision", "Recall", "F1Score", "Specificity", "NPV", "MacroPrecision", "MacroRecall", "MacroF1",
        "MicroPrecision", "MicroRecall", "MicroF1", "AUCROC", "AUCPR", "MAE", "MSE", "RMSE", "R2", "NMAE",
    ]  # fmt: skip
    assert [str(m) for m in MetricType] == names
    assert [int(m) for m in MetricType] == list(range(18))
    assert MetricType.F1_SCORE is MetricType.F1Score
    assert MetricType.AUC_ROC is MetricType.AUCROC
    assert MetricType.MACRO_F1 is MetricType.MacroF1
    assert [m.key for m in MetricType] == [
        "precision", "recall", "f1_score", "specificity", "npv", "macro_precision", "macro_recall", "macro_f1",
        "micro_precision", "micro_recall", "micro_f1", "auc_roc", "auc_pr", "mae", "mse", "rmse", "r2", "nmae",
    ]  # fmt: skip


# confusion matrix


def test_binary_vector_of_the_reference() -> None:
    cm = filled(BINARY)
    assert cm.matrix.tolist() == BINARY
    assert cm.matrix.dtype == np.int64
    assert cm.total_samples == 100
    assert cm.get_accuracy() == 0.85
    precision, recall = 35 / 45, 35 / 40
    wanted = {
        "Precision": precision, "Recall": recall, "F1Score": 2 * precision * recall / (precision + recall),
        "Specificity": 50 / 60, "NPV": 50 / 55, "MicroPrecision": 0.85, "MicroRecall": 0.85, "MicroF1": 0.85,
    }  # fmt: skip
    assert {n: cm.get_metric(n) for n in wanted} == pytest.approx(wanted, rel=EXACT)


def test_three_class_vector_of_the_reference() -> None:
    cm = filled(THREE)
    p, r = np.mean([10 / 14, 15 / 18, 8 / 11]), np.mean([10 / 13, 15 / 20, 8 / 10])
    assert cm.get_metric(MetricType.MacroPrecision) == pytest.approx(p, rel=EXACT)
    assert cm.get_metric("macro_recall") == pytest.approx(r, rel=EXACT)
    assert cm.get_metric(MetricType.MACRO_F1) == pytest.approx(2 * p * r / (p + r), rel=EXACT)
    assert cm.get_metric("MicroF1") == pytest.approx(33 / 43, rel=EXACT)


@pytest.mark.parametrize("metric", ["Precision", "NPV", "AUCROC", "AUCPR", "MAE", 16])
def test_a_matrix_gives_0_for_what_it_does_not_determine(metric: str | int) -> None:
    assert filled(THREE).get_metric(metric) == 0.0


@pytest.mark.parametrize("seed", range(4))
def test_matrix_agrees_with_scikit_learn(seed: int) -> None:
    p, y = drawn(seed)
    predicted = p.argmax(axis=1)
    cm = ConfusionMatrix(5)
    cm.update_from_predictions(p[:77], y[:77])
    cm.update_from_predictions(p[77:], y[77:])  # in two batches
    assert cm.matrix.tolist() == sk.confusion_matrix(y, predicted).tolist()
    assert cm.get_accuracy() == pytest.approx(sk.accuracy_score(y, predicted), rel=EXACT)
    precision, recall, f1, _ = sk.precision_recall_fscore_support(y, predicted, average="macro")
    found = cm.get_metric("MacroPrecision"), cm.get_metric("MacroRecall"), cm.macro_f1_mean
    assert found == pytest.approx((precision, recall, f1), rel=EXACT)
    columns = sk.precision_recall_fscore_support(y, predicted)
    assert np.array(cm.per_class()) == pytest.approx(np.array(columns).T, rel=EXACT)


def test_empty_classes_are_left_out_of_macro_averages() -> None:
    cm = ConfusionMatrix(4)  # class 2 is predicted but never true, class 3 neither
    cm.update([0, 0, 2, 1], [0, 1, 1, 1])
    assert cm.get_metric("macro_precision") == pytest.approx((1 / 2 + 1 + 0) / 3, rel=EXACT)
    assert cm.get_metric("macro_recall") == pytest.approx((1 + 1 / 3) / 2, rel=EXACT)
    wanted = sk.f1_score([0, 1, 1, 1], [0, 0, 2, 1], average="macro", zero_division=0)  # over classes 0, 1, 2
    assert cm.macro_f1_mean == pytest.approx(wanted, rel=EXACT)
    assert cm.per_class()[2] == (0.0, 0.0, 0.0, 0)
    assert cm.per_class()[3].support == 0


def test_nothing_counted_is_0_everywhere() -> None:
    cm = filled(BINARY)
    cm.reset()
    assert cm.total_samples == 0
    assert set(cm.values().values()) == {0.0}


def test_a_single_class_and_a_batch_of_one() -> None:
    cm = ConfusionMatrix(2)
    cm.update_from_predictions([[0.9, 0.1]], [0])
    assert (cm.get_accuracy(), cm.get_metric("precision"), cm.get_metric("recall")) == (1.0, 0.0, 0.0)
    assert (cm.get_metric("specificity"), cm.get_metric("npv"), cm.get_metric("macro_f1")) == (1.0, 1.0, 1.0)


def test_predictions_flat_as_in_go_and_first_maximum_wins() -> None:
    cm = ConfusionMatrix(3)
    cm.update_from_predictions(np.array([1, 1, 0, 0, 2, 2], np.float32), np.array([0, 1], np.int32), 2, 3)
    assert cm.matrix.tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 0]]


@pytest.mark.parametrize("shape", [(4,), (4, 1)])
def test_single_output_is_compared_with_the_threshold(shape: tuple[int, ...]) -> None:
    probabilities = np.array([0.5, 0.51, 0.2, 0.9]).reshape(shape)  # 0.5 itself is class 0
    labels = [0, 1, 1, 1]
    cm, logits = ConfusionMatrix(2), ConfusionMatrix(2)
    cm.update_from_predictions(probabilities, labels, 4)
    logits.update_from_predictions(np.log(probabilities / (1 - probabilities)), labels, threshold=0)
    assert cm.matrix.tolist() == logits.matrix.tolist() == [[1, 0], [1, 2]]


@pytest.mark.parametrize(
    ("predictions", "labels", "sizes", "message"),
    [
        ([[0.1, 0.9]], [2], (), "label 2 in row 0 is outside 0..1"),
        ([[0.1, 0.9]], [-1], (), "outside 0..1"),
        ([[0.1, 0.9]], [0.5], (), "whole"),
        ([[0.1, 0.9, 0.3]], [1], (), r"must be \(1, 2\) or \(1,\), got \(1, 3\)"),
        ([[0.1, 0.9]], [1, 0], (), r"must be \(2, 2\)"),
        ([[0.1, 0.9]], [1], (3,), "batch_size must be 1 or left out, got 3"),
        ([[0.1, 0.9]], [1], (1, 3), "num_classes must be 2 or left out, got 3"),
        ([[math.nan, 0.9]], [1], (), "NaN"),
        ([math.nan], [1], (), "NaN"),
    ],
)
def test_batches_that_do_not_fit_are_refused_and_not_counted(
    predictions: list, labels: list, sizes: tuple[int, ...], message: str
) -> None:
    cm = ConfusionMatrix(2)
    with pytest.raises(ShapeError, match=message) as e:
        cm.update_from_predictions(predictions, labels, *sizes)
    assert "\n" not in str(e.value)
    assert cm.total_samples == 0


def test_classes_out_of_range_are_refused() -> None:
    cm = ConfusionMatrix(3)
    with pytest.raises(ShapeError, match="predicted classes: label 3 in row 1"):
        cm.update([0, 3], [0, 1])
    with pytest.raises(ShapeError, match="predicted classes"):
        cm.update([0], [0, 1])
    with pytest.raises(ShapeError, match="true classes"):
        cm.update([0], [3])
    assert cm.total_samples == 0


def test_bad_descriptions_are_refused() -> None:
    for bad in (1, 0, True, 2.0):
        with pytest.raises(SpecError, match="at least 2"):
            ConfusionMatrix(bad)  # type: ignore[arg-type]
    with pytest.raises(SpecError, match="3 class names needed, got 1"):
        ConfusionMatrix(3, ["a"])
    with pytest.raises(SpecError, match="did you mean 'Precision'"):
        ConfusionMatrix(2).get_metric("precison")


def test_repr_and_html() -> None:
    cm = ConfusionMatrix(2, ["cat", "<dog>"])
    cm.update([0, 1, 1], [0, 1, 0])
    assert repr(cm).splitlines() == [
        "ConfusionMatrix(2 classes, 3 rows, accuracy 0.6667)",
        "true \\ predicted  cat  <dog>",
        "             cat    1      1",
        "           <dog>    0      1",
    ]
    assert "<th>&lt;dog&gt;</th><td>0</td><td>1</td>" in cm._repr_html_()
    large = ConfusionMatrix(1000)
    assert repr(large) == "ConfusionMatrix(1000 classes, 0 rows, accuracy 0.0000)"
    assert "<table>" not in large._repr_html_()


# curves and areas


@pytest.mark.parametrize("decimals", [1, 2, 9])  # many ties, some, none
@pytest.mark.parametrize("seed", range(3))
def test_curves_and_areas_agree_with_scikit_learn(seed: int, decimals: int) -> None:
    rng = np.random.default_rng(seed)
    y = np.concatenate([[0, 1], rng.integers(0, 2, 150)])
    s = np.round(np.clip(rng.normal(0.4 + 0.2 * y, 0.2), 0, 1), decimals).astype(np.float32)
    fpr, tpr, thresholds = sk.roc_curve(y, s, drop_intermediate=False)
    ours = roc_curve(s, y)
    assert [p.threshold for p in ours] == thresholds.tolist()
    assert [p.tpr for p in ours] == pytest.approx(tpr.tolist(), rel=EXACT)
    assert [p.fpr for p in ours] == pytest.approx(fpr.tolist(), rel=EXACT)
    precision, recall, levels = sk.precision_recall_curve(y, s)
    found = pr_curve(s, y)[::-1]  # scikit-learn's goes the other way, without a last threshold
    assert [p.precision for p in found] == pytest.approx(precision.tolist(), rel=EXACT)
    assert [p.recall for p in found] == pytest.approx(recall.tolist(), rel=EXACT)
    assert [p.threshold for p in found[:-1]] == levels.tolist()
    assert calculate_auc_roc(s, y, len(y)) == pytest.approx(sk.roc_auc_score(y, s), rel=EXACT)
    assert auc_pr(s, y) == pytest.approx(sk.average_precision_score(y, s), rel=EXACT)


def test_auc_vector_of_the_reference_and_ties() -> None:
    assert calculate_auc_roc([0.9, 0.8, 0.1, 0.2], [1, 1, 0, 0], 4) == 1.0
    assert calculate_auc_roc([0.5] * 4, [1, 1, 0, 0]) == calculate_auc_roc([0.5] * 4, [0, 0, 1, 1]) == 0.5
    assert auc_pr([0.5] * 4, [0, 1, 0, 0]) == 0.25


@pytest.mark.parametrize("labels", [[1, 1], [0, 0], [2, 2]])
def test_one_class_missing(labels: list[int]) -> None:
    assert calculate_auc_roc([0.1, 0.9], labels) == 0.0
    assert roc_curve([0.1, 0.9], labels) == []
    positives = labels == [1, 1]
    assert auc_pr([0.1, 0.9], labels) == float(positives)
    assert bool(pr_curve([0.1, 0.9], labels)) == positives


def test_no_rows_and_one_row() -> None:
    assert (calculate_auc_roc([], []), auc_pr([], []), roc_curve([], []), pr_curve([], [])) == (0.0, 0.0, [], [])
    assert calculate_auc_roc([0.3], [1]) == 0.0
    assert auc_pr([[0.3]], [[1]]) == 1.0


def test_scores_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"one score and one label a row needed, got \(2,\) and \(3,\)"):
        calculate_auc_roc([0.1, 0.2], [0, 1, 1])
    with pytest.raises(ShapeError, match="batch_size 3"):
        calculate_auc_roc([0.1, 0.2], [0, 1], 3)
    with pytest.raises(ShapeError, match="one score"):
        auc_pr([[0.1, 0.9]], [1])
    with pytest.raises(ShapeError, match="roc_curve: NaN"):
        roc_curve([0.1, math.nan], [0, 1])


@pytest.mark.parametrize("k", [1, 2, 4])
def test_top_k_agrees_with_scikit_learn(k: int) -> None:
    p, y = drawn(1)  # no equal probabilities in a row, where scikit-learn prefers the last
    assert top_k_accuracy(p, y, k) == pytest.approx(sk.top_k_accuracy_score(y, p, k=k, labels=range(5)), rel=EXACT)
    assert top_k_accuracy(p, np.eye(5)[y], k) == top_k_accuracy(p, y, k)


def test_top_k_prefers_the_first_of_equal_outputs_as_argmax_does() -> None:
    p = [[0.4, 0.4, 0.2]]
    assert [top_k_accuracy(p, [c], 1) for c in range(3)] == [1.0, 0.0, 0.0]
    assert [top_k_accuracy(p, [c], 2) for c in range(3)] == [1.0, 1.0, 0.0]
    assert top_k_accuracy(np.zeros((0, 3)), [], 2) == 0.0


def test_top_k_refuses_what_does_not_fit() -> None:
    for k in (0, 4, True):
        with pytest.raises(SpecError, match="from 1 to the 3 classes"):
            top_k_accuracy([[0.1, 0.2, 0.7]], [0], k)
    with pytest.raises(ShapeError, match="2 classes or more"):
        top_k_accuracy([[0.1]], [0], 1)
    with pytest.raises(ShapeError, match=r"outside 0\.\.2"):
        top_k_accuracy([[0.1, 0.2, 0.7]], [3], 1)


# regression


def test_regression_vector_of_the_reference() -> None:
    found = calculate_regression_metrics([2.5, 0, 2, 8], [3, -0.5, 2, 7], 4)
    wanted = RegressionMetrics(0.5, 0.375, math.sqrt(0.375), 1 - 1.5 / 29.1875, 0.5 / 7.5)
    assert vars(found) == pytest.approx(vars(wanted), rel=EXACT)


@pytest.mark.parametrize("shape", [(50,), (50, 1), (50, 3), (20, 2, 4)])
def test_regression_agrees_with_scikit_learn_over_all_outputs(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    t = rng.normal(1000, 1, shape).astype(np.float32)  # far from 0: float32 sums would lose digits
    p = t + rng.normal(0, 0.5, shape).astype(np.float32)
    found = calculate_regression_metrics(p, t, len(t))
    a, b = t.ravel().astype(np.float64), p.ravel().astype(np.float64)
    assert found.mae == pytest.approx(sk.mean_absolute_error(a, b), rel=EXACT)
    assert found.mse == pytest.approx(sk.mean_squared_error(a, b), rel=EXACT)
    assert found.rmse == pytest.approx(sk.root_mean_squared_error(a, b), rel=EXACT)
    assert found.r2 == pytest.approx(sk.r2_score(a, b), rel=1e-9)  # a mean of 1000 is taken off first: 3 digits fewer
    assert found.nmae == pytest.approx(found.mae / (a.max() - a.min()), rel=EXACT)
    assert calculate_regression_metrics(p.ravel(), t) == found  # flat, as in Go


def test_regression_zero_rules() -> None:
    constant = calculate_regression_metrics([1.0, 2.0, 0.3], [0.1, 0.1, 0.1])  # the mean of 0.1s is not quite 0.1
    assert (constant.r2, constant.nmae) == (0.0, 0.0)
    assert constant.mae > 0
    assert calculate_regression_metrics([], []) == RegressionMetrics()
    assert calculate_regression_metrics([3.0], [1.0]) == RegressionMetrics(2.0, 4.0, 2.0, 0.0, 0.0)
    assert math.isnan(calculate_regression_metrics([math.nan, 1], [0, 1]).mae)
    assert calculate_regression_metrics([math.inf, 1], [0, 1]).mse == math.inf


@pytest.mark.parametrize(
    ("p", "t", "batch", "message"),
    [
        ([1, 2], [1], None, "must agree"),
        (np.zeros((2, 3)), np.zeros((3, 2)), None, "must agree"),
        (np.zeros((4, 2)), np.zeros((4, 2)), 2, "batch_size 2 does not fit"),
        ([1, 2, 3], [1, 2, 3], 2, "batch_size 2 does not fit"),
        ([1, 2, 3], [1, 2, 3], 0, "batch_size 0 does not fit"),
    ],
)
def test_regression_refuses_shapes_that_do_not_fit(p: list, t: list, batch: int | None, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        calculate_regression_metrics(p, t, batch)


# a whole phase


def accumulated(p: np.ndarray, y: np.ndarray, *, batch: int = 16, **options: object) -> MetricAccumulator:
    m = MetricAccumulator(**options)  # type: ignore[arg-type]
    for start in range(0, len(p), batch):
        m.add(p[start : start + batch], y[start : start + batch])
    return m


@pytest.mark.parametrize("columns", [1, 2])
@pytest.mark.parametrize("batch", [1, 16, 1000])
def test_binary_phase(columns: int, batch: int) -> None:
    two, y = drawn(3, classes=2)
    s = two[:, 1]
    p = two if columns == 2 else s[:, None]
    m = accumulated(p, y if columns == 2 else y[:, None], batch=batch)
    yes = (s > 0.5).astype(int)
    assert m.compute(m.available("Classification", columns)) == pytest.approx(
        {
            "accuracy": sk.accuracy_score(y, yes), "precision": sk.precision_score(y, yes),
            "recall": sk.recall_score(y, yes), "f1_score": sk.f1_score(y, yes),
            "specificity": sk.recall_score(y, yes, pos_label=0), "npv": sk.precision_score(y, yes, pos_label=0),
            "auc_roc": sk.roc_auc_score(y, s), "auc_pr": sk.average_precision_score(y, s),
            **{k: m.confusion_matrix.values()[k] for k in available_metrics(0, 2) if k.startswith("m")},
        },
        rel=EXACT,
    )  # fmt: skip


@pytest.mark.parametrize("one_hot", [False, True])
def test_phase_of_five_classes(one_hot: bool) -> None:
    p, y = drawn(5)
    m = accumulated(p, np.eye(5)[y] if one_hot else y)
    found = m.compute([*m.available(0, 5), "top_2_accuracy"])
    right = p.argmax(axis=1)
    assert found["accuracy"] == found["micro_f1"] == pytest.approx(sk.accuracy_score(y, right), rel=EXACT)
    assert found["macro_f1_mean"] == pytest.approx(sk.f1_score(y, right, average="macro"), rel=EXACT)
    wanted = sk.roc_auc_score(y, p / p.sum(axis=1, keepdims=True), multi_class="ovr")
    assert found["auc_roc"] == pytest.approx(wanted, rel=EXACT)
    assert found["auc_pr"] == pytest.approx(sk.average_precision_score(y, p), rel=EXACT)
    assert found["top_2_accuracy"] == top_k_accuracy(p, y, 2)


def test_classes_that_do_not_occur_are_left_out_of_the_areas() -> None:
    p, y = drawn(6, classes=3)
    some = y != 2
    m = accumulated(p[some], y[some])
    areas = [calculate_auc_roc(p[some][:, c], y[some] == c) for c in (0, 1)]
    assert m.compute("auc_roc") == pytest.approx({"auc_roc": np.mean(areas)}, rel=EXACT)
    single = accumulated(p[:4], np.zeros(4, int))
    assert single.compute([MetricType.AUC_ROC, "AUCPR"]) == {"auc_roc": 0.0, "auc_pr": 1.0}


def test_multi_label_pools_all_outputs() -> None:
    rng = np.random.default_rng(7)
    y = rng.integers(0, 2, (60, 3))
    p = np.clip(rng.normal(0.35 + 0.3 * y, 0.2), 0, 1)
    m = accumulated(p, y, multi_label=True)
    found = m.compute(["accuracy", "f1_score", "auc_roc", "auc_pr"])
    wanted = {
        "accuracy": np.mean((p > 0.5) == y), "f1_score": sk.f1_score(y, p > 0.5, average="micro"),
        "auc_roc": sk.roc_auc_score(y, p, average="micro"), "auc_pr": sk.average_precision_score(y, p, average="micro"),
    }  # fmt: skip
    assert found == pytest.approx(wanted, rel=EXACT)
    assert m.confusion_matrix.total_samples == 180
    with pytest.raises(SpecError, match="top_2_accuracy needs"):
        m.compute("top_2_accuracy")
    with pytest.raises(ShapeError, match="one-hot"):
        MetricAccumulator().add([[0.9, 0.8]], [[1, 1]])


@pytest.mark.parametrize("outputs", [1, 3])
def test_regression_phase(outputs: int) -> None:
    rng = np.random.default_rng(8)
    t = rng.normal(size=(50, outputs)).astype(np.float32)
    p = t + rng.normal(0, 0.1, t.shape).astype(np.float32)
    m = accumulated(p, t[:, 0] if outputs == 1 else t, problem_type="regression")
    found = m.compute(m.available(ProblemType.Regression, outputs))
    assert found == vars(calculate_regression_metrics(p, t))
    with pytest.raises(SpecError, match="regression has none"):
        _ = m.confusion_matrix


def test_threshold_of_logits_and_soft_labels() -> None:
    m = MetricAccumulator(threshold=0.0)
    m.add([0.3, -0.2, 2.0], [0.9, 0.2, 0.4])
    assert m.confusion_matrix.matrix.tolist() == [[1, 1], [0, 1]]


def test_reset_and_empty_batches() -> None:
    m = accumulated(*drawn(0))
    m.reset()
    with pytest.raises(SpecError, match="call add"):
        m.compute(["accuracy"])
    with pytest.raises(SpecError, match="call add"):
        _ = m.confusion_matrix
    m.add(np.zeros((0, 2)), [])
    assert set(m.compute(m.available(0, 2)).values()) == {0.0}
    m.add([[0.2, 0.8]], [1])
    assert m.compute("accuracy") == {"accuracy": 1.0}


def test_the_callers_buffer_may_be_reused() -> None:
    buffer, m = np.array([[0.9], [0.1]]), MetricAccumulator()
    m.add(buffer, [1, 0])
    buffer[:] = 0.5
    assert m.compute("auc_roc") == {"auc_roc": 1.0}


@pytest.mark.parametrize(("problem", "name"), [(0, "accuracy"), (0, "auc_roc"), (1, "rmse")])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_diverged_model_is_judged_nan(problem: int, name: str, bad: float) -> None:
    m = MetricAccumulator(problem)
    m.add([0.5, 0.5], [0, 1])
    m.add([bad, 0.5], [0, 1])
    assert math.isnan(m.compute(name)[name])


@pytest.mark.parametrize(
    ("p", "y", "options", "message"),
    [
        ([[0.1, 0.9]], [2], {}, "label 2 in row 0 is outside 0..1"),
        ([0.4], [2], {}, "from 0 to 1, got 2"),
        ([[0.4, 0.6]], [[0, 2]], {"multi_label": True}, "from 0 to 1, got 2"),
        ([0.4], [0, 1], {}, r"labels must be \(1, 1\)"),
        (np.zeros((2, 3, 4)), [0, 1], {}, "predictions must be"),
        (0.5, [1], {}, "predictions must be"),
        ([[1.0, 2.0]], [1.0], {"problem_type": 1}, r"labels must be \(1, 2\)"),
        ([1.0], [math.nan], {"problem_type": 1}, "remove those rows"),
    ],
)
def test_accumulator_refuses_what_does_not_fit_and_takes_in_nothing(
    p: object, y: object, options: dict, message: str
) -> None:
    m = MetricAccumulator(**options)
    with pytest.raises(ShapeError, match=message) as e:
        m.add(p, y)  # type: ignore[arg-type]
    assert "\n" not in str(e.value)
    with pytest.raises(SpecError, match="no batch was added"):
        m.compute([])


def test_another_number_of_outputs_is_refused() -> None:
    m = accumulated(*drawn(0))
    with pytest.raises(ShapeError, match=r"must be \(rows, 5\), got \(1, 2\)"):
        m.add([[0.1, 0.9]], [1])


# names


def test_names_in_any_spelling_become_go_metals_keys_once() -> None:
    names = ["Accuracy", MetricType.F1_SCORE, "F1Score", "auc-roc", "AUCPR", 5, "Top_5_Accuracy", "top5accuracy"]
    keys = ["accuracy", "f1_score", "auc_roc", "auc_pr", "macro_precision"]
    assert resolve_metrics(names[:-2], "classification", 2) == keys
    assert resolve_metrics(names[-2:], 0, 10) == ["top_5_accuracy"]
    assert resolve_metrics("r2", ProblemType.Regression, 1) == ["r2"]


@pytest.mark.parametrize(
    ("name", "problem", "outputs", "message"),
    [
        ("precison", 0, 2, "unknown name 'precison'; did you mean 'precision'?"),
        ("top_k_accuracy", 0, 9, "did you mean 'top_5_accuracy'?"),
        ("top_0_accuracy", 0, 9, "unknown name"),
        (99, 0, 2, "99 is none of"),
        ("precision", 0, 5, "needs two classes, the model has 5; use macro_precision"),
        ("recall", 0, 3, "use macro_recall"),
        ("f1_score", 0, 3, "use macro_f1,"),
        (MetricType.NPV, 0, 3, "use macro_precision"),
        ("rmse", 0, 2, "rmse does not fit a classification problem; use one of accuracy"),
        ("accuracy", 1, 1, "accuracy does not fit a regression problem; use one of mae, mse"),
        ("top_2_accuracy", 1, 3, "does not fit a regression problem"),
        ("top_4_accuracy", 0, 3, "needs at least so many outputs"),
        ("top_1_accuracy", 0, 1, "needs at least so many outputs"),
    ],
)
def test_names_that_are_unknown_or_do_not_fit(name: str | int, problem: int, outputs: int, message: str) -> None:
    with pytest.raises(SpecError, match=message.replace("?", r"\?")) as e:
        resolve_metrics([name], problem, outputs)
    assert "\n" not in str(e.value)


def test_available() -> None:
    averaged = ["macro_precision", "macro_recall", "macro_f1", "micro_precision", "micro_recall", "micro_f1"]
    binary = ["precision", "recall", "f1_score", "specificity", "npv"]
    areas = ["macro_f1_mean", "auc_roc", "auc_pr"]
    assert available_metrics("Classification", 1) == ["accuracy", *binary, *averaged, *areas]
    assert available_metrics(0, 7) == ["accuracy", *averaged, *areas]
    assert available_metrics(0, 7, multi_label=True) == available_metrics(0, 2)
    assert MetricAccumulator.available("regression", 3) == ["mae", "mse", "rmse", "r2", "nmae"]

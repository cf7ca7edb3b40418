"""Each loss against its float64 formula, its gradient, its labels, what it counts and what it predicts."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from gometal_mlx import Predictor
from gometal_mlx.errors import ShapeError, SpecError
from gometal_mlx.layers import ModelBuilder
from gometal_mlx.training import LossFunction, ModelTrainer, TrainerConfig
from gometal_mlx.training.losses import (
    LOSSES,
    BCEWithLogits,
    BinaryCrossEntropy,
    CategoricalCrossEntropy,
    CrossEntropy,
    Huber,
    Loss,
    MeanAbsoluteError,
    MeanSquaredError,
    SparseCrossEntropy,
)

Array = np.ndarray
# float32 has 6e-8; sums of a few dozen terms, of logarithms up to 16, lose one digit
VALUE_TOLERANCE = 2e-6
# as above; a gradient goes back through a division by a probability
GRADIENT_TOLERANCE = 1e-5


def softmax(x: Array) -> Array:
    e = np.exp(x - x.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def one_hot(y: Array, classes: int) -> Array:
    return np.eye(classes)[y]


def log_sum_exp(x: Array) -> Array:
    top = x.max(axis=1, keepdims=True)
    return top + np.log(np.exp(x - top).sum(axis=1, keepdims=True))


def cross_entropy(x: Array, y: Array) -> float:
    y = one_hot(y, x.shape[1]) if y.ndim == 1 else y
    return float((y * (log_sum_exp(x) - x)).sum(axis=1).mean())


def categorical(p: Array, y: Array) -> float:
    y = one_hot(y, p.shape[1]) if y.ndim == 1 else y
    return float(-(y * np.log(np.clip(p, 1e-7, 1 - 1e-7))).sum(axis=1).mean())


def binary(p: Array, y: Array) -> float:
    p, y = np.clip(p, 1e-7, 1 - 1e-7), y.reshape(p.shape)
    return float(-(y * np.log(p) + (1 - y) * np.log(1 - p)).mean())


def bce_with_logits(x: Array, y: Array) -> float:
    return float((np.maximum(x, 0) - x * y.reshape(x.shape) + np.log1p(np.exp(-np.abs(x)))).mean())


def mean_squared(x: Array, y: Array) -> float:
    return float(((x - y.reshape(x.shape)) ** 2).mean())


def mean_absolute(x: Array, y: Array) -> float:
    return float(np.abs(x - y.reshape(x.shape)).mean())


def huber(x: Array, y: Array) -> float:
    d = np.abs(x - y.reshape(x.shape))
    return float(np.where(d <= 1, d**2 / 2, d - 0.5).mean())


@dataclass(frozen=True)
class Case:
    """A loss, its formula, random outputs and labels of a shape, and its predictions."""

    kind: type[Loss]
    formula: Callable[[Array, Array], float]
    outputs: Callable[[np.random.Generator, tuple[int, ...]], Array]
    labels: Callable[[np.random.Generator, tuple[int, ...]], Array]
    shapes: tuple[tuple[int, ...], ...]
    predicted: Callable[[Array], Array] = lambda x: x


def logits(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    return 3 * rng.standard_normal(shape)


def distribution(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    return softmax(logits(rng, shape))


def class_numbers(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    return rng.integers(0, shape[1], shape[0])


def shares(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    return rng.uniform(0, 1, shape)


WIDE, BINARY, VALUES = ((8, 2), (6, 10), (1, 3)), ((8, 1), (6, 4), (1, 1)), ((8, 1), (6, 3), (1, 1), (4, 2, 3, 3))
CASES = [
    Case(CrossEntropy, cross_entropy, logits, class_numbers, WIDE, softmax),
    Case(SparseCrossEntropy, cross_entropy, logits, class_numbers, WIDE, softmax),
    Case(CategoricalCrossEntropy, categorical, distribution, class_numbers, WIDE),
    Case(BinaryCrossEntropy, binary, shares, shares, BINARY),
    Case(BCEWithLogits, bce_with_logits, logits, shares, BINARY, sigmoid),
    Case(MeanSquaredError, mean_squared, logits, logits, VALUES),
    Case(MeanAbsoluteError, mean_absolute, logits, logits, VALUES),
    Case(Huber, huber, logits, logits, VALUES),
]
BY_SHAPE = [(case, shape) for case in CASES for shape in case.shapes]


def named(value: Any) -> str:
    return value.kind.__name__ if isinstance(value, Case) else str(value)


CLASSES = (CrossEntropy, SparseCrossEntropy, CategoricalCrossEntropy)
over_classes = pytest.mark.parametrize("kind", CLASSES)
over_binary = pytest.mark.parametrize("kind", [BinaryCrossEntropy, BCEWithLogits])
over_values = pytest.mark.parametrize("kind", [MeanSquaredError, MeanAbsoluteError, Huber])


def value(loss: Loss, outputs: Any, labels: Any) -> float:
    """The mean over the batch, as the trainer takes it."""
    x = np.asarray(outputs, np.float32)
    rows = loss.per_row(mx.array(x), mx.array(loss.labels(labels, len(x))))
    assert (rows.shape, rows.dtype) == ((len(x),), mx.float32)
    return float(mx.mean(rows).item())


def gradient(loss: Loss, outputs: Any, labels: Any) -> Array:
    x = np.asarray(outputs, np.float32)
    y = mx.array(loss.labels(labels, len(x)))
    return np.array(mx.grad(lambda x: mx.mean(loss.per_row(x, y)))(mx.array(x)), np.float64)


@pytest.mark.parametrize("code", list(LossFunction))
def test_every_code_has_a_class_and_a_case(code: LossFunction) -> None:
    assert LOSSES[int(code)].__name__ == code.name
    assert [case for case in CASES if case.kind is LOSSES[int(code)]]


@pytest.mark.parametrize(("case", "shape"), BY_SHAPE, ids=named)
def test_value(case: Case, shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    x, y = case.outputs(rng, shape).astype(np.float32), case.labels(rng, shape)
    y = y.astype(np.float32) if y.dtype == np.float64 else y
    expected = case.formula(x.astype(np.float64), y.astype(np.float64) if y.dtype == np.float32 else y)
    assert value(case.kind(shape), x, y) == pytest.approx(expected, rel=VALUE_TOLERANCE, abs=VALUE_TOLERANCE)


@pytest.mark.parametrize(("case", "shape"), BY_SHAPE, ids=named)
def test_gradient_is_the_slope_of_the_formula(case: Case, shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(1)
    x = case.outputs(rng, shape).astype(np.float32).astype(np.float64)
    y = case.labels(rng, shape)
    y = y.astype(np.float32).astype(np.float64) if y.dtype == np.float64 else y
    found, slope, h = gradient(case.kind(shape), x, y), np.empty(shape), 1e-6  # h^2 and 1e-16 / h are far below float32
    for i in np.ndindex(shape):
        step = np.zeros(shape)
        step[i] = h
        slope[i] = (case.formula(x + step, y) - case.formula(x - step, y)) / (2 * h)
    np.testing.assert_allclose(found, slope, rtol=GRADIENT_TOLERANCE, atol=GRADIENT_TOLERANCE * np.abs(slope).max())


@pytest.mark.parametrize(("case", "shape"), BY_SHAPE, ids=named)
def test_predictions(case: Case, shape: tuple[int, ...]) -> None:
    x = case.outputs(np.random.default_rng(2), shape).astype(np.float32)
    found = np.array(case.kind(shape).predictions(mx.array(x)))
    # one exp and one division in float32
    np.testing.assert_allclose(found, case.predicted(x.astype(np.float64)), rtol=2e-6, atol=1e-7)


@over_classes
def test_predictions_are_classes_of_sum_1_only_for_logits(kind: type[Loss]) -> None:
    assert kind((1, 3)).uses_logits is (kind is not CategoricalCrossEntropy)


# from the reference, section 12, with 6 decimals
def test_vectors_of_the_reference() -> None:
    rows, classes = [[2, 1, 0.1], [0.5, 2.5, -1]], [0, 2]
    assert value(CrossEntropy((2, 3)), rows, classes) == pytest.approx(2.035104, abs=1e-6)
    assert value(SparseCrossEntropy((2, 3)), rows, classes) == pytest.approx(2.035104, abs=1e-6)
    assert value(CategoricalCrossEntropy((2, 3)), softmax(np.array(rows)), classes) == pytest.approx(2.035104, abs=1e-6)
    x, y = np.array([[0.8], [-1.2], [2.0]]), [1, 0, 0]
    assert value(BCEWithLogits((3, 1)), x, y) == pytest.approx(0.920437, abs=1e-6)
    assert value(BinaryCrossEntropy((3, 1)), sigmoid(x), y) == pytest.approx(0.920437, abs=1e-6)
    given, wanted = [[2.5, 0], [2, 8]], [[3, -0.5], [2, 5]]
    assert value(MeanSquaredError((2, 2)), given, wanted) == 2.375
    assert value(MeanAbsoluteError((2, 2)), given, wanted) == 1.0
    assert value(Huber((2, 2)), given, wanted) == 0.6875


# ------------------------------------------------------------------------------------ label smoothing, class weights


@pytest.mark.parametrize("one_hot_labels", [False, True])
@over_classes
def test_smoothing_spreads_a_share_over_all_classes(kind: type[Loss], one_hot_labels: bool) -> None:
    p, numbers = distribution(np.random.default_rng(5), (6, 4)), np.array([0, 3, 1, 2, 2, 0])
    labels = one_hot(numbers, 4) if one_hot_labels else numbers
    formula = categorical if kind is CategoricalCrossEntropy else cross_entropy
    expected = formula(p, 0.7 * one_hot(numbers, 4) + 0.3 / 4)
    assert value(kind((6, 4), label_smoothing=0.3), p, labels) == pytest.approx(expected, rel=VALUE_TOLERANCE)


@over_binary
def test_smoothing_moves_a_target_towards_a_half(kind: type[Loss]) -> None:
    p, y = shares(np.random.default_rng(6), (6, 4)), shares(np.random.default_rng(7), (6, 4))
    formula = binary if kind is BinaryCrossEntropy else bce_with_logits
    expected = formula(p, 0.7 * y + 0.3 / 2)
    assert value(kind((6, 4), label_smoothing=0.3), p, y) == pytest.approx(expected, rel=VALUE_TOLERANCE)


@over_values
def test_values_have_nothing_to_smooth(kind: type[Loss]) -> None:
    with pytest.raises(SpecError, match=f"^{kind.__name__}: label_smoothing is for classification, got 0.1$"):
        kind((6, 4), label_smoothing=0.1)
    with pytest.raises(SpecError, match=f"^{kind.__name__}: class_weights are for classification$"):
        kind((2, 1)).mean(mx.zeros((2, 1)), mx.zeros((2, 1)), [1.0, 2.0])


@pytest.mark.parametrize("one_hot_labels", [False, True])
@over_classes
def test_class_weights_make_a_weighted_mean(kind: type[Loss], one_hot_labels: bool) -> None:
    p, numbers = distribution(np.random.default_rng(8), (6, 4)), np.array([0, 3, 1, 2, 2, 0])
    formula = categorical if kind is CategoricalCrossEntropy else cross_entropy
    rows = np.array([formula(p[i : i + 1], numbers[i : i + 1]) for i in range(6)])
    weights = np.array([1.0, 2.0, 0.5, 4.0])
    expected = (weights[numbers] * rows).sum() / weights[numbers].sum()
    loss, labels = kind((6, 4)), one_hot(numbers, 4) if one_hot_labels else numbers
    found = loss.mean(mx.array(p.astype(np.float32)), mx.array(loss.labels(labels, 6)), weights.tolist())
    assert found.item() == pytest.approx(expected, rel=VALUE_TOLERANCE)


@over_binary
def test_class_weights_of_yes_and_no(kind: type[Loss]) -> None:
    p, y = shares(np.random.default_rng(9), (4, 1)), np.array([0, 1, 1, 0])
    formula = binary if kind is BinaryCrossEntropy else bce_with_logits
    rows, weights = np.array([formula(p[i : i + 1], y[i : i + 1]) for i in range(4)]), np.array([1.0, 3.0])
    loss = kind((4, 1))
    found = loss.mean(mx.array(p.astype(np.float32)), mx.array(loss.labels(y, 4)), weights.tolist())
    expected = (weights[y] * rows).sum() / weights[y].sum()
    assert found.item() == pytest.approx(expected, rel=VALUE_TOLERANCE)


@pytest.mark.parametrize("case", CASES, ids=named)
def test_mean_without_weights_is_the_mean_of_the_rows(case: Case) -> None:
    rng, shape = np.random.default_rng(10), case.shapes[0]
    x, loss = case.outputs(rng, shape).astype(np.float32), case.kind(shape)
    y = case.labels(rng, shape)
    assert loss.mean(mx.array(x), mx.array(loss.labels(y, len(x)))).item() == value(loss, x, y)


# ------------------------------------------------------------------------------------------------- extreme outputs

EXTREME = np.array([[1e4, -1e4, 0.0], [-1e4, 1e4, 1e4]])


@pytest.mark.parametrize("labels", [[0, 1], [1, 0], [[0.5, 0.5, 0], [0, 0, 1]]])
@pytest.mark.parametrize("kind", [CrossEntropy, SparseCrossEntropy])
def test_extreme_logits_of_classes(kind: type[Loss], labels: Any) -> None:
    expected = cross_entropy(EXTREME, np.array(labels))
    # logsumexp of 1e4 has float32 steps of 0.001
    assert value(kind((2, 3)), EXTREME, labels) == pytest.approx(expected, rel=VALUE_TOLERANCE, abs=1e-3)
    y = np.array(labels) if np.ndim(labels) == 2 else one_hot(np.array(labels), 3)
    np.testing.assert_allclose(gradient(kind((2, 3)), EXTREME, labels), (softmax(EXTREME) - y) / 2, atol=1e-6)


@pytest.mark.parametrize("x", [-1e4, -100.0, 0.0, 100.0, 1e4])
@pytest.mark.parametrize("y", [0.0, 0.25, 1.0])
def test_bce_with_logits_everywhere(x: float, y: float) -> None:
    """The slope is sigmoid(x) - y, at 0 as well: a model whose last ReLU is dead starts there."""
    loss = BCEWithLogits((1, 1))
    expected = bce_with_logits(np.array([[x]]), np.array([[y]]))
    assert value(loss, [[x]], [[y]]) == pytest.approx(expected, rel=VALUE_TOLERANCE)
    with np.errstate(over="ignore"):
        slope = float(sigmoid(np.array(x))) - y
    assert gradient(loss, [[x]], [[y]])[0, 0] == pytest.approx(slope, abs=1e-6)  # one exp in float32


@pytest.mark.parametrize("kind", [BinaryCrossEntropy, CategoricalCrossEntropy])
@pytest.mark.parametrize("p", [[[0.0, 1.0]], [[1.0, 0.0]], [[1e-30, 1.0]]])
def test_certain_probabilities_are_clamped(kind: type[Loss], p: Any) -> None:
    formula = binary if kind is BinaryCrossEntropy else categorical
    labels = [[1.0, 0.0]]
    # 1 - 1e-7 is 1 - 1.19e-7 in float32, which moves its logarithm of -16.1 by 0.18
    assert value(kind((1, 2)), p, labels) == pytest.approx(formula(np.array(p), np.array(labels)), rel=0.02, abs=1e-6)
    assert np.isfinite(gradient(kind((1, 2)), p, labels)).all()


@over_values
def test_extreme_values(kind: type[Loss]) -> None:
    x, y = [[1e4], [-1e4]], [-1e4, 1e4]
    expected = {MeanSquaredError: 4e8, MeanAbsoluteError: 2e4, Huber: 2e4 - 0.5}[kind]
    assert value(kind((2, 1)), x, y) == pytest.approx(expected, rel=VALUE_TOLERANCE)
    slope = {MeanSquaredError: 2e4, MeanAbsoluteError: 0.5, Huber: 0.5}[kind]
    np.testing.assert_allclose(gradient(kind((2, 1)), x, y), [[slope], [-slope]], rtol=GRADIENT_TOLERANCE)


@over_values
def test_no_difference_costs_nothing(kind: type[Loss]) -> None:
    assert value(kind((2, 1)), [[1.5], [0]], [1.5, 0]) == 0
    np.testing.assert_array_equal(gradient(kind((2, 1)), [[1.5], [0]], [1.5, 0]), 0)


# ---------------------------------------------------------------------------------------------------------- labels


@over_classes
def test_spellings_of_class_labels_are_the_same(kind: type[Loss]) -> None:
    rng = np.random.default_rng(3)
    p, numbers = distribution(rng, (6, 4)), np.array([0, 3, 1, 2, 2, 0])
    first = value(kind((6, 4)), p, numbers)
    for same in (numbers.tolist(), numbers.astype(np.uint8), numbers.astype(np.float64), numbers[:, None]):
        assert value(kind((6, 4)), p, same) == first
    # sums over all classes instead of one pick
    assert value(kind((6, 4)), p, one_hot(numbers, 4)) == pytest.approx(first, rel=VALUE_TOLERANCE)


@over_classes
def test_labels_may_be_probabilities(kind: type[Loss]) -> None:
    rng = np.random.default_rng(4)
    p, y = distribution(rng, (6, 4)), distribution(rng, (6, 4))
    formula = categorical if kind is CategoricalCrossEntropy else cross_entropy
    assert value(kind((6, 4)), p, y) == pytest.approx(formula(p, y), rel=VALUE_TOLERANCE)


@over_binary
@pytest.mark.parametrize("labels", [[1, 0, 1], [True, False, True], [[1.0], [0.0], [1.0]]])
def test_spellings_of_binary_labels_are_the_same(kind: type[Loss], labels: Any) -> None:
    x = [[0.3], [0.6], [0.9]]
    assert value(kind((3, 1)), x, labels) == value(kind((3, 1)), x, np.array([[1], [0], [1]], np.float32))


NAN, INF = float("nan"), float("inf")


@over_classes
@pytest.mark.parametrize(
    ("labels", "told"),
    [
        ([0, 4, 1], "label 4 in row 1 is outside 0..3"),
        ([0, 1, -1], "label -1 in row 2 is outside 0..3"),
        ([0, INF, 1], "label inf in row 1 is outside 0..3"),
        ([0.0, 1.5, 1.0], "class numbers must be whole, got 1.5"),
        ([0.0, NAN, 1.0], "class numbers must be whole, got nan"),
        ([0, 1], r"labels must be \(3,\) class numbers or \(3, 4\) one-hot rows, got \(2,\)"),
        (np.zeros((3, 5)), r"labels must be \(3,\) class numbers or \(3, 4\) one-hot rows, got \(3, 5\)"),
        (np.zeros((3, 4, 1)), r"labels must be .*, got \(3, 4, 1\)"),
        (1, r"labels must be .*, got \(\)"),
        (np.full((3, 4), 0.5), "one-hot labels must be rows of probabilities that sum to 1"),
        (np.full((3, 4), NAN), "one-hot labels must be rows of probabilities that sum to 1"),
        ([[1.5, -0.5, 0, 0]] * 3, "one-hot labels must be rows of probabilities that sum to 1"),
    ],
)  # fmt: skip
def test_refuses_class_labels(kind: type[Loss], labels: Any, told: str) -> None:
    with pytest.raises(ShapeError, match=f"^{kind.__name__}: {told}$"):
        kind((3, 4)).labels(labels, 3)


@over_binary
@pytest.mark.parametrize(
    ("labels", "told"),
    [
        ([0, 2, 1], "labels must be from 0 to 1, got 2.0"),
        ([0, -0.5, 1], "labels must be from 0 to 1, got -0.5"),
        ([0, NAN, 1], "labels must be from 0 to 1, got nan"),
        ([0, 1], r"labels must have shape \(3, 1\) \(one of 0..1 for each output\), got \(2,\)"),
        (np.zeros((3, 2)), r"labels must have shape \(3, 1\) .*, got \(3, 2\)"),
    ],
)
def test_refuses_binary_labels(kind: type[Loss], labels: Any, told: str) -> None:
    with pytest.raises(ShapeError, match=f"^{kind.__name__}: {told}$"):
        kind((3, 1)).labels(labels, 3)


@over_binary
def test_refuses_one_label_for_several_outputs(kind: type[Loss]) -> None:
    with pytest.raises(ShapeError, match=r"labels must have shape \(3, 2\)"):
        kind((3, 2)).labels([0, 1, 1], 3)


@over_values
@pytest.mark.parametrize(
    ("labels", "told"),
    [
        ([0, NAN, 1], "NaN or infinity in the labels; remove those rows"),
        ([0, INF, 1], "NaN or infinity in the labels; remove those rows"),
        ([0, 1], r"labels must have the outputs' shape \(3, 1\), got \(2,\)"),
        (np.zeros((1, 3)), r"labels must have the outputs' shape \(3, 1\), got \(1, 3\)"),
    ],
)
def test_refuses_values(kind: type[Loss], labels: Any, told: str) -> None:
    with pytest.raises(ShapeError, match=f"^{kind.__name__}: {told}$"):
        kind((3, 1)).labels(labels, 3)


@pytest.mark.parametrize("case", CASES, ids=named)
def test_refuses_texts_as_labels(case: Case) -> None:
    with pytest.raises(ValueError, match=r"label|'a'") as e:  # numpy's own words will do; ShapeError is a ValueError
        case.kind(case.shapes[0]).labels(["a"] * case.shapes[0][0], case.shapes[0][0])
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("kind", [*CLASSES, BinaryCrossEntropy, BCEWithLogits])
def test_classification_needs_rows_of_outputs(kind: type[Loss]) -> None:
    with pytest.raises(SpecError, match=rf"^{kind.__name__}: the model must end in \(batch, classes\), but it ends in"):
        kind((3, 2, 4, 4))


@over_classes
def test_classes_need_two_outputs(kind: type[Loss]) -> None:
    with pytest.raises(SpecError, match=rf"^{kind.__name__}: at least 2 outputs needed, the model has 1; use BCEWith"):
        kind((3, 1))


# ----------------------------------------------------------------------------------------------------- correct rows


def correct(loss: Loss, outputs: Any, labels: Any) -> float:
    x = np.asarray(outputs, np.float32)
    counted = loss.correct(mx.array(x), mx.array(loss.labels(labels, len(x))))
    assert counted is not None
    return float(counted.item())


@over_classes
@pytest.mark.parametrize("labels", [[2, 0, 1, 0], one_hot(np.array([2, 0, 1, 0]), 3)])
def test_correct_classes(kind: type[Loss], labels: Any) -> None:
    assert correct(kind((4, 3)), [[0, 0.1, 0.9], [0.2, 0.7, 0.1], [0.1, 0.8, 0.1], [0.5, 0.3, 0.2]], labels) == 3


def test_correct_binary() -> None:
    labels = [1, 0, 1, 0]
    assert correct(BinaryCrossEntropy((4, 1)), [[0.9], [0.4], [0.3], [0.6]], labels) == 2
    assert correct(BCEWithLogits((4, 1)), [[2.0], [-0.4], [0.3], [0.6]], labels) == 3


def test_several_binary_outputs_count_their_share() -> None:
    labels = [[1, 0], [1, 1], [0, 0]]
    assert correct(BCEWithLogits((3, 2)), [[1, -1], [1, -1], [1, 1]], labels) == pytest.approx(1.5)


@over_values
def test_values_are_never_correct(kind: type[Loss]) -> None:
    assert kind((2, 1)).correct(mx.zeros((2, 1)), mx.zeros((2, 1))) is None
    assert kind.classification is False


@pytest.mark.parametrize(
    ("x", "label"),
    [([20, 10], 0), ([1e8, 1e8], 1), ([1e7, 1e7 + 2], 0), ([0, -30], 0), ([1e30, 0], 0), ([3e38, 3e38], 0)],
)
def test_large_logits_keep_their_digits_and_sure_ones_of_yes_and_no(x: list[float], label: int) -> None:
    wide = np.array([x], np.float32).astype(np.float64)
    exact = np.log1p(np.exp(-np.abs(wide[0, 0] - wide[0, 1]))) + max(0, wide[0, 1 - label] - wide[0, label])
    found = CrossEntropy((1, 2)).per_row(mx.array(x)[None], mx.array([label])).item()
    assert found == pytest.approx(exact, rel=1e-6, abs=1e-7)  # the logarithm of a sum that begins with 1
    assert not np.signbit(found)
    difference = float(wide[0, 1] - wide[0, 0])
    exact = float(np.logaddexp(0, -difference if label else difference))
    found = BCEWithLogits((1, 1)).per_row(mx.array([[difference]]), mx.array([[float(label)]])).item()
    assert found == pytest.approx(exact, rel=1e-5, abs=1e-30)


def image_classifier(**softmax: int) -> ModelBuilder:
    builder = ModelBuilder((8, 2, 5, 5)).add_conv2d(3, 3).add_global_avg_pool2d()
    return builder.add_softmax(softmax.get("axis", 1))


@pytest.mark.parametrize("loss", ["CrossEntropy", "CategoricalCrossEntropy"])
def test_no_softmax_is_applied_twice_where_its_shape_is_changed_behind_it(loss: str) -> None:
    spec = image_classifier().add_flatten().add_dropout(0.5).compile()
    trainer = ModelTrainer(spec, TrainerConfig(loss_function=loss, seed=0))
    x = np.random.default_rng(0).standard_normal((8, 2, 5, 5)).astype(np.float32)
    trainer.model.eval()
    wanted = np.array(trainer.model(mx.array(x)))
    np.testing.assert_allclose(trainer.predict(x), wanted, rtol=1e-6)
    np.testing.assert_allclose(Predictor(trainer.checkpoint(), engine="onnxruntime").predict(x), wanted, rtol=1e-5)
    y = np.arange(8) % 3
    assert trainer.evaluate((x, y))["loss"] == pytest.approx(-np.log(wanted[range(8), y]).mean(), rel=1e-5)


def test_a_softmax_that_is_not_over_the_classes_gives_no_probabilities() -> None:
    spec = ModelBuilder((8, 4)).add_dense(3).add_softmax(0, "s").compile()
    for loss in ("CategoricalCrossEntropy", "BinaryCrossEntropy"):
        with pytest.raises(SpecError, match=f"^{loss}: Softmax 's' is taken along the batch; choose another axis$"):
            ModelTrainer(spec, TrainerConfig(loss_function=loss))
    spec = ModelBuilder((8, 4)).add_dense(3).add_log_softmax().compile()
    with pytest.raises(SpecError, match="must end in logits, but it ends in LogSoftmax"):
        ModelTrainer(spec, TrainerConfig(loss_function="BCEWithLogits"))
    rest = ModelBuilder((8, 4)).add_dense(2).add_softmax().add_dropout().compile()
    with pytest.raises(SpecError, match="must end in logits, but it ends in Softmax"):
        ModelTrainer(rest, TrainerConfig(loss_function="BCEWithLogits"))

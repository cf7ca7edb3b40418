"""ArrayDataset: what it takes and how it keeps it."""

from typing import Any

import numpy as np
import pytest

from gometal_mlx.data import ArrayDataset
from gometal_mlx.errors import ShapeError
from gometal_mlx.layers import ModelBuilder
from gometal_mlx.training import ModelTrainer


@pytest.mark.parametrize(
    ("labels", "dtype"),
    [
        ([0, 1, 2], np.int32),
        (np.array([0, 1, 2], np.uint8), np.int32),
        (np.array([0, 1, 2], np.uint64), np.int32),
        ([True, False, True], np.int32),
        ([0.0, 1.5, 2.0], np.float32),
        (np.zeros((3, 4)), np.float32),
        (np.eye(3, dtype=int), np.int32),
    ],
)
def test_labels_keep_whether_they_are_whole(labels: Any, dtype: type) -> None:
    data = ArrayDataset(np.zeros((3, 2)), labels)
    assert data.y.dtype == dtype
    np.testing.assert_array_equal(data.y, labels)


def test_inputs_become_float32_in_one_piece() -> None:
    x = np.arange(24, dtype=np.uint8).reshape(2, 3, 4).transpose(1, 0, 2)
    data = ArrayDataset(x, [0, 1, 2])
    assert (data.x.dtype, data.x.flags.c_contiguous, len(data)) == (np.float32, True, 3)
    np.testing.assert_array_equal(data.x, x)


def test_rows_come_in_the_order_asked_for() -> None:
    x, y = ArrayDataset([[0.0], [1.0], [2.0]], [5, 6, 7]).rows(np.array([2, 0, 2]))
    assert (x.tolist(), y.tolist()) == ([[2], [0], [2]], [7, 5, 7])


@pytest.mark.parametrize(
    ("x", "y", "found"),
    [
        (np.zeros((3, 2)), [0, 1], r"\(3, 2\) and \(2,\)"),
        (np.zeros((0, 2)), [], r"\(0, 2\) and \(0,\)"),
        (np.zeros(3), [0, 1, 2], r"\(3,\) and \(3,\)"),
        (np.zeros((3, 2)), 0, r"\(3, 2\) and \(1,\)"),
    ],
)
def test_refuses_shapes(x: Any, y: Any, found: str) -> None:
    told = rf"^ArrayDataset: inputs and labels need the same number of rows, at least 1, got {found}$"
    with pytest.raises(ShapeError, match=told):
        ArrayDataset(x, y)


@pytest.mark.parametrize("label", [2**31, -(2**31) - 1, 2**63])
def test_integers_of_more_than_32_bits_are_numbers_and_no_classes(label: int) -> None:
    x, y = np.zeros((1, 3)), np.array([label], np.uint64 if label > 0 else np.int64)
    assert ArrayDataset(x, y).y.dtype == np.float32
    assert ArrayDataset(x, y).y.tolist() == [np.float32(label)]
    spec = ModelBuilder((1, 3)).add_dense(2).compile()
    with pytest.raises(ShapeError, match=r"in row 0 is outside 0\.\.1"):
        ModelTrainer(spec).fit((x, y), 1)


@pytest.mark.parametrize("label", [2**31 - 1, -(2**31)])
def test_takes_labels_of_32_bits(label: int) -> None:
    assert ArrayDataset(np.zeros((1, 1)), [label]).y.tolist() == [label]

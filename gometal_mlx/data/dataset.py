"""Datasets: anything with a length that hands out rows of inputs and labels."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from .._types import floats
from ..errors import ShapeError

Array = npt.NDArray[Any]


class Dataset(Protocol):
    """What a DataLoader needs."""

    def __len__(self) -> int:
        """How many rows there are."""

    def rows(self, indices: npt.NDArray[np.int64]) -> tuple[Array, Array]:
        """Inputs and labels of the rows, in that order."""


class ArrayDataset:
    """Inputs and labels held in memory.

    Args:
        x: inputs, first axis the rows; converted to float32 once.
        y: labels, as many rows; integers that fit are kept as int32, everything else becomes float32.
    Raises: ShapeError if the lengths differ, there are no rows, or they are no numbers.
    """

    def __init__(self, x: npt.ArrayLike, y: npt.ArrayLike) -> None:
        try:
            self.x: Array = np.ascontiguousarray(floats(x))
            labels = np.asarray(y)
            labels = labels if labels.dtype.kind in "iub" else floats(labels)
        except (TypeError, ValueError) as e:  # text, rows of different lengths
            raise ShapeError(f"ArrayDataset: inputs and labels must be arrays of numbers: {e}") from e
        whole = labels.dtype.kind in "iub"
        if whole and labels.size:
            whole = -(2**31) <= int(labels.min()) <= int(labels.max()) < 2**31
        self.y: Array = np.ascontiguousarray(labels, np.int32 if whole else np.float32)
        if self.x.ndim < 2 or self.y.ndim < 1 or len(self.x) != len(self.y) or not len(self.x):
            found = f"{self.x.shape} and {self.y.shape}"
            raise ShapeError(f"ArrayDataset: inputs and labels need the same number of rows, at least 1, got {found}")

    def __len__(self) -> int:
        return len(self.x)

    def rows(self, indices: npt.NDArray[np.int64]) -> tuple[Array, Array]:
        return self.x[indices], self.y[indices]

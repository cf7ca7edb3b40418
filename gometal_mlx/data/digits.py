"""The handwritten digits that ship with scikit-learn: real data without a download."""

from __future__ import annotations

import importlib

import numpy as np

from .._types import is_int, is_number
from ..errors import SpecError, UnsupportedError, shown
from .dataset import ArrayDataset


def load_digits(*, images: bool = True, test_fraction: float = 0.2, seed: int = 0) -> tuple[ArrayDataset, ArrayDataset]:
    """1,797 scans of handwritten digits (Alpaydin, Kaynak 1998), split into training and test set.

    Args:
        images: ``(N, 1, 8, 8)`` for convolutions; False gives ``(N, 64)``. Values are scaled to 0..1.
        test_fraction: share of each digit that goes to the test set.
        seed: of the split.
    Raises: SpecError for values out of range; UnsupportedError if scikit-learn (the ``digits`` extra) is not installed.
    """
    if not is_number(test_fraction) or not 0 < test_fraction < 1:
        raise SpecError(f"load_digits: test_fraction must be a number between 0 and 1, got {shown(test_fraction)}")
    if not is_int(seed) or not 0 <= seed < 2**32:
        raise SpecError(f"load_digits: seed must be an int from 0 to 2**32 - 1, got {shown(seed)}")
    try:
        datasets = importlib.import_module("sklearn.datasets")
        selection = importlib.import_module("sklearn.model_selection")
    except ImportError as e:
        raise UnsupportedError(
            "the digits ship with scikit-learn; install it with: pip install 'gometal_mlx[digits]'"
        ) from e
    bunch = datasets.load_digits()
    x = (bunch.data / 16).astype(np.float32)
    x = x.reshape(-1, 1, 8, 8) if images else x
    train_x, test_x, train_y, test_y = selection.train_test_split(
        x, bunch.target, test_size=test_fraction, random_state=seed, stratify=bunch.target
    )
    return ArrayDataset(train_x, train_y), ArrayDataset(test_x, test_y)

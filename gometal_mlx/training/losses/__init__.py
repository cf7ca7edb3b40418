"""Losses: one file each."""

from .base import LOSSES, Loss
from .binary_cross_entropy import BCEWithLogits, BinaryCrossEntropy
from .categorical_cross_entropy import CategoricalCrossEntropy
from .cross_entropy import CrossEntropy, SparseCrossEntropy
from .huber import Huber
from .mean_absolute_error import MeanAbsoluteError
from .mean_squared_error import MeanSquaredError

__all__ = [
    "LOSSES", "BCEWithLogits", "BinaryCrossEntropy", "CategoricalCrossEntropy", "CrossEntropy", "Huber", "Loss",
    "MeanAbsoluteError", "MeanSquaredError", "SparseCrossEntropy",
]  # fmt: skip

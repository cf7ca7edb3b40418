"""Losses: one file each."""

from .base import LOSSES, Loss
from .cross_entropy import CrossEntropy, SparseCrossEntropy
from .mean_squared_error import MeanSquaredError

__all__ = ["LOSSES", "CrossEntropy", "Loss", "MeanSquaredError", "SparseCrossEntropy"]

"""Data: arrays in memory and the loader that serves them in batches."""

from .dataset import ArrayDataset, Dataset
from .digits import load_digits
from .loader import DataLoader

__all__ = ["ArrayDataset", "DataLoader", "Dataset", "load_digits"]

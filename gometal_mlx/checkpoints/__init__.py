"""Checkpoints: the data, and its three file formats."""

from .checkpoint import (
    Checkpoint,
    CheckpointFormat,
    CheckpointMetadata,
    OptimizerState,
    OptimizerTensor,
    TrainingState,
    WeightTensor,
    extract_weights,
    load_weights,
)
from .formats import CheckpointSaver, load, save

__all__ = [
    "Checkpoint", "CheckpointFormat", "CheckpointMetadata", "CheckpointSaver", "OptimizerState", "OptimizerTensor",
    "TrainingState", "WeightTensor", "extract_weights", "load", "load_weights", "save",
]  # fmt: skip

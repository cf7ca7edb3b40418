"""Layers, model descriptions and the running model."""

from .base import Layer, Param
from .builder import LayerFactory, ModelBuilder
from .model import Model
from .registry import (
    ELU,
    BatchNorm,
    Conv2D,
    Dense,
    Dropout,
    LayerType,
    LeakyReLU,
    MaxPool2D,
    ReLU,
    Sigmoid,
    Softmax,
    Swish,
    Tanh,
)
from .spec import LayerSpec, ModelSpec

__all__ = [
    "ELU", "BatchNorm", "Conv2D", "Dense", "Dropout", "Layer", "LayerFactory", "LayerSpec", "LayerType", "LeakyReLU",
    "MaxPool2D", "Model", "ModelBuilder", "ModelSpec", "Param", "ReLU", "Sigmoid", "Softmax", "Swish", "Tanh",
]  # fmt: skip

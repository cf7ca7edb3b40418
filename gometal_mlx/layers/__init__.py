"""Layers, model descriptions and the running model."""

from .base import Layer, Param
from .builder import LayerFactory, ModelBuilder
from .model import Model
from .registry import (
    ELU,
    Affine,
    AvgPool2D,
    BatchNorm,
    Conv2D,
    Dense,
    Dropout,
    Flatten,
    GlobalAvgPool2D,
    LayerType,
    LeakyReLU,
    LogSoftmax,
    MaxPool2D,
    ReLU,
    ReLU6,
    Sigmoid,
    Softmax,
    Swish,
    Tanh,
)
from .spec import LayerSpec, ModelSpec

__all__ = [
    "ELU", "Affine", "AvgPool2D", "BatchNorm", "Conv2D", "Dense", "Dropout", "Flatten", "GlobalAvgPool2D", "Layer",
    "LayerFactory", "LayerSpec", "LayerType", "LeakyReLU", "LogSoftmax", "MaxPool2D", "Model", "ModelBuilder",
    "ModelSpec", "Param", "ReLU", "ReLU6", "Sigmoid", "Softmax", "Swish", "Tanh",
]  # fmt: skip

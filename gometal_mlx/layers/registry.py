"""Importing this module imports every layer file, which fills ``base.LAYERS``; an import and a name a layer."""

from __future__ import annotations

from enum import EnumMeta, IntEnum
from typing import TYPE_CHECKING

from .affine import Affine
from .avg_pool2d import AvgPool2D
from .base import LAYERS
from .batch_norm import BatchNorm
from .conv2d import Conv2D
from .dense import Dense
from .dropout import Dropout
from .elu import ELU
from .flatten import Flatten
from .global_avg_pool2d import GlobalAvgPool2D
from .leaky_relu import LeakyReLU
from .log_softmax import LogSoftmax
from .max_pool2d import MaxPool2D
from .relu import ReLU
from .relu6 import ReLU6
from .sigmoid import Sigmoid
from .softmax import Softmax
from .swish import Swish
from .tanh import Tanh

__all__ = [
    "ELU", "Affine", "AvgPool2D", "BatchNorm", "Conv2D", "Dense", "Dropout", "Flatten", "GlobalAvgPool2D", "LayerType",
    "LeakyReLU", "LogSoftmax", "MaxPool2D", "ReLU", "ReLU6", "Sigmoid", "Softmax", "Swish", "Tanh",
]  # fmt: skip

if TYPE_CHECKING:  # a static enum would be a second list of layers to keep; so every name is a member to mypy

    class _Members(EnumMeta):
        def __getattr__(cls, name: str) -> LayerType: ...

    class LayerType(IntEnum, metaclass=_Members):
        """The codes of all layers."""

else:
    LayerType = IntEnum("LayerType", {c.__name__: code for code, c in sorted(LAYERS.items())})
    LayerType.__str__ = lambda self: self.name


def type_name(code: int) -> str:
    """go-metal's name of a layer code; ``Unknown`` for a code no layer has."""
    return LAYERS[code].__name__ if code in LAYERS else "Unknown"

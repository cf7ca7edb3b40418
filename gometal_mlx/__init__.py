"""gometal_mlx: build, train, checkpoint, inspect, convert and serve go-metal models on MLX.

>>> import gometal_mlx as gm
>>> spec = gm.ModelBuilder((32, 784)).add_dense(128).add_relu().add_dense(10).compile()
"""

from . import errors
from ._version import __version__
from .checkpoints import Checkpoint, load, save
from .errors import CheckpointError, GoMetalError, ShapeError, SpecError, UnsupportedError
from .layers import Model, ModelBuilder

__all__ = [
    "Checkpoint", "CheckpointError", "GoMetalError", "Model", "ModelBuilder", "ShapeError", "SpecError",
    "UnsupportedError", "__version__", "errors", "load", "save",
]  # fmt: skip

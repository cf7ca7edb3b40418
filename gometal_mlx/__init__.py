"""gometal_mlx: build, train, checkpoint, inspect, convert and serve go-metal models on MLX.

>>> import gometal_mlx as gm
>>> gm.ModelBuilder((32, 784)).add_dense(128).add_relu().add_dense(10).compile().total_parameters
101770
"""

from . import _cpu as _cpu  # first: it chooses the BLAS for mlx, which the rest imports
from . import errors
from ._version import __version__
from .checkpoints import Checkpoint, CheckpointFormat, load, save
from .data import ArrayDataset, DataLoader
from .errors import CheckpointError, GoMetalError, ShapeError, SpecError, TrainingError, UnsupportedError
from .inference import Predictor
from .layers import LayerSpec, Model, ModelBuilder, ModelSpec
from .training import Callback, CheckpointConfig, CheckpointManager, EarlyStopping, History, ModelTrainer, TrainerConfig

__all__ = [
    "ArrayDataset", "Callback", "Checkpoint", "CheckpointConfig", "CheckpointError", "CheckpointFormat",
    "CheckpointManager", "DataLoader", "EarlyStopping", "GoMetalError", "History", "LayerSpec", "Model",
    "ModelBuilder", "ModelSpec", "ModelTrainer", "Predictor", "ShapeError", "SpecError", "TrainerConfig",
    "TrainingError", "UnsupportedError", "__version__", "errors", "load", "save",
]  # fmt: skip

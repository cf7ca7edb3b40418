"""Training: configuration, trainer, losses, callbacks, history, progress."""

from .callbacks import Callback, Event
from .config import EngineType, LossFunction, OptimizerType, ProblemType, TrainerConfig
from .history import History
from .progress import ProgressBar, ProgressPrinter
from .trainer import ModelTrainer, RestoreReport, TrainingResult

__all__ = [
    "Callback", "EngineType", "Event", "History", "LossFunction", "ModelTrainer", "OptimizerType", "ProblemType",
    "ProgressBar", "ProgressPrinter", "RestoreReport", "TrainerConfig", "TrainingResult",
]  # fmt: skip

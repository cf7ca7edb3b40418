"""Training: configuration, trainer, losses, schedules, metrics, callbacks, history, progress."""

from .callbacks import Callback, EarlyStopping, Event
from .config import EngineType, LossFunction, OptimizerType, ProblemType, TrainerConfig
from .confusion_matrix import ConfusionMatrix
from .history import History
from .manager import CheckpointConfig, CheckpointManager
from .metrics import MetricAccumulator, MetricType
from .model_trainer import ModelTrainer
from .progress import ProgressBar, ProgressPrinter
from .result import TrainingResult
from .resumable import RestoreReport
from .schedulers import (
    ConstantLRScheduler,
    CosineAnnealingLRScheduler,
    ExponentialLRScheduler,
    FunctionScheduler,
    LRScheduler,
    NoOpScheduler,
    OneCycleScheduler,
    ReduceLROnPlateauScheduler,
    StepLRScheduler,
    WarmupScheduler,
)
from .session import ModelArchitecturePrinter, TrainingSession

__all__ = [
    "Callback", "CheckpointConfig", "CheckpointManager", "ConfusionMatrix", "ConstantLRScheduler",
    "CosineAnnealingLRScheduler", "EarlyStopping", "EngineType", "Event", "ExponentialLRScheduler",
    "FunctionScheduler", "History", "LRScheduler", "LossFunction", "MetricAccumulator", "MetricType",
    "ModelArchitecturePrinter", "ModelTrainer", "NoOpScheduler", "OneCycleScheduler", "OptimizerType",
    "ProblemType", "ProgressBar", "ProgressPrinter", "ReduceLROnPlateauScheduler", "RestoreReport",
    "StepLRScheduler", "TrainerConfig", "TrainingResult", "TrainingSession", "WarmupScheduler",
]  # fmt: skip

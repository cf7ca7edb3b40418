"""Learning-rate schedules: one file each; they change the rate of the very next step."""

from .base import SCHEDULERS, LRScheduler, as_scheduler, make_scheduler
from .constant import ConstantLRScheduler, NoOpScheduler
from .cosine import CosineAnnealingLRScheduler
from .exponential import ExponentialLRScheduler
from .function import FunctionScheduler
from .one_cycle import OneCycleScheduler
from .plateau import ReduceLROnPlateauScheduler
from .step import StepLRScheduler
from .warmup import WarmupScheduler

__all__ = [
    "SCHEDULERS", "ConstantLRScheduler", "CosineAnnealingLRScheduler", "ExponentialLRScheduler",
    "FunctionScheduler", "LRScheduler", "NoOpScheduler", "OneCycleScheduler", "ReduceLROnPlateauScheduler",
    "StepLRScheduler", "WarmupScheduler", "as_scheduler", "make_scheduler",
]  # fmt: skip

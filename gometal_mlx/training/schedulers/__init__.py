"""Learning-rate schedules: one file each; they change the rate of the very next step."""

from .base import SCHEDULERS, LRScheduler, make_scheduler
from .constant import ConstantLRScheduler, NoOpScheduler
from .cosine import CosineAnnealingLRScheduler
from .exponential import ExponentialLRScheduler
from .one_cycle import OneCycleScheduler
from .plateau import ReduceLROnPlateauScheduler
from .step import StepLRScheduler
from .warmup import WarmupScheduler

__all__ = [
    "SCHEDULERS", "ConstantLRScheduler", "CosineAnnealingLRScheduler", "ExponentialLRScheduler", "LRScheduler",
    "NoOpScheduler", "OneCycleScheduler", "ReduceLROnPlateauScheduler", "StepLRScheduler", "WarmupScheduler",
    "make_scheduler",
]  # fmt: skip

"""Optimizers: one file each, go-metal's documented arithmetic, usable with any MLX module."""

from .adadelta import AdaDelta
from .adagrad import AdaGrad
from .adam import Adam
from .base import OPTIMIZERS, Optimizer, make_optimizer, optimizer_class
from .lbfgs import LBFGS
from .nadam import Nadam
from .rmsprop import RMSProp
from .sgd import SGD

__all__ = [
    "LBFGS", "OPTIMIZERS", "SGD", "AdaDelta", "AdaGrad", "Adam", "Nadam", "Optimizer", "RMSProp", "make_optimizer",
    "optimizer_class",
]  # fmt: skip

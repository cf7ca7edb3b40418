"""Optimizers: one file each, go-metal's documented arithmetic, usable with any MLX module."""

from .adam import Adam
from .base import OPTIMIZERS, Optimizer, make_optimizer
from .sgd import SGD

__all__ = ["OPTIMIZERS", "SGD", "Adam", "Optimizer", "make_optimizer"]

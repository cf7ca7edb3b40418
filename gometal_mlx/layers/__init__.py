"""Layers, model descriptions and the running model."""

from . import registry
from .base import Layer, Param
from .builder import LayerFactory, ModelBuilder
from .model import Model
from .registry import *  # noqa: F403  (whose list of layers is the only one)
from .spec import LayerSpec, ModelSpec

__all__ = ["Layer", "LayerFactory", "LayerSpec", "Model", "ModelBuilder", "ModelSpec", "Param"]
__all__ += registry.__all__

"""Inference."""

from .predictor import ENGINES, Predictor

__all__ = ["ENGINES", "Predictor"]

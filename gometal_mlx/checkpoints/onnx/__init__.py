"""ONNX out (written, checked, run in onnxruntime, compared, then put in place) and ONNX in (never silently wrong)."""

from .reader import load, verify_file
from .verify import VerifyReport
from .writer import save

__all__ = ["VerifyReport", "load", "save", "verify_file"]

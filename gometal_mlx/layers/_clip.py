"""ONNX's Clip, which is how some exporters write ReLU and ReLU6."""

from __future__ import annotations

from .base import Match


def clip_limits(m: Match) -> tuple[float | None, float | None]:
    """The least and the largest value that the match's first node lets through; None for no limit."""
    found = []
    for position, name in enumerate(("min", "max"), 1):
        value = m.const(0, position)
        if value is not None and value.size != 1:
            raise m.refuse(0, f"its {name} must be a single number, got shape {value.shape}")
        found.append(m.attr(0, name, None) if value is None else float(value.item()))
    return found[0], found[1]

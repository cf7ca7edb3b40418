"""What can be said about a checkpoint without running it: JSON values for ``gometal inspect``."""

from __future__ import annotations

from typing import Any

import numpy as np

from .._types import f32
from ..layers.base import LAYERS
from .checkpoint import Checkpoint, WeightTensor
from .values import plain


def report(c: Checkpoint, *, file_bytes: int) -> dict[str, Any]:
    """Metadata, training state, architecture, weight statistics, memory, and what go-metal itself cannot do with it."""
    spec, optimizer = c.model_spec, c.optimizer_state
    return {
        "metadata": {
            "version": c.metadata.version,
            "framework": c.metadata.framework,
            "created_at": c.metadata.created_at,
            "description": c.metadata.description,
            "tags": ", ".join(c.metadata.tags),
        },
        "info": dict(c.info),
        "training_state": {k: f32(v) if isinstance(v, float) else v for k, v in vars(c.training_state).items()},
        "optimizer": None
        if optimizer is None
        else {
            "type": optimizer.type,
            "parameters": {k: plain(v) for k, v in optimizer.parameters.items()},
            "tensors": len(optimizer.state_data),
        },
        "model": {
            "input_shape": list(spec.input_shape),
            "output_shape": list(spec.output_shape),
            "total_parameters": spec.total_parameters,
        },
        "layers": [
            {
                "name": s.name,
                "type": s.type_name,
                "output_shape": list(s.output_shape),
                "parameters": s.parameter_count,
                "settings": ", ".join(f"{k} {plain(v)}" for k, v in sorted(s.parameters.items())),
            }
            for s in spec.layers
        ],
        "weights": [_statistics(w) for w in c.weights],
        "memory": {
            "file_bytes": file_bytes,
            "weights_bytes": sum(w.data.nbytes for w in c.weights),
            "optimizer_bytes": sum(t.data.nbytes for t in (optimizer.state_data if optimizer else ())),
        },
        "go_metal": go_metal_limits(c),
        "notes": list(c.notes),
    }


def go_metal_limits(c: Checkpoint) -> list[str]:
    """What go-metal itself cannot do with this model, one line each; empty if nothing."""
    lines = []
    for s in c.model_spec.layers:
        if s.type not in LAYERS:
            lines.append(f"layer {s.name!r}: type {s.type} is unknown")
        elif limit := LAYERS[s.type].go_metal_limit:
            lines.append(f"layer {s.name!r} ({s.type_name}): {limit}")
    return lines


def _statistics(w: WeightTensor) -> dict[str, Any]:
    data = w.data[np.isfinite(w.data)]
    nonfinite, data = w.data.size - data.size, data if data.size else np.zeros(1, np.float32)
    return {
        "name": w.name, "type": w.type, "shape": list(w.shape), "min": float(data.min()), "max": float(data.max()),
        "mean": float(data.mean(dtype=np.float64)), "std": float(data.std(dtype=np.float64)),
        "zeros": int(w.data.size - np.count_nonzero(w.data)), "nonfinite": int(nonfinite),
    }  # fmt: skip

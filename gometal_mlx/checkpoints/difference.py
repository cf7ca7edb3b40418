"""What differs between two checkpoints: JSON values for ``gometal diff``."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from .._types import FloatArray, f32
from ..layers.spec import ModelSpec, describe_difference
from .checkpoint import Checkpoint, OptimizerTensor, WeightTensor
from .values import plain

COMPARED_AT_A_TIME = 1 << 20  # numbers, so that comparing takes little memory


def difference(a: Checkpoint, b: Checkpoint) -> dict[str, Any]:
    """What differs, part by part; a value that differs stands as ``[of a, of b]``, null where there is none.

    ``equal`` is about what a model and its training are made of: the metadata, the batch size in the input shape and
    names of layers without weights do not count. Tensors are matched by name and compared as numbers (0 is -0).
    """
    found: dict[str, Any] = {
        "architecture": _architecture(a.model_spec, b.model_spec),
        "weights": _tensors(a.weights, b.weights),
        "optimizer": _optimizer(a, b),
        "training_state": _changed(_float32s(vars(a.training_state)), _float32s(vars(b.training_state))),
        "extras": _changed(a.extras, b.extras),
        "metadata": _changed(vars(a.metadata), vars(b.metadata)),
    }
    optimizer = found["optimizer"]
    alike = optimizer["type"] is None and not optimizer["parameters"]
    tensors = [*found["weights"], *optimizer["tensors"]]
    counted = (found["architecture"], found["training_state"], found["extras"])
    return {"equal": alike and not any(counted) and all(t["equal"] for t in tensors), **found}


def _architecture(a: ModelSpec | None, b: ModelSpec | None) -> list[str]:
    if a is None or b is None:  # weights of another tool
        return [] if a is b else [f"{_layers(a)} against {_layers(b)}"]
    return describe_difference(a, b)


def _layers(spec: ModelSpec | None) -> str:
    return "no architecture" if spec is None else f"{len(spec.layers)} layers"


def _optimizer(a: Checkpoint, b: Checkpoint) -> dict[str, Any]:
    x, y = a.optimizer_state, b.optimizer_state
    types = [x.type if x else None, y.type if y else None]
    return {
        "type": types if types[0] != types[1] else None,
        "parameters": _changed(x.parameters if x else {}, y.parameters if y else {}),
        "tensors": _tensors(x.state_data if x else (), y.state_data if y else ()),
    }


# ------------------------------------------------------------------------------------------------------------ tensors


def _tensors(
    a: Iterable[WeightTensor | OptimizerTensor], b: Iterable[WeightTensor | OptimizerTensor]
) -> list[dict[str, Any]]:
    """Every tensor of either side by name, in the order of ``a``."""
    x, y = _by_name(a), _by_name(b)
    return [{"name": name, **_compared(x.get(name), y.get(name))} for name in dict.fromkeys([*x, *y])]


def _by_name(tensors: Iterable[WeightTensor | OptimizerTensor]) -> dict[str, FloatArray]:
    """The arrays; a name that stands twice (JSON allows it) is counted."""
    found: dict[str, FloatArray] = {}
    times: Counter[str] = Counter()
    for t in tensors:
        times[t.name] += 1
        found[t.name if times[t.name] == 1 else f"{t.name} ({times[t.name]})"] = t.data
    return found


def _compared(a: FloatArray | None, b: FloatArray | None) -> dict[str, Any]:
    values: dict[str, Any] = {
        "only_in": "B" if a is None else "A" if b is None else None,
        "shape": [list(x.shape) if x is not None else None for x in (a, b)],
        "equal": False,
        "largest_absolute_difference": None,
        "largest_relative_difference": None,
    }
    if a is not None and b is not None and a.shape == b.shape:
        values["equal"] = bool(np.array_equal(a, b, equal_nan=True))
        absolute, scale = (0.0, 1.0) if values["equal"] else _largest(a.reshape(-1), b.reshape(-1))
        values["largest_absolute_difference"] = _finite(absolute)
        values["largest_relative_difference"] = _finite(absolute / scale if scale else math.inf)
    return values


def _largest(a: FloatArray, b: FloatArray) -> tuple[float, float]:
    """max|a - b| and max|a|; NaN if there is one."""
    tops = []
    for i in range(0, a.size, COMPARED_AT_A_TIME):
        x, y = (v[i : i + COMPARED_AT_A_TIME].astype(np.float64) for v in (a, b))
        with np.errstate(invalid="ignore"):
            tops.append((np.abs(x - y).max(), np.abs(x).max()))
    absolute, scale = np.max(tops, axis=0)
    return float(absolute), float(scale)


def _finite(value: float) -> float | None:
    """The number, or null for what JSON cannot say."""
    return value if math.isfinite(value) else None


# ------------------------------------------------------------------------------------------------------------- values


def _changed(a: Any, b: Any) -> dict[str, list[Any]]:
    """The values that differ, by their path (``config.seed``, ``history[2].loss``)."""
    x, y = dict(_leaves(a)), dict(_leaves(b))
    return {
        path: [_told(x.get(path)), _told(y.get(path))]
        for path in dict.fromkeys([*x, *y])
        if not _same(x.get(path), y.get(path))
    }


def _float32s(values: Mapping[str, Any]) -> dict[str, Any]:
    """The training state's numbers as files keep them."""
    return {k: f32(v) if isinstance(v, float) else v for k, v in values.items()}


def _leaves(value: Any, path: str = "") -> Iterable[tuple[str, Any]]:
    if isinstance(value, Mapping) and (value or not path):
        for key, item in value.items():
            yield from _leaves(item, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list | tuple) and value:
        for i, item in enumerate(value):
            yield from _leaves(item, f"{path}[{i}]")
    else:
        yield path, value if isinstance(value, np.ndarray) else plain(value)


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
        return isinstance(a, np.ndarray) and isinstance(b, np.ndarray) and np.array_equal(a, b, equal_nan=True)
    if isinstance(a, float) and isinstance(b, float) and math.isnan(a):
        return math.isnan(b)
    return isinstance(a, bool) == isinstance(b, bool) and bool(a == b)


def _told(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return f"array of shape {list(value.shape)}"
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value

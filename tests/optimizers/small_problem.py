"""Three parameters in two layers, gradients that depend on them, and what the optimizer tests ask of an optimizer."""

from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten
from numpy_reference import CASES, RULES, Hyper

from gometal_mlx.optimizers import OPTIMIZERS, Optimizer

SLOTS = [("fc", "weight", (3, 4)), ("fc", "bias", (4,)), ("out", "weight", (4, 2))]


@dataclass
class Tensor:
    """A stored state array, as a checkpoint gives it."""

    name: str
    data: np.ndarray
    state_type: str


def cases() -> list[tuple[str, Hyper]]:
    """Every (json_type, hyper-parameters)."""
    return [(kind, hyper) for kind in sorted(RULES) for hyper in CASES[kind]]


def case_id(value: Any) -> str:
    return "-".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else str(value)


def start() -> dict[str, dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    values: dict[str, dict[str, np.ndarray]] = {}
    for layer, name, shape in SLOTS:
        values.setdefault(layer, {})[name] = rng.standard_normal(shape).astype(np.float32)
    return values


def noise(step: int) -> dict[str, dict[str, np.ndarray]]:
    rng = np.random.default_rng([1, step])
    values: dict[str, dict[str, np.ndarray]] = {}
    for layer, name, shape in SLOTS:
        values.setdefault(layer, {})[name] = rng.standard_normal(shape).astype(np.float32)
    return values


def arrays(tree: dict[str, dict[str, np.ndarray]]) -> dict[str, dict[str, mx.array]]:
    return {layer: {n: mx.array(v) for n, v in params.items()} for layer, params in tree.items()}


def gradients(weights: dict[str, dict[str, mx.array]], step: int) -> dict[str, dict[str, mx.array]]:
    """Of half the squared weights (pull to zero), plus noise that depends on the step alone."""
    added = arrays(noise(step))
    return {layer: {n: 0.5 * w + added[layer][n] for n, w in params.items()} for layer, params in weights.items()}


def train(optimizer: Optimizer, weights: dict[str, dict[str, mx.array]], steps: range) -> dict[str, Any]:
    """The weights after the steps."""
    for step in steps:
        weights = optimizer.apply_gradients(gradients(weights, step), weights)
        mx.eval(weights, optimizer.state)
    return weights


def trained(kind: str, hyper: Hyper, steps: int = 5) -> tuple[Optimizer, dict[str, Any]]:
    """An optimizer and the weights after some steps."""
    optimizer = OPTIMIZERS[kind](**hyper)
    return optimizer, train(optimizer, arrays(start()), range(steps))


def saved(optimizer: Optimizer) -> tuple[dict[str, Any], list[Tensor]]:
    """What a checkpoint would keep."""
    tensors = [Tensor(name, data, state_type) for name, state_type, data in optimizer.saved_tensors(SLOTS)]
    return optimizer.saved_parameters(), tensors


def everything(optimizer: Optimizer) -> dict[str, Any]:
    """Hyper-parameters and the bits of the whole state, for comparison with ``==``."""
    state = {k: (np.array(v).dtype, np.array(v).tobytes()) for k, v in tree_flatten(optimizer.state)}
    return state | {name: getattr(optimizer, name) for name in optimizer.hyper_names}

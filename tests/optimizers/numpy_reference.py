"""Every optimizer in float64 numpy, from the formulas ("kernel math") of the go-metal reference, section 4.2.

Each function takes a weight, its gradient, its state (a dict that it changes, zero at the start), the number of the
step (from 1) and the hyper-parameters, and returns the new weight. CASES lists the hyper-parameters that are tried.
"""

from collections.abc import Callable, Iterable
from itertools import product
from typing import Any

import numpy as np

Array = np.ndarray
State = dict[str, Any]
Hyper = dict[str, Any]


def sgd(
    w: Array, g: Array, s: State, t: int, learning_rate: float, momentum: float, weight_decay: float, nesterov: bool
) -> Array:
    g = g + weight_decay * w
    if momentum == 0:
        return w - learning_rate * g
    s["momentum"] = momentum * s.get("momentum", 0) + g
    if nesterov:
        return w - learning_rate * (momentum * s["momentum"] + g)
    return w - learning_rate * s["momentum"]


def adam(
    w: Array, g: Array, s: State, t: int,
    learning_rate: float, beta1: float, beta2: float, epsilon: float, weight_decay: float,
) -> Array:  # fmt: skip
    s["momentum"] = beta1 * s.get("momentum", 0) + (1 - beta1) * g
    s["variance"] = beta2 * s.get("variance", 0) + (1 - beta2) * g**2
    m_hat = s["momentum"] / (1 - beta1**t)
    v_hat = s["variance"] / (1 - beta2**t)
    u = m_hat / (np.sqrt(v_hat) + epsilon)
    return w - learning_rate * (u + weight_decay * w)


def rmsprop(
    w: Array, g: Array, s: State, t: int,
    learning_rate: float, alpha: float, epsilon: float, weight_decay: float, momentum: float, centered: bool,
) -> Array:  # fmt: skip
    s["squared_grad_avg"] = alpha * s.get("squared_grad_avg", 0) + (1 - alpha) * g**2
    inside = s["squared_grad_avg"] + epsilon
    if centered:
        s["gradient_avg"] = alpha * s.get("gradient_avg", 0) + (1 - alpha) * g
        inside = inside - s["gradient_avg"] ** 2
    u = g / np.sqrt(inside)
    if momentum > 0:
        u = s["momentum"] = momentum * s.get("momentum", 0) + u
    return w - learning_rate * (u + weight_decay * w)


def adagrad(w: Array, g: Array, s: State, t: int, learning_rate: float, epsilon: float, weight_decay: float) -> Array:
    g = g + weight_decay * w
    s["squared_grad_avg"] = s.get("squared_grad_avg", 0) + g**2
    return w - learning_rate / (np.sqrt(s["squared_grad_avg"]) + epsilon) * g


def adadelta(w: Array, g: Array, s: State, t: int, rho: float, epsilon: float, weight_decay: float) -> Array:
    g = g + weight_decay * w
    s["squared_grad_avg"] = rho * s.get("squared_grad_avg", 0) + (1 - rho) * g**2
    old = s.get("squared_update_avg", 0)
    dx = np.sqrt(old + epsilon) / np.sqrt(s["squared_grad_avg"] + epsilon) * g
    s["squared_update_avg"] = rho * old + (1 - rho) * dx**2
    return w - dx


def nadam(
    w: Array, g: Array, s: State, t: int,
    learning_rate: float, beta1: float, beta2: float, epsilon: float, weight_decay: float,
) -> Array:  # fmt: skip
    s["momentum"] = beta1 * s.get("momentum", 0) + (1 - beta1) * g
    s["variance"] = beta2 * s.get("variance", 0) + (1 - beta2) * g**2
    v_hat = s["variance"] / (1 - beta2**t)
    mu = beta1 * (1 - 0.5 * 0.96 ** (0.004 * (t + 1)))
    m_bar = mu * s["momentum"] / (1 - beta1**t) + (1 - mu) * g / (1 - beta1**t)
    return w - learning_rate * (m_bar / (np.sqrt(v_hat) + epsilon) + weight_decay * w)


def combinations(**options: Iterable[Any]) -> list[Hyper]:
    """Every combination of the options."""
    return [dict(zip(options, values, strict=True)) for values in product(*options.values())]


RULES: dict[str, Callable[..., Array]] = {
    "SGD": sgd,
    "Adam": adam,
    "RMSProp": rmsprop,
    "AdaGrad": adagrad,
    "AdaDelta": adadelta,
    "Nadam": nadam,
}
_ADAM = combinations(
    learning_rate=[0.01], beta1=[0.0, 0.9], beta2=[0.5, 0.999], epsilon=[1e-8, 0.01], weight_decay=[0.0, 0.1]
)
# By Optimizer.json_type. One that has no RULE here (it needs more than a gradient) has a test file of its own:
# test_<json_type in small letters>.py.
CASES: dict[str, list[Hyper]] = {
    "SGD": combinations(
        learning_rate=[0.01], momentum=[0.0, 0.9, 1.0], weight_decay=[0.0, 0.1], nesterov=[False, True]
    ),
    "Adam": _ADAM,
    "RMSProp": combinations(
        learning_rate=[0.01], alpha=[0.9, 0.99], epsilon=[1e-8, 0.01], weight_decay=[0.0, 0.1], momentum=[0.0, 0.9],
        centered=[False, True],
    ),
    "AdaGrad": combinations(learning_rate=[0.01], epsilon=[1e-10, 0.1], weight_decay=[0.0, 0.1]),
    "AdaDelta": combinations(rho=[0.5, 0.95], epsilon=[1e-6, 0.01], weight_decay=[0.0, 0.1]),
    "Nadam": _ADAM,
    "LBFGS": [],
}  # fmt: skip

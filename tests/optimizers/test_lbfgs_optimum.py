"""L-BFGS reaches the optimum of a convex problem: regularised logistic regression on the digits, as scikit-learn."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from gometal_mlx.optimizers import LBFGS


def test_the_loss_is_scikit_learns_within_1e_6() -> None:
    x, y = load_digits(return_X_y=True)
    x = (x / 16).astype(np.float32)
    reference = LogisticRegression(C=1.0, tol=1e-10, max_iter=10_000).fit(x, y)

    def exact(w: np.ndarray, b: np.ndarray) -> float:
        z = x.astype(np.float64) @ w + b
        z -= z.max(axis=1, keepdims=True)
        losses = np.log(np.exp(z).sum(axis=1)) - z[np.arange(len(y)), y]
        return float(losses.mean() + (w**2).sum() / (2 * len(y)))

    inputs, labels = mx.array(x), mx.array(y)

    def loss(p: dict[str, dict[str, mx.array]]) -> mx.array:
        z = inputs @ p["fc"]["weight"] + p["fc"]["bias"]
        hit = mx.take_along_axis(z, labels[:, None], axis=1)[:, 0]
        return mx.mean(mx.logsumexp(z, axis=1) - hit) + mx.sum(mx.square(p["fc"]["weight"])) / (2 * len(y))

    parameters = {"fc": {"weight": mx.zeros((64, 10)), "bias": mx.zeros(10)}}
    optimizer, evaluate = LBFGS(), mx.value_and_grad(loss)
    for _ in range(200):
        parameters = optimizer.minimise(evaluate, parameters)
    found = exact(*(np.array(parameters["fc"][k], np.float64) for k in ("weight", "bias")))
    best = exact(reference.coef_.T.astype(np.float64), reference.intercept_.astype(np.float64))
    assert abs(found - best) < 1e-6

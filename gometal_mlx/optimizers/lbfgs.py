"""Limited-memory BFGS with a strong Wolfe line search."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import mlx.core as mx
import numpy as np
import numpy.typing as npt
from mlx.utils import tree_flatten, tree_unflatten

from .._types import FloatArray, Params
from ..errors import CheckpointError, SpecError
from .base import Optimizer

Vector = npt.NDArray[np.float64]
Evaluate = Callable[
    [Any], tuple[mx.array, Any]
]  # parameter tree -> loss and gradient tree, on the same batch each time

LEAST_CURVATURE = 1e-10  # of s.y, relative to |s| |y|; pairs below it are not kept


class LBFGS(Optimizer):
    """``w += t d`` with ``d = -H g`` from the last ``history_size`` pairs (two-loop recursion, Nocedal 1980).

    H starts as ``(s.y / y.y) I``; t satisfies the strong Wolfe conditions ``f(w + t d) <= f(w) + c1 t g.d`` and
    ``abs(g(w + t d).d) <= c2 abs(g.d)`` (Nocedal, Wright 2006, algorithms 3.5 and 3.6). It needs the loss as a
    function, so it works through ``minimise`` (ModelTrainer does that), best with the full batch.

    Args:
        history_size: pairs kept, at least 1; default 10.
        max_line_search: evaluations of the loss a step, at least 1; default 20.
        c1, c2: ``0 < c1 < c2 < 1``; default 1e-4, 0.9.
        initial_step: first t tried, > 0; default 1. Without pairs it is divided by the gradient's 1-norm (if above 1).
    Raises: SpecError for values out of range.
    Source: go-metal optimizer/lbfgs.go has the settings; its kernel ascends and has no line search.
    """

    code: ClassVar[int] = 3
    json_type: ClassVar[str] = "LBFGS"
    uses_learning_rate: ClassVar[bool] = False
    needs_closure: ClassVar[bool] = True
    in_go_metal: ClassVar[bool] = False
    history_size: int
    max_line_search: int
    c1: float
    c2: float
    initial_step: float

    def __init__(
        self, *, history_size: int = 10, max_line_search: int = 20, c1: float = 1e-4, c2: float = 0.9,
        initial_step: float = 1.0,
    ) -> None:  # fmt: skip
        super().__init__(
            None, history_size=history_size, max_line_search=max_line_search, c1=c1, c2=c2, initial_step=initial_step
        )
        if not self.c1 < self.c2:
            raise SpecError(f"LBFGS: c1 must be smaller than c2, got {self.c1} and {self.c2}")
        self._pairs: list[tuple[FloatArray, FloatArray]] = []  # (s, y), oldest first

    def slots(self) -> tuple[str, ...]:
        return ()

    def apply_single(self, gradient: mx.array, parameter: mx.array, state: Params) -> mx.array:
        raise SpecError("LBFGS: its line search needs the loss as a function; use minimise() or a ModelTrainer")

    def minimise(self, evaluate: Evaluate, parameters: Any) -> Any:
        """One step: the parameters, moved along the search direction.

        Args:
            evaluate: loss and gradients for a parameter tree; must give the same values for the same parameters.
            parameters: tree of the trained arrays.
        """
        names, arrays = zip(*tree_flatten(parameters), strict=True)
        shapes = [a.shape for a in arrays]

        def tree(x: Vector) -> Any:
            cuts = np.cumsum([math.prod(s) for s in shapes])[:-1]
            parts = np.split(x.astype(np.float32), cuts)
            return tree_unflatten([(n, mx.array(p.reshape(s))) for n, p, s in zip(names, parts, shapes, strict=True)])

        def at(x: Vector) -> tuple[float, Vector]:
            loss, gradients = evaluate(tree(x))
            found = dict(tree_flatten(gradients))
            return float(loss.item()), _flat([found[n] for n in names])  # type: ignore[arg-type]

        self.state["step"] = self.step + 1
        x = _flat(arrays)
        value, slope = at(x)
        if not np.isfinite(value) or not np.isfinite(slope).all() or not slope.any():
            return parameters
        direction = self._direction(slope)
        if not direction @ slope < 0:  # rounding has spoilt the pairs; start again from the gradient
            self._pairs = []
            direction = -slope
        first = self.initial_step if self._pairs else self.initial_step * min(1.0, 1.0 / np.abs(slope).sum())
        t, new_slope = _line_search(at, x, direction, value, slope, first, self.c1, self.c2, self.max_line_search)
        if t == 0:
            self._pairs = []  # no better point along this direction; the next step tries the plain gradient
            return parameters
        self._remember(t * direction, new_slope - slope)
        return tree(x + t * direction)

    def _direction(self, slope: Vector) -> Vector:
        q = slope.copy()
        coefficients = []
        for s, y in reversed(self._pairs):
            rho = 1.0 / np.dot(s.astype(np.float64), y)
            coefficients.append((rho, a := rho * (s @ q)))
            q -= a * y
        if self._pairs:
            s, y = self._pairs[-1]
            q *= np.dot(s.astype(np.float64), y) / np.dot(y.astype(np.float64), y)
        for (s, y), (rho, a) in zip(self._pairs, reversed(coefficients), strict=True):
            q += s * (a - rho * (y @ q))
        return -q

    def _remember(self, s: Vector, y: Vector) -> None:
        if s @ y > LEAST_CURVATURE * np.linalg.norm(s) * np.linalg.norm(y):
            # float32, as a file keeps them, so that a resumed run takes the same steps
            self._pairs = [*self._pairs, (s.astype(np.float32), y.astype(np.float32))][-self.history_size :]

    def snapshot(self) -> Any:
        return self._pairs  # a step makes another list

    def put_back(self, snapshot: Any) -> None:
        self._pairs = snapshot

    def saved_extras(self) -> dict[str, Any]:
        return {
            "parameters": {n: getattr(self, n) for n in self.hyper_names},
            "step_count": int(self.step.item()),
            "s": [s for s, _ in self._pairs],
            "y": [y for _, y in self._pairs],
        }

    def restore_extras(self, saved: Mapping[str, Any], size: int) -> None:
        try:
            fresh = type(self)(**saved["parameters"])
            step, s, y = saved["step_count"], list(saved["s"]), list(saved["y"])
            pairs = [(np.asarray(a, np.float32), np.asarray(b, np.float32)) for a, b in zip(s, y, strict=True)]
        except (KeyError, TypeError, ValueError, SpecError) as e:
            raise CheckpointError(f"gometal_mlx.optimizer: damaged LBFGS state: {e}") from e
        if not isinstance(step, int) or step < 0 or any(v.shape != (size,) for pair in pairs for v in pair):
            raise CheckpointError(f"gometal_mlx.optimizer: LBFGS pairs must be vectors of {size} numbers")
        for name in self.hyper_names:
            setattr(self, name, getattr(fresh, name))
        self.state["step"] = mx.array(step, mx.uint64)
        self._pairs = pairs[-self.history_size :]


def _flat(arrays: Any) -> Vector:
    return np.concatenate([np.asarray(a, np.float64).reshape(-1) for a in arrays])


def _line_search(
    at: Callable[[Vector], tuple[float, Vector]], x: Vector, d: Vector, f0: float, g0: Vector, t: float, c1: float,
    c2: float, evaluations: int,
) -> tuple[float, Vector]:  # fmt: skip
    """A step length that satisfies the strong Wolfe conditions, or the best one met; 0 if none lowers the loss."""
    slope0 = float(g0 @ d)
    slack = float(np.finfo(np.float32).eps) * abs(f0)  # differences of the loss below its own rounding decide nothing
    best = (f0, 0.0, g0)  # loss, step, gradient
    low, high = (0.0, f0, slope0), None  # brackets: step, loss, slope along d
    for _ in range(evaluations):
        f, g = at(x + t * d)
        slope = float(g @ d)
        if f < best[0]:
            best = (f, t, g)
        if np.isfinite(f) and f <= f0 + c1 * t * slope0 + slack and abs(slope) <= -c2 * slope0:
            return t, g
        if not np.isfinite(f) or f > f0 + c1 * t * slope0 + slack or f > low[1] + slack:
            high = (t, f, slope)
        else:
            if slope * ((high[0] if high else math.inf) - low[0]) >= 0:
                high = low
            low = (t, f, slope)
        t = 2 * low[0] if high is None else _between(low, high)
        if high is not None and abs(high[0] - low[0]) * np.abs(d).max() < 1e-9:
            break
    return best[1], best[2]


def _between(low: tuple[float, float, float], high: tuple[float, float, float]) -> float:
    """The minimum of the cubic through two points, kept away from both ends (Nocedal, Wright, equation 3.59)."""
    (a, fa, ga), (b, fb, gb) = low, high
    middle = (a + b) / 2
    if not (np.isfinite(fb) and np.isfinite(gb)):
        return middle
    d1 = ga + gb - 3 * (fa - fb) / (a - b)
    square = d1 * d1 - ga * gb
    if square < 0:
        return middle
    d2 = math.copysign(math.sqrt(square), b - a)
    divisor = gb - ga + 2 * d2
    t = b - (b - a) * (gb + d2 - d1) / divisor if divisor else middle
    margin = 0.1 * abs(b - a)
    return t if min(a, b) + margin <= t <= max(a, b) - margin else middle

"""L-BFGS: it goes down, to the minimum, by Wolfe's rules, and goes on from its saved pairs."""

from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from gometal_mlx.errors import CheckpointError, SpecError
from gometal_mlx.optimizers import LBFGS, SGD, make_optimizer

Params = dict[str, mx.array]


def evaluator(function: Any) -> Any:
    """Loss and gradients of a function of a parameter tree, counting the calls."""
    gradient = mx.value_and_grad(function)

    def evaluate(params: Params) -> tuple[mx.array, Any]:
        evaluate.calls += 1  # type: ignore[attr-defined]
        return gradient(params)  # type: ignore[no-any-return]

    evaluate.calls = 0  # type: ignore[attr-defined]
    return evaluate


def rosenbrock(p: Params) -> mx.array:
    x, y = p["x"], p["y"]
    return ((1 - x) ** 2 + 100 * (y - x**2) ** 2).sum()


SCALES = np.geomspace(0.1, 10, 12).astype(np.float32)


def quadratic(p: Params) -> mx.array:
    """Minimum at 1, curvatures from 0.1 to 10."""
    flat = mx.concatenate([p["a"].reshape(-1), p["b"]])
    return 0.5 * (mx.array(SCALES) * (flat - 1) ** 2).sum()


def start() -> Params:
    rng = np.random.default_rng(0)
    return {"a": mx.array(rng.standard_normal((2, 4)).astype(np.float32)), "b": mx.zeros(4)}


def flat(p: Params) -> np.ndarray:
    return np.concatenate([np.array(p[n], np.float64).reshape(-1) for n in sorted(p)])


def test_finds_the_bottom_of_rosenbrocks_valley() -> None:
    evaluate, optimizer = evaluator(rosenbrock), LBFGS()
    params: Params = {"x": mx.array([-1.2, 0.5]), "y": mx.array([1.0, -1.0])}
    for _ in range(60):
        params = optimizer.minimise(evaluate, params)
    # the valley is flat: a loss of 1e-7, all that float32 tells apart from 0 there, is within 1e-3 of the minimum
    np.testing.assert_allclose(flat(params), 1, rtol=0, atol=1e-3)
    assert optimizer.step.item() == 60


def test_is_far_faster_than_the_gradient_alone() -> None:
    params, evaluate, optimizer = start(), evaluator(quadratic), LBFGS()
    for _ in range(30):
        params = optimizer.minimise(evaluate, params)
    np.testing.assert_allclose(flat(params), 1, rtol=0, atol=1e-3)  # steepest descent leaves 0.98^30, more than half
    assert evaluate.calls < 70  # the start and usually one point a step


def test_every_step_satisfies_the_wolfe_conditions() -> None:
    params, evaluate, optimizer = start(), evaluator(quadratic), LBFGS()
    for _ in range(6):
        before, slope = evaluate(params)
        new = optimizer.minimise(evaluate, params)
        after, new_slope = evaluate(new)
        step = flat(new) - flat(params)
        down, new_down = flat(slope) @ step, flat(new_slope) @ step  # slopes along the step; both scale with t
        assert down < 0
        # float32 losses of a size of 5: differences below 1e-6 decide nothing
        assert after.item() <= before.item() + 1e-4 * down + 1e-6
        assert abs(new_down) <= 0.9 * abs(down) + 1e-6
        params = new


@pytest.mark.parametrize("limit", [1, 3])
def test_line_search_is_limited(limit: int) -> None:
    evaluate, optimizer = evaluator(rosenbrock), LBFGS(max_line_search=limit)
    params: Params = {"x": mx.array([-1.2]), "y": mx.array([1.0])}
    for _ in range(5):
        calls = evaluate.calls
        params = optimizer.minimise(evaluate, params)
        assert evaluate.calls - calls <= limit + 1  # and one at the start


def test_stays_at_the_minimum() -> None:
    params: Params = {"a": mx.ones((2, 4)), "b": mx.ones(4)}
    new = LBFGS().minimise(evaluator(quadratic), params)
    np.testing.assert_array_equal(flat(new), 1)


def test_a_loss_that_is_no_number_moves_nothing() -> None:
    params = start()
    new = LBFGS().minimise(evaluator(lambda p: quadratic(p) * float("nan")), params)
    np.testing.assert_array_equal(flat(new), flat(params))


def test_keeps_only_the_last_pairs() -> None:
    params, evaluate, optimizer = start(), evaluator(quadratic), LBFGS(history_size=2)
    for _ in range(5):
        params = optimizer.minimise(evaluate, params)
    saved = optimizer.saved_extras()
    assert [v.shape for v in (*saved["s"], *saved["y"])] == [(12,)] * 4
    assert {v.dtype for v in (*saved["s"], *saved["y"])} == {np.dtype(np.float32)}


def test_restored_state_goes_on_bit_for_bit() -> None:
    params, evaluate, first = start(), evaluator(quadratic), LBFGS(history_size=3, c2=0.8)
    for _ in range(5):
        params = first.minimise(evaluate, params)
    second = LBFGS()
    second.restore_extras(first.saved_extras(), 12)
    ours = theirs = params
    for _ in range(5):
        ours, theirs = first.minimise(evaluate, ours), second.minimise(evaluate, theirs)
        assert flat(ours).tobytes() == flat(theirs).tobytes()
    assert (second.step.item(), second.history_size, second.c2) == (10, 3, 0.8)


def damaged(**changes: Any) -> dict[str, Any]:
    optimizer, params, evaluate = LBFGS(), start(), evaluator(quadratic)
    for _ in range(3):
        params = optimizer.minimise(evaluate, params)
    saved = {**optimizer.saved_extras(), **changes}
    return {k: v for k, v in saved.items() if v is not None}


@pytest.mark.parametrize(
    "changes",
    [
        {"parameters": None}, {"s": None}, {"y": None}, {"step_count": None}, {"step_count": -1}, {"step_count": "3"},
        {"s": []}, {"s": 5}, {"s": [[1.0]], "y": [[1.0]]}, {"s": ["a"], "y": ["b"]}, {"parameters": {"c1": 2}},
        {"parameters": {"unknown": 1}}, {"parameters": 5},
    ],
)  # fmt: skip
def test_restore_takes_all_or_nothing(changes: dict[str, Any]) -> None:
    optimizer = LBFGS(history_size=4)
    before = optimizer.saved_extras()
    with pytest.raises(CheckpointError, match=r"^gometal_mlx.optimizer: ") as e:
        optimizer.restore_extras(damaged(**changes), 12)
    assert "\n" not in str(e.value)
    assert optimizer.saved_extras() == before


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("history_size", 0), ("history_size", 2.5), ("history_size", True), ("history_size", "3"),
        ("max_line_search", 0), ("c1", 0), ("c1", 1), ("c2", 1), ("c2", float("nan")), ("initial_step", 0),
        ("initial_step", float("inf")),
    ],
)  # fmt: skip
def test_refuses_a_hyper_parameter_out_of_range(name: str, value: Any) -> None:
    with pytest.raises(SpecError, match=rf"^LBFGS: {name} must be .*, got {value!r}$"):
        LBFGS(**{name: value})


def test_whole_numbers_stay_whole() -> None:
    assert LBFGS(history_size=3.0).history_size == 3  # type: ignore[arg-type]
    params, optimizer = start(), LBFGS(history_size=1.0, max_line_search=4.0)  # type: ignore[arg-type]
    for _ in range(3):
        params = optimizer.minimise(evaluator(quadratic), params)
    assert len(optimizer.saved_extras()["s"]) == 1


def test_refuses_c1_above_c2() -> None:
    with pytest.raises(SpecError, match=r"^LBFGS: c1 must be smaller than c2, got 0.9 and 0.1$"):
        LBFGS(c1=0.9, c2=0.1)


def test_has_no_place_in_go_metals_files() -> None:
    optimizer = make_optimizer(3, {"history_size": 4, "learning_rate": 0.1})
    assert isinstance(optimizer, LBFGS)
    assert (optimizer.history_size, optimizer.in_go_metal, optimizer.slots(), optimizer.rate) == (4, False, (), 0)


def test_gradients_alone_are_not_enough() -> None:
    with pytest.raises(SpecError, match="needs the loss as a function"):
        LBFGS().apply_gradients({"w": mx.ones(2)}, {"w": mx.ones(2)})
    with pytest.raises(SpecError, match=r"^SGD: takes gradients, not a closure; use update\(\)$"):
        SGD().minimise(evaluator(quadratic), start())

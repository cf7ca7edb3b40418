"""The arithmetic of each optimizer against float64 numpy, and the rule that none goes without."""

from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from numpy_reference import CASES, RULES, Hyper
from small_problem import SLOTS, case_id, cases, noise, start, trained

from gometal_mlx.errors import SpecError
from gometal_mlx.optimizers import OPTIMIZERS, Adam, make_optimizer

STEPS = 20
# float32 has 6e-8; 20 steps of a dozen roundings each, and 1 - 0.999^t of a float32 0.999 is off by 1e-5 at t = 1
WEIGHT_TOLERANCE = 1e-5


@pytest.mark.parametrize("kind", sorted(OPTIMIZERS))
def test_every_optimizer_has_a_case(kind: str) -> None:
    assert kind in CASES
    if kind in RULES:
        assert CASES[kind]
    else:
        assert (Path(__file__).parent / f"test_{kind.lower()}.py").is_file()


@pytest.mark.parametrize("kind", sorted(RULES))
def test_cases_name_every_hyper_parameter(kind: str) -> None:
    rated = ("learning_rate",) if OPTIMIZERS[kind].uses_learning_rate else ()
    assert set(CASES[kind][0]) == {*OPTIMIZERS[kind]().hyper_names, *rated}


def expected(kind: str, hyper: Hyper) -> tuple[dict[tuple[str, str], np.ndarray], dict[tuple[str, str], Any]]:
    values = {(layer, n): v.astype(np.float64) for layer, params in start().items() for n, v in params.items()}
    states: dict[tuple[str, str], Any] = {slot: {} for slot in values}
    for step in range(STEPS):
        added = noise(step)
        for (layer, name), w in values.items():
            g = 0.5 * w + added[layer][name]
            values[layer, name] = RULES[kind](w, g, states[layer, name], step + 1, **hyper)
    return values, states


@pytest.mark.parametrize(("kind", "hyper"), cases(), ids=case_id)
def test_twenty_steps_follow_the_formula(kind: str, hyper: Hyper) -> None:
    optimizer, weights = trained(kind, hyper, STEPS)
    values, states = expected(kind, hyper)
    assert optimizer.step.item() == STEPS
    for layer, name, _ in SLOTS:
        np.testing.assert_allclose(np.array(weights[layer][name]), values[layer, name], rtol=0, atol=WEIGHT_TOLERANCE)
        assert set(optimizer.state[layer][name]) == set(states[layer, name]) == set(optimizer.slots())
        for slot, state in states[layer, name].items():
            # a running mean may nearly cancel: relative to the largest, with the tolerance of the weights
            atol = WEIGHT_TOLERANCE * max(1.0, np.abs(state).max())
            np.testing.assert_allclose(np.array(optimizer.state[layer][name][slot]), state, rtol=0, atol=atol)


# from the reference, section 12: w0 = [1, -2] and three fixed gradients; the kernel rows
LR, WD = {"learning_rate": 0.1}, {"weight_decay": 0.01}
ADAM_STATE = {"momentum": [0.0195, 0.03775], "variance": [0.00034949025, 0.000262335063]}
VECTORS = [
    ("SGD", LR, [0.97, -2.035], {}),
    ("SGD", LR | WD, [0.967112949, -2.02903597], {}),
    ("SGD", LR | WD | {"momentum": 0.9}, [0.870094749, -1.99911457], {"momentum": [0.22056251, 0.32387573]}),
    (
        "SGD", LR | WD | {"momentum": 0.9, "nesterov": True}, [0.850465558, -2.02833988],
        {"momentum": [0.219638641, 0.324150425]},
    ),
    ("Adam", LR, [0.798624612, -1.94127037], ADAM_STATE),
    ("Adam", LR | WD, [0.795907815, -1.93548208], ADAM_STATE),
    ("RMSProp", LR, [0.313745231, -2.40978778], {"squared_grad_avg": [0.00344925, 0.0026085625]}),
    (
        "RMSProp", LR | WD | {"momentum": 0.9}, [-1.57351122, -1.26002458],
        {"momentum": [4.76548602, 5.37125731], "squared_grad_avg": [0.00344925, 0.0026085625]},
    ),
    (
        "RMSProp", LR | {"centered": True}, [0.30795842, -2.40669652],
        {"gradient_avg": [0.0028905, 0.00352975], "squared_grad_avg": [0.00344925, 0.0026085625]},
    ),
    ("AdaGrad", LR, [0.931097642, -2.04054151], {"squared_grad_avg": [0.35, 0.2625]}),
    ("AdaGrad", LR | WD, [0.927852582, -2.03171096], {"squared_grad_avg": [0.356783685, 0.250398007]}),
    (
        "AdaDelta", {}, [0.997609755, -2.00542628],
        {"squared_grad_avg": [0.01625625, 0.0127203125], "squared_update_avg": [1.5412893e-06, 3.39888645e-06]},
    ),
    (
        "AdaDelta", WD, [0.99738804, -2.00466709],
        {"squared_grad_avg": [0.0165179884, 0.0120497196], "squared_update_avg": [1.51136912e-06, 3.05798235e-06]},
    ),
    ("Nadam", LR, [0.457417842, -1.95360785], ADAM_STATE),
    ("Nadam", LR | WD, [0.455726408, -1.94854996], ADAM_STATE),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "hyper", "weight", "state"), VECTORS)
def test_vectors_of_the_reference(kind: str, hyper: Hyper, weight: list[float], state: dict[str, list[float]]) -> None:
    optimizer = OPTIMIZERS[kind](**hyper)
    params = {"w": mx.array([1.0, -2.0])}
    for g in ([0.5, -0.25], [0.1, 0.2], [-0.3, 0.4]):
        params = optimizer.apply_gradients({"w": mx.array(g)}, params)
    # the vectors have 9 digits; float32 and 1 - 0.999^t cost about 1e-5 (reference, section 12)
    np.testing.assert_allclose(np.array(params["w"]), weight, rtol=1e-5)
    assert set(optimizer.state["w"]) == set(state)
    for slot, value in state.items():
        np.testing.assert_allclose(np.array(optimizer.state["w"][slot]), value, rtol=1e-5)


def test_centered_variance_is_never_below_zero() -> None:
    """Equal gradients leave a variance of 0 that rounding makes negative; the root must not see that."""
    optimizer = OPTIMIZERS["RMSProp"](centered=True, alpha=0.5, epsilon=1e-30)
    params = {"w": mx.zeros(100)}
    g = mx.array(np.random.default_rng(0).uniform(0.1, 10, 100).astype(np.float32))
    for _ in range(60):  # 0.5^60 < 1e-18: the means are the gradient up to rounding
        params = optimizer.apply_gradients({"w": g}, params)
    assert np.isfinite(np.array(params["w"])).all()


BAD = {
    "learning_rate": (0.0, -0.1), "beta1": (-0.1, 1.0), "beta2": (-0.1, 1.0), "alpha": (-0.1, 1.0), "rho": (0.0, 1.0),
    "momentum": (-0.1, 1.1), "epsilon": (0.0, -1e-8), "weight_decay": (-0.1,),
}  # fmt: skip
NO_NUMBER = (float("nan"), float("inf"), -float("inf"), "0.1", True, None)
REFUSED = [
    (kind, name, value)
    for kind in sorted(RULES)
    for name in CASES[kind][0]
    if name in BAD
    for value in (*BAD[name], *NO_NUMBER)
]


@pytest.mark.parametrize(("kind", "name", "value"), REFUSED)
def test_refuses_a_hyper_parameter_out_of_range(kind: str, name: str, value: Any) -> None:
    with pytest.raises(SpecError, match=rf"^{kind}: {name} must be .*, got {value!r}$") as e:
        OPTIMIZERS[kind](**{name: value})
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(("kind", "name"), [("SGD", "nesterov"), ("RMSProp", "centered")])
@pytest.mark.parametrize("value", [1, 0.0, "yes", None])
def test_refuses_a_switch_that_is_no_bool(kind: str, name: str, value: Any) -> None:
    with pytest.raises(SpecError, match=rf"^{kind}: {name} must be .*, got {value!r}$"):
        OPTIMIZERS[kind](**{name: value})


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [("Adam", "epsilon", 1e-60), ("Adam", "beta1", 1 - 1e-9), ("Adam", "learning_rate", 1e60),
     ("SGD", "learning_rate", 1e-60), ("AdaDelta", "rho", 1 - 1e-9), ("SGD", "weight_decay", 1e60)],
)  # fmt: skip
def test_refuses_what_is_out_of_range_as_a_float32(kind: str, name: str, value: float) -> None:
    """Files and arithmetic have float32: 1e-60 is 0 there, 1e60 infinite, 1 - 1e-9 is 1."""
    with pytest.raises(SpecError, match=rf"^{kind}: {name} must be "):
        OPTIMIZERS[kind](**{name: value})


def test_takes_numpy_numbers() -> None:
    assert Adam(np.float32(0.1), beta1=np.float64(0.8)).saved_parameters()["beta1"] == np.float32(0.8)


@pytest.mark.parametrize("kind", sorted(RULES))
def test_make_optimizer_finds_the_class_by_code(kind: str) -> None:
    assert type(make_optimizer(OPTIMIZERS[kind].code, {})) is OPTIMIZERS[kind]


@pytest.mark.parametrize(
    ("code", "settings", "hyper"),
    [
        (0, {"beta1": 0.8}, {"momentum": 0.8}),  # go-metal keeps SGD's momentum in Beta1
        (0, {"beta1": 0.8, "momentum": 0.5}, {"momentum": 0.5}),
        (0, {"momentum": 0.0, "beta1": 0.8}, {"momentum": 0.0}),
        (5, {"alpha": 0.8, "learning_rate": 0.1}, {"rho": 0.8}),  # and AdaDelta's rho in Alpha
        (2, {"alpha": 0.8, "momentum": 0.5, "centered": True}, {"alpha": 0.8, "momentum": 0.5, "centered": True}),
        (1, {"beta1": None, "batch_size": 7}, {"beta1": 0.9}),
    ],
)
def test_make_optimizer_reads_go_metal_names(code: int, settings: Hyper, hyper: Hyper) -> None:
    optimizer = make_optimizer(code, settings)
    assert {name: getattr(optimizer, name) for name in hyper} == hyper


def test_make_optimizer_refuses_an_unknown_code() -> None:
    with pytest.raises(SpecError, match=r"^optimizer type 99 is unknown; known: .*1 Adam"):
        make_optimizer(99, {})


@pytest.mark.parametrize("kind", sorted(RULES))
def test_gradient_of_zero_is_harmless(kind: str) -> None:
    """0 / sqrt(0) must not occur: every accumulator starts at zero."""
    params = {"w": mx.array([1.0, -2.0])}
    after = OPTIMIZERS[kind]().apply_gradients({"w": mx.zeros(2)}, params)
    np.testing.assert_array_equal(np.array(after["w"]), [1, -2])


@pytest.mark.parametrize("kind", sorted(RULES))
def test_state_starts_at_zero_with_the_shape_of_the_parameter(kind: str) -> None:
    optimizer = OPTIMIZERS[kind](**CASES[kind][-1])
    params: dict[str, Any] = {"w": mx.ones((2, 3))}
    optimizer.init(params)
    assert optimizer.slots()
    for slot in optimizer.slots():
        np.testing.assert_array_equal(np.array(optimizer.state["w"][slot]), np.zeros((2, 3)))

"""What an optimizer leaves in a checkpoint, and what it takes back."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy_reference import CASES, RULES, Hyper
from small_problem import SLOTS, Tensor, arrays, case_id, cases, everything, saved, start, train, trained

import gometal_mlx as gm
from gometal_mlx.errors import CheckpointError
from gometal_mlx.layers import Model
from gometal_mlx.optimizers import OPTIMIZERS, SGD, AdaDelta, Adam, Optimizer

GOLDEN = Path(__file__).parents[1] / "golden"
F, B, N = np.float32, bool, int
# (hyper-parameters that decide, keys with their types, state types in file order); the reference, section 4.10
SAVED_FORM = [
    ("SGD", {}, {"learning_rate": F, "momentum": F, "weight_decay": F, "nesterov": B, "step_count": N}, []),
    (
        "SGD", {"momentum": 0.9},
        {"learning_rate": F, "momentum": F, "weight_decay": F, "nesterov": B, "step_count": N}, ["momentum"],
    ),
    (
        "Adam", {}, {"learning_rate": F, "beta1": F, "beta2": F, "epsilon": F, "weight_decay": F, "step_count": N},
        ["momentum", "variance"],
    ),
    *(
        (
            "RMSProp", hyper,
            {"learning_rate": F, "alpha": F, "epsilon": F, "weight_decay": F, "momentum": F, "centered": B,
             "step_count": N},
            kinds,
        )
        for hyper, kinds in [
            ({}, ["squared_grad_avg"]),
            ({"momentum": 0.5}, ["squared_grad_avg", "momentum"]),
            ({"centered": True}, ["squared_grad_avg", "gradient_avg"]),
            ({"momentum": 0.5, "centered": True}, ["squared_grad_avg", "momentum", "gradient_avg"]),
        ]
    ),
    ("AdaGrad", {}, {"learning_rate": F, "epsilon": F, "weight_decay": F, "step_count": N}, ["squared_grad_avg"]),
    (
        "AdaDelta", {}, {"rho": F, "epsilon": F, "weight_decay": F, "step_count": N},
        ["squared_grad_avg", "squared_update_avg"],
    ),
    (
        "Nadam", {}, {"learning_rate": F, "beta1": F, "beta2": F, "epsilon": F, "weight_decay": F, "step_count": N},
        ["momentum", "variance"],
    ),
]  # fmt: skip


def test_the_table_has_every_optimizer_with_a_rule() -> None:
    assert {kind for kind, *_ in SAVED_FORM} == set(RULES)


@pytest.mark.parametrize(("kind", "hyper", "keys", "state_types"), SAVED_FORM)
def test_saved_form(kind: str, hyper: Hyper, keys: dict[str, type], state_types: list[str]) -> None:
    optimizer, _ = trained(kind, hyper)
    parameters = optimizer.saved_parameters()
    assert {k: type(v) for k, v in parameters.items()} == keys
    assert parameters["step_count"] == 5
    found = optimizer.saved_tensors(SLOTS)
    assert [(name, state_type) for name, state_type, _ in found] == [
        (f"{s}_{i}", s) for s in state_types for i in range(3)
    ]
    for (name, state_type, data), (layer, param, shape) in zip(found, SLOTS * len(state_types), strict=True):
        assert (data.dtype, data.shape) == (np.float32, (np.prod(shape),)), name
        np.testing.assert_array_equal(data.reshape(shape), np.array(optimizer.state[layer][param][state_type]))
        assert data.any(), name


@pytest.mark.parametrize("kind", sorted(RULES))
def test_saved_parameters_are_the_settings(kind: str) -> None:
    hyper = CASES[kind][-1]
    parameters = OPTIMIZERS[kind](**hyper).saved_parameters()
    assert {k: v for k, v in parameters.items() if k in hyper} == {
        k: v if isinstance(v, bool) else np.float32(v) for k, v in hyper.items()
    }
    assert parameters["step_count"] == 0


def as_json(parameters: dict[str, Any]) -> Any:
    """As a file gives them back: plain ints, floats, bools."""
    return json.loads(json.dumps({k: float(str(v)) if isinstance(v, np.float32) else v for k, v in parameters.items()}))


@pytest.mark.parametrize(("kind", "hyper"), cases(), ids=case_id)
def test_restored_state_goes_on_bit_for_bit(kind: str, hyper: Hyper) -> None:
    first, weights = trained(kind, hyper, 7)
    parameters, tensors = saved(first)
    second = OPTIMIZERS[kind]()
    assert second.restore(as_json(parameters), reversed(tensors), SLOTS) is True
    assert everything(second) == everything(first)
    after = [train(o, weights, range(7, 14)) for o in (first, second)]
    for layer, name, _ in SLOTS:
        one, other = (np.array(w[layer][name]) for w in after)
        assert one.tobytes() == other.tobytes()
    assert everything(second) == everything(first)


def test_restored_arrays_are_copies() -> None:
    optimizer, weights = trained("Adam", {})
    parameters, tensors = saved(optimizer)
    tensors = [Tensor(t.name, t.data.copy(), t.state_type) for t in tensors]
    before = [t.data.copy() for t in tensors]
    fresh = Adam()
    fresh.restore(parameters, tensors, SLOTS)
    train(fresh, weights, range(3))
    for t, old in zip(tensors, before, strict=True):
        np.testing.assert_array_equal(t.data, old)
    kept = everything(fresh)
    tensors[0].data[:] = 7
    assert everything(fresh) == kept


def test_state_type_decides_and_the_name_gives_only_the_index() -> None:
    optimizer, _ = trained("Adam", {})
    parameters, tensors = saved(optimizer)
    renamed = [Tensor(f"x_y_{t.name.rpartition('_')[2]}", t.data, t.state_type) for t in tensors]
    fresh = Adam()
    fresh.restore(parameters, renamed, SLOTS)
    assert everything(fresh) == everything(optimizer)


# ------------------------------------------------------------------------------------------------ fresh or not


def zeros(kind: str, hyper: Hyper) -> list[Tensor]:
    slots = OPTIMIZERS[kind](**hyper).slots()
    return [Tensor(f"{s}_{i}", np.zeros(np.prod(shape), F), s) for s in slots for i, (_, _, shape) in enumerate(SLOTS)]


@pytest.mark.parametrize("kind", sorted(RULES))
def test_all_zero_at_step_0_is_fresh(kind: str) -> None:
    hyper = CASES[kind][-1]
    optimizer = OPTIMIZERS[kind]()
    assert optimizer.restore({**hyper, "step_count": 0}, zeros(kind, hyper), SLOTS) is False
    assert {name: getattr(optimizer, name) for name in optimizer.hyper_names} == {
        k: v for k, v in hyper.items() if k != "learning_rate"
    }
    assert optimizer.step.item() == 0


@pytest.mark.parametrize(("step", "element"), [(1, 0.0), (0, 1e-30), (0, -1.0)])
def test_a_step_or_any_number_is_not_fresh(step: int, element: float) -> None:
    tensors = zeros("Adam", {})
    tensors[3].data[1] = element
    assert Adam().restore({"step_count": step}, tensors, SLOTS) is True


@pytest.mark.parametrize(("step", "live"), [(0, False), (5, True)])
def test_sgd_without_momentum_has_only_its_step(step: int, live: bool) -> None:
    optimizer = SGD()
    assert optimizer.restore({"step_count": step}, [], SLOTS) is live
    assert optimizer.saved_parameters()["step_count"] == step


# ------------------------------------------------------------------------------------------- hyper-parameters


def test_missing_hyper_parameters_keep_their_values() -> None:
    optimizer = Adam(0.5, beta1=0.8, epsilon=0.1)
    optimizer.restore({"beta2": 0.7, "step_count": 3}, zeros("Adam", {}), SLOTS)
    assert optimizer.saved_parameters() == {
        "beta1": F(0.8), "beta2": F(0.7), "epsilon": F(0.1), "weight_decay": 0, "learning_rate": F(0.5),
        "step_count": 3,
    }  # fmt: skip


def test_unknown_parameters_are_ignored() -> None:
    optimizer = SGD()
    optimizer.restore({"step_count": 2, "history_size": 10, "epsilon": -1}, [], SLOTS)
    assert not hasattr(optimizer, "history_size")


@pytest.mark.parametrize("count", [3, 3.0, 2**53 - 1])
def test_step_count_may_be_any_whole_number(count: float) -> None:
    optimizer = SGD()
    optimizer.restore({"step_count": count}, [], SLOTS)
    assert optimizer.saved_parameters()["step_count"] == count


def test_a_stored_learning_rate_of_0_is_none() -> None:
    """Go's zero value of a field that was never set."""
    optimizer = SGD(0.25)
    optimizer.restore({"learning_rate": 0, "step_count": 1}, [], SLOTS)
    assert optimizer.rate == 0.25


def test_adadelta_ignores_a_learning_rate() -> None:
    optimizer = AdaDelta()
    optimizer.restore({"learning_rate": -5, "step_count": 1}, zeros("AdaDelta", {}), SLOTS)
    assert optimizer.rate == 0
    assert "learning_rate" not in optimizer.saved_parameters()


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_restored_momentum_decides_which_arrays_are_kept(momentum: float) -> None:
    optimizer = SGD(momentum=0.9 - momentum)
    optimizer.restore({"momentum": momentum, "step_count": 4}, zeros("SGD", {"momentum": momentum}), SLOTS)
    assert [n for n, _, _ in optimizer.saved_tensors(SLOTS)] == [f"momentum_{i}" for i in range(3) if momentum]
    train(optimizer, arrays(start()), range(2))
    assert optimizer.step.item() == 6


# ------------------------------------------------------------------------------------------------- all or nothing


def replaced(index: int, **changes: Any) -> Any:
    def change(parameters: dict[str, Any], tensors: list[Tensor]) -> None:
        for name, value in changes.items():
            setattr(tensors[index], name, value)

    return change


def without(index: int) -> Any:
    return lambda parameters, tensors: tensors.pop(index)


def twice(index: int) -> Any:
    return lambda parameters, tensors: tensors.append(tensors[index])


def having(**changes: Any) -> Any:
    return lambda parameters, tensors: parameters.update(changes)


DAMAGE = [
    (replaced(0, state_type="velocity"), r"'momentum_0': state_type 'velocity' is not kept by Adam .*momentum, varian"),
    (replaced(2, state_type="squared_grad_avg"), r"'momentum_2': state_type 'squared_grad_avg' is not kept"),
    (replaced(1, name="momentum_3"), r"'momentum_3': the name must end in _0 to _2"),
    (replaced(1, name="momentum_-1"), r"'momentum_-1': the name must end in _0 to _2"),
    (replaced(1, name="momentum"), r"'momentum': the name must end in _0 to _2"),
    (replaced(1, name="momentum_one"), r"'momentum_one': the name must end in _0 to _2"),
    (replaced(1, name=""), r"'': the name must end in _0 to _2"),
    (replaced(5, data=np.ones(7, F)), r"'variance_2': the parameter has 8 numbers, the state 7"),
    (replaced(5, data=np.ones(0, F)), r"'variance_2': the parameter has 8 numbers, the state 0"),
    (without(4), r"'variance_1' is missing \(1 in all\)"),
    (lambda parameters, tensors: tensors.clear(), r"'momentum_0' is missing \(6 in all\)"),
    (twice(3), r"'variance_0': stands twice"),
    *(
        (having(step_count=count), r"step_count: a count is needed, got ")
        for count in (-1, 1.5, 2**63, 1e30, True, "3", None, float("nan"), float("inf"))
    ),
    *(
        (having(**{name: value}), rf"parameters: Adam: {name} must be .*, got {value!r}$")
        for name, value in [
            ("beta1", 1.0), ("beta2", -0.5), ("epsilon", 0), ("weight_decay", -1), ("learning_rate", -0.1),
            ("beta1", "0.9"), ("beta1", None), ("epsilon", float("nan")), ("learning_rate", float("inf")),
        ]
    ),
]  # fmt: skip


@pytest.mark.parametrize(("damage", "told"), DAMAGE, ids=[told for _, told in DAMAGE])
def test_restore_takes_all_or_nothing(damage: Any, told: str) -> None:
    source, _ = trained("Adam", {"beta1": 0.8}, 4)
    parameters, tensors = saved(source)
    damage(parameters, tensors)
    optimizer, weights = trained("Adam", {"learning_rate": 0.5}, 2)
    before = everything(optimizer)
    with pytest.raises(CheckpointError, match=told) as e:
        optimizer.restore(parameters, tensors, SLOTS)
    assert str(e.value).startswith("optimizer_state.")
    assert "\n" not in str(e.value)
    assert everything(optimizer) == before
    train(optimizer, weights, range(1))  # and it still works


@pytest.mark.parametrize(("kind", "name"), [("SGD", "nesterov"), ("RMSProp", "centered")])
@pytest.mark.parametrize("value", [1, "true", None])
def test_refuses_a_stored_switch_that_is_no_bool(kind: str, name: str, value: Any) -> None:
    with pytest.raises(CheckpointError, match=rf"^optimizer_state.parameters: {kind}: {name} must be "):
        OPTIMIZERS[kind]().restore({name: value, "step_count": 1}, zeros(kind, {}), SLOTS)


def test_refuses_momentum_for_sgd_that_has_none() -> None:
    with pytest.raises(CheckpointError, match=r"not kept by SGD \(it keeps nothing\)$"):
        SGD(momentum=0.9).restore({"momentum": 0, "step_count": 1}, zeros("SGD", {"momentum": 0.9}), SLOTS)


# ----------------------------------------------------------------------------------------------- go-metal's files


def golden_files() -> list[Path]:
    return [*sorted(GOLDEN.glob("json/opt_*.json")), *sorted(GOLDEN.glob("trainer/*.json"))]


def test_go_metal_files_are_there() -> None:
    kinds = {s.type for f in golden_files() if (s := gm.load(f).optimizer_state)}
    assert kinds == set(RULES)


@pytest.mark.parametrize("path", golden_files(), ids=lambda p: p.stem)
def test_go_metal_state_restores(path: Path) -> None:
    checkpoint = gm.load(path)
    state = checkpoint.optimizer_state
    if state is None:  # go-metal keeps nothing of L-BFGS
        assert "lbfgs" in path.name
        return
    model = Model.from_checkpoint(checkpoint)
    slots = [(layer.name, name, param.shape) for layer, name, param in model.slots() if param.trainable]
    optimizer: Optimizer = OPTIMIZERS[state.type]()
    live = optimizer.restore(state.parameters, state.state_data, slots)
    assert live is (state.parameters.get("step_count", 0) > 0)  # its trainer writes zeros only
    kept = optimizer.saved_parameters()
    assert {k: kept[k] for k in state.parameters} == {
        k: v if isinstance(v, bool | int) else F(v) for k, v in state.parameters.items()
    }
    assert [(n, k, d.tobytes()) for n, k, d in optimizer.saved_tensors(slots)] == [
        (t.name, t.state_type, t.data.tobytes()) for t in state.state_data
    ]

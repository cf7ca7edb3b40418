"""What ``difference`` finds between two checkpoints, and that it finds nothing where there is nothing."""

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoint_samples import (
    FULL_SUFFIXES,
    GOLDEN_JSON,
    SUFFIXES,
    bounded,
    cnn_spec,
    full_checkpoint,
    small_checkpoint,
    stem,
    weights_of,
)
from hypothesis import given
from hypothesis import strategies as st

from gometal_mlx.checkpoints import Checkpoint, CheckpointMetadata, OptimizerState, WeightTensor, load, save
from gometal_mlx.checkpoints.difference import difference
from gometal_mlx.errors import GoMetalError

PARTS = ("architecture", "weights", "optimizer", "training_state", "extras", "metadata")


def found_in(found: dict[str, Any]) -> set[str]:
    """The parts in which something differs."""
    tensors = {"weights": found["weights"], "optimizer": found["optimizer"]["tensors"]}
    changed = {part for part, rows in tensors.items() if not all(t["equal"] for t in rows)}
    changed |= {"optimizer"} if found["optimizer"]["type"] or found["optimizer"]["parameters"] else set()
    return changed | {part for part in ("architecture", "training_state", "extras", "metadata") if found[part]}


def compared(a: Checkpoint, b: Checkpoint) -> dict[str, Any]:
    """The difference, after checking that it is JSON and that both ways agree on being equal."""
    found = difference(a, b)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert tuple(found) == ("equal", *PARTS)
    assert difference(b, a)["equal"] is found["equal"]
    return found


def tensor(found: dict[str, Any], name: str) -> dict[str, Any]:
    (row,) = (t for t in [*found["weights"], *found["optimizer"]["tensors"]] if t["name"] == name)
    return row  # type: ignore[no-any-return]


def weights_only(**arrays: Any) -> Checkpoint:
    """A small model whose weights are those arrays, which need not fit it."""
    weights = [WeightTensor(k, np.shape(v), np.array(v, np.float32), "fc", "weight") for k, v in arrays.items()]
    return replace(small_checkpoint(), weights=weights)


# ---------------------------------------------------------------------------------------------------------- the same


@pytest.mark.parametrize("path", GOLDEN_JSON, ids=stem)
def test_a_file_equals_itself(path: Path) -> None:
    found = compared(load(path), load(path))
    assert found["equal"]
    assert found_in(found) == set()
    assert all(t["largest_absolute_difference"] == 0 for t in found["weights"])


@pytest.mark.parametrize("suffix", FULL_SUFFIXES)
def test_every_format_holds_the_same(suffix: str, tmp_path: Path) -> None:
    save(full_checkpoint(), tmp_path / f"c{suffix}")
    found = compared(full_checkpoint(), load(tmp_path / f"c{suffix}"))
    assert (found["equal"], found_in(found)) == (True, set())
    assert [t["name"] for t in found["weights"]] == [w.name for w in full_checkpoint().weights]


def test_onnx_holds_the_same_but_for_the_optimizer(tmp_path: Path) -> None:
    save(full_checkpoint(), tmp_path / "c.json")
    save(full_checkpoint(), tmp_path / "c.onnx")
    found = compared(load(tmp_path / "c.json"), load(tmp_path / "c.onnx"))
    assert (found["equal"], found_in(found)) == (False, {"optimizer"})
    assert found["optimizer"]["type"] == ["Adam", None]
    assert {t["only_in"] for t in found["optimizer"]["tensors"]} == {"A"}


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_without_optimizer_every_format_is_equal(suffix: str, tmp_path: Path) -> None:
    save(small_checkpoint(), tmp_path / f"c{suffix}")
    assert compared(small_checkpoint(), load(tmp_path / f"c{suffix}"))["equal"]


def test_metadata_is_told_but_does_not_count() -> None:
    a, b = small_checkpoint(), small_checkpoint()
    a.metadata = CheckpointMetadata("1.0.0", "go-metal", "2026-01-31T12:00:00Z")
    b.metadata = CheckpointMetadata("1.0.0", "gometal_mlx", "2026-02-01T12:00:00Z", "another", ["best"])
    found = compared(a, b)
    assert (found["equal"], found_in(found)) == (True, {"metadata"})
    assert found["metadata"] == {
        "framework": ["go-metal", "gometal_mlx"],
        "created_at": ["2026-01-31T12:00:00Z", "2026-02-01T12:00:00Z"],
        "description": ["", "another"],
        "tags": [[], None],  # an empty list against one of
        "tags[0]": [None, "best"],
    }


def test_what_cannot_change_a_result_does_not_count() -> None:
    a, b = small_checkpoint(), small_checkpoint()
    first, relu, *rest = b.model_spec.layers
    b.model_spec = replace(b.model_spec, input_shape=(9, 3), layers=(first, replace(relu, name="other"), *rest))
    b.notes.append("read with care")
    assert found_in(compared(a, b)) == set()


def test_zeros_of_either_sign_are_the_same_number() -> None:
    assert compared(weights_only(w=[0.0, 1.0]), weights_only(w=[-0.0, 1.0]))["equal"]


# ---------------------------------------------------------------------------------------------------------- each part


def change_layer(c: Checkpoint) -> None:
    layers = list(c.model_spec.layers)
    layers[2] = replace(layers[2], parameters={**layers[2].parameters, "negative_slope": 0.5})
    c.model_spec = replace(c.model_spec, layers=tuple(layers))


def change_weight(c: Checkpoint) -> None:
    c.weights[0].data.reshape(-1)[3] += 1


def change_optimizer_type(c: Checkpoint) -> None:
    assert c.optimizer_state
    c.optimizer_state.type = "Nadam"


def change_hyper_parameter(c: Checkpoint) -> None:
    assert c.optimizer_state
    c.optimizer_state.parameters = {**c.optimizer_state.parameters, "step_count": 8}


def change_moment(c: Checkpoint) -> None:
    assert c.optimizer_state
    c.optimizer_state.state_data[5].data[0] = 99


def drop_optimizer(c: Checkpoint) -> None:
    c.optimizer_state = None


def change_state(c: Checkpoint) -> None:
    c.training_state.step += 1


def change_extra(c: Checkpoint) -> None:
    c.extras["rng"] = [1, 2]


CHANGES: dict[Callable[[Checkpoint], None], str] = {
    change_layer: "architecture", change_weight: "weights", change_optimizer_type: "optimizer",
    change_hyper_parameter: "optimizer", change_moment: "optimizer", drop_optimizer: "optimizer",
    change_state: "training_state", change_extra: "extras",
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES, ids=lambda f: f.__name__)
def test_a_change_is_found_where_it_is(change: Callable[[Checkpoint], None]) -> None:
    b = full_checkpoint()
    change(b)
    found = compared(full_checkpoint(), b)
    assert (found["equal"], found_in(found)) == (False, {CHANGES[change]})


def test_architecture_in_words() -> None:
    b = full_checkpoint()
    change_layer(b)
    assert difference(full_checkpoint(), b)["architecture"] == [
        "layer 3 (LeakyReLU 'leaky'): negative_slope 0.33333334 against 0.5"
    ]
    other = replace(small_checkpoint(), model_spec=cnn_spec(), weights=weights_of(cnn_spec()))
    lines = difference(small_checkpoint(), other)["architecture"]
    assert lines[:2] == ["input (3,) against (3, 8, 8)", f"3 layers against {len(cnn_spec().layers)}"]


def test_a_missing_architecture_is_a_difference() -> None:
    a, b = small_checkpoint(), small_checkpoint()
    b.model_spec = None  # type: ignore[assignment]  # weights of another tool
    assert compared(a, b)["architecture"] == ["3 layers against no architecture"]
    assert compared(b, b)["equal"]


def test_parameters_that_differ() -> None:
    a, b = full_checkpoint(), full_checkpoint()
    assert b.optimizer_state
    b.optimizer_state.parameters = {"beta1": np.float32(0.9), "step_count": True, "new": 1, "learning_rate": 0.5}
    assert difference(a, b)["optimizer"]["parameters"] == {
        "learning_rate": [0.0625, 0.5],
        "step_count": [7, True],
        "nested.b[0]": [1, None],
        "nested.a": ["", None],
        "new": [None, 1],
    }


def test_training_state_is_compared_as_files_keep_it() -> None:
    a, b = small_checkpoint(), small_checkpoint()
    a.training_state.learning_rate, b.training_state.learning_rate = 0.1, float(np.float32(0.1))
    assert compared(a, b)["equal"]
    b.training_state.learning_rate, b.training_state.epoch = 0.2, 4
    assert compared(a, b)["training_state"] == {"epoch": [0, 4], "learning_rate": [0.1, 0.2]}


def test_extras_are_compared_number_by_number_and_array_by_array() -> None:
    a, b = small_checkpoint(), small_checkpoint()
    a.extras = {
        "history": [{"loss": 0.5}, {"loss": 0.25}],
        "z": np.zeros((2, 3), np.float32),
        "same": np.ones(2),
        "n": 1,
    }
    b.extras = {
        "history": [{"loss": 0.5}, {"loss": 0.125}],
        "z": np.ones((2, 3), np.float32),
        "same": np.ones(2),
        "n": [],
    }
    assert compared(a, b)["extras"] == {
        "history[1].loss": [0.25, 0.125],
        "z": ["array of shape [2, 3]", "array of shape [2, 3]"],
        "n": [1, []],
    }
    b.extras["z"] = 0
    assert compared(a, b)["extras"]["z"] == ["array of shape [2, 3]", 0]


# ------------------------------------------------------------------------------------------------------------ tensors


def test_how_much_a_tensor_differs() -> None:
    found = compared(weights_only(w=[[1, -4], [2, 0]]), weights_only(w=[[1, -4], [2.5, 0.25]]))
    assert found["weights"] == [
        {
            "name": "w", "only_in": None, "shape": [[2, 2], [2, 2]], "equal": False,
            "largest_absolute_difference": 0.5, "largest_relative_difference": 0.125,
        }
    ]  # fmt: skip


def test_tensors_of_one_side_and_of_another_shape() -> None:
    found = compared(weights_only(a=[1], both=[1, 2], same=[3]), weights_only(same=[3], both=[[1, 2]], b=[1, 2, 3]))
    nothing = {"equal": False, "largest_absolute_difference": None, "largest_relative_difference": None}
    assert [t["name"] for t in found["weights"]] == ["a", "both", "same", "b"]
    assert tensor(found, "a") == {"name": "a", "only_in": "A", "shape": [[1], None], **nothing}
    assert tensor(found, "b") == {"name": "b", "only_in": "B", "shape": [None, [3]], **nothing}
    assert tensor(found, "both") == {"name": "both", "only_in": None, "shape": [[2], [1, 2]], **nothing}
    assert tensor(found, "same")["equal"]


def test_a_difference_from_zeros_has_no_ratio() -> None:
    row = tensor(compared(weights_only(w=[0, 0]), weights_only(w=[0, 2])), "w")
    assert (row["largest_absolute_difference"], row["largest_relative_difference"]) == (2, None)


def test_the_largest_numbers_do_not_overflow() -> None:
    top = float(np.finfo(np.float32).max)
    row = tensor(compared(weights_only(w=[top]), weights_only(w=[-top])), "w")
    assert (row["largest_absolute_difference"], row["largest_relative_difference"]) == (2 * top, 2)


@pytest.mark.parametrize("odd", [np.nan, np.inf])
def test_what_no_file_can_hold_is_no_crash(odd: float) -> None:
    found = compared(weights_only(w=[1, odd]), weights_only(w=[1, 2]))
    assert not found["equal"]
    assert tensor(found, "w")["largest_absolute_difference"] is None
    assert compared(weights_only(w=[1, odd]), weights_only(w=[1, odd]))["equal"]
    a, b = small_checkpoint(), small_checkpoint()
    a.training_state.best_loss = odd
    assert compared(a, b)["training_state"] == {"best_loss": [str(odd), 0]}
    assert compared(a, copy.deepcopy(a))["equal"]


def test_empty_tensors_are_equal() -> None:
    assert compared(weights_only(w=np.zeros((0, 3))), weights_only(w=np.zeros((0, 3))))["equal"]


def test_names_that_stand_twice_are_matched_in_order() -> None:
    a, b = weights_only(w=[1]), weights_only(w=[1])
    a.weights.append(replace(a.weights[0], data=np.array([2], np.float32)))
    b.weights.append(replace(b.weights[0], data=np.array([3], np.float32)))
    assert [(t["name"], t["equal"]) for t in compared(a, b)["weights"]] == [("w", True), ("w (2)", False)]


def test_the_last_of_many_numbers_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gometal_mlx.checkpoints.difference.COMPARED_AT_A_TIME", 7)
    a = np.arange(100, dtype=np.float32)
    for at in (0, 6, 7, 50, 98, 99):
        b = a.copy()
        b[at] += 3
        row = tensor(difference(weights_only(w=a), weights_only(w=b)), "w")
        assert (row["largest_absolute_difference"], row["largest_relative_difference"]) == (3, 3 / 99)


def test_nothing_is_changed_by_comparing() -> None:
    a, b = full_checkpoint(), full_checkpoint()
    change_weight(b)
    difference(a, b)
    assert difference(a, full_checkpoint())["equal"]


@bounded(60)
@given(st.sampled_from(GOLDEN_JSON), st.sampled_from(GOLDEN_JSON))
def test_any_two_files_can_be_compared(x: Path, y: Path) -> None:
    try:
        a, b = load(x), load(y)
    except GoMetalError:
        return
    found = compared(a, b)
    assert found["equal"] or found_in(found) - {"metadata"}


def test_an_optimizer_without_anything_is_not_the_same_as_none() -> None:
    a, b = small_checkpoint(), small_checkpoint()
    b.optimizer_state = OptimizerState("SGD")
    assert compared(a, b)["optimizer"] == {"type": [None, "SGD"], "parameters": {}, "tensors": []}
    assert not compared(a, b)["equal"]

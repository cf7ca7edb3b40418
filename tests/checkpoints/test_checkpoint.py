"""Checkpoint and its parts in memory, and weights on their way into and out of a model."""

from dataclasses import fields, replace
from datetime import UTC, datetime
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from checkpoint_samples import cnn_spec, dense_spec, full_checkpoint, one_line, small_checkpoint, weights_of

from gometal_mlx.checkpoints import (
    Checkpoint,
    CheckpointMetadata,
    OptimizerState,
    TrainingState,
    WeightTensor,
    extract_weights,
    load_weights,
)
from gometal_mlx.checkpoints.checkpoint import elements
from gometal_mlx.checkpoints.values import check_finite
from gometal_mlx.errors import CheckpointError, GoMetalError
from gometal_mlx.layers import Model


def test_the_fields_are_those_that_were_promised() -> None:
    names = [f.name for f in fields(Checkpoint)]
    assert names[:6] == ["model_spec", "weights", "training_state", "optimizer_state", "metadata", "extras"]
    assert [f.name for f in fields(WeightTensor)][:5] == ["name", "shape", "data", "layer", "type"]


def test_a_checkpoint_of_a_spec_alone_is_complete() -> None:
    c = Checkpoint(dense_spec())
    assert (c.weights, c.optimizer_state, c.extras, c.notes) == ([], None, {}, [])
    assert c.training_state == TrainingState(0, 0, 0.0, 0.0, 0.0, 0)
    c.validate()


def test_defaults_are_not_shared() -> None:
    a, b = Checkpoint(dense_spec()), Checkpoint(dense_spec())
    a.weights.append(small_checkpoint().weights[0])
    a.extras["x"] = 1
    a.training_state.epoch = 5
    assert (b.weights, b.extras, b.training_state.epoch) == ([], {}, 0)


def test_metadata_is_stamped_in_utc() -> None:
    before = datetime.now(UTC)
    m = CheckpointMetadata.now("why", iter(["a"]))
    assert m.created_at.endswith("Z")
    assert before <= datetime.fromisoformat(m.created_at) <= datetime.now(UTC)
    assert (m.version, m.framework, m.description, m.tags) == ("1.0.0", "gometal_mlx", "why", ["a"])


@pytest.mark.parametrize(("microsecond", "fraction"), [(0, ""), (120000, ".12"), (123456, ".123456"), (1, ".000001")])
def test_a_stamp_is_already_in_gos_form(microsecond: int, fraction: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Go prints no trailing zeros: a stamp with some would not be the same after saving and reading."""

    class Clock(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return datetime(2026, 1, 31, 12, 0, 0, microsecond, tzinfo=tz)

    monkeypatch.setattr("gometal_mlx.checkpoints.checkpoint.datetime", Clock)
    assert CheckpointMetadata.now().created_at == f"2026-01-31T12:00:00{fraction}Z"


def test_the_text_of_a_checkpoint_tells_what_is_in_it() -> None:
    text = repr(full_checkpoint())
    assert "Adam" in text
    assert "epoch 3, step 70" in text
    assert "no optimizer state" in repr(small_checkpoint())


@pytest.mark.parametrize(("shape", "count"), [((), 0), ((0,), 0), ((3,), 3), ((2, 3, 4), 24), ((5, 0), 0)])
def test_elements_of_a_shape(shape: tuple[int, ...], count: int) -> None:
    assert elements(shape) == count


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("at", [0, 4, 5])
def test_the_first_element_that_is_not_finite_is_named(bad: float, at: int) -> None:
    a = np.arange(6, dtype=np.float32)
    a[at:] = bad
    with pytest.raises(CheckpointError, match=rf"here: element {at} is {bad}"):
        check_finite(a.reshape(2, 3), "here")


@pytest.mark.parametrize("values", [[], [3.4028235e38, -3.4028235e38, 0, -0.0, 1e-45]])
def test_finite_numbers_are_finite(values: list[float]) -> None:
    check_finite(np.array(values, np.float32), "here")


@pytest.mark.parametrize("spec", [dense_spec, cnn_spec])
def test_weights_stand_in_go_metals_order(spec: Any) -> None:
    weights = extract_weights(Model(spec(), seed=0))
    learned = [w for w in weights if not w.type.startswith("running")]
    assert weights[: len(learned)] == learned
    assert [w.shape for w in learned] == list(spec().parameter_shapes)
    assert all(w.name.startswith(w.layer + ".") and w.data.dtype == np.float32 for w in weights)


def test_weight_types_are_go_metals() -> None:
    kinds = {w.name: w.type for w in extract_weights(Model(cnn_spec(), seed=0))}
    assert kinds == {
        "conv.weight": "weight", "conv.bias": "bias", "bn.weight": "gamma", "bn.bias": "beta", "conv2.weight": "weight",
        "fc.weight": "weight", "fc.bias": "bias", "out.weight": "weight", "bn.running_mean": "running_mean",
        "bn.running_var": "running_var", "plain.running_mean": "running_mean", "plain.running_var": "running_var",
    }  # fmt: skip


def test_extracted_weights_are_copies() -> None:
    model = Model(dense_spec(), seed=0)
    weights = extract_weights(model)
    before = weights[0].data.copy()
    model["fc1"]["weight"] = model["fc1"]["weight"] + 1
    mx.eval(model.state)
    assert np.array_equal(weights[0].data, before)
    weights[1].data += 1
    assert not np.array(model["fc1"]["bias"]).any()


@pytest.mark.parametrize("spec", [dense_spec, cnn_spec])
def test_weights_go_into_a_model_and_out_again_to_the_bit(spec: Any) -> None:
    weights, model = weights_of(spec(), 3), Model(spec(), seed=4)
    assert load_weights(model, iter(weights)) == []
    assert [(w.name, w.data.tobytes()) for w in extract_weights(model)] == [(w.name, w.data.tobytes()) for w in weights]


def test_names_decide_where_they_are_complete() -> None:
    weights, model = weights_of(dense_spec(), 3), Model(dense_spec(), seed=4)
    assert load_weights(model, weights[::-1]) == []
    assert [w.data.tobytes() for w in extract_weights(model)] == [w.data.tobytes() for w in weights]


def test_other_names_are_matched_by_position_with_a_note() -> None:
    weights, model = weights_of(dense_spec(), 3), Model(dense_spec(), seed=4)
    notes = load_weights(model, [replace(w, name=f"x{i}") for i, w in enumerate(weights)])
    assert len(notes) == 1
    assert "matched by position" in notes[0]
    assert [w.data.tobytes() for w in extract_weights(model)] == [w.data.tobytes() for w in weights]


def test_missing_statistics_are_0_and_1_with_notes() -> None:
    model = Model(cnn_spec(), seed=4)
    load_weights(model, weights_of(cnn_spec(), 3))
    notes = load_weights(model, [w for w in weights_of(cnn_spec(), 3) if not w.type.startswith("running")])
    assert sorted(notes) == [
        f"{layer}.running_{kind}: not in the file; set to {value}"
        for layer in ("bn", "plain")
        for kind, value in (("mean", 0), ("var", 1))
    ]
    assert np.array(model["bn"]["running_var"]).tolist() == [1] * 4


def changed(i: int, **change: Any) -> list[WeightTensor]:
    weights = weights_of(dense_spec(), 3)
    weights[i] = replace(weights[i], **change)
    return weights


BAD = {
    "too few": (weights_of(dense_spec())[:2], ["needs 3 arrays, got 2", "fc2.weight is missing"]),
    "too many": ([*weights_of(dense_spec()), changed(0, name="more.w")[0]], ["needs 3 arrays, got 4", "more.w"]),
    "none": ([], ["needs 3 arrays, got 0"]),
    "other shape": (changed(2, data=np.zeros((2, 4), np.float32), shape=(2, 4)), ["fc2.weight", "(4, 2)", "(2, 4)"]),
    "nan": (changed(1, data=np.full(4, np.nan, np.float32)), ["fc1.bias", "NaN"]),
    "infinity": (changed(2, data=np.full((4, 2), np.inf, np.float32)), ["fc2.weight", "infinity"]),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_weights_that_do_not_fit_change_nothing(name: str) -> None:
    weights, parts = BAD[name]
    model = Model(dense_spec(), seed=4)
    before = [w.data.tobytes() for w in extract_weights(model)]
    with pytest.raises(CheckpointError) as e:
        load_weights(model, weights)
    one_line(e.value, *parts)
    assert [w.data.tobytes() for w in extract_weights(model)] == before


def test_validate_accepts_what_a_trainer_makes() -> None:
    full_checkpoint().validate()
    replace(full_checkpoint(), optimizer_state=OptimizerState("SGD")).validate()


@pytest.mark.parametrize("spec", [None, {}, "x"])
def test_validate_wants_an_architecture(spec: Any) -> None:
    with pytest.raises(GoMetalError, match="model_spec"):
        replace(small_checkpoint(), model_spec=spec).validate()

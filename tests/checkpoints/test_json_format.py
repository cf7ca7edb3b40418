"""go-metal's JSON checkpoint: its own files byte for byte, what is added to them, and what is refused."""

import gzip
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference_json as go
from checkpoint_samples import (
    GOLDEN,
    GOLDEN_JSON,
    GOLDEN_TRAINER,
    as_bytes,
    assert_same,
    bounded,
    dense_spec,
    full_checkpoint,
    one_line,
    read,
    read_fields,
    small_checkpoint,
    stem,
)
from hypothesis import given
from hypothesis import strategies as st

from gometal_mlx.checkpoints import (
    Checkpoint,
    CheckpointMetadata,
    OptimizerState,
    OptimizerTensor,
    TrainingState,
    WeightTensor,
    json_format,
    load,
    save,
)
from gometal_mlx.checkpoints.checkpoint import EXTRAS_VERSION
from gometal_mlx.errors import CheckpointError, GoMetalError
from gometal_mlx.layers import LayerSpec, LayerType, Model, ModelSpec

# ------------------------------------------------------------------------------------------------- go-metal's files


@pytest.mark.parametrize("path", GOLDEN_JSON, ids=stem)
def test_saved_again_as_go_metal_saves_it_again(path: Path, tmp_path: Path) -> None:
    save(load(path), tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == (GOLDEN / "resaved" / path.name).read_bytes()


@pytest.mark.parametrize("path", sorted((GOLDEN / "resaved").iterdir()), ids=stem)
def test_what_go_metal_saved_again_stays_as_it_is(path: Path, tmp_path: Path) -> None:
    save(load(path), tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == path.read_bytes()


# what go-metal's tables say: type, state kinds, whether its file holds state
TRAINERS = {
    "adadelta": ("AdaDelta", {"squared_grad_avg", "squared_update_avg"}),
    "adagrad": ("AdaGrad", {"squared_grad_avg"}),
    "adam": ("Adam", {"momentum", "variance"}),
    "lbfgs": (None, set()),
    "nadam": ("Nadam", {"momentum", "variance"}),
    "rmsprop": ("RMSProp", {"squared_grad_avg"}),
    "sgd": ("SGD", {"momentum"}),
}


@pytest.mark.parametrize("path", GOLDEN_TRAINER, ids=stem)
def test_files_of_the_checkpoint_manager_load(path: Path) -> None:
    kind, states = TRAINERS[path.name.split("_")[1]]
    raw = json.loads(path.read_bytes())
    c = load(path)
    learned = [w for w in c.weights if not w.type.startswith("running")]
    assert (c.optimizer_state.type if c.optimizer_state else None) == kind
    assert {t.state_type for t in (c.optimizer_state.state_data if c.optimizer_state else ())} == states
    for tensor, stored in zip(
        c.optimizer_state.state_data if c.optimizer_state else (),
        raw.get("optimizer_state", {}).get("state_data", ()),
        strict=True,
    ):
        assert tensor.name == stored["name"]
        assert tensor.shape == (learned[int(stored["name"].rsplit("_", 1)[1])].data.size,)
    assert [w.data.ravel().tolist() for w in learned] == [
        np.float32(w["data"]).tolist() for w in raw["weights"] if not w["type"].startswith("running")
    ]
    assert (c.training_state.epoch, c.training_state.step) == (
        raw["training_state"]["epoch"],
        raw["training_state"]["step"],
    )
    assert Model.from_checkpoint(c).spec.total_parameters == raw["model_spec"]["total_parameters"]


@pytest.mark.parametrize("path", [p for p in GOLDEN_TRAINER if "cnn" not in p.name], ids=stem)
def test_trainer_files_without_batch_norm_are_kept_byte_for_byte(path: Path, tmp_path: Path) -> None:
    save(load(path), tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == path.read_bytes()


# -------------------------------------------------------------------------------------------------- any checkpoint

TEXTS = st.text(st.characters(exclude_categories=("Cs",)), max_size=6)
SIZES = st.integers(0, 9)
SHAPES = st.lists(SIZES, max_size=3).map(tuple)
FLOAT32S = st.floats(width=32, allow_nan=False, allow_infinity=False)
MAPS = st.recursive(
    st.dictionaries(TEXTS, st.none() | st.booleans() | st.integers(-(2**53), 2**53) | FLOAT32S.map(np.float32) | TEXTS),
    lambda inner: st.dictionaries(TEXTS, inner | st.lists(TEXTS, max_size=2), max_size=3),
    max_leaves=4,
)


def arrays(shape: tuple[int, ...]) -> st.SearchStrategy[np.ndarray]:
    count = int(np.prod(shape)) if shape else 0
    return st.lists(FLOAT32S, min_size=count, max_size=count).map(
        lambda v: np.array(v, np.float32).reshape(shape or (0,))
    )


TENSOR_SHAPES = st.lists(st.integers(0, 3), max_size=3).map(tuple)
SHAPED = TENSOR_SHAPES.flatmap(lambda s: st.tuples(st.just(s), arrays(s)))
WEIGHTS = st.tuples(TEXTS, SHAPED, TEXTS, TEXTS).map(lambda t: WeightTensor(t[0], *t[1], t[2], t[3]))
TENSORS = st.tuples(TEXTS, SHAPED, TEXTS).map(lambda t: OptimizerTensor(t[0], *t[1], t[2]))
STATISTICS = st.dictionaries(TEXTS, arrays((2,)), max_size=2)
LAYERS = st.builds(
    LayerSpec, st.integers(-1, 20), TEXTS, MAPS, SHAPES, SHAPES, st.lists(SHAPES, max_size=2).map(tuple), SIZES,
    STATISTICS,
)  # fmt: skip
SPECS = st.builds(
    ModelSpec, st.lists(LAYERS, max_size=3).map(tuple), SIZES, st.lists(SHAPES, max_size=3).map(tuple), SHAPES, SHAPES,
    st.booleans(),
)  # fmt: skip
STATES = st.builds(TrainingState, SIZES, SIZES, FLOAT32S, FLOAT32S, FLOAT32S, st.integers(0, 2**63 - 1))
OPTIMIZERS = st.builds(OptimizerState, TEXTS, MAPS, st.lists(TENSORS, max_size=3))
METADATA = st.builds(
    CheckpointMetadata, TEXTS, TEXTS.filter(bool), st.just("2026-01-31T12:00:00Z"), TEXTS, st.lists(TEXTS, max_size=2)
)
CHECKPOINTS = st.builds(
    Checkpoint, SPECS, st.lists(WEIGHTS, max_size=3), STATES, st.none() | OPTIMIZERS, METADATA, st.just({})
)


@bounded(120)
@given(CHECKPOINTS)
def test_any_checkpoint_is_written_as_go_writes_it(checkpoint: Checkpoint) -> None:
    assert as_bytes(checkpoint).decode() == go.checkpoint(checkpoint)


@bounded(120)
@given(CHECKPOINTS)
def test_any_checkpoint_is_read_back_as_it_was_written(checkpoint: Checkpoint) -> None:
    layers = checkpoint.model_spec.layers  # a BatchNorm would get its statistics
    checkpoint.model_spec = replace(checkpoint.model_spec, layers=tuple(s for s in layers if s.type != 6))
    written = as_bytes(checkpoint)
    again = read(written)
    assert as_bytes(again) == written
    assert [w.data.tobytes() for w in again.weights] == [w.data.tobytes() for w in checkpoint.weights]
    assert again.training_state == checkpoint.training_state
    assert again.metadata == checkpoint.metadata


def test_maps_are_sorted_by_bytes_at_every_level() -> None:
    parameters = {"é": 1, "z": {"b": 1, "a": 2}, "Z": 3, "\U0001f642": 4, "\uffff": 5, "": 6}
    c = replace(small_checkpoint(), optimizer_state=OptimizerState("x", parameters))
    written = json.loads(as_bytes(c))["optimizer_state"]["parameters"]
    assert list(written) == ["", "Z", "z", "é", "\uffff", "\U0001f642"]  # by UTF-8 bytes, not by UTF-16
    assert list(written["z"]) == ["a", "b"]


# --------------------------------------------------------------------------------------- null, empty and left out


@pytest.mark.parametrize(
    "fields",
    [
        '"weights": null', '"weights": []', '"optimizer_state": {"type": "", "parameters": null, "state_data": null}',
        '"optimizer_state": {"type": "", "parameters": {}, "state_data": []}',
        '"weights": [{"name": "w", "shape": null, "data": null, "layer": "", "type": ""}]',
        '"weights": [{"name": "w", "shape": [], "data": [], "layer": "", "type": ""}]',
        '"weights": [{"name": "w", "shape": [0], "data": null, "layer": "", "type": ""}]',
    ],
)  # fmt: skip
def test_null_stays_null_and_empty_stays_empty(fields: str) -> None:
    again = json.loads(as_bytes(read_fields(fields)))
    assert {k: v for k, v in again.items() if k in json.loads("{" + fields + "}")} == json.loads("{" + fields + "}")


@pytest.mark.parametrize(
    "spec",
    [
        {"layers": None, "total_parameters": 0, "parameter_shapes": None, "input_shape": None, "output_shape": None,
         "compiled": False},
        {"layers": [], "total_parameters": 0, "parameter_shapes": [], "input_shape": [], "output_shape": [],
         "compiled": True},
        {"layers": [{"type": 2, "name": "", "parameters": None}, {"type": 2, "name": "r", "parameters": {}}],
         "total_parameters": 0, "parameter_shapes": [[], None], "input_shape": [1], "output_shape": [0],
         "compiled": True},
        {"layers": [{"type": 9, "name": "x", "parameters": {}, "parameter_shapes": [None, [1]],
                     "running_statistics": {"a": None, "b": []}}],
         "total_parameters": 0, "parameter_shapes": [], "input_shape": [], "output_shape": [], "compiled": True},
    ],
    ids=["null", "empty", "null in shapes", "null in statistics"],
)  # fmt: skip
def test_null_stays_null_in_the_architecture(spec: dict[str, Any]) -> None:
    c = read(json.dumps({"model_spec": spec}))
    assert json.loads(as_bytes(c))["model_spec"] == spec


def test_absent_is_written_as_go_writes_its_zero_values() -> None:
    again = json.loads(as_bytes(read('{"model_spec": {}}')))
    assert again["model_spec"] == {
        "layers": None, "total_parameters": 0, "parameter_shapes": None, "input_shape": None, "output_shape": None,
        "compiled": False,
    }  # fmt: skip
    assert again["weights"] is None
    assert again["training_state"] == {
        "epoch": 0, "step": 0, "learning_rate": 0, "best_loss": 0, "best_accuracy": 0, "total_steps": 0,
    }  # fmt: skip
    assert "optimizer_state" not in again


def test_an_unsigned_file_is_signed_as_go_metal_does() -> None:
    metadata = json.loads(as_bytes(read_fields('"metadata": {"version": "9", "description": "d", "tags": ["t"]}')))[
        "metadata"
    ]
    assert (metadata["framework"], metadata["version"]) == ("go-metal", "1.0.0")
    assert metadata["created_at"].startswith("20")
    assert (metadata["description"], metadata["tags"]) == ("d", ["t"])


def test_the_optimizer_state_of_no_optimizer_is_left_out() -> None:
    assert b"optimizer_state" not in as_bytes(small_checkpoint())
    assert read_fields('"optimizer_state": null').optimizer_state is None


# -------------------------------------------------------------------------------------------------- BatchNorm rules


def batch_norm(features: Any = 2, statistics: Any = None, weights: Sequence[dict[str, Any]] = ()) -> Checkpoint:
    layer: dict[str, Any] = {"type": 6, "name": "bn", "parameters": {"num_features": features}}
    if statistics is not None:
        layer["running_statistics"] = statistics
    return read(json.dumps({"model_spec": {"layers": [layer]}, "weights": [*weights]}))


def weight(name: str, values: list[float], kind: str, layer: str = "bn") -> dict[str, Any]:
    return {"name": name, "shape": [len(values)], "data": values, "layer": layer, "type": kind}


def statistics_of(c: Checkpoint) -> list[tuple[str, list[float]]]:
    return [(w.name, w.data.tolist()) for w in c.weights if w.type.startswith("running")]


ADDED = [("bn.running_mean", [0, 0]), ("bn.running_var", [1, 1])]


def test_missing_statistics_are_added_at_the_end_and_in_the_layer() -> None:
    c = batch_norm(weights=[weight("bn.weight", [1, 1], "gamma"), weight("bn.bias", [0, 0], "beta")])
    assert [w.name for w in c.weights] == ["bn.weight", "bn.bias", "bn.running_mean", "bn.running_var"]
    assert statistics_of(c) == ADDED
    assert {k: v.tolist() for k, v in c.model_spec.layers[0].running_statistics.items()} == {
        "running_mean": [0, 0],
        "running_var": [1, 1],
    }
    assert any("'bn'" in n and "mean 0, variance 1" in n for n in c.notes)


def test_statistics_of_the_layer_are_copied_into_the_weights() -> None:
    c = batch_norm(statistics={"running_mean": [3, 4], "running_var": [5, 6]})
    assert statistics_of(c) == [("bn.running_mean", [3, 4]), ("bn.running_var", [5, 6])]
    assert any("taken from its running_statistics" in n for n in c.notes)


@pytest.mark.parametrize("given_", [{"running_mean": [3, 4]}, {"running_mean": [3, 4], "running_var": [1, 2, 3]}])
def test_a_statistic_that_is_missing_or_has_a_wrong_length_gets_its_default(given_: dict[str, list[float]]) -> None:
    c = batch_norm(statistics=given_)
    assert statistics_of(c) == [("bn.running_mean", [3, 4]), ("bn.running_var", [1, 1])]
    assert any("length 3; 2 needed" in n for n in c.notes) == (len(given_) == 2)


@pytest.mark.parametrize("kind", ["running_mean", "running_var"])
def test_one_stored_statistic_is_enough_to_leave_the_file_alone(kind: str) -> None:
    c = batch_norm(weights=[weight("bn.x", [7, 8], kind)], statistics={"running_mean": [1, 2]})
    assert statistics_of(c) == [("bn.x", [7, 8])]
    assert list(c.model_spec.layers[0].running_statistics) == ["running_mean"]


def test_statistics_in_the_weights_are_not_copied_into_the_layer() -> None:
    c = batch_norm(weights=[weight("a", [7, 8], "running_mean"), weight("b", [1, 2], "running_var")])
    assert len(c.weights) == 2
    assert not c.model_spec.layers[0].running_statistics


def test_statistics_of_another_layer_do_not_count() -> None:
    c = batch_norm(weights=[weight("o.running_mean", [7, 8], "running_mean", "other")])
    assert statistics_of(c) == [("o.running_mean", [7, 8]), *ADDED]


@pytest.mark.parametrize("features", [2, 2.0, 2.9])
def test_the_number_of_features_is_truncated(features: float) -> None:
    assert statistics_of(batch_norm(features)) == ADDED


@pytest.mark.parametrize("features", [None, 0, -1, 0.5, "2", True, [2]])
def test_without_a_number_of_features_nothing_is_added(features: Any) -> None:
    c = batch_norm(features)
    assert statistics_of(c) == []
    assert any("'bn'" in n and "num_features is missing" in n for n in c.notes)


def test_of_two_layers_of_one_name_the_later_counts() -> None:
    layers = [{"type": 6, "name": "bn", "parameters": {"num_features": n}} for n in (3, 2)]
    c = read(json.dumps({"model_spec": {"layers": layers}}))
    assert statistics_of(c) == ADDED
    assert [bool(s.running_statistics) for s in c.model_spec.layers] == [False, True]
    assert any("'bn' stands 2 times" in n for n in c.notes)


def test_several_layers_get_theirs_in_the_order_of_the_layers() -> None:
    layers = [{"type": 6, "name": n, "parameters": {"num_features": 1}} for n in "bac"]
    c = read(json.dumps({"model_spec": {"layers": layers}}))
    assert [w.layer for w in c.weights] == ["b", "b", "a", "a", "c", "c"]


# ------------------------------------------------------------------------------------------------------------ time


@pytest.mark.parametrize(
    ("text", "stored"),
    [
        ("2026-01-31T12:00:00Z", None), ("0001-01-01T00:00:00Z", None), ("2026-01-31T12:00:00.123456789Z", None),
        ("2026-01-31T12:00:00.000000001-03:30", None), ("2026-01-31T12:00:00.1200Z", "2026-01-31T12:00:00.12Z"),
        ("2026-01-31T12:00:00.000Z", "2026-01-31T12:00:00Z"), ("2026-01-31T12:00:00,5Z", "2026-01-31T12:00:00.5Z"),
        ("2026-01-31T12:00:00+00:00", "2026-01-31T12:00:00Z"), ("2024-02-29T23:59:59+23:59", None),
        ("0000-01-01T00:00:00Z", None), ("9999-12-31T23:59:59.999999999Z", None),
    ],
)  # fmt: skip
def test_times_are_kept_to_the_nanosecond(text: str, stored: str | None) -> None:
    c = read_fields(f'"metadata": {{"framework": "x", "created_at": "{text}"}}')
    assert c.metadata.created_at == (stored or text)
    assert json.loads(as_bytes(c))["metadata"]["created_at"] == (stored or text)


@pytest.mark.parametrize(
    "literal",
    [
        '""', "1", "true", '"2026-01-31"', '"2026-01-31T12:00:00"', '"2026-01-31t12:00:00Z"', '"2026-01-31T12:00:00z"',
        '"2026-01-31 12:00:00Z"', '"2026-02-29T12:00:00Z"', '"2026-13-01T12:00:00Z"', '"2026-01-31T24:00:00Z"',
        '"2026-01-31T12:60:00Z"', '"2026-01-31T12:00:60Z"', '"2026-01-31T12:00:00+1:00"', '"2026-01-00T12:00:00Z"',
        '"2026-01-31T12:00:00Z "', '"12026-01-31T12:00:00Z"', '"2026-01-31T12:00:00.Z"', '"٢٠٢٦-01-31T12:00:00Z"',
    ],
)  # fmt: skip
def test_what_is_no_time_is_refused(literal: str) -> None:
    with pytest.raises(CheckpointError) as e:
        read_fields(f'"metadata": {{"created_at": {literal}}}')
    one_line(e.value, "f.json: $.metadata.created_at: ")


def test_a_missing_time_is_gos_zero_time() -> None:
    assert read_fields('"metadata": {}').metadata.created_at == "0001-01-01T00:00:00Z"
    assert read_fields('"metadata": {"created_at": null}').metadata.created_at == "0001-01-01T00:00:00Z"


def test_a_time_that_is_none_is_not_written(tmp_path: Path) -> None:
    c = small_checkpoint()
    c.metadata.created_at = "yesterday"
    with pytest.raises(CheckpointError) as e:
        save(c, tmp_path / "c.json")
    one_line(e.value, str(tmp_path / "c.json"), "yesterday")
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------------------------------------------------- extras


def test_extras_stand_behind_the_metadata_with_their_version() -> None:
    tree = json.loads(as_bytes(full_checkpoint()))
    assert list(tree) == ["model_spec", "weights", "training_state", "optimizer_state", "metadata", "gometal_mlx"]
    assert next(iter(tree["gometal_mlx"].items())) == ("version", EXTRAS_VERSION)
    assert {k: v for k, v in tree["gometal_mlx"].items() if k != "version"} == full_checkpoint().extras


def test_extras_can_be_left_out(tmp_path: Path) -> None:
    save(full_checkpoint(), tmp_path / "c.json", extras=False)
    assert (tmp_path / "c.json").read_bytes() == as_bytes(replace(full_checkpoint(), extras={}))
    assert load(tmp_path / "c.json").extras == {}


def test_empty_extras_leave_no_trace() -> None:
    assert b'"gometal_mlx":' not in as_bytes(small_checkpoint())


@pytest.mark.parametrize("version", [EXTRAS_VERSION + 1, 0, -1, 1.5, "1", None])
def test_extras_of_another_version_are_refused(version: Any) -> None:
    with pytest.raises(CheckpointError) as e:
        read_fields('"gometal_mlx": ' + json.dumps({"version": version, "x": 1}))
    one_line(e.value, "f.json: $.gometal_mlx.version: ", "newer")


EXTRAS = {
    "long list": [0.1, -1.5e300, 7] * 200,
    "very long list": [i / 7 for i in range(20_000)],
    "long list of integers": list(range(2**53 - 40_000, 2**53, 2)),
    "list with null": [1.5] * 300 + [None],
    "list with text": [1.5] * 300 + ["x"],
    "many lists with text": [[float(i)] * 300 + ["x"] for i in range(20)],
    "nested": {"a": {"b": [{"c": [[1, 2], [3]]}]}, "": "", "é": "\u2028<&>"},
    "large numbers": [2**53, 2**60, -(2**63), 1e308, -0.0],
    "integers of 64 bits": [2**53 + 1, 2**63 - 1, 2**64 - 1],
}


@pytest.mark.parametrize("name", EXTRAS)
def test_whatever_extras_are_saved_come_back(name: str, tmp_path: Path) -> None:
    save(replace(small_checkpoint(), extras={"x": EXTRAS[name]}), tmp_path / "c.json")
    assert load(tmp_path / "c.json").extras == {"x": EXTRAS[name]}


@pytest.mark.parametrize("bad", [np.nan, np.inf, {1, 2}, 1j, object()])
def test_extras_without_a_json_form_are_refused(bad: Any, tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text("old")
    with pytest.raises(CheckpointError) as e:
        save(replace(small_checkpoint(), extras={"x": [bad]}), tmp_path / "c.json")
    one_line(e.value, str(tmp_path / "c.json"))
    assert [p.name for p in tmp_path.iterdir()] == ["c.json"]
    assert (tmp_path / "c.json").read_text() == "old"


# ------------------------------------------------------------------------------------------------------------ gzip


def test_gzip_holds_the_same_bytes_and_depends_on_nothing_else(tmp_path: Path) -> None:
    for name in ("a.json.gz", "b.json.gz"):
        save(full_checkpoint(), tmp_path / name)
    a = (tmp_path / "a.json.gz").read_bytes()
    assert gzip.decompress(a) == as_bytes(full_checkpoint())
    assert a == (tmp_path / "b.json.gz").read_bytes()  # neither name nor time stands in it
    assert_same(load(tmp_path / "a.json.gz"), full_checkpoint())


def test_gzip_is_known_by_its_content_not_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "packed.json").write_bytes(gzip.compress(as_bytes(full_checkpoint())))
    (tmp_path / "plain.json.gz").write_bytes(as_bytes(full_checkpoint()))
    for name in ("packed.json", "plain.json.gz"):
        assert_same(load(tmp_path / name), full_checkpoint())


def test_a_gzip_file_cut_off_anywhere_is_an_error(tmp_path: Path) -> None:
    data = gzip.compress(as_bytes(small_checkpoint()), mtime=0)
    for n in range(0, len(data)):
        (tmp_path / "c.json.gz").write_bytes(data[:n])
        with pytest.raises(CheckpointError) as e:
            load(tmp_path / "c.json.gz")
        one_line(e.value, str(tmp_path / "c.json.gz"))


def test_a_gzip_file_that_becomes_very_large_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_format, "UNPACKED", 2**16)
    data = as_bytes(small_checkpoint())
    bomb = data.replace(b'"data": [', b'"data": [' + b"0," * 2**22, 1)
    assert len(bomb) > 2**22
    path = tmp_path / "c.json.gz"
    path.write_bytes(gzip.compress(bomb))
    assert path.stat().st_size < 2**15
    with pytest.raises(CheckpointError) as e:
        load(path)
    one_line(e.value, str(path), "unpacks to more than", "gunzip")
    zeros = small_checkpoint()  # what compresses best of all that is saved
    for w in zeros.weights:
        w.data[:] = 0
    save(zeros, path)
    assert_same(load(path), zeros)


def test_a_damaged_gzip_file_is_an_error(tmp_path: Path) -> None:
    data = gzip.compress(as_bytes(small_checkpoint()), mtime=0)
    path = tmp_path / "c.json.gz"
    for at in range(10, len(data)):
        path.write_bytes(data[:at] + bytes([data[at] ^ 0x55]) + data[at + 1 :])
        with pytest.raises(CheckpointError) as e:  # the check sum at the end finds every damage
            load(path)
        one_line(e.value, str(path))


# ------------------------------------------------------------------------------------------------ notes and errors


def test_notes_tell_what_was_odd(tmp_path: Path) -> None:
    layers = [{"type": 2, "name": "r", "parameters": {}}, {"type": 99, "name": "r", "parameters": {}}]
    weights = [weight("w", [1], "weight"), weight("w", [2], "weight")]
    text = json.dumps({"model_spec": {"layers": layers, "new": 1}, "weights": weights, "later": 2})
    (tmp_path / "c.json").write_text(text + " and more")
    assert sorted(load(tmp_path / "c.json").notes) == sorted([
        "$.model_spec: ignored the unknown key 'new'",
        "$: ignored the unknown key 'later'",
        "layer name 'r' stands 2 times; matched by position",
        "weight name 'w' stands 2 times; matched by position",
        "layer 'r': type 99 is unknown; a model cannot be built from this file",
        "ignored what follows the JSON object",
    ])  # fmt: skip


def test_a_clean_file_leaves_no_notes(tmp_path: Path) -> None:
    save(small_checkpoint(), tmp_path / "c.json")
    assert load(tmp_path / "c.json").notes == []


W = '"weights": [{"name": "fc.weight", "layer": "fc", "shape": %s, "data": %s}]'


@pytest.mark.parametrize(
    ("fields", "parts"),
    [
        ('"weights": {}', ["$.weights: an array is needed, got an object"]),
        ('"weights": [1]', ["$.weights[0]: an object is needed, got the number 1"]),
        ('"weights": [null, "x"]', ["$.weights[1]: an object is needed, got a text"]),
        ('"training_state": []', ["$.training_state: an object is needed, got an array"]),
        ('"training_state": {"learning_rate": "x"}', ["$.training_state.learning_rate: a number is needed"]),
        ('"training_state": {"best_loss": 1e39}', ["$.training_state.best_loss: 1e39 does not fit a float32"]),
        ('"model_spec": {"layers": [{"name": 1}]}', ["$.model_spec.layers[0].name: a text is needed"]),
        ('"model_spec": {"layers": [{"parameters": []}]}', ["$.model_spec.layers[0].parameters: an object is needed"]),
        ('"model_spec": {"input_shape": 3}', ["$.model_spec.input_shape: an array is needed"]),
        ('"model_spec": {"layers": [{"running_statistics": {"running_mean": [true]}}]}',
         ["$.model_spec.layers[0].running_statistics.running_mean[0]: a number is needed"]),
        ('"optimizer_state": {"state_data": [{"name": "m_0", "shape": [2], "data": [1]}]}',
         ["$.optimizer_state.state_data[0] ('m_0').data", "needs 2 numbers, got 1"]),
        ('"metadata": {"tags": ["a", 2]}', ["$.metadata.tags[1]: a text is needed"]),
        (W % ("[2, 3]", "[1, 2]"), ["$.weights[0] ('fc.weight', layer 'fc').data", "(2, 3) needs 6 numbers, got 2"]),
        (W % ("[]", "[1]"), ["('fc.weight', layer 'fc').data", "got 1"]),
        (W % ("[-1, -2]", "[1, 2]"), ["('fc.weight', layer 'fc').data"]),
        (W % ("[0]", "[1]"), ["('fc.weight', layer 'fc').data", "needs 0 numbers, got 1"]),
        (W % ("[4611686018427387904, 4]", "[]"), ["$.weights[0].shape"]),
        (W % ("[1]", '"x"'), ["$.weights[0].data: an array is needed"]),
        (W % ("[1]", '{"a": 1}'), ["$.weights[0].data: an array is needed"]),
        ('"gometal_mlx": []', ["$.gometal_mlx: an object is needed"]),
    ],
)  # fmt: skip
def test_errors_name_file_path_and_field_in_one_line(fields: str, parts: list[str]) -> None:
    with pytest.raises(CheckpointError) as e:
        read_fields(fields)
    one_line(e.value, "f.json: ", *parts)


def test_a_name_with_line_breaks_stays_on_one_line() -> None:
    with pytest.raises(CheckpointError) as e:
        read_fields('"weights": [{"name": "a\\nb", "layer": "c\\u2028d", "shape": [2], "data": [1]}]')
    assert "\u2028" not in one_line(e.value)
    with pytest.raises(CheckpointError) as e:
        read_fields('"optimizer_state": {"parameters": {"a\\nb": 1e999}}')
    one_line(e.value, "$.optimizer_state.parameters.")


@bounded(250)
@given(st.sampled_from(["layer_conv2d_bias", "layer_batchnorm_affine", "layer_softmax", "layer_dense_on4d"]), st.data())
def test_a_model_from_a_damaged_file_is_an_error_or_a_model(name: str, data: st.DataObject) -> None:
    """Digits and letters changed at random inside the architecture: sizes, types, names, shapes."""
    text = bytearray((GOLDEN / "json" / f"{name}.json").read_bytes())
    end = text.index(b'"weights"')
    places = [i for i in range(end) if chr(text[i]).isalnum()]
    for at in data.draw(st.lists(st.sampled_from(places), min_size=1, max_size=2)):
        text[at] = data.draw(st.sampled_from(b"0123456789-e.tfns"))
    try:
        Model.from_checkpoint(read(bytes(text)))
    except GoMetalError as e:
        one_line(e)


# ------------------------------------------------------------------------------------------------ what we write


def test_layer_types_are_written_as_numbers() -> None:
    assert [x["type"] for x in json.loads(as_bytes(small_checkpoint()))["model_spec"]["layers"]] == [
        LayerType.Dense.value, LayerType.ReLU.value, LayerType.Dense.value,
    ]  # fmt: skip


def test_a_new_model_is_written_as_go_metal_writes_the_same_model() -> None:
    """The golden MLP's architecture, built here with its own names and sizes."""
    ours = json.loads(as_bytes(Checkpoint(dense_spec())))["model_spec"]["layers"][0]
    theirs = json.loads((GOLDEN / "json" / "layer_dense_bias.json").read_bytes())["model_spec"]["layers"][0]
    assert list(ours) == list(theirs)
    assert list(ours["parameters"]) == list(theirs["parameters"])
    assert {k: type(v) for k, v in ours["parameters"].items()} == {k: type(v) for k, v in theirs["parameters"].items()}


def test_writing_changes_nothing_in_the_checkpoint() -> None:
    c = full_checkpoint()
    as_bytes(c)
    as_bytes(c, extras=False)
    assert_same(c, full_checkpoint())


def test_the_file_ends_in_one_newline_and_has_no_carriage_returns(tmp_path: Path) -> None:
    save(small_checkpoint(), tmp_path / "c.json")
    data = (tmp_path / "c.json").read_bytes()
    assert data == as_bytes(small_checkpoint())
    assert data.endswith(b"\n}\n")
    assert b"\r" not in data


def test_the_module_is_reached_by_its_own_functions_too(tmp_path: Path) -> None:
    json_format.save(full_checkpoint(), tmp_path / "c.json")
    assert_same(json_format.load(tmp_path / "c.json"), full_checkpoint())

"""What is saved can be read again; what could not be is refused before a file is touched."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoint_samples import FULL_SUFFIXES, full_checkpoint, one_line

import gometal_mlx as gm
from gometal_mlx.checkpoints import Checkpoint, WeightTensor, extract_weights, load, save
from gometal_mlx.errors import CheckpointError
from gometal_mlx.layers import Model, ModelBuilder

Change = Callable[[Checkpoint], Any]


def put(owner: str, name: str, value: Any) -> Change:
    return lambda c: setattr(getattr(c, owner), name, value)


def extra(value: Any) -> Change:
    return lambda c: c.extras.update(note=value)


def weight(name: Any) -> Change:
    return lambda c: setattr(c.weights[0], "name", name)


BAD: dict[str, tuple[Change, str]] = {
    "tag": (put("metadata", "tags", ["a", 3]), r"metadata\.tags\[1\]: a text is needed, got 3"),
    "tags": (put("metadata", "tags", None), r"metadata\.tags: a list of texts is needed, got None"),
    "description": (put("metadata", "description", 7), r"metadata\.description: a text is needed, got 7"),
    "half a pair": (put("metadata", "framework", "\ud800"), r"metadata\.framework: a text is needed"),
    "large epoch": (put("training_state", "epoch", 2**63), r"training_state\.epoch: an int of 64 bits is needed"),
    "half an epoch": (put("training_state", "epoch", 1.5), r"training_state\.epoch: an int of 64 bits .* got 1\.5"),
    "no step": (put("training_state", "step", float("nan")), r"training_state\.step: an int of 64 bits .* got nan"),
    "no rate": (put("training_state", "learning_rate", None), r"learning_rate: a finite float32 is needed, got None"),
    "large number": (extra([10**400]), r"gometal_mlx/note/0: an int of 1329 bits; at most 1000"),
    "many axes": (extra(np.zeros((1,) * 33, np.float32)), r"note: an array of 33 dimensions; at most 32"),
    "name of half a pair": (weight("\udfff"), r"a name of text and a shape of at most 32 dimensions needed"),
    "number as name": (weight(3), r"a name of text and a shape of at most 32 dimensions needed, got 3"),
    "number as layer": (
        lambda c: setattr(c.weights[1], "layer", 7),
        r"weight '.*': layer: a text is needed, got 7",
    ),
    "number as kind": (lambda c: setattr(c.weights[0], "type", 3), r"weight '.*': type: a text is needed, got 3"),
    "number as optimizer": (put("optimizer_state", "type", 3), r"optimizer_state\.type: a text is needed, got 3"),
    "number as slot": (
        lambda c: setattr(c.optimizer_state.state_data[0], "state_type", None),
        r"type: a text is needed",
    ),
}


@pytest.mark.parametrize("suffix", FULL_SUFFIXES)
@pytest.mark.parametrize("case", BAD)
def test_what_no_file_can_hold(case: str, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"c{suffix}"
    save(full_checkpoint(), path)
    before = path.read_bytes()
    change, told = BAD[case]
    change(bad := full_checkpoint())
    with pytest.raises(CheckpointError, match=told) as e:
        save(bad, path)
    assert one_line(e.value)
    assert path.name in str(e.value)
    assert path.read_bytes() == before


@pytest.mark.parametrize("suffix", [*FULL_SUFFIXES, ".onnx"])
def test_deep_and_large_values_are_read_again(suffix: str, tmp_path: Path) -> None:
    checkpoint = full_checkpoint()
    deep: Any = 2**64 - 1
    for _ in range(97):
        deep = {"d": deep}
    checkpoint.extras = {"info": {"deep": deep}}
    checkpoint.training_state.epoch = np.int64(2**62)  # type: ignore[assignment]
    save(checkpoint, tmp_path / f"c{suffix}")
    again = load(tmp_path / f"c{suffix}")
    assert again.info == checkpoint.info
    assert again.training_state.epoch == 2**62


def test_a_suffix_in_capitals_compresses_too(tmp_path: Path) -> None:
    save(full_checkpoint(), tmp_path / "C.JSON.GZ")
    assert (tmp_path / "C.JSON.GZ").read_bytes()[:2] == b"\x1f\x8b"


@pytest.mark.parametrize("path", [None, 3, Model])
def test_a_path_that_is_none(path: Any) -> None:
    for call in (lambda: load(path), lambda: save(full_checkpoint(), path), lambda: gm.Predictor(path)):
        with pytest.raises(CheckpointError, match="a file's path is needed, got "):
            call()


def test_names_that_are_too_long_or_lead_nowhere(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be read: File name too long"):
        load(tmp_path / ("a" * 300 + ".json"))
    with pytest.raises(CheckpointError, match="File name too long"):
        gm.ModelTrainer.resume(tmp_path / ("a" * 300 + ".json"))
    save(full_checkpoint(), tmp_path / "a.json")
    with pytest.raises(CheckpointError, match="cannot be read: Not a directory"):
        load(tmp_path / "a.json" / "b.json")


def test_what_is_no_file_is_said_once(tmp_path: Path) -> None:
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "empty.json").touch()
    for name, told in {
        "folder": "a file is needed, this is a folder",
        "empty": r"the file is empty \(0 bytes\)",
    }.items():
        with pytest.raises(CheckpointError, match=rf"^{tmp_path}/{name}\.json: {told}"):
            load(tmp_path / f"{name}.json")


# ----------------------------------------------------------------------------------- running statistics for go-metal


def batch_norm() -> Checkpoint:
    spec = ModelBuilder((2, 3)).add_dense(3, name="fc").add_batch_norm(name="bn").add_dense(2, name="out").compile()
    weights = extract_weights(Model(spec, seed=0))
    for i, w in enumerate(weights):
        w.data[:] = (1 + np.arange(w.data.size, dtype=np.float32).reshape(w.shape)) / (i + 1)
    return Checkpoint(spec, weights)


def statistics(checkpoint: Checkpoint) -> dict[str, list[float]]:
    return {k: v.tolist() for k, v in checkpoint.model_spec.layers[1].running_statistics.items()}


def by_type(weights: list[WeightTensor]) -> dict[str, list[float]]:
    return {w.type: w.data.tolist() for w in weights if w.type.startswith("running")}


def test_statistics_of_an_onnx_file_stand_where_go_metal_looks(tmp_path: Path) -> None:
    """It runs a model with those in the layer alone."""
    save(batch_norm(), tmp_path / "m.onnx")
    save(load(tmp_path / "m.onnx"), tmp_path / "m.json")
    assert statistics(load(tmp_path / "m.json")) == by_type(batch_norm().weights)


@pytest.mark.parametrize("suffix", FULL_SUFFIXES)
def test_statistics_in_a_layer_are_those_of_new_weights(suffix: str, tmp_path: Path) -> None:
    save(batch_norm(), tmp_path / "m.onnx")
    checkpoint = load(tmp_path / "m.onnx")
    for w in checkpoint.weights:
        w.data = w.data * 2
    save(checkpoint, tmp_path / f"m{suffix}")
    again = load(tmp_path / f"m{suffix}")
    assert statistics(again) == by_type(again.weights) == by_type(checkpoint.weights)


# ------------------------------------------------------------------------------------------------------------- ONNX


@pytest.mark.parametrize("bias", [-4.0, -8.0, -20.0])
@pytest.mark.parametrize("last", ["sigmoid", "softmax", "tanh", "swish", "sigmoid dropout", "sigmoid relu"])
def test_small_answers_of_a_bounded_function_are_exported(last: str, bias: float, tmp_path: Path) -> None:
    """Probabilities of rare things: onnxruntime computes a Sigmoid to 1e-7, whatever it is."""
    builder = ModelBuilder((4, 5)).add_dense(3, name="fc")
    for name in last.split():
        getattr(builder, f"add_{name}")()
    spec = builder.compile()
    model = Model(spec, seed=0)
    model["fc"]["bias"] = model["fc"]["bias"] + bias
    checkpoint = Checkpoint(spec, extract_weights(model))
    assert save(checkpoint, tmp_path / "m.onnx").ok
    x = np.random.default_rng(0).standard_normal((9, 5)).astype(np.float32)
    answers = [gm.Predictor(checkpoint, engine=e).predict(x) for e in ("mlx", "onnxruntime")]
    np.testing.assert_allclose(*answers, atol=1e-6)


def test_other_differences_are_found_in_small_outputs(tmp_path: Path) -> None:
    """A Dense layer of tiny weights is judged by its own outputs."""
    spec = ModelBuilder((4, 5)).add_dense(3, name="fc").compile()
    weights = extract_weights(Model(spec, seed=0))
    for w in weights:
        w.data *= np.float32(1e-6)
    report = save(Checkpoint(spec, weights), tmp_path / "m.onnx")
    assert report.least == 0
    assert 0 < report.largest_output < 1e-4


def test_weights_beside_a_graph_stay_with_the_target_of_a_link(tmp_path: Path) -> None:
    real, link = tmp_path / "real", tmp_path / "link"
    real.mkdir()
    link.mkdir()
    save(batch_norm(), real / "m.onnx", external_data=True)
    (link / "m.onnx").symlink_to(real / "m.onnx")
    changed = batch_norm()
    for w in changed.weights:
        w.data *= 2
    save(changed, link / "m.onnx", external_data=True)
    assert [p.name for p in link.iterdir()] == ["m.onnx"]
    assert len(list(real.iterdir())) == 2
    again = load(real / "m.onnx", external_data=True)
    assert by_type(again.weights) == by_type(changed.weights)


def test_a_path_with_a_null_and_a_state_of_128_bits(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"cannot be read: .*embedded null"):
        load("a\0b.json")
    state = np.random.default_rng(3).bit_generator.state
    checkpoint = full_checkpoint()
    checkpoint.extras = {"info": {"generator": state}}
    for suffix in FULL_SUFFIXES:
        save(checkpoint, tmp_path / f"c{suffix}")
        assert load(tmp_path / f"c{suffix}").info == {"generator": state}

"""Predictor: the same answers from every format, in evaluation mode, for what the loss says the outputs mean."""

from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

import gometal_mlx as gm
from gometal_mlx import Model, ModelBuilder, ModelSpec, Predictor
from gometal_mlx.checkpoints import extract_weights
from gometal_mlx.errors import CheckpointError, GoMetalError, ShapeError, SpecError

SUFFIXES = (".json", ".json.gz", ".safetensors", ".onnx")
# float32 has 6e-8; sums of up to 100 products, then a softmax
TOLERANCE = 2e-6


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def mlp(outputs: int = 3, ending_in_softmax: bool = False) -> ModelSpec:
    builder = ModelBuilder((2, 5)).add_dense(6, name="fc1").add_relu().add_dense(outputs, name="fc2")
    return (builder.add_softmax() if ending_in_softmax else builder).compile()


def cnn() -> ModelSpec:
    builder = ModelBuilder((2, 2, 6, 6)).add_conv2d(3, 3, 1, 1).add_batch_norm().add_relu().add_max_pool2d()
    return builder.add_dropout().add_dense(4).compile()


def checkpoint(spec: ModelSpec, seed: int = 0, **fields: Any) -> gm.Checkpoint:
    """With every number random, statistics included."""
    weights = extract_weights(Model(spec, seed))
    rng = np.random.default_rng(seed)
    for w in weights:
        w.data = rng.uniform(0.5, 1.5, w.shape).astype(np.float32) if w.type == "running_var" else w.data
        w.data = rng.standard_normal(w.shape).astype(np.float32) if w.data.std() == 0 else w.data
    return gm.Checkpoint(spec, weights, **fields)


def batch(spec: ModelSpec, rows: int) -> np.ndarray:
    return np.random.default_rng(1).standard_normal((rows, *spec.input_shape[1:])).astype(np.float32)


def by_hand(ckpt: gm.Checkpoint, x: np.ndarray) -> np.ndarray:
    """An mlp's output before a Softmax, float64."""
    w = {t.name: t.data.astype(np.float64) for t in ckpt.weights}
    hidden = np.maximum(x.reshape(len(x), -1).astype(np.float64) @ w["fc1.weight"] + w["fc1.bias"], 0)
    return hidden @ w["fc2.weight"] + w.get("fc2.bias", 0.0)


@pytest.mark.parametrize("spec", [mlp(), mlp(ending_in_softmax=True)], ids=["logits", "softmax"])
def test_classes_get_probabilities_whether_or_not_the_model_ends_in_softmax(spec: ModelSpec) -> None:
    ckpt, x = checkpoint(spec), batch(spec, 4)
    found = Predictor(ckpt).predict(x)
    assert (found.dtype, found.shape) == (np.float32, (4, 3))
    np.testing.assert_allclose(found, softmax(by_hand(ckpt, x)), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("spec", [mlp(), cnn()], ids=["mlp", "cnn"])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_format_gives_the_same_answers(spec: ModelSpec, suffix: str, tmp_path: Path) -> None:
    ckpt, x = checkpoint(spec), batch(spec, 4)
    gm.save(ckpt, tmp_path / f"model{suffix}")
    expected = Predictor(ckpt).predict(x)
    for path in (tmp_path / f"model{suffix}", str(tmp_path / f"model{suffix}")):
        np.testing.assert_array_equal(Predictor(path).predict(x), expected)


def test_a_file_of_go_metal(golden: Path) -> None:
    path = golden / "json" / "model_mlp.json"
    predictor = Predictor(path)
    x = batch(predictor.spec, 5)
    found = predictor.predict(x)
    np.testing.assert_allclose(found, softmax(by_hand(gm.load(path), x)), rtol=0, atol=TOLERANCE)
    assert predictor.notes == []


def test_a_cnn_of_go_metal(golden: Path) -> None:
    predictor = Predictor(golden / "json" / "model_cnn.json")
    found = predictor.predict(batch(predictor.spec, 5))
    assert found.shape == (5, 2)
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=0, atol=TOLERANCE)
    assert found.std() > 0


def test_the_golden_file_answers_as_its_conversions(golden: Path, tmp_path: Path) -> None:
    ckpt = gm.load(golden / "json" / "model_cnn.json")
    x = batch(ckpt.model_spec, 3)
    expected = Predictor(ckpt).predict(x)
    for suffix in SUFFIXES:
        gm.save(ckpt, tmp_path / f"c{suffix}")
        np.testing.assert_array_equal(Predictor(tmp_path / f"c{suffix}").predict(x), expected)


def test_notes_tell_what_was_repaired(golden: Path) -> None:
    predictor = Predictor(golden / "trainer" / "trainer_sgd_cnn__checkpoint_epoch_5_step_50.json")
    assert predictor.notes == ["layer 'bn1': running statistics not in the file; set to mean 0, variance 1"]


# ----------------------------------------------------------------------------------------------- what outputs mean


@pytest.mark.parametrize(
    ("outputs", "loss", "meaning"),
    [
        (3, None, softmax),
        (1, None, lambda x: x),
        (3, "CrossEntropy", softmax),
        (3, gm.training.LossFunction.MeanSquaredError, lambda x: x),
        (3, "huber", lambda x: x),
        (1, "bce_with_logits", sigmoid),
        (2, 3, sigmoid),
        (1, "BinaryCrossEntropy", lambda x: x),
        (3, "CategoricalCrossEntropy", lambda x: x),
    ],
)
def test_the_loss_says_what_outputs_mean(outputs: int, loss: Any, meaning: Any) -> None:
    ckpt = checkpoint(mlp(outputs))
    x = batch(ckpt.model_spec, 4)
    expected = meaning(by_hand(ckpt, x))
    atol = TOLERANCE * max(1, np.abs(expected).max())
    np.testing.assert_allclose(Predictor(ckpt, loss).predict(x), expected, rtol=0, atol=atol)


def test_images_out_are_values() -> None:
    ckpt = checkpoint(ModelBuilder((1, 2, 5, 5)).add_conv2d(3, 3).compile())
    x = batch(ckpt.model_spec, 2)
    found = Predictor(ckpt).predict(x)
    assert found.shape == (2, 3, 3, 3)
    np.testing.assert_array_equal(found, np.array(Model.from_checkpoint(ckpt)(mx.array(x))))


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(
    ("problem", "loss", "meaning"),
    [("Regression", "Huber", lambda x: x), ("Classification", "BCEWithLogits", sigmoid),
     ("Classification", "CrossEntropy", softmax)],
)  # fmt: skip
def test_a_trained_file_says_it_itself(suffix: str, problem: str, loss: str, meaning: Any, tmp_path: Path) -> None:
    config = gm.TrainerConfig(problem_type=problem, loss_function=loss, seed=0)
    trainer = gm.ModelTrainer(mlp(), config)
    trainer.save(tmp_path / f"t{suffix}")
    x = batch(trainer.spec, 4)
    found = Predictor(tmp_path / f"t{suffix}").predict(x)
    np.testing.assert_allclose(found, meaning(by_hand(trainer.checkpoint(), x)), rtol=0, atol=TOLERANCE)
    np.testing.assert_array_equal(found, trainer.predict(x))


# ------------------------------------------------------------------------------------------------------- evaluation


def test_dropout_and_batch_norm_are_in_evaluation_mode() -> None:
    ckpt = checkpoint(cnn())
    predictor, x = Predictor(ckpt), batch(ckpt.model_spec, 6)
    first = predictor.predict(x)
    np.testing.assert_array_equal(predictor.predict(x), first)
    alone = np.concatenate([predictor.predict(row[None]) for row in x])
    np.testing.assert_allclose(alone, first, rtol=0, atol=TOLERANCE)  # other batch sizes add up in another order


def test_statistics_stay_as_they_are() -> None:
    ckpt = checkpoint(cnn())
    predictor = Predictor(ckpt)
    predictor.predict(batch(ckpt.model_spec, 6))
    before = {w.name: w.data.tobytes() for w in ckpt.weights}
    assert {w.name: w.data.tobytes() for w in extract_weights(predictor.model)} == before


@pytest.mark.parametrize("rows", [1, 1023, 1024, 1025, 2049])
def test_any_number_of_rows(rows: int) -> None:
    ckpt = checkpoint(mlp())
    x = batch(ckpt.model_spec, rows)
    np.testing.assert_allclose(Predictor(ckpt).predict(x), softmax(by_hand(ckpt, x)), rtol=0, atol=TOLERANCE)


def test_takes_lists() -> None:
    assert Predictor(checkpoint(mlp())).predict([[1, 2, 3, 4, 5]]).shape == (1, 3)


def test_compiled_gives_the_same(compiled: None) -> None:
    ckpt = checkpoint(cnn())
    x = batch(ckpt.model_spec, 3)
    expected = softmax(np.array(Model.from_checkpoint(ckpt)(mx.array(x)), np.float64))
    np.testing.assert_allclose(Predictor(ckpt).predict(x), expected, rtol=0, atol=TOLERANCE)


# ----------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize("shape", [(2, 4), (5,), (0, 5), (2, 5, 1)])
def test_refuses_inputs_that_do_not_fit(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match=r"^inputs must be \(rows, 5\) with at least one row, got \("):
        Predictor(checkpoint(mlp())).predict(np.zeros(shape))


@pytest.mark.parametrize(
    ("outputs", "loss", "told"),
    [
        (1, "CrossEntropy", "at least 2 outputs needed"),
        (3, "crossentropi", "did you mean 'CrossEntropy'"),
        (3, 8, "8 is none of"),
    ],
)
def test_refuses_a_loss_that_does_not_fit(outputs: int, loss: Any, told: str) -> None:
    with pytest.raises(SpecError, match=told):
        Predictor(checkpoint(mlp(outputs)), loss)


def test_names_the_file_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"none\.json: no such file$"):
        Predictor(tmp_path / "none.json")


@pytest.mark.parametrize("name", ["spec_zero", "weights_nil", "floats_parameters"])
def test_names_the_file_that_does_not_run(name: str, golden: Path) -> None:
    path = golden / "json" / f"{name}.json"
    with pytest.raises(GoMetalError) as e:
        Predictor(path)
    assert str(e.value).startswith(f"{path}: ")
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_what_a_trainer_says_about_its_model_reaches_the_predictor(suffix: str, tmp_path: Path) -> None:
    trainer = gm.ModelTrainer(mlp(), gm.TrainerConfig(seed=0))
    trainer.info = {"class_names": ["a", "b", "c"], "preprocessing": {"scale": 0.5}}
    trainer.save(tmp_path / f"m{suffix}")
    assert Predictor(tmp_path / f"m{suffix}").info == trainer.info
    if suffix != ".onnx":
        resumed = gm.ModelTrainer.resume(tmp_path / f"m{suffix}")
        assert resumed.info == trainer.info
        assert gm.ModelTrainer(mlp(), gm.TrainerConfig(seed=1)).info == {}

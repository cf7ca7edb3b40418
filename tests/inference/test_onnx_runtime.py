"""Predictor(engine="onnxruntime"): the same answers as MLX's, checked when it is made."""

import threading
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from test_predictor import TOLERANCE, batch, checkpoint, cnn, mlp

import gometal_mlx as gm
from gometal_mlx import ModelBuilder, ModelSpec, Predictor
from gometal_mlx.checkpoints.onnx import verify, writer
from gometal_mlx.errors import CheckpointError, GoMetalError, ShapeError, SpecError, UnsupportedError
from gometal_mlx.inference.onnx_runtime import OnnxRuntime
from gometal_mlx.training.config import LossFunction
from gometal_mlx.training.losses import LOSSES


def both(ckpt: gm.Checkpoint, x: np.ndarray, loss: Any = None) -> tuple[np.ndarray, np.ndarray]:
    found = Predictor(ckpt, loss, engine="onnxruntime").predict(x)
    assert found.dtype == np.float32
    return found, Predictor(ckpt, loss).predict(x)


@pytest.mark.parametrize("softmax", [False, True], ids=["", "softmax"])
@pytest.mark.parametrize("code", sorted(LOSSES))
def test_every_loss_means_the_same(code: int, softmax: bool) -> None:
    ckpt = checkpoint(mlp(3, ending_in_softmax=softmax))
    found, expected = both(ckpt, batch(ckpt.model_spec, 5), LossFunction(code))
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE * max(1, np.abs(expected).max()))
    probabilities = code in (LossFunction.CrossEntropy, LossFunction.SparseCrossEntropy) or softmax
    if probabilities and code != LossFunction.BCEWithLogits:
        np.testing.assert_allclose(found.sum(axis=1), 1, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(
    "spec",
    [
        cnn(),
        ModelBuilder((1, 2, 5, 5)).add_conv2d(3, 3).compile(),
        ModelBuilder((2, 4)).add_dense(4, name="softmax").add_relu().compile(),  # the name that is added is taken
    ],
    ids=["cnn", "images", "names"],
)
def test_models_of_other_kinds(spec: ModelSpec) -> None:
    ckpt = checkpoint(spec)
    found, expected = both(ckpt, batch(spec, 7))
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE * max(1, np.abs(expected).max()))


@pytest.mark.parametrize("rows", [1, 1024, 1025, 2500])
def test_any_number_of_rows(rows: int) -> None:
    ckpt = checkpoint(mlp())
    found, expected = both(ckpt, batch(ckpt.model_spec, rows))
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)


def test_rows_that_depend_on_each_other_stay_together() -> None:
    ckpt = checkpoint(ModelBuilder((2, 4)).add_dense(3).add_softmax(axis=0).compile())
    found, _ = both(ckpt, batch(ckpt.model_spec, 1500), "MeanSquaredError")
    np.testing.assert_allclose(found.sum(axis=0), 1, rtol=0, atol=1e-5)


def test_any_thread() -> None:
    """MLX's streams belong to the main thread; a server has others."""
    ckpt = checkpoint(mlp())
    x = batch(ckpt.model_spec, 5)
    predictor, found = Predictor(ckpt, engine="onnxruntime"), []
    several = [threading.Thread(target=lambda: found.append(predictor.predict(x))) for _ in range(4)]
    for thread in several:
        thread.start()
    for thread in several:
        thread.join()
    assert [y.tobytes() for y in found] == [predictor.predict(x).tobytes()] * 4


def test_inputs_need_not_lie_in_order() -> None:
    ckpt = checkpoint(cnn())
    x = batch(ckpt.model_spec, 6).transpose(0, 1, 3, 2)[::2]
    found, expected = both(ckpt, x)
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)


# ----------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize("engine", ["onnx", "", None, 3])
def test_refuses_an_unknown_engine(engine: Any) -> None:
    with pytest.raises(SpecError, match=r"^Predictor: engine must be 'mlx' or 'onnxruntime', got "):
        Predictor(checkpoint(mlp()), engine=engine)


def test_refuses_inputs_that_do_not_fit() -> None:
    with pytest.raises(ShapeError, match=r"^inputs must be \(rows, 5\) with at least one row, got \(2, 4\)$"):
        Predictor(checkpoint(mlp()), engine="onnxruntime").predict(np.zeros((2, 4)))


def test_refuses_a_model_too_large_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "MAX_PROTO_BYTES", 100)
    with pytest.raises(UnsupportedError, match=r"takes models up to 2 GB, this one has 0 MB; use 'mlx'$"):
        Predictor(checkpoint(mlp()), engine="onnxruntime")


def test_refuses_to_answer_differently_from_mlx(monkeypatch: pytest.MonkeyPatch) -> None:
    real = writer.build

    def wrong(model: gm.Model, ckpt: gm.Checkpoint) -> Any:
        weights = [replace(w, data=w.data * np.float32(1.001)) for w in ckpt.weights]
        return real(gm.Model.from_checkpoint(replace(ckpt, weights=weights)), ckpt)

    monkeypatch.setattr(writer, "build", wrong)
    with pytest.raises(CheckpointError, match=r"^engine='onnxruntime': onnxruntime differs from MLX by "):
        Predictor(checkpoint(mlp()), engine="onnxruntime")


def test_says_so_when_it_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    class Session:
        def get_inputs(self) -> list[Any]:
            return [type("Input", (), {"name": "input"})]

        def run(self, *_: Any) -> Any:
            raise RuntimeError("no memory\nleft")

    predictor = Predictor(checkpoint(mlp()), engine="onnxruntime")
    assert isinstance(predictor._answer, OnnxRuntime)
    monkeypatch.setattr(predictor._answer, "_session", Session())
    with pytest.raises(GoMetalError, match=r"^engine='onnxruntime' fails on a batch of 2: no memory left$"):
        predictor.predict(np.zeros((2, 5)))


@pytest.mark.parametrize(("threads", "told"), [(3, 3), (None, 0)])
def test_it_has_as_many_threads_as_blas(threads: int | None, told: int, monkeypatch: pytest.MonkeyPatch) -> None:
    real, asked = verify.session, []
    monkeypatch.setattr("gometal_mlx.inference.onnx_runtime.threads", lambda: threads)
    monkeypatch.setattr(verify, "session", lambda g, w, n=None: asked.append(n) or real(g, w, n or 0))
    Predictor(checkpoint(mlp()), engine="onnxruntime")
    assert asked[-1] == told

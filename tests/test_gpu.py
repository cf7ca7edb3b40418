"""What is decided otherwise on a GPU; the decisions, for none of our machines has one (see as_on_a_gpu.py)."""

from pathlib import Path
from types import SimpleNamespace

import mlx.core as mx
import numpy as np
import pytest

from gometal_mlx import ModelBuilder, ModelTrainer, TrainerConfig, _compile
from gometal_mlx.checkpoints import Checkpoint, extract_weights, load, save
from gometal_mlx.layers import Model
from gometal_mlx.training import pieces


def test_the_cpu_is_compared_with_onnxruntime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An M5's GPU multiplies with 11 bits: each export would be refused."""
    stream, asked, called = mx.stream, [], []
    call = Model.__call__
    monkeypatch.setattr(mx, "stream", lambda where: (asked.append(where), stream(where))[1])
    monkeypatch.setattr(Model, "__call__", lambda *a, **k: (called.append(len(asked)), call(*a, **k))[1])
    model = Model(ModelBuilder((2, 4)).add_dense(3).compile(), seed=0)
    save(Checkpoint(model.spec, extract_weights(model)), tmp_path / "c.onnx")
    load(tmp_path / "c.onnx")
    assert called == list(range(1, len(called) + 1)) != []
    assert set(asked) == {mx.cpu}


def test_an_error_of_a_gpu_is_no_failed_compilation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mx, "default_device", lambda: SimpleNamespace(type=mx.gpu))
    monkeypatch.setattr(_compile, "_given_up", [])  # where this machine cannot compile, another test has found out
    undone: list[bool] = []

    def call() -> None:
        raise RuntimeError("[METAL] Command buffer execution failed: Insufficient Memory")

    mx.enable_compile()
    with pytest.raises(RuntimeError, match="Insufficient Memory"):
        _compile.evaluated(call, lambda: undone.append(True))
    assert undone == [True]
    assert _compile.compiling()


def test_wide_layers_are_predicted_a_few_rows_at_a_time() -> None:
    spec = ModelBuilder((1, 3, 224, 224)).add_conv2d(64, 3, padding=1).add_global_avg_pool2d().add_dense(2).compile()
    assert pieces.piece_rows(spec, pieces.HELD_NUMBERS) == 2**26 // (64 * 224 * 224) == 20
    assert pieces.piece_rows(spec, pieces.CACHED_NUMBERS) == 16
    assert pieces.piece_rows(ModelBuilder((1, 4)).add_dense(2).compile(), pieces.HELD_NUMBERS) == pieces.PREDICT_ROWS


@pytest.mark.parametrize("cpu", [True, False])
def test_a_gpu_has_the_next_piece_before_one_is_fetched(cpu: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "most", lambda: 1)
    monkeypatch.setattr(pieces, "on_cpu", lambda: cpu)
    monkeypatch.setattr(pieces, "CACHED_NUMBERS", 1)
    monkeypatch.setattr(pieces, "HELD_NUMBERS", 1)
    done: list[str] = []
    monkeypatch.setattr(pieces, "begin", lambda y: done.append("begin"))
    trainer = ModelTrainer(ModelBuilder((4, 4)).add_dense(3).compile(), TrainerConfig(seed=0))
    x = np.random.default_rng(0).standard_normal((50, 4)).astype(np.float32)
    array = np.array
    monkeypatch.setattr(pieces, "np", SimpleNamespace(
        array=lambda *a: (done.append("fetch"), array(*a))[1], float32=np.float32, concatenate=np.concatenate,
    ))  # fmt: skip
    found = trainer.predict(x)
    assert done == ["begin", "fetch"] * 4 if cpu else ["begin", *["begin", "fetch"] * 3, "fetch"]
    trainer.model.eval()
    np.testing.assert_allclose(found, array(mx.softmax(trainer.model(mx.array(x)), axis=-1)), rtol=0, atol=1e-6)

"""A batch dealt out to several lanes trains as the same batch in one."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from test_resume import Interrupted, SaveAndBreak
from training_support import assert_same, blobs, mlp, noisy, weights

import gometal_mlx as gm
from gometal_mlx import _blas, _lanes
from gometal_mlx._compile import compiling
from gometal_mlx.errors import SpecError, TrainingError
from gometal_mlx.layers import ModelBuilder, ModelSpec
from gometal_mlx.training import ModelTrainer, OptimizerType, TrainerConfig, pieces, step


@pytest.fixture(autouse=True)
def _on_cpu() -> Iterator[None]:
    with mx.stream(mx.cpu):
        yield


@pytest.fixture(params=[2, 3])
def lanes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """So many of them, and every batch is large enough."""
    monkeypatch.setenv("GOMETAL_LANES", str(request.param))
    monkeypatch.setattr(step, "lane_rows", lambda spec: 1.0)
    return request.param


def images() -> ModelSpec:
    builder = ModelBuilder((8, 2, 6, 6)).add_conv2d(4, 3, 2, 1, name="conv").add_relu().add_max_pool2d(2, 1)
    return builder.add_dense(8, name="hidden").add_tanh().add_dense(3, name="out").compile()


def trained(spec: ModelSpec, monkeypatch: pytest.MonkeyPatch, count: int, **settings: object) -> ModelTrainer:
    monkeypatch.setenv("GOMETAL_LANES", str(count))
    trainer = ModelTrainer(spec, TrainerConfig(seed=0, batch_size=11, **settings))
    x, y = blobs(55, int(np.prod(spec.input_shape[1:])))
    y = y if trainer.loss.classification else np.eye(3, dtype=np.float32)[y]
    trainer.fit((x.reshape(55, *spec.input_shape[1:]), y), 3)
    return trainer


def assert_alike(one: ModelTrainer, several: ModelTrainer, tolerance: float = 1e-4) -> None:
    assert one.step == several.step
    for name in one.history.records[0]:
        np.testing.assert_allclose(several.history[name], one.history[name], rtol=tolerance, err_msg=name)
    for (name, a), b in zip(weights(one).items(), weights(several).values(), strict=True):
        assert np.abs(a - b).max() <= tolerance * np.abs(a).max(), name


@pytest.mark.parametrize("optimizer", [m.name for m in OptimizerType])
def test_every_optimizer(optimizer: str, lanes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    one, several = (trained(mlp(), monkeypatch, n, optimizer_type=optimizer) for n in (1, lanes))
    assert_alike(one, several)


@pytest.mark.parametrize(
    "settings",
    [
        {"class_weights": [0.5, 5.0, 1.0]},
        {"accumulation_steps": 2},
        {"gradient_clip_norm": 0.1, "label_smoothing": 0.1},
        {"problem_type": "Regression"},
        {"use_mixed_precision": True, "precision": "bfloat16"},
        {"use_mixed_precision": True, "precision": "float16", "initial_loss_scale": 64.0},
        {"stop_on_nan": False},
    ],
    ids=lambda s: next(iter(s)) + str(s.get("precision", "")),
)
def test_every_setting(settings: dict[str, object], lanes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    one, several = (trained(mlp(), monkeypatch, n, **settings) for n in (1, lanes))
    assert_alike(one, several, 3e-2 if "precision" in settings else 1e-4)


def test_convolutions(lanes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_alike(*(trained(images(), monkeypatch, n) for n in (1, lanes)))


def test_frozen_layers(lanes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    one, several = (trained(mlp(), monkeypatch, n, frozen_layers=["hidden"]) for n in (1, lanes))
    assert_alike(one, several)
    assert np.array_equal(weights(one)["hidden.weight"], weights(several)["hidden.weight"])


def test_compiled(compiled: None, lanes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lane that left traced arrays in the model would have every step traced again."""
    traced = []
    judge = step.TrainingStep._judge
    monkeypatch.setattr(step.TrainingStep, "_judge", lambda *args: traced.append(1) or judge(*args))
    one = trained(images(), monkeypatch, 1)
    traced.clear()
    several = trained(images(), monkeypatch, lanes)
    if compiling():  # else every step is traced
        assert len(traced) <= lanes * len({s.stop - s.start for s in pieces.shares(11, lanes)})
    assert_alike(one, several)


def test_rows_that_depend_on_each_other_stay_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "LANE_NUMBERS", 1)
    assert pieces.lane_rows(noisy()) == np.inf
    across = ModelBuilder((8, 6)).add_dense(3).add_softmax(0).compile()
    assert pieces.lane_rows(across) == np.inf
    assert pieces.lane_rows(mlp()) < 100


def test_every_row_is_in_one_share_and_every_array_has_a_home() -> None:
    assert pieces.shares(11, 3) == [slice(0, 3), slice(3, 7), slice(7, 11)]
    streams = [mx.default_stream(mx.cpu), mx.new_stream(mx.cpu)]
    arrays = [mx.zeros(s) for s in [(4, 4), (4, 4), (5, 4), (2,), (2,)]]
    homes = _lanes.spread(arrays, streams)
    assert list(homes) == [(4, 4), (5, 4), (2,)]  # the largest first
    assert homes.pop((4, 4)) not in streams
    assert homes == {(5, 4): streams[0], (2,): streams[1]}
    assert _lanes.spread(arrays, streams[:1]) == {}


def test_numbers_that_are_written_are_counted() -> None:
    """The windows of a convolution are, too."""
    assert mlp().numbers_per_row() == 6 + 16 + 16 + 3
    convolution = ModelBuilder((8, 2, 6, 6)).add_conv2d(4, 3, 2, 1).compile()
    assert convolution.numbers_per_row() == 2 * 36 + 9 * (4 + 2 * 9)


def test_small_batches_have_one_lane(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOMETAL_LANES", "2")
    assert [pieces.lane_count(rows, 10.0) for rows in (1, 19, 20, 1000)] == [1, 1, 2, 2]
    assert pieces.lane_count(1000, np.inf) == 1
    monkeypatch.setenv("GOMETAL_LANES", "8")
    assert [pieces.lane_count(rows, 10.0) for rows in (40, 50, 70, 1000)] == [
        1,
        5,
        7,
        8,
    ]  # few lanes would leave BLAS's threads idle


def test_every_lane_has_a_random_key_of_its_own(lanes: int) -> None:
    """And every step: what a lane drops is neither what another does nor what it did before."""
    spec = ModelBuilder((8, 6)).add_dropout(0.5).add_dense(3, name="out").compile()
    trainer = ModelTrainer(spec, TrainerConfig(seed=0))
    keys = []
    compute = trainer._training_step._lane_part
    trainer._training_step._lane_part = lambda x, y, key, weight: (
        keys.append(tuple(key.tolist())) or compute(x, y, key, weight)
    )
    for _ in range(3):
        trainer.train_batch(*blobs(12))
    assert len(set(keys)) == len(keys) == 3 * lanes


@pytest.mark.parametrize("suffix", [".json", ".safetensors"])
def test_resumed_run_is_the_unbroken_run(tmp_path: Path, suffix: str, lanes: int) -> None:
    spec = ModelBuilder((8, 6)).add_dense(16).add_relu().add_dropout(0.4).add_dense(3).compile()
    settings = TrainerConfig(batch_size=16, seed=3, accumulation_steps=2)
    data, held, path = blobs(90), blobs(30, seed=1), tmp_path / f"run{suffix}"
    unbroken, trainer = ModelTrainer(spec, settings), ModelTrainer(spec, settings)
    unbroken.fit(data, 3, held)
    for batches in (5, 1, 7):
        with pytest.raises(Interrupted):
            trainer.fit(data, 3, held, callbacks=[SaveAndBreak(path, batches)])
        trainer = ModelTrainer.resume(path)
    trainer.fit(data, 3, held)
    assert_same(unbroken, trainer)


def test_a_loss_that_is_not_finite_goes_back(lanes: int) -> None:
    trainer = ModelTrainer(mlp(), TrainerConfig(seed=0))
    x, y = blobs(12)
    trainer.train_batch(x, y)
    before = weights(trainer)
    x[-1, 0] = np.nan  # in the last lane
    with pytest.raises(TrainingError, match="NaN"):
        trainer.train_batch(x, y)
    assert all(np.array_equal(before[n], w) for n, w in weights(trainer).items())


def threads_of_blas() -> int | None:
    path = _blas.STATUS.path if _blas.STATUS.source != "bundled" else None
    if path is None:
        maps = Path("/proc/self/maps").read_text().split() if Path("/proc/self/maps").exists() else []
        path = next((m for m in maps if m.endswith(_blas.COPY)), None)
    return path and ctypes.CDLL(path).openblas_get_num_threads()


def test_products_have_all_threads_again(lanes: int) -> None:
    if _blas.threads() is None or _blas.STATUS.core_type is None:
        pytest.skip("only an OpenBLAS of our choice can be asked; MLX has its own here")
    assert threads_of_blas() == _blas.threads()
    with suppress(KeyError), _lanes.side_by_side(lanes) as streams:
        assert len(streams) == lanes
        assert threads_of_blas() == 1
        raise KeyError
    assert threads_of_blas() == _blas.threads()
    trainer = ModelTrainer(mlp(), TrainerConfig(seed=0))
    trainer.train_batch(*blobs(12))
    assert threads_of_blas() == _blas.threads()


def test_products_end_before_an_interrupted_block_gives_them_threads(
    lanes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[object] = []
    wait = mx.synchronize
    monkeypatch.setattr(mx, "synchronize", lambda s: done.append(s) or wait(s))
    monkeypatch.setattr(_lanes, "use_threads", done.append)
    a = mx.ones((64, 64))
    with suppress(KeyboardInterrupt), _lanes.side_by_side(lanes) as streams:
        _lanes.begin([mx.matmul(a, a, stream=s) for s in streams])
        raise KeyboardInterrupt
    assert done == [1, *streams, _blas.threads() or 1]


def test_lanes_take_denormals_as_the_first_one_does(lanes: int) -> None:
    """Only the thread of the first was started when the package was imported."""
    with _lanes.side_by_side(lanes) as streams:
        tiny = [mx.multiply(mx.array(2.0**-130), 1.0, stream=s) for s in streams]
        found = [float(t) for t in tiny]
    assert found == [found[0]] * lanes


def test_another_thread_has_one_lane(lanes: int) -> None:
    """Streams belong to the thread that made them; MLX ends the process when another uses one."""
    trainer = ModelTrainer(mlp(), TrainerConfig(seed=0))
    trainer.train_batch(*blobs(12))
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(_lanes.most).result() == 1
        assert np.isfinite(pool.submit(lambda: trainer.train_batch(*blobs(12)).loss).result())
        assert pool.submit(trainer.predict, blobs(12)[0]).result().shape == (12, 3)
    assert np.isfinite(trainer.train_batch(*blobs(12)).loss)


def test_nonsense_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOMETAL_LANES", "many")
    with pytest.raises(SpecError, match=r"GOMETAL_LANES must be a number of at least 1, got 'many'"):
        ModelTrainer(mlp()).train_batch(*blobs(8))
    monkeypatch.setattr(_lanes, "on_cpu", lambda: False)  # a GPU needs none
    assert _lanes.most() == 1


# ------------------------------------------------------------------------------------------------------- prediction


def test_predictions_are_those_of_the_model(lanes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "CACHED_NUMBERS", 1)  # pieces of 16 rows, the least
    trainer = ModelTrainer(images(), TrainerConfig(seed=0))
    x = np.random.default_rng(0).standard_normal((16 * lanes + 23, 2, 6, 6)).astype(np.float32)
    trainer.model.eval()
    whole = np.array(mx.softmax(trainer.model(mx.array(x)), axis=-1))
    np.testing.assert_allclose(trainer.predict(x), whole, rtol=0, atol=1e-6)
    predictor = gm.Predictor(trainer.checkpoint())
    np.testing.assert_allclose(predictor.predict(x), whole, rtol=0, atol=1e-6)
    y = np.arange(len(x)) % 3
    loss = -np.log(whole[np.arange(len(x)), y]).mean()
    assert trainer.evaluate((x, y))["loss"] == pytest.approx(loss, rel=1e-5)


def test_a_softmax_over_the_rows_sees_all_of_them() -> None:
    spec = ModelBuilder((8, 4)).add_dense(2, name="out").add_softmax(0).compile()
    x = np.random.default_rng(0).standard_normal((3 * pieces.PREDICT_ROWS, 4)).astype(np.float32)
    trainer = ModelTrainer(spec, TrainerConfig(seed=0, problem_type="Regression"))
    np.testing.assert_allclose(trainer.predict(x).sum(axis=0), 1, rtol=1e-4)

"""Weights laid out for evaluation: the same answers, and never those of other weights."""

from collections.abc import Callable, Iterator

import mlx.core as mx
import numpy as np
import pytest
from contracts import random_batch, randomise

from gometal_mlx import Model, ModelBuilder, ModelTrainer, Predictor, TrainerConfig
from gometal_mlx.layers import _conv, _prepared
from gometal_mlx.layers._prepared import Prepared
from gometal_mlx.training import pieces

# sums of up to 100 products in another order, through a softmax
TOLERANCE = 2e-6


@pytest.fixture(autouse=True)
def _on_cpu() -> Iterator[None]:
    with mx.stream(mx.cpu):
        yield


def images() -> ModelTrainer:
    builder = ModelBuilder((4, 2, 7, 6)).add_conv2d(4, 3, 1, 1, name="first").add_relu().add_batch_norm()
    builder.add_conv2d(3, 2, 2, 1, use_bias=False, name="second").add_tanh().add_dense(8, name="hidden").add_relu()
    trainer = ModelTrainer(builder.add_dense(3, name="out").compile(), TrainerConfig(seed=0))
    randomise(trainer.model)
    return trainer


def answer(model: Model, x: np.ndarray) -> np.ndarray:
    """By the layers themselves."""
    return np.array(mx.softmax(model.eval()(mx.array(x)), axis=-1))


def close(found: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)


def assign(w: mx.array) -> None:
    w[1:2] = 5 * w[1:2]


def add(w: mx.array) -> None:
    w += 0.5


CHANGES: dict[str, Callable[[Model, str], object]] = {
    "replaced": lambda m, layer: m.update({layer: {"weight": m[layer]["weight"] * 2}}),
    "replaced in its dict": lambda m, layer: m[layer].__setitem__("weight", -m[layer]["weight"]),
    "assigned to": lambda m, layer: assign(m[layer]["weight"]),
    "added to": lambda m, layer: add(m[layer]["weight"]),
    "assigned to and evaluated": lambda m, layer: (assign(m[layer]["weight"]), mx.eval(m.parameters())),
}


@pytest.mark.parametrize("rows", [1, 3, 40])
@pytest.mark.parametrize("layer", ["first", "second", "hidden"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_weight_is_seen(change: str, layer: str, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "CACHED_NUMBERS", 1)  # pieces of 16 rows
    trainer = images()
    predictor = Predictor(trainer.checkpoint())
    x = random_batch(trainer.spec, rows)
    for predict, model in ((trainer.predict, trainer.model), (predictor.predict, predictor.model)):
        before = predict(x)
        close(before, answer(model, x))
        CHANGES[change](model, layer)
        after = predict(x)
        close(after, answer(model, x))
        assert np.abs(after - before).max() > 10 * TOLERANCE
        assert np.array_equal(predict(x), after)


def test_training_goes_on_between_predictions(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = images()
    x, y = random_batch(trainer.spec, 5), np.array([0, 1, 2, 0, 1])
    for _ in range(3):
        close(trainer.predict(x), answer(trainer.model, x))
        assert set(trainer._training_step._prepared.arrays) == {"first", "second", "hidden"}
        trainer.train_batch(x, y)
        assert not trainer._training_step._prepared.arrays  # no memory for weights that are gone
    # evaluate and predict share them
    trainer.evaluate((x, y))
    monkeypatch.setattr(trainer._training_step._prepared, "_layers", [])  # nothing is made from here on
    close(trainer.predict(x), answer(trainer.model, x))
    assert set(trainer._training_step._prepared.arrays) == {"first", "second", "hidden"}


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
def test_weights_of_another_type_are_used_as_they_are(dtype: mx.Dtype) -> None:
    trainer = images()
    x = random_batch(trainer.spec, 3)
    before = trainer.predict(x)
    trainer.model.set_dtype(dtype)
    after = trainer.predict(x)
    assert not trainer._training_step._prepared.arrays
    np.testing.assert_allclose(after, before, rtol=0, atol=0.05)  # bfloat16 has 8 bits
    assert not np.array_equal(after, before)


def test_only_what_has_changed_is_made_anew() -> None:
    model = images().model
    prepared = Prepared(model)
    assert prepared.refresh()
    before = dict(prepared.arrays)
    assert not prepared.refresh()
    add(model["second"]["weight"])
    add(model["out"]["weight"])  # which is used as it is
    add(model["first"]["bias"])
    assert prepared.refresh()
    assert {n for n, a in prepared.arrays.items() if a is not before[n]} == {"second"}


def test_many_images_of_many_channels_meet_transformed_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_conv, "threads", lambda: 1)
    monkeypatch.setattr(_conv, "makes_kernels", lambda: True)
    monkeypatch.setattr(_conv.sys, "platform", "linux")
    builder = ModelBuilder((8, 2, 16, 16)).add_conv2d(32, 3, 1, 1, name="few").add_relu()
    trainer = ModelTrainer(builder.add_conv2d(32, 3, 1, 1, name="many").add_dense(3).compile(), TrainerConfig(seed=0))
    x = random_batch(trainer.spec, 8)
    made: list[mx.array] = []
    in_tiles = _conv._in_tiles
    monkeypatch.setattr(_conv, "_in_tiles", lambda p: lambda x, k: made.append(k) or in_tiles(p)(x, k))
    close(trainer.predict(x), answer(trainer.model, x))
    arrays = trainer._training_step._prepared.arrays
    assert {name: set(a) for name, a in arrays.items() if name != "dense_1"} == {
        "few": {"kernels"}, "many": {"kernels", "transformed"},
    }  # fmt: skip
    assert {k.shape for k in made} == {(16, 32, 32)}
    made.clear()
    with monkeypatch.context() as m:  # a trace by another function takes them as they are, and makes none
        m.setattr(_conv.winograd, "kernels", None)
        found = trainer.model.eval()(mx.array(x), prepared=arrays)
    assert [k is arrays["many"]["transformed"] for k in made] == [True]
    close(np.array(mx.softmax(found, axis=-1)), answer(trainer.model, x))
    made.clear()
    close(trainer.predict(x[:1]), answer(trainer.model, x[:1]))
    assert not made  # the kernels as they are
    add(trainer.model["many"]["weight"])
    close(trainer.predict(x), answer(trainer.model, x))


def test_a_gpu_gets_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = Prepared(images().model)
    monkeypatch.setattr(_prepared, "on_cpu", lambda: False)
    assert not prepared.refresh()
    assert not prepared.arrays


def test_an_interruption_leaves_nothing_stale(monkeypatch: pytest.MonkeyPatch) -> None:
    model = images().model
    prepared = Prepared(model)
    prepared.refresh()
    add(model["second"]["weight"])

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as m:
        m.setattr(_prepared.mx, "eval", interrupted)
        with pytest.raises(KeyboardInterrupt):
            prepared.refresh()
    assert prepared.refresh()
    x = mx.array(random_batch(model.spec, 3))
    close(np.array(model.eval()(x, prepared=prepared.arrays)), np.array(model(x)))

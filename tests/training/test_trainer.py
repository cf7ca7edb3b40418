"""The training loop: what a step computes, what fit records, what it refuses."""

from __future__ import annotations

import itertools
import signal
import threading
import time

import mlx.core as mx
import numpy as np
import pytest
from training_support import arrays, blobs, mlp, noisy, weights

from gometal_mlx.data import ArrayDataset, DataLoader
from gometal_mlx.errors import ShapeError, SpecError, TrainingError
from gometal_mlx.layers import Model, ModelBuilder
from gometal_mlx.training import (
    Callback,
    CosineAnnealingLRScheduler,
    EarlyStopping,
    History,
    ModelTrainer,
    ReduceLROnPlateauScheduler,
    StepLRScheduler,
    TrainerConfig,
    WarmupScheduler,
)
from gometal_mlx.training.progress import ProgressPrinter
from gometal_mlx.training.run import interruptible


def trainer(spec=None, **settings) -> ModelTrainer:
    return ModelTrainer(spec or mlp(), TrainerConfig(**{"batch_size": 8, "seed": 1, **settings}))


# ------------------------------------------------------------------------------------------------------- one step


def test_sgd_step_is_the_gradient_step():
    x, y = blobs(5)
    t = trainer(optimizer_type="SGD", learning_rate=0.1)
    before = weights(t)

    def loss(w, b):
        hidden = mx.maximum(mx.array(x) @ mx.array(before["hidden.weight"]) + mx.array(before["hidden.bias"]), 0)
        z = hidden @ w + b
        return mx.mean(mx.logsumexp(z, axis=1) - mx.take_along_axis(z, mx.array(y)[:, None], axis=1)[:, 0])

    value, (gw, gb) = mx.value_and_grad(loss, argnums=(0, 1))(
        mx.array(before["out.weight"]), mx.array(before["out.bias"])
    )
    result = t.train_batch(x, y)
    after = weights(t)
    assert result.loss == pytest.approx(value.item(), rel=1e-6)  # the same float32 sums
    np.testing.assert_allclose(
        after["out.weight"], before["out.weight"] - 0.1 * np.array(gw), atol=1e-6
    )  # one rounding
    np.testing.assert_allclose(after["out.bias"], before["out.bias"] - 0.1 * np.array(gb), atol=1e-6)


def test_loss_and_accuracy_are_of_the_forward_pass_before_the_update():
    x, y = blobs(20)
    t = trainer()
    expected = t.evaluate((x, y))
    result = t.train_batch(x, y)
    assert result.loss == pytest.approx(expected["loss"], rel=1e-6)  # the same sums in another order
    assert result.accuracy == expected["accuracy"]
    assert result.batch_size == 20


def test_compiled_step_equals_eager_step(compiled):
    x, y = blobs(40)
    fast = trainer(noisy())
    fast.fit((x, y), 2)
    mx.disable_compile()
    slow = trainer(noisy())
    slow.fit((x, y), 2)
    for name, value in weights(slow).items():
        # fused kernels round differently; Adam divides by small moments
        np.testing.assert_allclose(weights(fast)[name], value, atol=2e-4, err_msg=name)


@pytest.mark.parametrize("rows", [1, 3, 8, 11])
def test_a_partial_batch_trains_on_exactly_its_rows(rows):
    x, y = blobs(11)
    a, b = trainer(optimizer_type="SGD", learning_rate=0.1), trainer(optimizer_type="SGD", learning_rate=0.1)
    a.train_batch(x, y)
    b.train_batch(x, y)
    a.train_batch(x[:rows], y[:rows])
    b.fit(DataLoader(ArrayDataset(x[:rows], y[:rows]), batch_size=64), 1)
    assert all(np.array_equal(v, weights(b)[k]) for k, v in weights(a).items())


def test_dropout_mask_changes_from_step_to_step_in_a_compiled_step(compiled):
    """The trap: random state that is no input of the compiled function repeats one mask for ever."""
    spec = ModelBuilder((4, 64)).add_dropout(0.5).add_dense(2, name="out").compile()
    t = trainer(spec, optimizer_type="SGD", learning_rate=1e-12)
    x, y = np.ones((4, 64), np.float32), np.zeros(4, np.int32)
    losses = {t.train_batch(x, y).loss for _ in range(6)}
    assert len(losses) == 6


def test_training_leaves_mlx_global_generator_alone():
    mx.random.seed(5)
    expected = mx.random.normal((3,)).tolist()
    mx.random.seed(5)
    t = trainer(noisy())
    t.fit(blobs(16), 1)
    assert mx.random.normal((3,)).tolist() == expected


def test_batch_norm_statistics_move_in_training_and_are_not_trained():
    t = trainer(noisy())
    names = {k for k in weights(t) if "running" in k}
    before = weights(t)
    t.train_batch(*blobs(8))
    moved = weights(t)
    assert all(not np.array_equal(before[n], moved[n]) for n in names)
    t.evaluate(blobs(8))
    assert all(np.array_equal(weights(t)[n], moved[n]) for n in names)
    assert not any("running" in k for k in arrays(t) if k.startswith("1."))


def test_model_mode_is_as_before():
    t = trainer(noisy())
    t.model.eval()
    t.fit(blobs(16), 1)
    assert not t.model.training
    t.model.train()
    t.predict(blobs(3)[0])
    assert t.model.training


# ------------------------------------------------------------------------------------------------------------ fit


def test_history_and_counters():
    x, y = blobs(20)
    t = trainer()
    history = t.fit((x, y), 3, validation_data=(x[:4], y[:4]))
    assert history is t.history
    assert history["epoch"] == [1, 2, 3]
    assert {"loss", "accuracy", "val_loss", "val_accuracy", "learning_rate", "elapsed_s", "peak_memory_mb"} <= set(
        history.columns
    )
    assert (t.epoch, t.step) == (3, 9)
    assert history[-1]["val_loss"] == t.evaluate((x[:4], y[:4]))["loss"]
    assert "3 epochs" in repr(history)
    assert "<table>" in history._repr_html_()
    assert "<th>&lt;b&gt;</th>" in History([{"<b>": "<i>"}])._repr_html_()  # a file's
    assert "<td>&lt;i&gt;</td>" in History([{"<b>": "<i>"}])._repr_html_()
    with pytest.raises(KeyError, match="recorded: epoch"):
        history["nothing"]


def test_a_second_fit_trains_as_many_epochs_again():
    t = trainer()
    t.fit(blobs(16), 2)
    assert len(t.fit(blobs(16), 3)) == 5


def test_fit_from_arrays_shuffles_by_seed():
    x, y = blobs(40)
    a, b, c = trainer(), trainer(), trainer(seed=2)
    for t in (a, b, c):
        t.fit((x, y), 1)
    assert all(np.array_equal(v, weights(b)[k]) for k, v in weights(a).items())
    assert not np.array_equal(weights(a)["out.weight"], weights(c)["out.weight"])


def test_five_epochs_and_five_more_are_ten():
    x, y = blobs(40)
    whole, parts = trainer(noisy()), trainer(noisy())
    whole.fit((x, y), 6)
    parts.fit((x, y), 2)
    parts.fit((x, y), 4)
    assert all(np.array_equal(v, arrays(parts)[k]) for k, v in arrays(whole).items())


def test_without_a_seed_one_is_drawn_and_kept():
    a, b = ModelTrainer(mlp()), ModelTrainer(mlp())
    assert a.config.seed != b.config.seed
    assert isinstance(a.config.seed, int)


def test_learning_rate_acts_at_once_in_a_compiled_step(compiled):
    x, y = blobs(8)
    t = trainer(optimizer_type="SGD", learning_rate=0.1)
    t.train_batch(x, y)
    t.learning_rate = 1e-30
    before = weights(t)
    t.train_batch(x, y)
    assert all(np.array_equal(before[k], v) for k, v in weights(t).items())
    with pytest.raises(SpecError, match="learning_rate must be greater than 0"):
        t.learning_rate = -1.0


def test_regression():
    x, _ = blobs(60)
    y = (x @ np.arange(6) / 6).astype(np.float32)
    spec = ModelBuilder((8, 6)).add_dense(1, name="out").compile()
    t = trainer(spec, problem_type="Regression", learning_rate=0.05, metrics=["r2"])
    t.fit((x, y), 60)
    result = t.evaluate((x, y))
    assert result["r2"] > 0.999
    assert "accuracy" not in result
    np.testing.assert_allclose(t.predict(x)[:, 0], y, atol=0.1)
    assert t.train_batch(x, y).accuracy is None


def test_predictions_are_probabilities_and_softmax_is_not_applied_twice():
    x, y = blobs(12)
    plain = trainer()
    spec = (
        ModelBuilder((8, 6))
        .add_dense(16, name="hidden")
        .add_relu("relu")
        .add_dense(3, name="out")
        .add_softmax()
        .compile()
    )
    ending = trainer(spec)
    np.testing.assert_allclose(plain.predict(x).sum(axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(plain.predict(x), ending.predict(x), atol=1e-6)  # the same weights by seed
    np.testing.assert_allclose(ending.predict(x), np.array(ending.model(mx.array(x))), atol=1e-6)
    assert plain.evaluate((x, y))["loss"] == pytest.approx(ending.evaluate((x, y))["loss"], rel=1e-6)


def test_single_output_binary():
    x, y = blobs(60, classes=2)
    spec = ModelBuilder((8, 6)).add_dense(1, name="out").compile()
    t = trainer(spec, loss_function="BCEWithLogits", learning_rate=0.05, metrics=["auc_roc", "f1_score"])
    t.fit((x, y), 20)
    found = t.evaluate((x, y))
    assert found["accuracy"] > 0.9
    assert found["accuracy"] == np.mean((t.predict(x)[:, 0] > 0.5) == y)
    assert found["auc_roc"] > 0.9


def test_class_weights_shift_the_loss_but_not_the_evaluation():
    x, y = blobs(30)
    even, weighted = trainer(), trainer(class_weights=[1.0, 1.0, 5.0])
    assert even.evaluate((x, y)) == weighted.evaluate((x, y))
    losses = -np.log(even.predict(x)[np.arange(30), y])
    w = np.array([1, 1, 5])[y]
    assert weighted.train_batch(x, y).loss == pytest.approx((losses * w).sum() / w.sum(), rel=1e-5)  # log of float32


def test_label_smoothing():
    x, y = blobs(30)
    t = trainer(label_smoothing=0.1)
    logs = np.log(t.predict(x).astype(np.float64))
    expected = -(0.9 * logs[np.arange(30), y] + 0.1 * logs.mean(axis=1)).mean()
    assert t.train_batch(x, y).loss == pytest.approx(expected, rel=1e-5)  # log of float32 probabilities


def test_frozen_layers_keep_their_weights():
    t = trainer(frozen_layers=["hidden"])
    before = weights(t)
    t.fit(blobs(24), 2)
    after = weights(t)
    assert np.array_equal(before["hidden.weight"], after["hidden.weight"])
    assert not np.array_equal(before["out.weight"], after["out.weight"])
    state = t.optimizer_state
    assert [s.name for s in state.state_data] == [f"{k}_{i}" for k in ("momentum", "variance") for i in range(4)]
    assert not state.state_data[0].data.any()


@pytest.mark.parametrize(("field", "limit"), [("gradient_clip_value", 1e-3), ("gradient_clip_norm", 1e-3)])
def test_gradient_clipping(field, limit):
    t = trainer(optimizer_type="SGD", learning_rate=1.0, **{field: limit})
    before = weights(t)
    t.train_batch(*blobs(8))
    moves = np.concatenate([(weights(t)[k] - v).ravel() for k, v in before.items()])
    size = np.linalg.norm(moves) if "norm" in field else np.abs(moves).max()
    assert size == pytest.approx(limit, rel=1e-3)  # weights of order 1 keep seven digits


def test_accumulation_equals_one_large_batch():
    x, y = blobs(22)
    large = trainer(optimizer_type="SGD", learning_rate=0.1)
    large.train_batch(x, y)
    small = trainer(optimizer_type="SGD", learning_rate=0.1, accumulation_steps=3)
    for part in (slice(0, 8), slice(8, 16), slice(16, 22)):
        small.train_batch(x[part], y[part])
    assert small.step == large.step == 1
    for name, value in weights(large).items():
        np.testing.assert_allclose(weights(small)[name], value, atol=1e-6)  # sums in another order


def test_an_epochs_last_batches_do_not_wait():
    t = trainer(accumulation_steps=4)
    t.fit(blobs(8 * 5), 2)  # five batches: one update of four, one of the last
    assert t.step == 4
    assert t._training_step.carried().waiting == (0, 0)


def test_nan_loss_stops_with_the_last_good_state():
    x, y = blobs(40)
    t = trainer(optimizer_type="SGD", learning_rate=1e6)
    with pytest.raises(TrainingError, match=r"^epoch 1, batch \d: the loss is (nan|inf).*lower the learning rate"):
        t.fit((x, y), 5)
    assert np.isfinite(t.evaluate((x, y))["loss"])
    t.learning_rate = 1e-3
    t.fit((x, y), 1)


def test_nan_inputs_are_told_and_change_nothing():
    x, y = blobs(16)
    t = trainer()
    t.train_batch(x, y)
    before = arrays(t)
    x[3, 2] = np.nan
    with pytest.raises(TrainingError, match="inputs hold NaN or infinity; nothing was changed"):
        t.train_batch(x, y)
    assert all(np.array_equal(before[k], v) for k, v in arrays(t).items())


def test_nan_may_be_allowed():
    t = trainer(stop_on_nan=False)
    assert np.isnan(t.train_batch(np.full((8, 6), np.nan), np.zeros(8, int)).loss)


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_mixed_precision_trains_float32_weights(precision):
    x, y = blobs(200)
    full, half = trainer(noisy()), trainer(noisy(), use_mixed_precision=True, precision=precision)
    for t in (full, half):
        t.fit((x, y), 6)
    assert all(v.dtype == np.float32 for v in weights(half).values())
    assert half.evaluate((x, y))["accuracy"] >= full.evaluate((x, y))["accuracy"] - 0.05
    first = trainer(use_mixed_precision=True, precision=precision).train_batch(x, y).loss
    exact = trainer().train_batch(x, y).loss
    assert first != exact  # really computed in another precision
    assert first == pytest.approx(exact, rel=2e-2)  # bfloat16 has eight bits of mantissa


def test_loss_scale_shrinks_on_overflow_skips_the_step_and_grows_again():
    x, y = blobs(8)
    t = trainer(use_mixed_precision=True, initial_loss_scale=2.0**40, loss_scale_growth_interval=3)
    before = weights(t)
    t.train_batch(x, y)
    assert t._training_step.loss_scale == 2.0**39
    assert t.step == 0
    assert all(np.array_equal(before[k], v) for k, v in weights(t).items())
    scales = []
    for _ in range(45):
        t.train_batch(x, y)
        scales.append(t._training_step.loss_scale)
    assert t.step > 0
    assert any(b > a for a, b in itertools.pairwise(scales))


def test_lbfgs_in_fit():
    x, y = blobs(90)
    t = trainer(noisy(), optimizer_type="LBFGS", batch_size=90)
    losses = t.fit((x, y), 15)["loss"]
    assert losses[-1] < 0.2 * losses[0]
    assert t.step == 15
    assert t.optimizer_state is None


def test_validation_split_is_seeded_and_disjoint():
    x, y = blobs(50)
    a, b = trainer(), trainer()
    first = a.fit((x, y), 1, validation_split=0.2)
    second = b.fit((x, y), 1, validation_split=0.2)
    assert first.records == second.records
    assert "val_loss" in first.columns
    (train, _), (held, _) = a._split((x, y), None, 0.2)
    assert len(train) == 40
    assert len(held) == 10
    assert not {r.tobytes() for r in train} & {r.tobytes() for r in held}


# ------------------------------------------------------------------------------------------------------ schedules


def test_schedule_changes_the_step_itself():
    x, y = blobs(16)
    t = trainer(optimizer_type="SGD", learning_rate=0.1, scheduler=StepLRScheduler(2, 0.1))
    history = t.fit((x, y), 5)
    np.testing.assert_allclose(history["learning_rate"], [0.1, 0.1, 0.01, 0.01, 0.001], rtol=1e-6)  # float32


def test_warmup_moves_within_the_epoch():
    rates = []

    class Watch(Callback):
        def on_step_end(self, event):
            rates.append(event.trainer.learning_rate)

    t = trainer(learning_rate=1.0, optimizer_type="SGD", scheduler=WarmupScheduler(4, 0.2))
    t.fit(blobs(40), 1, callbacks=[Watch()])
    np.testing.assert_allclose(rates, [0.2, 0.4, 0.6, 0.8, 1.0], rtol=1e-6)  # float32


def test_plateau_follows_the_validation_loss():
    t = trainer(learning_rate=1e-6, scheduler=ReduceLROnPlateauScheduler(0.5, 1, threshold=100.0))
    history = t.fit(blobs(16), 4, validation_data=blobs(16))
    np.testing.assert_allclose(history["learning_rate"], [1e-6, 1e-6, 5e-7, 2.5e-7], rtol=1e-6)  # float32


def test_setting_the_rate_by_hand_changes_the_schedules_base():
    t = trainer(learning_rate=0.1, scheduler=CosineAnnealingLRScheduler(10))
    t.set_learning_rate(0.5)
    t.set_epoch(5)
    assert t.learning_rate == pytest.approx(0.25, rel=1e-6)  # float32
    assert t.get_scheduler_info() == "CosineAnnealingLR scheduler: LR=0.250000 (epoch=5, step=0)"


# ------------------------------------------------------------------------------------------------------ callbacks


def test_events_come_in_order_and_are_frozen():
    seen = []

    class Watch(Callback):
        def on_fit_begin(self, event):
            seen.append("fit begin")

        def on_epoch_begin(self, event):
            seen.append(f"epoch {event.epoch}/{event.epochs}")

        def on_step_end(self, event):
            assert event.result.loss > 0
            seen.append(f"step {event.batch}/{event.batches}")
            with pytest.raises(AttributeError):
                event.epoch = 7

        def on_epoch_end(self, event):
            seen.append(f"end {event.epoch} {sorted(event.metrics)[0]}")

        def on_fit_end(self, event):
            seen.append("fit end")

    trainer().fit(blobs(16), 2, callbacks=[Watch()])
    steps = ["step 1/2", "step 2/2"]
    assert seen == [
        "fit begin",
        "epoch 1/2",
        *steps,
        "end 1 accuracy",
        "epoch 2/2",
        *steps,
        "end 2 accuracy",
        "fit end",
    ]


def test_should_stop_ends_fit_after_the_epoch():
    class Stop(Callback):
        def on_step_end(self, event):
            event.trainer.should_stop = True

    t = trainer()
    assert len(t.fit(blobs(24), 5, callbacks=[Stop()])) == 1
    assert t.step == 3
    assert len(t.fit(blobs(24), 2)) == 3


def test_early_stopping_restores_the_best_weights():
    x, y = blobs(40)
    best = {}

    class Watch(Callback):
        def on_epoch_end(self, event):
            best[event.epoch] = weights(event.trainer)

    class Worsen(Callback):
        def on_epoch_end(self, event):
            if event.epoch == 3:
                event.trainer.learning_rate = 3.0

    t = trainer(optimizer_type="SGD", learning_rate=0.05)
    stopping = EarlyStopping(patience=2)
    history = t.fit((x, y), 30, validation_data=(x, y), callbacks=[Watch(), stopping, Worsen()])
    assert len(history) < 30
    assert stopping.best_epoch == 1 + int(np.argmin(history["val_loss"][: stopping.best_epoch]))
    assert all(np.array_equal(v, best[stopping.best_epoch][k]) for k, v in weights(t).items())


def test_early_stopping_refuses_unknown_metrics():
    with pytest.raises(SpecError, match=r"EarlyStopping: metric 'vall_loss' is not recorded; did you mean"):
        trainer().fit(blobs(16), 2, validation_data=blobs(8), callbacks=[EarlyStopping("vall_loss")])


def test_progress_printer(capsys):
    trainer().fit(blobs(16), 2, callbacks=[ProgressPrinter(interval_s=0)])
    err = capsys.readouterr().err
    assert "Epoch 2/2: 100%|" in err
    assert "loss=" in err
    assert err.endswith("\n")
    assert err.rstrip().endswith("]")  # spaces may cover what a longer line had left


# ------------------------------------------------------------------------------------------------------ interrupt


def test_ctrl_c_ends_after_the_step_and_the_same_call_finishes():
    x, y = blobs(80)

    class Press(Callback):
        def on_step_end(self, event):
            if event.trainer.step == 13:
                signal.raise_signal(signal.SIGINT)

    unbroken, broken = trainer(noisy()), trainer(noisy())
    unbroken.fit((x, y), 3)
    handler = signal.getsignal(signal.SIGINT)
    assert len(broken.fit((x, y), 3, callbacks=[Press()])) == 1
    assert broken.step == 13
    assert signal.getsignal(signal.SIGINT) is handler
    broken.fit((x, y), 3)
    assert all(np.array_equal(v, arrays(broken)[k]) for k, v in arrays(unbroken).items())
    assert unbroken.history.records == broken.history.records


def test_second_ctrl_c_interrupts_at_once():
    class Press(Callback):
        def on_step_end(self, event):
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    t = trainer()
    with pytest.raises(KeyboardInterrupt):
        t.fit(blobs(16), 3, callbacks=[Press()])
    assert len(t.fit(blobs(16), 1)) == 1


def test_interrupts_are_left_alone_outside_of_the_main_thread():
    """Python lets only the main thread set signal handlers (and MLX's default stream belongs to it, too)."""
    handler, errors = signal.getsignal(signal.SIGINT), []

    def work():
        try:
            with interruptible() as stop:
                assert not stop.requested
        except BaseException as e:
            errors.append(e)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert not errors
    assert signal.getsignal(signal.SIGINT) is handler


# -------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda t: t.fit(blobs(8), -1), SpecError, "epochs must be an int of at least 0, got -1"),
        (lambda t: t.fit([1, 2, 3], 1), SpecError, r"a dataset or a pair \(x, y\) of arrays, got list"),
        (lambda t: t.fit((np.ones((4, 5)), np.zeros(4, int)), 1), ShapeError, r"inputs must be \(rows, 6\)"),
        (lambda t: t.fit((np.ones((4, 6)), np.array([0, 1, 2, 3])), 1), ShapeError, "label 3 in row 3 is outside 0..2"),
        (lambda t: t.fit((np.ones((4, 6)), np.zeros(3, int)), 1), ShapeError, "same number of rows"),
        (lambda t: t.train_batch(np.ones((0, 6)), np.zeros(0, int)), ShapeError, "at least one row"),
        (lambda t: t.fit(blobs(8), 1, blobs(8), validation_split=0.5), SpecError, "validation_split"),
        (lambda t: t.evaluate(blobs(8), ["precission"]), SpecError, "did you mean"),
        (lambda t: t.set_epoch(-1), SpecError, "finished epochs of at least 0"),
    ],
)
def test_refusals_are_one_line_and_change_nothing(call, error, text):
    t = trainer()
    before = arrays(t)
    with pytest.raises(error, match=text) as caught:
        call(t)
    assert "\n" not in str(caught.value)
    assert all(np.array_equal(before[k], v) for k, v in arrays(t).items())


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"frozen_layers": ["hiden"]}, "frozen layer 'hiden' has no weights; did you mean 'hidden'"),
        ({"frozen_layers": ["hidden", "out"]}, "nothing to train"),
        ({"class_weights": [1, 2]}, "class_weights needs 3 numbers, got 2"),
        ({"optimizer_type": "Adma"}, "unknown name 'Adma'; did you mean 'Adam'"),
        ({"beta1": 1.5}, "Adam: beta1 must be from 0"),
        ({"metrics": ["f1"]}, "f1"),
        ({"loss_function": "MeanSquaredError"}, "MeanSquaredError does not fit problem_type Classification"),
    ],
)
def test_settings_that_do_not_fit(settings, text):
    with pytest.raises(SpecError, match=text):
        trainer(**settings)


def test_a_model_may_be_handed_over():
    model = Model(mlp(), seed=4)
    t = ModelTrainer(model, TrainerConfig(seed=9))
    assert t.model is model


def test_go_metal_calls_are_the_same_step():
    x, y = blobs(8)
    a, b = trainer(), trainer()
    a.train_batch(x, y)
    b.enable_persistent_buffers((8, 6))
    b.train_batch_unified(x.ravel(), (8, 6), y)
    assert all(np.array_equal(v, arrays(b)[k]) for k, v in arrays(a).items())
    np.testing.assert_array_equal(a.predict(x), b.infer_batch(x.ravel(), (8, 6)))
    assert b.get_stats()["current_step"] == 1
    assert b.get_model_summary().startswith("Model Summary:")
    session = b.create_training_session("Net", 2, 5, 0)
    assert session is not None
    with pytest.raises(ShapeError, match=r"48 values do not have the shape \(7, 6\)"):
        b.train_batch_unified(x.ravel(), (7, 6), y)


def test_step_time_is_of_this_call():
    t = trainer()
    start = time.perf_counter()
    result = t.train_batch(*blobs(8))
    assert 0 < result.step_time <= time.perf_counter() - start
    assert 0 < result.batch_rate < 1e9

"""What a trainer is not given: one line that says what was needed and what came."""

import gc
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from training_support import blobs, mlp

import gometal_mlx as gm
from gometal_mlx.checkpoints import CheckpointSaver
from gometal_mlx.data import ArrayDataset, DataLoader, load_digits
from gometal_mlx.errors import CheckpointError, ShapeError, SpecError
from gometal_mlx.layers import Model, ModelBuilder
from gometal_mlx.training import (
    Callback,
    CheckpointConfig,
    CheckpointManager,
    ConfusionMatrix,
    EarlyStopping,
    Event,
    MetricAccumulator,
    ModelTrainer,
    ReduceLROnPlateauScheduler,
    StepLRScheduler,
    TrainerConfig,
    WarmupScheduler,
)
from gometal_mlx.training.metrics import calculate_auc_roc, calculate_regression_metrics, top_k_accuracy

X, Y = blobs(64)


def trainer(**settings: object) -> ModelTrainer:
    return ModelTrainer(mlp(), TrainerConfig(seed=0, batch_size=8, **settings))  # type: ignore[arg-type]


@pytest.mark.parametrize("callbacks", [EarlyStopping(), [print], "early"])
def test_callbacks_must_be_a_list_of_them(callbacks: Sequence[Callback]) -> None:
    with pytest.raises(SpecError, match="callbacks must be a list of Callbacks, got"):
        trainer().fit((X, Y), 1, callbacks=callbacks)


def test_data_without_rows_is_refused() -> None:
    class Empty:
        def __len__(self) -> int:
            return 0

        def rows(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            return X[indices], Y[indices]

    for call in (trainer().evaluate, lambda data: trainer().fit(data, 1)):
        with pytest.raises(SpecError, match="at least one row, the Empty has none"):
            call(DataLoader(Empty()))


def test_class_weights_are_refused_where_each_output_is_a_yes_or_no() -> None:
    with pytest.raises(SpecError, match="class_weights weigh rows by their one class, but 3 outputs"):
        trainer(loss_function="BCEWithLogits", class_weights=[1, 2, 3])


@pytest.mark.parametrize("last", ["Sigmoid", "Softmax"])
def test_probabilities_are_no_logits(last: str) -> None:
    spec = ModelBuilder((8, 6)).add_dense(3)
    spec = spec.add_sigmoid() if last == "Sigmoid" else spec.add_softmax()
    with pytest.raises(SpecError, match=f"must end in logits, but it ends in {last}, .*; use BinaryCrossEntropy"):
        ModelTrainer(spec.compile(), TrainerConfig(loss_function="BCEWithLogits"))


NO_NUMBERS = {
    "words": [["a"] * 6],
    "numbers as text": [["1"] * 6],
    "lengths": [[1.0] * 6, [1.0]],
    "objects": [{}],
    "complex": np.ones((1, 6), np.complex64),
    "dates": np.zeros((1, 6), "M8[s]"),
    "spans of time": np.zeros((1, 6), "m8[s]"),
}


@pytest.mark.parametrize("x", NO_NUMBERS.values(), ids=NO_NUMBERS)
def test_inputs_that_are_no_numbers(x: object) -> None:
    run = trainer()
    for call in (run.predict, lambda x: run.train_batch(x, [0])):
        with pytest.raises(ShapeError, match="inputs must be numbers, 6 in each row; got"):
            call(x)
    with pytest.raises(ShapeError, match="ArrayDataset: inputs and labels must be arrays of numbers: "):
        run.fit((x, [0]), 1)  # type: ignore[arg-type]


@pytest.mark.parametrize("y", NO_NUMBERS.values(), ids=NO_NUMBERS)
@pytest.mark.parametrize("loss", ["CrossEntropy", "BCEWithLogits", "MeanSquaredError"])
def test_labels_that_are_no_numbers(loss: str, y: object) -> None:
    problem = "Regression" if loss == "MeanSquaredError" else "Classification"
    run = trainer(loss_function=loss, problem_type=problem)
    with pytest.raises(ShapeError, match=f"{loss}: labels must be numbers: "):
        run.train_batch(X[:1], y)  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match="ArrayDataset: inputs and labels must be arrays of numbers: "):
        run.fit((X[:1], y), 1)  # type: ignore[arg-type]


def test_numbers_of_any_kind_are_taken() -> None:
    """Python's own among objects, too, as data frames have them."""
    x = np.arange(12).reshape(2, 6)
    wanted = trainer().predict(x.astype(np.float32))
    for given in (
        x,
        x.tolist(),
        x.astype(object),
        x.astype(np.float16),
        np.asfortranarray(x),
        mx.array(x).astype(mx.bfloat16),
    ):
        assert np.array_equal(trainer().predict(given), wanted)
    assert np.array_equal(
        trainer().train_batch(x, [0, 1]).loss, trainer().train_batch(x, np.array([0, 1], object)).loss
    )


def test_what_a_trainer_is_made_of_and_restored_from() -> None:
    with pytest.raises(SpecError, match=r"got a ModelBuilder; a ModelBuilder makes one by compile\(\)"):
        ModelTrainer(ModelBuilder((1, 6)).add_dense(3))  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match=r"restore: a Checkpoint is needed, got 'a\.json'; gm\.load reads one"):
        trainer().restore("a.json")  # type: ignore[arg-type]
    with pytest.raises(SpecError, match="CheckpointConfig: every_steps must be an int of at least 1, got '3'"):
        CheckpointConfig("folder", every_steps="3")  # type: ignore[arg-type]


@pytest.mark.parametrize("gradients", [3, [], {"hidden.weight": 1.0}, "zeros"])
def test_damaged_gradients_are_named(gradients: object) -> None:
    run = trainer(accumulation_steps=4)
    run.train_batch(X[:8], Y[:8])
    checkpoint = run.checkpoint()
    checkpoint.extras["accumulated"]["gradients"] = gradients
    with pytest.raises(CheckpointError, match=r"gometal_mlx\.accumulated: arrays needed"):
        trainer(accumulation_steps=4).restore(checkpoint)


@pytest.mark.parametrize("data", [(X, Y[:-1]), (X, Y, Y), {"x": X, "y": Y}, iter([(X, Y)]), None, "data", X])
def test_data_that_is_no_pair(data: object) -> None:
    for call in (
        lambda: trainer().fit(data, 1),  # type: ignore[arg-type]
        lambda: trainer().fit(data, 1, validation_split=0.5),  # type: ignore[arg-type]
        lambda: trainer().evaluate(data),  # type: ignore[arg-type]
    ):
        with pytest.raises((SpecError, ShapeError), match=r"pair|same number of rows"):
            call()


@pytest.mark.parametrize("share", [-1, 1, 1.5, "0.5"])
def test_a_share_that_is_none(share: float) -> None:
    with pytest.raises(SpecError, match=r"fit: validation_split \(between 0 and 1\) needs"):
        trainer().fit((X, Y), 1, validation_split=share)


def test_settings_of_another_kind() -> None:
    """One line each, before anything is trained."""
    with pytest.raises(SpecError, match=r"ModelTrainer: config must be a TrainerConfig, got \{'seed': 0\}"):
        ModelTrainer(mlp(), {"seed": 0})  # type: ignore[arg-type]
    with pytest.raises(SpecError, match=r"a dataset with rows\(indices\) is needed, got a tuple; ArrayDataset\(x, y\)"):
        DataLoader((X, Y))  # type: ignore[arg-type]
    with pytest.raises(SpecError, match="seed must be an int of at least 0, or None, got 'a'"):
        DataLoader(ArrayDataset(X, Y), seed="a")  # type: ignore[arg-type]
    with pytest.raises(SpecError, match="EarlyStopping: patience must be a number of at least 1, got '3'"):
        EarlyStopping(patience="3")  # type: ignore[arg-type]
    with pytest.raises(SpecError, match="Warmup: after must be a schedule or None, got 'StepLR'"):
        WarmupScheduler(10, after="StepLR")  # type: ignore[arg-type]


def test_arrays_that_run_backwards() -> None:
    """Mirrored images, say; MLX itself refuses them."""
    x = X[::-1, ::-1]
    run = trainer()
    assert np.array_equal(run.predict(x), run.predict(x.copy()))
    assert np.array_equal(np.array(run.model(x)), np.array(run.model(x.copy())))
    assert trainer().train_batch(x, Y).loss == trainer().train_batch(x.copy(), Y).loss
    with pytest.raises(ShapeError, match="inputs must be numbers"):
        run.predict([[10**400] * 6])


@pytest.mark.parametrize(
    "values",
    [["0", "1"], [1 + 2j, 0], [np.datetime64("2020-01-01"), 0], [None, 1], [{}, 1]],
    ids=["text", "complex", "dates", "nothing", "maps"],
)
def test_objects_that_are_no_numbers(values: list[object]) -> None:
    """As a data frame with columns of several kinds gives them."""
    with pytest.raises(ShapeError, match=r"CrossEntropy: labels must be numbers: .* is no real number"):
        trainer().train_batch(X[:2], np.array(values, object))
    with pytest.raises(ShapeError, match="inputs must be numbers, 6 in each row"):
        trainer().predict(np.array([[v] * 6 for v in values], object))
    with pytest.raises(ShapeError, match="inputs must be numbers, 6 in each row"):
        trainer().predict(np.zeros((2, 6), [("a", np.float32)]))


def test_numbers_of_numpy_are_settings_too() -> None:
    stopping = EarlyStopping(patience=np.int64(3), min_delta=np.float32(1e-3))  # type: ignore[arg-type]
    trainer().fit((X, Y), 2, callbacks=[stopping], validation_split=np.float32(0.25))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"patience": float("nan")}, "patience must be a number of at least 1, got nan"),
        ({"patience": 0}, "patience must be a number of at least 1, got 0"),
        ({"min_delta": float("nan")}, "min_delta must be a number of at least 0, got nan"),
        ({"monitor": 5}, "monitor must be a metric's name, got 5"),
        ({"mode": "best"}, "mode must be 'min' or 'max', got 'best'"),
        ({"restore_best": "no"}, "restore_best must be True or False, got 'no'"),
    ],
)
def test_early_stopping_is_told_what_it_can_do(settings: dict[str, object], told: str) -> None:
    with pytest.raises(SpecError, match=f"^EarlyStopping: {told}$"):
        EarlyStopping(**settings)  # type: ignore[arg-type]


def test_a_plateau_watches_numbers() -> None:
    with pytest.raises(SpecError, match="monitor must be a metric's name, got 5"):
        ReduceLROnPlateauScheduler(monitor=5)  # type: ignore[arg-type]
    with pytest.raises(SpecError, match="a metric must be a number, got 'a'"):
        trainer(scheduler=ReduceLROnPlateauScheduler()).step_scheduler_with_metric("a")  # type: ignore[arg-type]


def test_class_weights_by_class() -> None:
    assert TrainerConfig(class_weights={1: 2.0, 0: 1.0, 2: 0.5}).class_weights == (1.0, 2.0, 0.5)
    for wrong in ({1: 10.0, 2: 0.1}, {1.0, 2.0}, "12", 5, {}):
        with pytest.raises(SpecError, match="class_weights must be numbers greater than 0, in the order"):
            TrainerConfig(class_weights=wrong)  # type: ignore[arg-type]


def test_weights_of_another_precision_are_not_trained() -> None:
    model = Model(mlp(), seed=0)
    model.set_dtype(mx.float16)
    with pytest.raises(SpecError, match=r"weights must be float32, \w+\.\w+ is float16; use_mixed_precision computes"):
        ModelTrainer(model)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_optimizer_state_with_nan_is_not_restored(value: float) -> None:
    run = trainer()
    run.train_batch(X, Y)
    checkpoint = run.checkpoint()
    assert checkpoint.optimizer_state is not None
    checkpoint.optimizer_state.state_data[3].data[1] = value
    other = trainer()
    with pytest.raises(CheckpointError, match=r"optimizer_state.state_data '\w+_3': NaN or infinity is in it"):
        other.restore(checkpoint)
    assert other.step == 0


@pytest.mark.parametrize("setting", ["epsilon", "learning_rate", "initial_loss_scale"])
def test_settings_that_a_processor_takes_for_zero(setting: str) -> None:
    with pytest.raises(SpecError, match=f"{setting} must be "):
        trainer(**{setting: 1e-40})


class Rows:
    """A dataset of one's own."""

    def __len__(self) -> int:
        return len(X)

    def rows(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return X[indices], Y[indices]


def test_what_a_run_may_be_given() -> None:
    wanted = trainer()
    wanted.fit((X, Y), 2)
    for data in (ArrayDataset(X, Y), Rows()):
        run = trainer()
        assert run.fit(data, 2, callbacks=None)["loss"] == wanted.history["loss"]
        assert run.evaluate(data) == wanted.evaluate((X, Y))
    with pytest.raises(
        SpecError, match=r"got an array of shape \(64,\); inputs and labels are given as one pair: fit\("
    ):
        wanted.fit(X, Y)  # type: ignore[arg-type]


def test_a_history_in_part() -> None:
    run = trainer()
    run.fit((X, Y), 3)
    assert [r["epoch"] for r in run.history[1:]] == [2, 3]
    assert run.history[np.int64(1)]["epoch"] == 2


def test_what_is_no_checkpoint_is_told_of(tmp_path: Path) -> None:
    run = trainer()
    with pytest.raises(
        CheckpointError, match=r"x\.json: a Checkpoint is needed, got a ModelTrainer; trainer\.checkpoint"
    ):
        gm.save(run, tmp_path / "x.json")  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match=r"^Model: a Checkpoint is needed, got 'a\.json'; gm\.load reads one$"):
        Model.from_checkpoint("a.json")  # type: ignore[arg-type]
    with pytest.raises(SpecError, match=r"^Model: a compiled ModelSpec is needed, got a ModelBuilder; a ModelBuilder"):
        Model(ModelBuilder((1, 6)).add_dense(3))  # type: ignore[arg-type]
    with pytest.raises(SpecError, match=r"CheckpointManager: config must be a CheckpointConfig, got \{'a': 1\}"):
        CheckpointManager(run, {"a": 1})  # type: ignore[arg-type]
    with pytest.raises(SpecError, match="CheckpointManager: a ModelTrainer is needed, got a Model"):
        CheckpointManager(run.model)  # type: ignore[arg-type]
    with pytest.raises(SpecError, match="CheckpointManager: loss must be a number, got 'a'"):
        CheckpointManager(run, CheckpointConfig(tmp_path)).save_best_checkpoint(1, 1, "a", 0.1)  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match=r"metadata\.tags: a list of texts is needed, got 'tag'"):
        run.checkpoint("description", "tag")
    with pytest.raises(CheckpointError, match="checkpoint format 5 is unknown; use one of JSON, ONNX, SAFETENSORS"):
        CheckpointSaver(5)  # type: ignore[arg-type]
    with pytest.raises(SpecError, match="DataLoader: a state_dict is needed, got 'x'"):
        DataLoader(ArrayDataset(X, Y)).load_state_dict("x")  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match=r"a folder; ModelTrainer\.resume takes the newest file in it"):
        gm.load(tmp_path)
    with pytest.raises(CheckpointError, match=r"unknown suffix; .*; and there is no such file$"):
        gm.load(tmp_path / "nothing")
    run.save(tmp_path / "m.onnx")
    (tmp_path / "m.onnx").rename(tmp_path / "m.json")
    with pytest.raises(CheckpointError, match="expected JSON, but the content looks like ONNX; rename the file"):
        gm.load(tmp_path / "m.json")


def test_a_folder_of_exports_is_nothing_to_go_on_from(tmp_path: Path) -> None:
    run = trainer()
    with CheckpointManager(run, CheckpointConfig(tmp_path, save_frequency=1, format="ONNX")) as manager:
        run.fit((X, Y), 1, checkpoints=manager)
        with pytest.raises(CheckpointError, match=r"\.onnx: an ONNX file is an export without optimizer"):
            manager.load_checkpoint()
    with pytest.raises(CheckpointError, match=r"\.onnx: an ONNX file is an export without optimizer"):
        ModelTrainer.resume(tmp_path)


def test_a_metric_of_validation_needs_some() -> None:
    told = r"EarlyStopping: metric 'val_loss' is not recorded; give fit validation_data, or a validation_split"
    with pytest.raises(SpecError, match=told):
        trainer().fit((X, Y), 2, callbacks=[EarlyStopping("val_loss")])


@pytest.mark.parametrize("text", ["[]", "{}", '"a"', "3"])
def test_a_manifest_that_is_none(text: str, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.warns(UserWarning, match=r"unusable \(no manifest of a CheckpointManager\)"):
        CheckpointManager(trainer(), CheckpointConfig(tmp_path)).list()


def test_the_same_trouble_is_warned_of_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    run = trainer()
    manager = CheckpointManager(run, CheckpointConfig(tmp_path / "file" / "in", on_error="warn"))
    with pytest.warns(UserWarning, match="training goes on") as caught:
        run.fit((X, Y), 3, checkpoints=manager)
    assert len([w for w in caught if "training goes on" in str(w.message)]) == 1


@pytest.mark.parametrize("values", [["a", "b"], [None, 1], [[1], [1, 2]]], ids=["text", "nothing", "ragged"])
@pytest.mark.parametrize(
    "measure",
    [
        lambda v: ConfusionMatrix(2).update_from_predictions(v, [0, 1]),
        lambda v: MetricAccumulator("Classification").add(v, [0, 1]),
        lambda v: MetricAccumulator("Regression").add([0.5, 1], v),
        lambda v: calculate_auc_roc(v, [0, 1]),
        lambda v: calculate_auc_roc([0.1, 0.2], v),
        lambda v: top_k_accuracy(v, [0, 1], 1),
        lambda v: calculate_regression_metrics(v, [0, 1]),
        lambda v: calculate_regression_metrics([0, 1], v),
    ],
)
def test_metrics_are_of_numbers(measure: Callable[[object], object], values: object) -> None:
    with pytest.raises(ShapeError, match=r"(labels|predictions|scores|probabilities|true values) must be numbers: "):
        measure(values)


def test_names_of_metrics_and_classes_are_lists() -> None:
    with pytest.raises(SpecError, match="metrics: a list of names is needed, got 5"):
        trainer().evaluate((X, Y), metrics=5)  # type: ignore[arg-type]
    with pytest.raises(SpecError, match="ConfusionMatrix: class_names must be a list of names, got 5"):
        ConfusionMatrix(2, 5)  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [80, "ab", (-20, -4), (20.0, 4.0), None])
def test_a_flat_batch_has_a_shape(shape: object) -> None:
    with pytest.raises(ShapeError, match="a shape of whole numbers of at least 1 is needed, got "):
        trainer().train_batch_unified(X.ravel(), shape, Y)  # type: ignore[arg-type]


def test_other_settings_out_of_range() -> None:
    for settings in ({"test_fraction": 2.0}, {"test_fraction": 0}, {"seed": -1}, {"seed": 2**32}):
        with pytest.raises(SpecError, match=f"load_digits: {next(iter(settings))} must be "):
            load_digits(**settings)  # type: ignore[arg-type]
    with pytest.raises(SpecError, match="finished epochs of at least 0"):
        trainer(scheduler=StepLRScheduler(2)).set_epoch(10**400)
    with pytest.raises(SpecError, match=r"TrainerConfig\.optimizer_type: .* is none of 0 SGD"):
        TrainerConfig(optimizer_type=np.array([1, 2]))  # type: ignore[arg-type]


def test_what_was_always_taken() -> None:
    for weights in ((w for w in (1.0, 2.0, 0.5)), {0: 1.0, 1: 2.0, 2: 0.5}.values()):
        assert TrainerConfig(class_weights=weights).class_weights == (1.0, 2.0, 0.5)  # type: ignore[arg-type]
    assert EarlyStopping(patience=float("inf"), restore_best=np.True_).restore_best  # type: ignore[arg-type]
    run = trainer(scheduler=ReduceLROnPlateauScheduler())
    run.step_scheduler_with_metric(mx.array(1.0))  # type: ignore[arg-type]
    assert run.scheduler.best == 1.0  # type: ignore[union-attr]


def test_a_regression_has_no_accuracy(tmp_path: Path) -> None:
    spec = ModelBuilder((8, 6)).add_dense(1).compile()
    run = ModelTrainer(spec, TrainerConfig(problem_type="Regression", seed=0))
    found = run.train_batch(X[:8], np.zeros(8))
    with CheckpointManager(run, CheckpointConfig(tmp_path)) as manager:
        assert manager.save_best_checkpoint(1, 1, found.loss, found.accuracy)  # type: ignore[arg-type]


@pytest.mark.parametrize("rate", [None, "a", float("nan"), float("inf"), -0.1, 1j])
def test_a_schedule_that_cannot_work_is_not_taken(rate: object) -> None:
    run = trainer()
    for scheduler in (lambda _: rate, {"name": "Function"}):
        with pytest.raises(SpecError, match=r"Function: (a rate of at least 0 is needed in step 0|files do not hold)"):
            run.set_lr_scheduler(scheduler)  # type: ignore[arg-type]
    run.fit((X, Y), 1)
    assert run.scheduler is None


def test_nothing_is_held_by_a_run_that_failed() -> None:
    class Fails(Callback):
        def on_epoch_end(self, event: Event) -> None:
            raise OverflowError

    run = trainer()
    gc.collect()
    gc.disable()
    try:
        with pytest.raises(OverflowError):
            run.fit((X, Y), 1, callbacks=[Fails()])
        seen = weakref.ref(run)
        del run
        assert seen() is None
    finally:
        gc.enable()

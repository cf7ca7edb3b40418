"""What a trainer is not given: one line that says what was needed and what came."""

from collections.abc import Sequence

import numpy as np
import pytest
from training_support import blobs, mlp

from gometal_mlx.data import DataLoader
from gometal_mlx.errors import CheckpointError, ShapeError, SpecError
from gometal_mlx.layers import ModelBuilder
from gometal_mlx.training import Callback, CheckpointConfig, EarlyStopping, ModelTrainer, TrainerConfig

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


@pytest.mark.parametrize("x", [[["a"] * 6], [[1.0] * 6, [1.0]], [{}]], ids=["text", "lengths", "objects"])
def test_inputs_that_are_no_numbers(x: object) -> None:
    run = trainer()
    for call in (run.predict, lambda x: run.train_batch(x, [0])):
        with pytest.raises(ShapeError, match="inputs must be numbers, 6 in each row; got"):
            call(x)


def test_what_a_trainer_is_made_of_and_restored_from() -> None:
    with pytest.raises(SpecError, match=r"got a ModelBuilder; a ModelBuilder makes one by compile\(\)"):
        ModelTrainer(ModelBuilder((1, 6)).add_dense(3))  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match=r"restore: a Checkpoint is needed, got 'a\.json'; gm\.load reads one"):
        trainer().restore("a.json")  # type: ignore[arg-type]
    with pytest.raises(SpecError, match="CheckpointConfig: every_steps must be a number, got '3'"):
        CheckpointConfig("folder", every_steps="3")  # type: ignore[arg-type]


@pytest.mark.parametrize("gradients", [3, [], {"hidden.weight": 1.0}, "zeros"])
def test_damaged_gradients_are_named(gradients: object) -> None:
    run = trainer(accumulation_steps=4)
    run.train_batch(X[:8], Y[:8])
    checkpoint = run.checkpoint()
    checkpoint.extras["accumulated"]["gradients"] = gradients
    with pytest.raises(CheckpointError, match=r"gometal_mlx\.accumulated: arrays needed"):
        trainer(accumulation_steps=4).restore(checkpoint)

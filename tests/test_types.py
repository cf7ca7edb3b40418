"""What counts as an int and as a number, wherever one is asked for."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gometal_mlx as gm
from gometal_mlx._types import is_int, is_number
from gometal_mlx.data import ArrayDataset, DataLoader
from gometal_mlx.errors import SpecError
from gometal_mlx.layers import LayerFactory, Model, ModelBuilder, ModelSpec
from gometal_mlx.training import (
    CheckpointConfig,
    ConfusionMatrix,
    CosineAnnealingLRScheduler,
    ModelTrainer,
    TrainerConfig,
)
from gometal_mlx.training.curves import top_k_accuracy


def spec(rows: Any = 2) -> ModelSpec:
    return ModelBuilder((rows, 3)).add_dense(2).compile()


def trainer(**settings: Any) -> ModelTrainer:
    return ModelTrainer(spec(), TrainerConfig(seed=0, **settings))


def loader(**settings: Any) -> DataLoader:
    return DataLoader(ArrayDataset(np.zeros((4, 3)), [0, 1, 0, 1]), **settings)


INTS: dict[str, Callable[[Any], object]] = {
    "fit": lambda n: trainer().fit(loader(), n),
    "set_epoch": lambda n: trainer().set_epoch(n),
    "TrainerConfig": lambda n: TrainerConfig(batch_size=n),
    "CheckpointConfig.save_frequency": lambda n: CheckpointConfig(save_frequency=n),
    "CheckpointConfig.max_checkpoints": lambda n: CheckpointConfig(max_checkpoints=n),
    "CheckpointConfig.keep_best": lambda n: CheckpointConfig(keep_best=n),
    "CheckpointConfig.every_steps": lambda n: CheckpointConfig(every_steps=n),
    "ConfusionMatrix": lambda n: ConfusionMatrix(n),
    "top_k_accuracy": lambda n: top_k_accuracy([[0.1, 0.9]], [1], n),
    "schedule": lambda n: CosineAnnealingLRScheduler(t_max=n),
    "layer": lambda n: ModelBuilder((1, 3)).add_dense(n),
    "factory": lambda n: LayerFactory().create_dense_spec(n, 2),
    "input_shape": spec,
    "Model": lambda n: Model(spec(), seed=n),
    "batch_size": lambda n: loader(batch_size=n),
    "seed": lambda n: loader(seed=n),
}
NUMBERS: dict[str, Callable[[Any], object]] = {
    "TrainerConfig": lambda v: TrainerConfig(learning_rate=v),
    "class_weights": lambda v: TrainerConfig(class_weights=[v]),
    "every_minutes": lambda v: CheckpointConfig(every_minutes=v),
    "budget": lambda v: CheckpointConfig(budget=v),
    "schedule": lambda v: CosineAnnealingLRScheduler(eta_min=v),
    "layer": lambda v: ModelBuilder((1, 3)).add_dropout(v),
    "learning_rate": lambda v: setattr(trainer(), "learning_rate", v),
}


@pytest.mark.parametrize("where", INTS)
def test_numpys_ints_are_ints_and_bools_are_not(where: str) -> None:
    INTS[where](np.int64(2))
    INTS[where](np.uint8(2))
    for value in (True, np.True_, "2", None) if where not in ("Model", "seed", "CheckpointConfig.every_steps") else "2":
        with pytest.raises(SpecError):
            INTS[where](value)


@pytest.mark.parametrize("where", NUMBERS)
def test_numpys_numbers_are_numbers_and_bools_are_not(where: str) -> None:
    NUMBERS[where](np.float64(0.5))
    NUMBERS[where](np.float16(0.5))
    for value in (True, np.complex64(0.5), "0.5", float("nan"), float("inf"), 1e39, -(10**400)):
        with pytest.raises(SpecError):
            NUMBERS[where](value)


def test_what_is_one() -> None:
    assert all(map(is_int, (0, -1, 10**30, np.int8(3), np.uint64(2**63))))
    assert not any(map(is_int, (True, np.True_, 1.0, np.float32(1), "1", None, np.array([1]))))
    assert all(map(is_number, (0, 1.5, np.int8(3), np.float16(1), np.float64(1e38))))
    assert not any(map(is_number, (True, np.complex64(1), float("nan"), float("-inf"), 1e39, 10**400, "1", None)))


def test_numpys_numbers_become_plain_ones(tmp_path: Any) -> None:
    schedule = CosineAnnealingLRScheduler(t_max=np.int64(7), eta_min=np.float32(0.25))  # type: ignore[arg-type]
    assert json.dumps(schedule.to_dict()) == '{"name": "CosineAnnealingLR", "t_max": 7, "eta_min": 0.25}'
    made = LayerFactory().create_dense_spec(np.int64(3), np.int64(2))  # type: ignore[arg-type]
    assert {type(v) for v in made.parameters.values()} == {int, bool}
    run = trainer(scheduler=schedule)
    run.fit(loader(), np.int64(2))  # type: ignore[arg-type]
    run.set_epoch(np.int64(1))  # type: ignore[arg-type]
    run.save(tmp_path / "a.json")
    assert gm.load(tmp_path / "a.json").training_state.epoch == 1


@pytest.mark.parametrize("shape", [(3, 1, 4, 4), (1, 2, 4, 4), (1, 1, 4, 4)])
def test_arrays_that_run_backwards_along_an_axis_of_one(shape: tuple[int, ...]) -> None:
    """numpy calls them contiguous; MLX refuses them."""
    spec = ModelBuilder(shape).add_conv2d(2, 3, padding=1).add_dense(3).compile()
    trainer, x = ModelTrainer(spec, TrainerConfig(seed=0)), np.random.default_rng(0).standard_normal(shape)
    x = x.astype(np.float32)
    wanted = trainer.predict(x)
    for flipped in (x[:, ::-1], x[::-1]):
        again = flipped[:, ::-1] if flipped.strides[1] < 0 else flipped[::-1]
        assert trainer.predict(flipped).shape == wanted.shape
        assert np.array_equal(trainer.predict(again), wanted)
        trainer.predict(x[:, ::-1])
    assert np.isfinite(trainer.train_batch(x[::-1][:, ::-1], np.zeros(len(x), int)).loss)


def test_mypy_knows_every_layer_type(tmp_path: Path) -> None:
    program = ("from gometal_mlx.layers import LayerType", "kind: LayerType = LayerType.ReLU", "print(int(kind))", "")
    (tmp_path / "program.py").write_text("\n".join(program))
    command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path / "cache"), "program.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr

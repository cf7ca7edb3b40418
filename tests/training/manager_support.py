"""A trainer and the managers of its checkpoints, for their tests."""

from __future__ import annotations

from pathlib import Path

from training_support import blobs, mlp

from gometal_mlx.checkpoints.folder import MANIFEST
from gometal_mlx.training import CheckpointConfig, CheckpointManager, ModelTrainer, TrainerConfig

DATA = blobs(32)


def trainer(spec=None, **settings) -> ModelTrainer:
    return ModelTrainer(spec or mlp(), TrainerConfig(**{"batch_size": 8, "seed": 1, "learning_rate": 0.01, **settings}))


def manager(t: ModelTrainer, folder: Path, **settings) -> CheckpointManager:
    return CheckpointManager(t, CheckpointConfig(folder, **settings))


def files(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if not p.name.startswith(".") and p.name != MANIFEST)

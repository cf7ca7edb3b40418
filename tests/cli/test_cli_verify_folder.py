"""gometal verify on a CheckpointManager's folder."""

from pathlib import Path

import numpy as np
import pytest

from gometal_mlx.cli.main import main
from gometal_mlx.layers import ModelBuilder
from gometal_mlx.training import CheckpointConfig, CheckpointManager, ModelTrainer, TrainerConfig


def test_every_file_is_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trainer = ModelTrainer(ModelBuilder((4, 3)).add_dense(2).compile(), TrainerConfig(batch_size=4, seed=0))
    config = CheckpointConfig(tmp_path, save_frequency=1, format="SAFETENSORS", save_best=False)
    with CheckpointManager(trainer, config) as manager:
        trainer.fit((np.ones((8, 3)), np.zeros(8, int)), 3, checkpoints=manager)
    assert main(["verify", str(tmp_path)]) == 0
    assert capsys.readouterr().out.count(": ok; periodic, epoch") == 3
    path = tmp_path / "checkpoint_epoch_2_step_4.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert main(["verify", str(tmp_path)]) == 1
    out, err = capsys.readouterr()
    assert f"{path}: damaged: its checksum differs" in out
    assert err == f"gometal verify: {tmp_path}: 1 of 3 files are damaged\n"


def test_an_empty_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(tmp_path)]) == 1
    assert capsys.readouterr().err == f"gometal verify: {tmp_path}: no checkpoint in it\n"

"""CheckpointManager where something is wrong: numbers of another kind, damaged manifests, others that write."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest
from manager_support import DATA, manager, trainer

import gometal_mlx as gm
from gometal_mlx.checkpoints import folder
from gometal_mlx.checkpoints.folder import MANIFEST, CheckpointFolder
from gometal_mlx.errors import CheckpointError, SpecError
from gometal_mlx.training import CheckpointConfig, ModelTrainer


def test_a_worse_epoch_waits_for_the_better_one_that_is_being_written(tmp_path):
    with manager(trainer(), tmp_path, async_save=True) as m:
        assert m.save_best_checkpoint(1, 10, 0.1, 0.9)
        assert not m.save_best_checkpoint(2, 20, 0.9, 0.1)
        assert m.save_best_checkpoint(3, 30, 0.05, 0.9)
    assert gm.load(tmp_path / "best_checkpoint.json").training_state.epoch == 3


def test_numbers_of_numpy_count(tmp_path):
    with manager(trainer(), tmp_path, save_frequency=1) as m:
        m.save_checkpoint(np.int64(1), np.int32(2))
        assert m.save_periodic_checkpoint(np.int64(2), 3, 0.1, 0.9)
        assert m.save_best_checkpoint(np.int64(2), np.int64(3), 0.1, 0.9)
        for bad in (1.0, "1", -1, True, None):
            for call in (
                lambda bad=bad: m.save_checkpoint(bad if bad is not None else 1.5),
                lambda bad=bad: m.save_periodic_checkpoint(bad, 1, 0.1, 0.9),
                lambda bad=bad: m.save_best_checkpoint(1, bad, 0.01, 0.9),
            ):
                with pytest.raises(SpecError, match="must be an int of at least 0, got"):
                    call()
    with warnings.catch_warnings(action="error"):
        entries = CheckpointFolder(tmp_path, "checkpoint_epoch_%d_step_%d").newest_first()
    assert [(e.epoch, e.step) for e in entries] == [(2, 3), (2, 3), (1, 2)]


@pytest.mark.parametrize(
    "setting",
    [{"max_checkpoints": 2.5}, {"keep_best": 1.5}, {"save_frequency": "1"}, {"every_steps": 1.5}, {"format": 7},
     {"monitor": 5}, {"filename_pattern": 5}, {"budget": "0.1"}],
    ids=str,
)  # fmt: skip
def test_settings_of_another_kind_are_named(setting, tmp_path):
    (name,) = setting
    with pytest.raises(SpecError, match=f"CheckpointConfig: (checkpoint )?{name} (must be |7 is unknown; use one of )"):
        CheckpointConfig(tmp_path, **setting)


@pytest.mark.parametrize(
    "damage",
    [{"metric": "x"}, {"metric": [1]}, {"metric": 10**400}, {"name": "a\0b.json"}, {"name": "\ud800.json"}, "text"],
    ids=ascii,
)
def test_a_damaged_entry_is_passed_over_with_the_manifest(damage, tmp_path):
    t = trainer()
    with manager(t, tmp_path, save_frequency=1) as m:
        t.fit(DATA, 2, checkpoints=m)
    path = tmp_path / MANIFEST
    content = json.loads(path.read_text())
    content["files"][-1] = {**content["files"][-1], **damage} if isinstance(damage, dict) else damage
    path.write_text(json.dumps(content | ({} if isinstance(damage, dict) else {"version": 1})))
    with pytest.warns(UserWarning, match="unusable .*; the folder is read instead"):
        m = manager(trainer(), tmp_path)
    assert m.best() is not None
    assert m.load_checkpoint().restored
    with pytest.warns(UserWarning, match="unusable"):
        assert ModelTrainer.resume(tmp_path).epoch == 2


def test_a_manager_that_has_not_written_sees_what_others_write(tmp_path):
    early = manager(trainer(), tmp_path)
    t = trainer()
    with manager(t, tmp_path, save_frequency=1, max_checkpoints=1) as m:
        t.fit(DATA, 3, checkpoints=m)
    assert early.latest() is not None
    assert early.best() is not None
    early.load_checkpoint()
    assert early.trainer.epoch == 3


def test_a_manifest_that_cannot_be_written_leaves_the_manager_as_it_was(tmp_path, monkeypatch):
    with manager(trainer(), tmp_path) as m:
        m.save_checkpoint(1, 1)
        before = list(m.folder.entries)
        monkeypatch.setattr(CheckpointFolder, "_write", lambda *_: (_ for _ in ()).throw(CheckpointError("full")))
        with pytest.raises(CheckpointError, match="full"):
            m.save_checkpoint(2, 2)
        assert m.folder.entries == before
        monkeypatch.undo()
        m.save_checkpoint(3, 3)
        assert [e.epoch for e in m.list()] == [3, 1]


@pytest.mark.parametrize("callbacks", [[{}], [{"class": "EarlyStopping"}], [{"class": 3, "state": {}}]])
def test_damaged_states_of_callbacks_and_epochs_are_named(callbacks):
    checkpoint = trainer().checkpoint()
    checkpoint.extras["callbacks"] = callbacks
    with pytest.raises(CheckpointError, match=r"gometal_mlx\.callbacks: a class and its state needed"):
        trainer().restore(checkpoint)
    checkpoint = trainer().checkpoint()
    checkpoint.training_state.epoch = -1
    with pytest.raises(CheckpointError, match=r"training_state\.epoch: at least 0 needed, got -1"):
        trainer().restore(checkpoint)


def test_a_pattern_with_an_unusual_space(tmp_path):
    t = trainer()
    with warnings.catch_warnings(action="error"):
        with manager(t, tmp_path, save_frequency=1, filename_pattern="mod\u00a0el_%d_%d") as m:
            t.fit(DATA, 2, checkpoints=m)
        assert len(manager(t, tmp_path, filename_pattern="mod\u00a0el_%d_%d").list()) == 3


def test_a_folder_without_a_manifest_is_read_once(tmp_path, monkeypatch):
    t = trainer()
    with manager(t, tmp_path, save_frequency=1) as m:
        t.fit(DATA, 3, checkpoints=m)
    (tmp_path / MANIFEST).unlink()
    loads = []
    load = folder.load
    monkeypatch.setattr(folder, "load", lambda p: loads.append(p) or load(p))
    m = manager(t, tmp_path)
    assert len(m.list()) == len(loads) == 4
    assert m.latest() is not None
    assert m.best() is not None
    assert len(loads) == 4
    gm.save(t.checkpoint(), tmp_path / "checkpoint_epoch_9_step_9.json")
    assert len(m.list()) == 5

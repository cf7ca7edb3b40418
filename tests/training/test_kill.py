"""What a process that is killed leaves behind, and what the next one makes of it.

benchmarks/kill_stress.py does the same two hundred times, and with full and read-only disks.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from training_support import assert_same, blobs, mlp

import gometal_mlx as gm
from gometal_mlx.checkpoints.folder import MANIFEST
from gometal_mlx.training import CheckpointConfig, CheckpointManager, ModelTrainer, TrainerConfig

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "kill_stress.py"
DATA = blobs(32)


class Killed(BaseException):
    """Stands for SIGKILL: nobody may catch it."""


def trainer() -> ModelTrainer:
    return ModelTrainer(mlp(), TrainerConfig(batch_size=8, seed=1, learning_rate=0.01))


def manager(t: ModelTrainer, folder: Path, **settings) -> CheckpointManager:
    return CheckpointManager(t, CheckpointConfig(folder, **settings))


@pytest.fixture(scope="module")
def stress() -> ModuleType:
    if not SCRIPT.exists():
        pytest.skip("benchmarks/kill_stress.py is not part of this copy")
    spec = importlib.util.spec_from_file_location("kill_stress", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["kill_stress"] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("kind", "thread"), [("JSON", False), ("SAFETENSORS", True)])
def test_killed_at_random_moments(stress, kind, thread):
    tally = stress.kill_run(kind, thread, 3, seed=1)
    assert tally.violations == []
    assert tally.same
    assert tally.kills == 3


@pytest.mark.parametrize(("kind", "thread"), [("JSON", True), ("SAFETENSORS", False)])
def test_a_disk_that_takes_no_more(stress, kind, thread):
    """The system refuses for real: no file of the process may exceed 2000 bytes (RLIMIT_FSIZE)."""
    fault = next(f for f in stress.FAULTS if f.limit > 0)
    assert stress.suffer(fault, kind, thread) == []


# ------------------------------------------------------------------------------- at the moments that matter, one by one


def replacements(monkeypatch, stop_at: int) -> None:
    """Killed in place of the n-th rename."""
    done = []
    rename = Path.replace

    def replace(self, target):
        done.append(target)
        if len(done) == stop_at:
            raise Killed
        return rename(self, target)

    monkeypatch.setattr(Path, "replace", replace)


@pytest.mark.parametrize("kind", ["JSON", "SAFETENSORS"])
@pytest.mark.parametrize("moment", range(1, 7))
def test_killed_while_the_best_file_is_replaced(tmp_path, monkeypatch, moment, kind):
    """Whatever is there then has its checksum; the only file there is must never be lost."""
    t = trainer()
    with manager(t, tmp_path, format=kind) as m:
        m.save_best_checkpoint(1, 10, 0.5, 0.8)
        t.fit(DATA, 1)
        with monkeypatch.context() as patch:
            replacements(patch, moment)
            killed = True
            try:
                m.save_best_checkpoint(2, 20, 0.4, 0.8)
                killed = False
            except Killed:
                pass
        assert killed == (moment <= 5)  # the file, the manifest with both, the file's place (two), the manifest
    for suffix in ("x", "y"):  # what a kill leaves and an exception does not
        (tmp_path / f".best_checkpoint.{kind.lower()}.new.0123456789a{'b' if suffix == 'x' else 'c'}.tmp").write_text(
            ""
        )
    with manager(trainer(), tmp_path) as m:
        m.load_checkpoint()  # without a warning
        assert len(m.list()) == 1
        assert m.list()[0].step == gm.load(m.best()).training_state.step == (10 if moment <= 4 else 20)
        m.save_checkpoint()
        assert not [p for p in tmp_path.iterdir() if p.name.startswith(".") and p.name != ".lock"]


def test_resume_without_a_manifest_finds_periodic_files(tmp_path):
    t = trainer()
    with manager(t, tmp_path, save_frequency=1, save_best=False, filename_pattern="mine_%d_%d") as m:
        t.fit(DATA, 2, checkpoints=m)
    (tmp_path / MANIFEST).unlink()
    assert ModelTrainer.resume(tmp_path).step == 8


def test_only_leftovers_of_a_manager_are_removed(tmp_path):
    mine = [".manifest.json.0123456789ab.tmp", ".checkpoint_epoch_1_step_2.json.0123456789ab.tmp"]
    foreign = [".notes.json.0123456789ab.tmp", ".checkpoint_epoch_1_step_2.json.swp", "x.tmp", ".profile.new"]
    for name in (*mine, *foreign):
        (tmp_path / name).write_text("x")
    manager(trainer(), tmp_path).folder.open()
    assert {p.name for p in tmp_path.iterdir()} == {*foreign, ".lock"}


def test_a_checkpoint_keeps_its_history(tmp_path):
    """A thread writes it while the next epoch is recorded."""
    t = trainer()
    t.fit(DATA, 1)
    checkpoint = t.checkpoint()
    t.fit(DATA, 1)
    assert len(checkpoint.extras["history"]) == 1


def test_a_file_that_cannot_be_deleted_does_not_stop_training(tmp_path, monkeypatch):
    t = trainer()
    with manager(t, tmp_path, save_frequency=1, save_best=False, max_checkpoints=1) as m:
        t.fit(DATA, 1, checkpoints=m)
        with monkeypatch.context() as patch:
            unlink = Path.unlink

            def refuse(self, missing_ok=False):
                if self.name.startswith("checkpoint"):
                    raise PermissionError(1, "Operation not permitted")
                unlink(self, missing_ok)

            patch.setattr(Path, "unlink", refuse)
            with pytest.warns(UserWarning, match="cannot be deleted: Operation not permitted"):
                t.fit(DATA, 1, checkpoints=m)
        assert len(m.list()) == 2
        t.fit(DATA, 1, checkpoints=m)
        assert [e.epoch for e in m.list()] == [3]


def test_safetensors_files_are_as_readable_as_others(tmp_path):
    t = trainer()
    old = os.umask(0o022)
    try:
        for suffix in ("json", "safetensors"):
            t.save(tmp_path / f"a.{suffix}")
            assert (tmp_path / f"a.{suffix}").stat().st_mode & 0o777 == 0o644
    finally:
        os.umask(old)


def test_resumed_run_goes_on_saving(tmp_path):
    """A second manager in the same folder, after a kill between a file's rename and the manifest's."""
    whole, t = trainer(), trainer()
    whole.fit(DATA, 4)
    with manager(t, tmp_path, save_frequency=1, save_best=False) as m:
        t.fit(DATA, 2, checkpoints=m)
    manifest = (tmp_path / MANIFEST).read_bytes()
    resumed = ModelTrainer.resume(tmp_path)
    with manager(resumed, tmp_path, save_frequency=1, save_best=False) as m:
        resumed.fit(DATA, 4, checkpoints=m)
    (tmp_path / MANIFEST).write_bytes(manifest)  # as if the last two had never been entered
    again = ModelTrainer.resume(tmp_path)
    with manager(again, tmp_path, save_frequency=1, save_best=False) as m:
        again.fit(DATA, 4, checkpoints=m)
        assert sorted(e.epoch for e in m.list()) == [1, 2, 3, 4]
    assert_same(whole, again)
    assert np.array_equal(ModelTrainer.resume(tmp_path).predict(DATA[0]), whole.predict(DATA[0]))

"""CheckpointManager: what is saved when, what stays, and the way back."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import warnings

import numpy as np
import pytest
from manager_support import DATA, files, manager, trainer
from training_support import assert_same, noisy

import gometal_mlx as gm
from gometal_mlx.checkpoints import CheckpointFormat
from gometal_mlx.checkpoints.folder import MANIFEST, CheckpointFolder
from gometal_mlx.errors import CheckpointError, SpecError, TrainingError
from gometal_mlx.training import (
    Callback,
    CheckpointConfig,
    CheckpointManager,
    CosineAnnealingLRScheduler,
    EarlyStopping,
    ModelTrainer,
)


@pytest.mark.parametrize("kind", ["JSON", "SAFETENSORS", CheckpointFormat.ONNX])
@pytest.mark.parametrize("in_thread", [False, True])
def test_periodic_and_best_files(tmp_path, kind, in_thread):
    if kind == CheckpointFormat.ONNX and in_thread:
        return
    t = trainer()
    with manager(t, tmp_path / "c", save_frequency=2, format=kind, async_save=in_thread) as m:
        t.fit(DATA, 5, checkpoints=m)
        suffix = f".{str(kind).lower()}"
        names = [
            f"best_checkpoint{suffix}",
            f"checkpoint_epoch_2_step_8{suffix}",
            f"checkpoint_epoch_4_step_16{suffix}",
        ]
        assert files(tmp_path / "c") == names
        assert m.best().name == names[0]
        assert m.latest().name == (names[0] if t.history["loss"].index(min(t.history["loss"])) == 4 else names[2])
        assert all(gm.load(tmp_path / "c" / name).training_state.epoch in (1, 2, 3, 4, 5) for name in names)


def test_the_latest_files_stay_and_the_best(tmp_path):
    t = trainer()
    with manager(t, tmp_path, save_frequency=1, max_checkpoints=2, keep_best=2) as m:
        t.fit(DATA, 6, checkpoints=m)
        assert [e.epoch for e in m.list() if e.kind == "periodic"] == [6, 5]
        best = sorted(zip(t.history["loss"], t.history["epoch"], strict=True))[:2]
        assert sorted(e.epoch for e in m.list() if e.kind == "best") == sorted(e for _, e in best)
        assert m.best().name == f"best_checkpoint_epoch_{best[0][1]}_step_{4 * best[0][1]}.json"
    assert len(files(tmp_path)) == 4


def test_monitor_and_mode(tmp_path):
    t = trainer()
    with manager(t, tmp_path, save_frequency=0, monitor="val_accuracy") as m:
        t.fit(DATA, 4, validation_data=DATA, checkpoints=m)
        accuracies = t.history["val_accuracy"]
        assert gm.load(m.best()).training_state.epoch == 1 + accuracies.index(max(accuracies))


def test_unknown_monitor_is_told(tmp_path):
    t = trainer()
    with pytest.raises(SpecError, match="CheckpointManager: metric 'val_los' is not recorded; did you mean"):
        t.fit(DATA, 1, validation_data=DATA, checkpoints=manager(t, tmp_path, monitor="val_los"))


def test_files_within_an_epoch(tmp_path):
    t = trainer()
    with manager(t, tmp_path, save_frequency=0, save_best=False, every_steps=3, max_checkpoints=0) as m:
        t.fit(DATA, 3, checkpoints=m)
        assert sorted(e.step for e in m.list()) == [3, 6, 9, 12]


def test_budget_puts_files_off(tmp_path):
    t = trainer()
    with manager(t, tmp_path, save_frequency=0, save_best=False, every_steps=1, budget=1e-9, max_checkpoints=0) as m:
        t.fit(DATA, 3, checkpoints=m)
        assert len(m.list()) == 1


def test_go_metal_calls_in_a_loop_of_your_own(tmp_path):
    t = trainer()
    with manager(t, tmp_path / "deep" / "folder", save_frequency=3) as m:
        assert m.save_best_checkpoint(1, 10, 0.5, 0.8)
        assert not m.save_best_checkpoint(2, 20, 0.6, 0.9)
        assert m.save_best_checkpoint(3, 30, 0.4, 0.7)
        assert not m.save_periodic_checkpoint(2, 20, 0.6, 0.9)
        assert m.save_periodic_checkpoint(3, 30, 0.4, 0.7)
        stored = gm.load(m.latest())
        assert (stored.training_state.epoch, stored.training_state.step) == (3, 30)
        assert stored.metadata.description == "Periodic checkpoint - Epoch 3"
        assert stored.metadata.tags == ["epoch_3"]
        assert stored.extras["metrics"] == {"loss": 0.4, "accuracy": 0.7}
    either = CheckpointConfig(tmp_path / "e", best_by_either=True)
    with CheckpointManager(t, either) as m:
        assert [m.save_best_checkpoint(i, i, *v) for i, v in enumerate([(0.5, 0.8), (0.6, 0.9), (0.6, 0.9)])] == [
            True,
            True,
            False,
        ]


def test_best_is_remembered_by_the_next_manager(tmp_path):
    with manager(trainer(), tmp_path) as m:
        m.save_best_checkpoint(1, 10, 0.5, 0.8)
    with manager(trainer(), tmp_path) as m:
        assert not m.save_best_checkpoint(2, 20, 0.55, 0.8)
        assert m.save_best_checkpoint(3, 30, 0.45, 0.8)


def test_resume_from_the_folder_finishes_the_run(tmp_path):
    def new() -> ModelTrainer:
        return trainer(noisy(), scheduler=CosineAnnealingLRScheduler(8), accumulation_steps=2)

    class Break(Callback):
        def on_step_end(self, event):
            if event.trainer._training_step.carried().totals[2] == 24 and event.epoch == 3:
                raise KeyError("something went wrong")

    unbroken, broken = new(), new()
    unbroken.fit(DATA, 5)
    with manager(broken, tmp_path, save_frequency=1) as m, pytest.raises(KeyError):
        broken.fit(DATA, 5, callbacks=[Break()], checkpoints=m)
    assert "rescue_checkpoint.json" in files(tmp_path)
    resumed = ModelTrainer.resume(tmp_path)
    assert (resumed.epoch, resumed._pending.position()["batch"]) == (2, 3)
    resumed.fit(DATA, 5)
    assert_same(unbroken, resumed)
    other = new()
    with manager(other, tmp_path) as m:
        assert m.load_checkpoint().missing == ()
    other.fit(DATA, 5)
    assert_same(unbroken, other)


def test_a_run_that_was_stopping_stays_stopped(tmp_path):
    t = trainer(learning_rate=1e-6)
    stopping = EarlyStopping(patience=1, min_delta=10)
    with manager(t, tmp_path, save_frequency=1, save_best=False) as m:
        t.fit(DATA, 9, callbacks=[stopping], checkpoints=m)
    assert t.epoch == 2
    resumed = ModelTrainer.resume(tmp_path)
    resumed.fit(DATA, 9, callbacks=[EarlyStopping(patience=1, min_delta=10)])
    assert_same(t, resumed)


def test_nan_loss_leaves_a_rescue_file_that_goes_on(tmp_path):
    t = trainer(optimizer_type="SGD", learning_rate=1e6)
    with manager(t, tmp_path, save_frequency=0) as m, pytest.raises(TrainingError):
        t.fit(DATA, 3, checkpoints=m)
    resumed = ModelTrainer.resume(tmp_path / "rescue_checkpoint.json")
    resumed.learning_rate = 1e-3
    resumed.fit(DATA, 1)
    assert np.isfinite(resumed.history["loss"]).all()


@pytest.mark.parametrize(("sign", "code"), [(signal.SIGINT, 0), (signal.SIGTERM, 143)])
def test_signals_save_and_end(tmp_path, sign, code):
    script = textwrap.dedent(
        f"""
        import os, sys, numpy as np
        import mlx.core as mx
        mx.disable_compile()
        from gometal_mlx.layers import ModelBuilder
        from gometal_mlx.training import *
        x, y = np.ones((32, 4), np.float32), np.zeros(32, int)
        class Press(Callback):
            def on_step_end(self, event):
                if event.trainer.step == 5: os.kill(os.getpid(), {int(sign)})
        t = ModelTrainer(ModelBuilder((8, 4)).add_dense(3).compile(), TrainerConfig(batch_size=8, seed=0))
        m = CheckpointManager(t, CheckpointConfig({str(tmp_path)!r}, save_frequency=0, save_best=False))
        t.fit((x, y), 9, callbacks=[Press()], checkpoints=m)
        """
    )
    done = subprocess.run([sys.executable, "-c", script], check=False, timeout=60)
    assert done.returncode == code
    assert gm.load(tmp_path / "rescue_checkpoint.json").training_state.step == 5


# ----------------------------------------------------------------------------------------------------- what goes wrong


def test_two_managers_on_one_folder(tmp_path):
    first, second = manager(trainer(), tmp_path), manager(trainer(), tmp_path)
    first.save_checkpoint()
    with pytest.raises(CheckpointError, match="another CheckpointManager writes there"):
        second.save_checkpoint()
    first.close()
    second.save_checkpoint()
    second.close()


def test_someone_elses_files_are_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "checkpoint_epoch_1_step_1.json").write_text('{"not": "a checkpoint"}')
    (tmp_path / "data.json").write_text("[]")
    t = trainer()
    with manager(t, tmp_path, save_frequency=1, max_checkpoints=1) as m:
        t.fit(DATA, 3, checkpoints=m)
    assert {"notes.txt", "checkpoint_epoch_1_step_1.json", "data.json"} <= set(files(tmp_path))
    assert len(files(tmp_path)) == 5


def test_a_lost_or_broken_manifest_is_rebuilt(tmp_path):
    t = trainer()
    with manager(t, tmp_path, save_frequency=1, max_checkpoints=3) as m:
        t.fit(DATA, 3, checkpoints=m)
        before = {(e.name, e.kind, e.checksum) for e in m.list()}
    (tmp_path / MANIFEST).unlink()
    with manager(t, tmp_path) as m:
        assert {(e.name, e.kind, e.checksum) for e in m.list()} == before
    for text in ("{", '{"version": 99, "files": []}', '{"version": 1, "files": [{"name": "../../etc/passwd"}]}', "[]"):
        (tmp_path / MANIFEST).write_text(text)
        with pytest.warns(UserWarning, match="manifest.json: unusable"):
            folder = CheckpointFolder(tmp_path, "checkpoint_epoch_%d_step_%d")
        assert {(e.name, e.kind, e.checksum) for e in folder.entries} == before


def test_a_manifest_cannot_name_files_elsewhere(tmp_path):
    victim = tmp_path / "victim.json"
    victim.write_text("precious")
    folder = tmp_path / "c"
    t = trainer()
    with manager(t, folder, save_frequency=1, max_checkpoints=1) as m:
        t.fit(DATA, 1, checkpoints=m)
    value = json.loads((folder / MANIFEST).read_text())
    value["files"].append({**value["files"][0], "name": "../victim.json", "kind": "periodic", "epoch": 0})
    (folder / MANIFEST).write_text(json.dumps(value))
    with pytest.warns(UserWarning, match="unusable"), manager(t, folder, save_frequency=1, max_checkpoints=1) as m:
        t.fit(DATA, 3, checkpoints=m)
    assert victim.read_text() == "precious"


def test_files_removed_by_hand_do_not_matter(tmp_path):
    t = trainer()
    with manager(t, tmp_path, save_frequency=1, max_checkpoints=2, save_best=False) as m:
        t.fit(DATA, 3, checkpoints=m)
        for path in tmp_path.glob("checkpoint*"):
            path.unlink()
        t.fit(DATA, 3, checkpoints=m)
        assert len(files(tmp_path)) == 2


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_loading_falls_back_to_the_newest_whole_file(tmp_path, damage):
    t = trainer()
    with manager(t, tmp_path, save_frequency=1, save_best=False, format="SAFETENSORS") as m:
        t.fit(DATA, 3, checkpoints=m)
        newest = m.latest()
        data = bytearray(newest.read_bytes())
        if damage == "remove":
            newest.unlink()
        elif damage == "truncate":
            newest.write_bytes(data[: len(data) // 2])
        else:
            data[-3] ^= 1
            newest.write_bytes(data)
        with pytest.warns(UserWarning, match=newest.name):
            m.load_checkpoint()
        assert t.epoch == 2


def test_no_whole_file_at_all(tmp_path):
    t = trainer()
    with manager(t, tmp_path) as m, pytest.raises(CheckpointError, match="no checkpoint in it"):
        m.load_checkpoint()


@pytest.mark.parametrize("in_thread", [False, True])
def test_a_folder_that_cannot_be_used(tmp_path, in_thread):
    (tmp_path / "c").write_text("a file")
    t = trainer()
    with pytest.raises(CheckpointError, match="cannot be used as a folder"):
        t.fit(DATA, 1, checkpoints=manager(t, tmp_path / "c", async_save=in_thread))
    with pytest.warns(UserWarning, match="training goes on"):
        t.fit(DATA, 2, checkpoints=manager(t, tmp_path / "c", on_error="warn", async_save=in_thread, save_frequency=1))
    assert t.epoch == 2


@pytest.mark.parametrize("in_thread", [False, True])
def test_a_full_disk_leaves_older_files_intact(tmp_path, in_thread, monkeypatch):
    from gometal_mlx.checkpoints import json_format

    t = trainer()
    with manager(t, tmp_path, save_frequency=1, save_best=False, on_error="warn", async_save=in_thread) as m:
        t.fit(DATA, 1, checkpoints=m)
        before = {p.name: p.read_bytes() for p in tmp_path.glob("checkpoint*")}

        def full(*_):
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(json_format, "write", full)
            with pytest.warns(UserWarning, match="No space left on device; the file is as it was; training goes on"):
                t.fit(DATA, 2, checkpoints=m)
        assert t.epoch == 3
        assert {p.name: p.read_bytes() for p in tmp_path.glob("checkpoint*")} == before
        t.fit(DATA, 1, checkpoints=m)
        assert len(m.list()) == 2
    assert not list(tmp_path.glob("*.tmp")) + list(tmp_path.glob(".*.tmp"))


def test_async_errors_surface_at_the_next_call(tmp_path, monkeypatch):
    from gometal_mlx.checkpoints import json_format

    t = trainer()
    m = manager(t, tmp_path, async_save=True)
    with monkeypatch.context() as patch:
        patch.setattr(json_format, "write", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        m.save_checkpoint()
        with pytest.raises(CheckpointError, match="No space left"):
            m.wait()
    m.save_checkpoint()
    m.close()
    assert len(m.list()) == 1


def test_an_async_file_is_of_the_moment_it_was_asked_for(tmp_path):
    t = trainer()
    with manager(t, tmp_path, async_save=True) as m:
        expected = [w.data.copy() for w in t.checkpoint().weights]
        path = m.save_checkpoint()
        t.fit(DATA, 2)
        m.wait()
        assert all(np.array_equal(a, w.data) for a, w in zip(expected, gm.load(path).weights, strict=True))


def test_an_async_file_is_finished_when_the_process_ends(tmp_path):
    """The writer holds MLX's arrays then; nobody waited, and nobody closed the manager."""
    script = textwrap.dedent("""
        import sys
        import numpy as np
        import gometal_mlx as gm
        from gometal_mlx.training import CheckpointConfig, CheckpointManager

        t = gm.ModelTrainer(gm.ModelBuilder((8, 512)).add_dense(512).add_dense(4).compile())
        data = np.zeros((16, 512), np.float32), np.zeros(16, np.int32)
        m = CheckpointManager(t, CheckpointConfig(sys.argv[1], format="SAFETENSORS", async_save=True))
        for _ in range(3):
            t.fit(data, 1)
            m.save_checkpoint()
    """)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script, tmp_path / "c"],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (0, "")
    entries = CheckpointFolder(tmp_path / "c", "*").newest_first()
    assert [e.epoch for e in entries] == [3, 2, 1]
    for entry in entries:
        CheckpointFolder(tmp_path / "c", "*").check(entry)


def test_a_best_file_that_was_removed_by_hand_counts_no_more(tmp_path):
    with manager(trainer(), tmp_path) as m:
        assert m.save_best_checkpoint(1, 1, 0.1, 0.5)
        assert not m.save_best_checkpoint(2, 2, 0.2, 0.5)
        m.best().unlink()
        assert m.best() is None
        assert m.latest() is None
        assert m.save_best_checkpoint(3, 3, 0.3, 0.5)
        assert m.best().exists()
        assert m.latest() == m.best()


@pytest.mark.parametrize("thread", [False, True])
def test_a_thousand_saves_leave_few_files_and_no_memory(tmp_path, thread):
    import psutil

    t = trainer()
    process = psutil.Process(os.getpid())
    with manager(t, tmp_path, max_checkpoints=5, format="SAFETENSORS", async_save=thread) as m:
        for i in range(1000):
            m.save_checkpoint(i, i, 0.1, 0.5)
            if i % 100 == 50:
                assert m.save_best_checkpoint(i, i, 1 / (i + 1), 0.5)
            if i == 100:
                before = process.memory_info().rss
        m.wait()
        grown = process.memory_info().rss - before
        assert [(e.epoch, e.kind) for e in m.list()] == [
            *((i, "periodic") for i in (999, 998, 997, 996, 995)), (950, "best"),
        ]  # fmt: skip
        for entry in m.list():
            m.folder.check(entry)
    assert len(files(tmp_path)) == 6
    assert grown < 10 * 2**20  # 900 leaked checkpoints of this model would be more than that


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"filename_pattern": "epoch_%d"}, "filename_pattern needs two %d"),
        ({"filename_pattern": "a/%d_%d"}, "filename_pattern needs two %d"),
        ({"format": "YAML"}, "format 'YAML' is unknown; use one of JSON, ONNX, SAFETENSORS"),
        ({"keep_best": 0}, "keep_best must be an int of at least 1, got 0"),
        ({"every_steps": 0}, "every_steps must be an int of at least 1"),
        ({"on_error": "ignore"}, "on_error must be 'raise' or 'warn'"),
        ({"async_save": True, "format": "ONNX"}, "async_save works with JSON and SAFETENSORS"),
        ({"mode": "best"}, "mode must be 'min' or 'max'"),
    ],
)
def test_settings_that_cannot_work(settings, text):
    with pytest.raises(SpecError, match=text):
        CheckpointConfig(**settings)


def test_an_onnx_file_is_not_resumed_from(tmp_path):
    t = trainer()
    with manager(t, tmp_path, format="ONNX") as m:
        path = m.save_checkpoint()
        for name in (path, path.rename(path.with_suffix(".ONNX"))):
            with pytest.raises(CheckpointError, match="an ONNX file is an export"):
                m.load_checkpoint(name)


@pytest.mark.parametrize("in_thread", [False, True])
def test_a_manager_that_was_closed_opens_its_folder_again(tmp_path, in_thread):
    t = trainer()
    m = manager(t, tmp_path, async_save=in_thread)
    for _ in range(2):
        t.train_batch(*DATA)
        m.save_checkpoint()
        m.close()
    assert [e.step for e in manager(t, tmp_path).list()] == [2, 1]


def test_nothing_warns_in_a_normal_run(tmp_path):
    t = trainer()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with manager(t, tmp_path, async_save=True, save_frequency=1) as m:
            t.fit(DATA, 3, checkpoints=m)


@pytest.mark.parametrize("keep", [1, 2])
@pytest.mark.parametrize("manifest", ["version 1", "none"])
def test_the_best_files_stay_the_best(tmp_path, manifest, keep):
    """With a manifest that an older version wrote, and without any."""
    with manager(trainer(), tmp_path, keep_best=keep) as m:
        for epoch, loss in ((1, 0.3), (2, 0.1)):
            m.save_best_checkpoint(epoch, epoch, loss, 0.5)
        names = {e.name for e in m.list()}
    path = tmp_path / MANIFEST
    if manifest == "none":
        path.unlink()
    else:
        value = json.loads(path.read_text())
        value["version"] = 1
        for item in value["files"]:
            del item["checksum"]
            item["sha256"] = hashlib.sha256((tmp_path / item["name"]).read_bytes()).hexdigest()
        path.write_text(json.dumps(value))
    with manager(trainer(), tmp_path, keep_best=keep) as m:
        assert {e.name for e in m.list()} == names
        assert sorted(e.metric for e in m.list()) == ([0.1] if keep == 1 else [0.1, 0.3])
        assert not m.save_best_checkpoint(3, 3, 0.9, 0.5)
        if manifest != "none":
            data = bytearray(m.best().read_bytes())
            data[-20] ^= 1
            m.best().write_bytes(data)
            with pytest.raises(CheckpointError, match="its checksum differs"):
                m.folder.check(next(e for e in m.list() if e.metric == 0.1))


# ----------------------------------------------------------------------------------------------- best by either


def test_best_by_either_is_remembered_by_the_next_manager(tmp_path):
    with manager(trainer(), tmp_path, best_by_either=True) as m:
        assert m.save_best_checkpoint(1, 1, 0.1, 0.99)
    with manager(trainer(), tmp_path, best_by_either=True) as m:
        assert not m.save_best_checkpoint(2, 2, 50.0, 0.01)
        assert gm.load(m.best()).extras["metrics"] == {"loss": 0.1, "accuracy": 0.99}
        assert m.save_best_checkpoint(3, 3, 0.09, 0.01)


def test_best_by_either_of_a_regression(tmp_path):
    """It has no accuracy, which is none, and not the best."""
    with manager(trainer(), tmp_path, best_by_either=True) as m:
        assert m.save_best_checkpoint(1, 1, 0.5, None)
        assert m.save_best_checkpoint(2, 2, 0.4, None)
        assert not m.save_best_checkpoint(3, 3, 0.45, None)
    with manager(trainer(), tmp_path, best_by_either=True) as m:
        assert not m.save_best_checkpoint(4, 4, 0.45, None)
        assert m.save_best_checkpoint(5, 5, 0.45, 0.3)  # another data set's
        assert not m.save_best_checkpoint(6, 6, 0.45, 0.2)


def test_best_by_either_counts_what_is_in_place(tmp_path):
    folder = tmp_path / "c"
    with manager(trainer(), folder, best_by_either=True, async_save=True, on_error="warn") as m:
        m.folder.open()
        (folder / "best_checkpoint.json").mkdir()
        m.save_best_checkpoint(1, 1, 0.5, 0.9)
        with pytest.warns(match="best_checkpoint"):
            m.wait()
        (folder / "best_checkpoint.json").rmdir()
        assert m.save_best_checkpoint(2, 2, 0.6, 0.8)
        m.wait()
        assert gm.load(m.best()).training_state.epoch == 2
        assert not m.save_best_checkpoint(3, 3, 0.6, 0.8)


def test_best_by_either_keeps_what_it_has_just_saved(tmp_path):
    with manager(trainer(), tmp_path, best_by_either=True, keep_best=2) as m:
        assert all(m.save_best_checkpoint(i, i, *v) for i, v in enumerate([(0.5, 0.5), (0.4, 0.5), (0.6, 0.9)], 1))
        assert [e.epoch for e in m.list()] == [3, 2]


def test_the_metric_watched_may_be_one_of_validation(tmp_path):
    """go-metal's call has two numbers, of whatever rows."""
    with manager(trainer(), tmp_path, monitor="val_accuracy") as m:
        assert m.save_best_checkpoint(1, 10, 0.5, 0.8)
        assert not m.save_best_checkpoint(2, 20, 0.1, 0.7)
        assert m.save_best_checkpoint(3, 30, 0.9, 0.9)


# --------------------------------------------------------------------------------------------- where a run stands


def test_resume_takes_what_a_diverged_trainer_went_back_to(tmp_path):
    t = trainer()

    class TooFast(Callback):
        def on_step_end(self, event):
            if event.trainer.step == 6:
                event.trainer.learning_rate = 1e30

    with manager(t, tmp_path, every_steps=1, save_frequency=0, save_best=False) as m, pytest.raises(TrainingError):
        t.fit(DATA, 4, callbacks=[TooFast()], checkpoints=m)
    assert t.step < max(e.step for e in m.list())
    assert m.latest().name == "rescue_checkpoint.json"
    again = ModelTrainer.resume(tmp_path)
    assert again.step == t.step
    again.learning_rate = 0.01
    with manager(again, tmp_path, every_steps=1, save_frequency=0, save_best=False) as m:
        assert np.isfinite(again.fit(DATA, 4, callbacks=[Callback()], checkpoints=m)["loss"]).all()
        assert m.list()[0].step == 16


def test_a_folder_stays_where_it_is(tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    with manager(trainer(), "run") as m:
        first = m.save_checkpoint(1, 1)
        monkeypatch.chdir("elsewhere")
        assert m.latest() == first == tmp_path / "run" / first.name
        m.save_checkpoint(2, 2)
    assert len(files(tmp_path / "run")) == 2
    assert files(tmp_path / "elsewhere") == []

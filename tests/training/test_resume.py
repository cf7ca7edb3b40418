"""An interrupted run, resumed from a file, ends exactly as the unbroken one."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from training_support import arrays, assert_same, blobs, mlp, noisy

import gometal_mlx as gm
from gometal_mlx.errors import CheckpointError, SpecError
from gometal_mlx.layers import ModelBuilder
from gometal_mlx.training import (
    Callback,
    CosineAnnealingLRScheduler,
    EarlyStopping,
    ModelTrainer,
    OptimizerType,
    ReduceLROnPlateauScheduler,
    TrainerConfig,
)

EPOCHS = 4


class Interrupted(Exception):
    """Stands for whatever ends a process."""


class SaveAndBreak(Callback):
    """Saves after a number of batches and ends the run."""

    def __init__(self, path: Path, batches: int) -> None:
        self.path, self.left = path, batches

    def on_step_end(self, event):
        self.left -= 1
        if self.left == 0:
            event.trainer.save(self.path)
            raise Interrupted


def config(optimizer: str = "Adam", **settings) -> TrainerConfig:
    rate = {"SGD": 0.05, "AdaDelta": None, "LBFGS": None}.get(optimizer, 0.01)
    usual = {"momentum": 0.9} if optimizer in ("SGD", "RMSProp") else {}
    return TrainerConfig(optimizer_type=optimizer, learning_rate=rate, batch_size=16, seed=3, **{**usual, **settings})


@pytest.mark.parametrize("suffix", [".json", ".safetensors"])
@pytest.mark.parametrize("optimizer", [m.name for m in OptimizerType])
def test_resumed_run_is_the_unbroken_run(tmp_path, optimizer, suffix):
    """Interrupted three times: at an epoch's end, in mid-epoch, and twice within the same epoch."""
    accumulation = 1 if optimizer == "LBFGS" else 2
    settings = config(
        optimizer, scheduler=CosineAnnealingLRScheduler(6), accumulation_steps=accumulation, centered=True
    )
    data, held = blobs(90), blobs(30, seed=1)
    unbroken = ModelTrainer(noisy(), settings)
    unbroken.fit(data, EPOCHS, held)
    path = tmp_path / f"run{suffix}"
    trainer = ModelTrainer(noisy(), settings)
    for batches in (6, 3, 1, 7):  # six batches an epoch
        with pytest.raises(Interrupted):
            trainer.fit(data, EPOCHS, held, callbacks=[SaveAndBreak(path, batches)])
        trainer = ModelTrainer.resume(path)
    trainer.fit(data, EPOCHS, held)
    assert_same(unbroken, trainer)


def test_resumed_in_a_new_process(tmp_path):
    """The same through another process, compiled as users run it; even the file written at the end is the same."""
    script = tmp_path / "run.py"
    script.write_text(
        textwrap.dedent(
            """
            import os, sys, numpy as np
            from gometal_mlx.layers import ModelBuilder
            from gometal_mlx.training import Callback, ModelTrainer, TrainerConfig
            mode, path = sys.argv[1:]
            rng = np.random.default_rng(0)
            data = rng.standard_normal((50, 6)).astype(np.float32), rng.integers(0, 3, 50)
            class Kill(Callback):
                def on_step_end(self, event):
                    if mode == "break" and event.trainer.step == 9:
                        event.trainer.save(path)
                        os._exit(7)
            spec = ModelBuilder((8, 6)).add_dense(8).add_batch_norm().add_relu().add_dropout(0.3).add_dense(3).compile()
            new = mode != "resume"
            t = ModelTrainer(spec, TrainerConfig(batch_size=8, seed=2)) if new else ModelTrainer.resume(path)
            t.fit(data, 3, callbacks=[Kill()])
            arrays = [*t.checkpoint().weights, *t.optimizer_state.state_data]
            np.savez(path + "." + mode, *[a.data for a in arrays])
            """
        )
    )
    path = str(tmp_path / "run.json")

    def run(mode: str) -> int:
        return subprocess.run([sys.executable, str(script), mode, path], check=False, timeout=120).returncode

    assert [run("whole"), run("break"), run("resume")] == [0, 7, 0]
    with np.load(path + ".whole.npz") as a, np.load(path + ".resume.npz") as b:
        assert a.files == b.files
        assert all(np.array_equal(a[name], b[name]) for name in a.files)


@pytest.mark.parametrize("suffix", [".json", ".safetensors"])
def test_callbacks_schedule_and_loss_scale_survive(tmp_path, suffix):
    settings = config(
        "SGD", scheduler=ReduceLROnPlateauScheduler(0.5, 1, threshold=0.05), use_mixed_precision=True,
        loss_scale_growth_interval=5,
    )  # fmt: skip
    data, held = blobs(64), blobs(32, seed=1)

    def stopping() -> EarlyStopping:
        return EarlyStopping(patience=3, min_delta=0.02)

    unbroken, path = ModelTrainer(noisy(), settings), tmp_path / f"run{suffix}"
    unbroken.fit(data, 12, held, callbacks=[stopping()])
    trainer = ModelTrainer(noisy(), settings)
    for batches in (5, 6, 9):
        with pytest.raises(Interrupted):
            trainer.fit(data, 12, held, callbacks=[stopping(), SaveAndBreak(path, batches)])
        trainer = ModelTrainer.resume(path)
    trainer.fit(data, 12, held, callbacks=[stopping()])
    assert_same(unbroken, trainer)
    assert unbroken._training_step.loss_scale == trainer._training_step.loss_scale


def test_a_run_with_winograds_algorithm_is_resumed(tmp_path, compiled):
    """Which the first batch of an epoch is large enough for, and the last one is not."""
    spec = ModelBuilder((8, 32, 8, 8)).add_conv2d(32, 3, 1, 1).add_relu().add_dropout(0.1).add_conv2d(32, 3)
    spec = spec.add_global_avg_pool2d().add_dense(3).compile()
    rng = np.random.default_rng(0)
    data = rng.standard_normal((21, 32, 8, 8)).astype(np.float32), rng.integers(0, 3, 21)
    settings = TrainerConfig(seed=0, batch_size=16)
    unbroken = ModelTrainer(spec, settings)
    unbroken.fit(data, 3)
    trainer = ModelTrainer(spec, settings)
    trainer.fit(data, 1)
    trainer.save(tmp_path / "a.safetensors")
    resumed = ModelTrainer.resume(tmp_path / "a.safetensors")
    resumed.fit(data, 2)
    assert_same(unbroken, resumed)


def test_a_finished_run_goes_on_with_the_next_epoch(tmp_path):
    trainer = ModelTrainer(mlp(), config())
    trainer.fit(blobs(32), 5)
    trainer.save(tmp_path / "a.json")
    resumed = ModelTrainer.resume(tmp_path / "a.json")
    assert resumed.epoch == 5
    assert resumed.fit(blobs(32), 5)["epoch"] == list(range(1, 11))


def test_resume_with_other_data_is_refused(tmp_path):
    trainer = ModelTrainer(mlp(), config())
    with pytest.raises(Interrupted):
        trainer.fit(blobs(64), 3, callbacks=[SaveAndBreak(tmp_path / "a.safetensors", 2)])
    resumed = ModelTrainer.resume(tmp_path / "a.safetensors")
    with pytest.raises(SpecError, match="run to be finished was given other data: DataLoader: rows is 60"):
        resumed.fit(blobs(60), 3)


def test_resume_without_its_callbacks_is_refused(tmp_path):
    trainer = ModelTrainer(mlp(), config())
    with pytest.raises(Interrupted):
        trainer.fit(blobs(64), 3, callbacks=[EarlyStopping(), SaveAndBreak(tmp_path / "a.json", 2)])
    with pytest.raises(SpecError, match="had a EarlyStopping as callback"):
        ModelTrainer.resume(tmp_path / "a.json").fit(blobs(64), 3)


def test_go_metal_file_restores_what_it_holds(golden):
    checkpoint = gm.load(golden / "trainer" / "trainer_adam_mlp__best_checkpoint.json")
    trainer = ModelTrainer(checkpoint.model_spec, TrainerConfig(optimizer_type="Adam", seed=0))
    report = trainer.restore(checkpoint)
    assert "weights" in report.restored
    assert "optimizer state (all zero in the file: fresh)" in report.missing
    assert "random state" in report.missing
    assert trainer.epoch == checkpoint.training_state.epoch
    assert trainer.learning_rate == pytest.approx(checkpoint.training_state.learning_rate)
    with pytest.raises(CheckpointError, match="not everything could be restored"):
        trainer.restore(checkpoint, strict=True)


@pytest.mark.parametrize("name", ["sgd_cnn__checkpoint_epoch_5_step_50", "lbfgs_mlp__checkpoint_epoch_5_step_50"])
def test_other_go_metal_trainers_restore(golden, name):
    checkpoint = gm.load(golden / "trainer" / f"trainer_{name}.json")
    trainer = ModelTrainer(checkpoint.model_spec, TrainerConfig(optimizer_type=name.split("_")[0], beta1=0.9, seed=0))
    assert "weights" in trainer.restore(checkpoint).restored


def test_resume_needs_a_configuration(golden):
    with pytest.raises(CheckpointError, match=r"trainer_adam_mlp.*holds no trainer configuration; make a ModelTrainer"):
        ModelTrainer.resume(golden / "trainer" / "trainer_adam_mlp__best_checkpoint.json")


def hidden(size):
    return ModelBuilder((8, 6)).add_dense(size, name="hidden")


def _other(spec):
    return ModelTrainer(spec, config()).checkpoint()


def _with_extra(**changes):
    c = ModelTrainer(mlp(), config()).checkpoint()
    return replace(c, extras={**c.extras, **changes})


def _with_state(change):
    c = ModelTrainer(mlp(), config()).checkpoint()
    change(c.optimizer_state)
    return c


@pytest.mark.parametrize(
    ("checkpoint", "text"),
    [
        (lambda: _other(hidden(9).add_relu("relu").add_dense(3, name="out").compile()),
         r"another architecture: layer 1 \(Dense 'hidden'\): output_size 16 against 9"),
        (lambda: _other(hidden(16).add_tanh("t").add_dense(3, name="out").compile()),
         "layer 2: ReLU 'relu' against Tanh 't'"),
        (lambda: _with_extra(rng=[1]), r"gometal_mlx.rng: two words of 32 bits needed, got \[1\]"),
        (lambda: _with_extra(history=3), "gometal_mlx.history"),
        (lambda: _with_extra(totals=np.ones((2, 3), np.float32)),
         r"gometal_mlx.totals: 3 numbers needed, got an array of shape \(2, 3\)$"),
        (lambda: _with_extra(config={"batch_size": 0}), "gometal_mlx.config: TrainerConfig: batch_size must be"),
        (lambda: _with_extra(best_loss="x"), "gometal_mlx.best_loss: a number needed"),
        (lambda: _with_state(lambda s: s.state_data.pop()), "'variance_3' is missing"),
        (lambda: _with_state(lambda s: setattr(s, "type", "SGD")), "optimizer state is of SGD, the trainer uses Adam"),
    ],
)  # fmt: skip
def test_restore_is_all_or_nothing(checkpoint, text):
    trainer = ModelTrainer(mlp(), config())
    trainer.fit(blobs(32), 2)
    before = arrays(trainer), trainer.epoch, trainer.history.records, trainer._training_step.carried()
    with pytest.raises(CheckpointError, match=text):
        trainer.restore(checkpoint())
    after = arrays(trainer)
    assert all(np.array_equal(v, after[k]) for k, v in before[0].items())
    assert (trainer.epoch, trainer.history.records, trainer._training_step.carried()) == before[1:]
    trainer.fit(blobs(32), 1)


def test_settings_of_a_newer_version_are_ignored_and_told():
    c = _with_extra(config={**config().to_dict(), "brand_new": 1})
    assert ModelTrainer(mlp(), config()).restore(c).ignored == ("config.brand_new (unknown)",)


def test_other_layer_names_are_matched_by_position():
    a = ModelTrainer(mlp(), config())
    a.fit(blobs(32), 1)
    spec = ModelBuilder((8, 6)).add_dense(16, name="h").add_relu("r").add_dense(3, name="o").compile()
    b = ModelTrainer(spec, config())
    b.restore(a.checkpoint())
    np.testing.assert_array_equal(a.predict(blobs(5)[0]), b.predict(blobs(5)[0]))


@pytest.mark.parametrize("name", ["a.onnx", "A.ONNX"])
def test_resume_from_onnx_is_refused(tmp_path, name):
    trainer = ModelTrainer(mlp(), config())
    trainer.save(tmp_path / name)
    told = rf"{name}: an ONNX file is an export without optimizer or random state; resume from .json or .safetensors$"
    with pytest.raises(CheckpointError, match=told):
        ModelTrainer.resume(tmp_path / name)


def test_steps_are_counted_on_when_the_optimizer_starts_fresh():
    trainer = ModelTrainer(mlp(), config())
    trainer.fit(blobs(32), 2)
    c = trainer.checkpoint()
    other = ModelTrainer(mlp(), config())
    report = other.restore(replace(c, optimizer_state=None, extras={}))
    assert other.step == trainer.step == 4
    assert "optimizer state" in report.missing
    other.train_batch(*blobs(4))
    assert other.step == other.checkpoint().training_state.total_steps == 5
    reset = ModelTrainer(mlp(), config())
    reset.restore(c, reset_optimizer=True)
    assert reset.step == 4
    assert not any(t.data.any() for t in reset.optimizer_state.state_data)


def test_go_metal_finds_the_statistics_in_the_layers(tmp_path):
    trainer = ModelTrainer(noisy(), config())
    trainer.fit(blobs(32), 1)
    trainer.save(tmp_path / "a.json")
    stored = gm.load(tmp_path / "a.json")
    layer = next(s for s in stored.model_spec.layers if s.name == "bn")
    for key in ("running_mean", "running_var"):
        np.testing.assert_array_equal(layer.running_statistics[key], np.array(trainer.model["bn"][key]))


def test_saving_does_not_disturb_the_run(tmp_path):
    class SaveEachStep(Callback):
        def on_step_end(self, event):
            event.trainer.save(tmp_path / "x.json")
            event.trainer.save(tmp_path / "x.onnx", verify=False)

    a, b = ModelTrainer(noisy(), config()), ModelTrainer(noisy(), config())
    a.fit(blobs(48), 2)
    b.fit(blobs(48), 2, callbacks=[SaveEachStep()])
    assert_same(a, b)


@pytest.mark.parametrize("copy", [True, False])
def test_a_checkpoint_stays_as_it_is(copy):
    trainer = ModelTrainer(noisy(), config())
    trainer.fit(blobs(16), 1)
    checkpoint = trainer.checkpoint("before", ["tag"], copy=copy)
    tensors = [t for _, t in checkpoint.tensors()]
    kept = [t.data.copy() for t in tensors]
    trainer.fit(blobs(32), 2)
    for layer, name, _ in trainer.model.slots():
        trainer.model[layer.name][name] += 1
    trainer.fit(blobs(32), 2)
    mx.eval(trainer.model.state)
    assert all(np.array_equal(a, t.data) for a, t in zip(kept, tensors, strict=True))
    assert [t.data.flags.writeable for t in tensors] == [copy] * len(tensors)
    assert checkpoint.metadata.description == "before"
    assert checkpoint.metadata.tags == ["tag"]
    assert checkpoint.metadata.framework == "gometal_mlx"

"""``gometal diff``: exit codes, every pair of formats, the text and the JSON."""

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gometal_mlx as gm
from gometal_mlx.checkpoints.difference import difference

SUFFIXES = (".json", ".json.gz", ".safetensors", ".onnx")


def lines(out: str) -> list[str]:
    """Without the columns' spacing."""
    return [" ".join(line.split()) for line in out.splitlines()]


@pytest.fixture
def changed(files: dict[str, Path], tmp_path: Path) -> Path:
    """The checkpoint after a change in every part."""
    c = gm.load(files[".json"])
    c.weights[0].data[1, 2] += 0.5
    c.training_state.epoch = 5
    c.metadata.description = "two\nlines"
    assert c.optimizer_state is not None
    c.optimizer_state.parameters = {**c.optimizer_state.parameters, "step_count": 9}
    c.optimizer_state.state_data.pop()
    c.extras = {"config": {"seed": 3}}
    path = tmp_path / "changed.json"
    gm.save(c, path)
    return path


@pytest.mark.parametrize(("a", "b"), list(itertools.product(SUFFIXES, SUFFIXES)))
def test_every_pair_of_formats(run: Any, files: dict[str, Path], a: str, b: str) -> None:
    alike = (a == ".onnx") == (b == ".onnx")  # an ONNX file has no optimizer state
    result = run("diff", files[a], files[b])
    assert (result.code, result.err) == (0 if alike else 1, "")
    out = lines(result.out)
    assert out[:2] == [f"A: {files[a]}", f"B: {files[b]}"]
    if alike:
        assert out[2:] == ["", "equal; architecture, weights, optimizer and training state are the same"]
    else:
        assert out[-1] == "different"
        assert ("Adam against none" if b == ".onnx" else "none against Adam") in out
        assert "Optimizer state: 8 of 8 differ" in out
        assert f"momentum_0 [15], only in {'A' if b == '.onnx' else 'B'}" in out
        assert not any(line.startswith(("Weights", "Training state", "Architecture", "Metadata")) for line in out)


def test_text_of_every_part(run: Any, files: dict[str, Path], checkpoint: gm.Checkpoint, changed: Path) -> None:
    result = run("diff", files[".safetensors"], changed)
    assert (result.code, result.err) == (1, "")
    out = lines(result.out)
    largest = float(abs(checkpoint.weights[0].data).max())
    assert "Weights: 1 of 4 differ" in out
    assert f"fc1.weight [3, 5] 0.5 {0.5 / largest:.3g}" in out
    assert "step_count 7 9" in out
    assert "Optimizer state: 1 of 8 differ" in out
    assert "variance_3 [2], only in A" in out
    assert "epoch 2 5" in out
    assert "config.seed none 3" in out
    assert 'description a small model "two\\nlines"' in out
    titles = ["Weights: 1 of 4 differ", "Optimizer parameters", "Optimizer state: 1 of 8 differ", "Training state"]
    titles += ["What only gometal_mlx keeps", "Metadata (does not count)", "different"]
    assert [line for line in out if line in titles] == titles


def test_json(run: Any, files: dict[str, Path], changed: Path) -> None:
    result = run("diff", "--json", files[".json"], changed)
    assert (result.code, result.err) == (1, "")
    expected = difference(gm.load(files[".json"]), gm.load(changed))
    assert json.loads(result.out) == {**expected, "notes": {"A": [], "B": []}}
    same = run("diff", files[".json"], files[".safetensors"], "--json")
    assert (same.code, json.loads(same.out)["equal"]) == (0, True)


def test_architecture_and_notes(run: Any, golden: Path) -> None:
    out = lines(run("diff", golden / "json" / "model_mlp.json", golden / "json" / "model_cnn.json").out)
    assert "4 layers against 10" in out
    assert "fc1.weight [6, 8] against [54, 10]" in out
    assert "B: layer 'bn1': running statistics not in the file; set to mean 0, variance 1" in out


def test_only_the_metadata_differs(run: Any, files: dict[str, Path], tmp_path: Path) -> None:
    c = gm.load(files[".json"])
    c.metadata.description = "x" * 100
    gm.save(c, tmp_path / "m.json")
    result = run("diff", files[".json"], tmp_path / "m.json")
    assert result.code == 0
    out = lines(result.out)
    assert f"description a small model {'x' * 57}..." in out
    assert out[-1].startswith("equal; ")


def test_long_lists_are_cut(run: Any, files: dict[str, Path], tmp_path: Path) -> None:
    c = gm.load(files[".json"])
    c.extras = {"history": list(range(50))}
    gm.save(c, tmp_path / "m.json")
    out = lines(run("diff", files[".json"], tmp_path / "m.json").out)
    assert "history[19] none 19" in out
    assert not any(line.startswith("history[20]") for line in out)
    assert "and 30 more; --json shows all" in out


class SaveOnce(gm.Callback):
    """Saves in the middle of a run."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_step_end(self, event: Any) -> None:
        if event.trainer.step == 6:
            event.trainer.save(self.path)


def test_a_resumed_run_equals_an_unbroken_one(run: Any, tmp_path: Path) -> None:
    """What the command is for."""
    x = np.random.default_rng(0).standard_normal((32, 3)).astype(np.float32)
    data = gm.DataLoader(gm.ArrayDataset(x, (x.sum(axis=1) > 0).astype(np.int32)), 8, shuffle=True, seed=1)
    spec = gm.ModelBuilder((8, 3)).add_dense(4).add_relu().add_dropout(0.5).add_dense(2).compile()
    whole, half, resumed = (tmp_path / name for name in ("whole.json", "half.safetensors", "resumed.json.gz"))
    trainer = gm.ModelTrainer(spec, gm.TrainerConfig(batch_size=8, seed=0))
    trainer.fit(data, 2, callbacks=[SaveOnce(half)])
    trainer.save(whole)
    trainer = gm.ModelTrainer.resume(half)
    trainer.fit(data, 2, callbacks=[SaveOnce(half)])
    trainer.save(resumed)
    assert run("diff", whole, half).code == 1
    result = run("diff", whole, resumed)
    assert result.code == 0, result.out


@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("name", ["missing.json", "empty.json", "noise.safetensors", "folder.onnx", "unknown.txt"])
def test_a_file_that_cannot_be_read_is_one_line(
    run: Any, files: dict[str, Path], tmp_path: Path, name: str, side: int
) -> None:
    (tmp_path / "empty.json").touch()
    (tmp_path / "noise.safetensors").write_bytes(bytes(range(256)))
    (tmp_path / "folder.onnx").mkdir()
    shutil.copy(files[".json"], tmp_path / "unknown.txt")
    pair = [files[".json"], files[".json"]]
    pair[side] = tmp_path / name
    result = run("diff", *pair)
    assert (result.code, result.out, result.err.count("\n")) == (1, "", 1)
    assert result.err.startswith(f"gometal diff: {tmp_path / name}: ")


@pytest.mark.parametrize("argv", [["diff"], ["diff", "a.json"], ["diff", "a.json", "b.json", "c.json"]])
def test_usage(argv: list[str], run: Any) -> None:
    with pytest.raises(SystemExit) as e:
        run(*argv)
    assert e.value.code == 2

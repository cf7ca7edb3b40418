"""Each subcommand doing its work."""

import dataclasses
import itertools
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import gometal_mlx as gm
from gometal_mlx import Predictor
from gometal_mlx.cli import train
from gometal_mlx.cli.table import size_text, table
from gometal_mlx.errors import CheckpointError
from gometal_mlx.training import Callback, CheckpointConfig, CheckpointManager, Event

SUFFIXES = (".json", ".json.gz", ".safetensors", ".onnx")


def content(ckpt: gm.Checkpoint) -> dict[str, Any]:
    return {w.name: (w.shape, w.type, w.data.tobytes()) for w in ckpt.weights}


# ----------------------------------------------------------------------------------------------------------- inspect


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_inspect_text(run: Any, files: dict[str, Path], checkpoint: gm.Checkpoint, suffix: str) -> None:
    result = run("inspect", files[suffix])
    assert (result.code, result.err) == (0, "")
    lines = [" ".join(line.split()) for line in result.out.splitlines()]
    assert lines[0] == f"{files[suffix]} ({size_text(files[suffix].stat().st_size)})"
    assert "Architecture: [4, 3] -> [4, 2], 32 parameters" in lines
    assert "1 fc1 Dense [4, 5] 20 input_size 3, output_size 5, use_bias True" in lines
    assert "2 act ReLU [4, 5] 0" in lines
    assert "can load, run, train and save this model" in lines
    (weight,) = (line.split() for line in lines if line.startswith("fc1.weight "))
    data = checkpoint.weights[0].data
    assert weight[:5] == ["fc1.weight", "weight", "[3,", "5]", f"{data.min():.4g}"]
    assert weight[-1] == str((data == 0).sum())
    assert "description a small model" in lines
    if suffix != ".onnx":
        assert "epoch 2" in lines
        assert any(line.startswith("optimizer Adam: ") and "8 state tensors" in line for line in lines)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_inspect_json(run: Any, files: dict[str, Path], checkpoint: gm.Checkpoint, suffix: str) -> None:
    result = run("inspect", "--json", files[suffix])
    assert (result.code, result.err) == (0, "")
    found = json.loads(result.out)
    assert found["model"] == {"input_shape": [4, 3], "output_shape": [4, 2], "total_parameters": 32}
    assert [(x["name"], x["type"]) for x in found["layers"]] == [("fc1", "Dense"), ("act", "ReLU"), ("fc2", "Dense")]
    assert [w["name"] for w in found["weights"]] == [w.name for w in checkpoint.weights]
    for w, tensor in zip(found["weights"], checkpoint.weights, strict=True):
        assert (w["min"], w["max"]) == (tensor.data.min(), tensor.data.max())
        assert w["mean"] == tensor.data.mean(dtype=np.float64)
        assert w["shape"] == list(tensor.shape)
    assert found["memory"]["weights_bytes"] == 4 * 32
    assert found["memory"]["file_bytes"] == files[suffix].stat().st_size
    assert found["metadata"]["tags"] == "test, tiny"
    if suffix != ".onnx":
        assert found["training_state"]["step"] == 7
        assert found["optimizer"]["type"] == "Adam"
        assert found["optimizer"]["parameters"]["beta1"] == 0.9
        assert found["optimizer"]["tensors"] == 8
        assert found["memory"]["optimizer_bytes"] == 2 * 4 * 32


def test_inspect_says_what_go_metal_cannot_do(run: Any, golden: Path) -> None:
    out = run("inspect", golden / "json" / "layer_tanh.json").out
    assert "\ngo-metal\n  layer " in out
    assert "(Tanh): " in out


def test_inspect_shows_notes(run: Any, golden: Path) -> None:
    out = run("inspect", golden / "trainer" / "trainer_sgd_cnn__checkpoint_epoch_5_step_50.json").out
    assert "\nNotes\n  layer 'bn1': running statistics not in the file" in out


@pytest.mark.parametrize("suffix", [".safetensors", ".onnx"])
def test_inspect_counts_what_is_not_finite(run: Any, files: dict[str, Path], suffix: str, tmp_path: Path) -> None:
    data = bytearray(files[suffix].read_bytes())
    first = gm.load(files[suffix]).weights[0].data
    at = data.index(first.tobytes())
    data[at : at + 8] = np.array([np.nan, -np.inf], np.float32).tobytes()
    path = tmp_path / f"broken{suffix}"
    path.write_bytes(data)
    with pytest.raises(gm.GoMetalError, match="NaN and infinity"):
        gm.load(path)
    result = run("inspect", path)
    assert result.code == 0
    line = next(x.split() for x in result.out.splitlines() if x.strip().startswith("fc1.weight "))
    rest = first.reshape(-1)[2:]
    assert line[5:] == [*(f"{v:.4g}" for v in (rest.min(), rest.max(), rest.mean(), rest.std())), "0", "2"][1:]
    found = json.loads(run("inspect", "--json", path).out)
    assert [w["nonfinite"] for w in found["weights"]] == [2, 0, 0, 0]


def test_inspect_shows_what_the_author_says(run: Any, checkpoint: gm.Checkpoint, tmp_path: Path) -> None:
    checkpoint.info = {"class_names": ["cat", "dog"]}
    gm.save(checkpoint, tmp_path / "m.json")
    assert "class_names  ['cat', 'dog']" in run("inspect", tmp_path / "m.json").out


# ----------------------------------------------------------------------------------------------------------- convert


@pytest.mark.parametrize(("source", "target"), list(itertools.product(SUFFIXES, SUFFIXES)))
def test_convert(
    run: Any, files: dict[str, Path], checkpoint: gm.Checkpoint, tmp_path: Path, source: str, target: str
) -> None:
    out = tmp_path / f"out{target}"
    result = run("convert", files[source], out)
    assert (result.code, result.err) == (0, "")
    assert result.out.splitlines()[-1].startswith(f"{out}: written, Checkpoint(4 weights, 32 numbers")
    found, whole = gm.load(out), ".onnx" not in (source, target)
    assert found.model_spec == checkpoint.model_spec
    assert content(found) == content(checkpoint)
    assert found.metadata == checkpoint.metadata
    assert ("the optimizer state stays behind" in result.out) is (target == ".onnx" != source)
    assert ("onnxruntime agrees with MLX" in result.out) is (target == ".onnx")
    if whole:
        assert found.training_state == gm.load(files[source]).training_state
        assert found.optimizer_state is not None
        assert [t.data.tobytes() for t in found.optimizer_state.state_data] == [
            t.data.tobytes()
            for t in checkpoint.optimizer_state.state_data  # type: ignore[union-attr]
        ]
    else:
        assert found.optimizer_state is None
    assert [p.name for p in tmp_path.iterdir()] == [out.name]


def test_convert_with_options_for_onnx(run: Any, files: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "m.onnx"
    options = ["--opset", "15", "--softmax", "--matmul", "--input-name", "x", "--output-name", "p", "--float16-weights"]
    assert run("convert", files[".json"], out, *options, "--keep-dropout", "--tolerance", "1e-4").code == 0
    proto = onnx.load(out)
    assert [n.op_type for n in proto.graph.node if n.op_type != "Cast"] == [
        "MatMul",
        "Add",
        "Relu",
        "MatMul",
        "Add",
        "Softmax",
    ]
    assert (proto.graph.input[0].name, proto.graph.output[0].name, proto.opset_import[0].version) == ("x", "p", 15)


def test_convert_with_weights_beside_the_graph(run: Any, files: dict[str, Path], tmp_path: Path) -> None:
    out, back = tmp_path / "m.onnx", tmp_path / "back.json"
    result = run("convert", files[".json"], out, "--external-data", "--no-verify")
    assert "onnxruntime agrees" not in result.out
    assert len(list(tmp_path.glob("m.onnx.*.data"))) == 1
    np.save(tmp_path / "x.npy", np.ones((2, 3), np.float32))
    for command, *others in (
        ["convert", back],
        ["inspect"],
        ["verify"],
        ["diff", out],
        ["predict", tmp_path / "x.npy"],
    ):
        refused = run(command, out, *others)
        assert (refused.code, refused.err.count("\n")) == (1, 1)
        assert "lies in another file; load(path, external_data=True), or --read-external, reads" in refused.err
        assert run(command, out, *others, "--read-external").code == 0
    assert content(gm.load(back)) == content(gm.load(files[".json"]))
    assert run("diff", out, files[".json"], "--read-external").out.count("Weights") == 0
    (data,) = tmp_path.glob("m.onnx.*.data")
    data.write_bytes(data.read_bytes()[:-4])
    assert "is damaged" in run("verify", out, "--read-external").err


def test_convert_without_extras(run: Any, files: dict[str, Path], tmp_path: Path) -> None:
    checkpoint = gm.load(files[".json"])
    checkpoint.extras = {"k": 1}
    gm.save(checkpoint, tmp_path / "k.json")
    assert run("convert", tmp_path / "k.json", tmp_path / "m.json", "--no-extras").code == 0
    assert gm.load(tmp_path / "m.json").extras == {}


@pytest.mark.parametrize(
    "arguments", [["convert", "m.onnx"], ["inspect"], ["verify"], ["diff", "b.json"], ["predict", "x"]]
)
def test_weights_are_read_beside_onnx_files_only(run: Any, files: dict[str, Path], arguments: list[str]) -> None:
    result = run(arguments[0], files[".json"], *arguments[1:], "--read-external")
    assert result.code == 1
    assert "--read-external needs an .onnx file" in result.err


def test_inspect_prints_arrays_among_the_info(run: Any, checkpoint: gm.Checkpoint, tmp_path: Path) -> None:
    checkpoint.info = {"mean": np.array([0.5, 0.25], np.float32)}
    gm.save(checkpoint, tmp_path / "m.json")
    found = json.loads(run("inspect", "--json", tmp_path / "m.json").out)
    assert found["info"] == {"mean": [0.5, 0.25]}


@pytest.mark.parametrize(("output", "option"), [("m.json", "--softmax"), ("m.onnx", "--no-extras")])
def test_convert_refuses_options_of_another_format(
    run: Any, files: dict[str, Path], tmp_path: Path, output: str, option: str
) -> None:
    result = run("convert", files[".json"], tmp_path / output, option)
    assert result.code == 1
    assert result.err.count("\n") == 1
    assert output in result.err
    assert not (tmp_path / output).exists()


def test_convert_onto_itself(run: Any, files: dict[str, Path], checkpoint: gm.Checkpoint, tmp_path: Path) -> None:
    path = tmp_path / "m.json"
    path.write_bytes(files[".json"].read_bytes())
    assert run("convert", path, path).code == 0
    assert path.read_bytes() == files[".json"].read_bytes()


def test_convert_there_and_back_gives_the_same_bytes(run: Any, files: dict[str, Path], tmp_path: Path) -> None:
    run("convert", files[".json"], tmp_path / "m.safetensors")
    run("convert", tmp_path / "m.safetensors", tmp_path / "m.json")
    assert (tmp_path / "m.json").read_bytes() == files[".json"].read_bytes()


def test_convert_repairs_a_go_metal_export(run: Any, golden: Path, tmp_path: Path) -> None:
    source, out = golden / "onnx" / "model_cnn.onnx", tmp_path / "m.onnx"
    assert run("verify", source).code == 1
    result = run("convert", source, out)
    assert result.code == 0
    assert result.out.startswith("note: ")
    assert run("verify", out).code == 0


# ------------------------------------------------------------------------------------------------------------ verify


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_verify(run: Any, files: dict[str, Path], suffix: str) -> None:
    result = run("verify", files[suffix])
    assert (result.code, result.err) == (0, "")
    assert result.out.startswith(f"{files[suffix]}: ok; ")
    assert ("onnxruntime agrees" in result.out) is (suffix == ".onnx")


def test_verify_finds_a_model_that_overflows(run: Any, golden: Path) -> None:
    path = golden / "json" / "floats_awkward.json"
    result = run("verify", path)
    assert (result.code, result.out) == (1, "")
    assert result.err == f"gometal verify: {path}: the model runs, but gives NaN or infinity on normal random inputs\n"


def test_verify_is_as_strict_as_told(run: Any, files: dict[str, Path]) -> None:
    result = run("verify", files[".onnx"], "--tolerance", "0")  # denormal numbers alone make one
    assert (result.code, result.err.count("\n")) == (1, 1)
    assert "onnxruntime differs from MLX by " in result.err


# ----------------------------------------------------------------------------------------------------------- predict


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_predict(run: Any, files: dict[str, Path], tmp_path: Path, suffix: str) -> None:
    x = np.random.default_rng(0).standard_normal((5, 3)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    expected = Predictor(files[suffix]).predict(x)
    printed = run("predict", files[suffix], tmp_path / "x.npy")
    assert (printed.code, printed.err) == (0, "")
    rows = [[float(v) for v in line.split()] for line in printed.out.splitlines()]
    np.testing.assert_allclose(rows, expected, rtol=5e-6)  # printed with 6 digits
    written = run("predict", files[suffix], tmp_path / "x.npy", "--out", tmp_path / "p.npy")
    assert written.out == f"{tmp_path / 'p.npy'}: (5, 2) written\n"
    np.testing.assert_array_equal(np.load(tmp_path / "p.npy"), expected)
    run("predict", files[suffix], tmp_path / "x.npy", "--out", tmp_path / "p.npy", "--engine", "onnxruntime")
    np.testing.assert_array_equal(
        np.load(tmp_path / "p.npy"), Predictor(files[suffix], engine="onnxruntime").predict(x)
    )


# ------------------------------------------------------------------------------------------------------------- train


def data(path: Path, images: bool = False) -> Path:
    """Two classes that differ in their mean."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 100)
    x = rng.standard_normal((100, *((1, 4, 4) if images else (6,)))) + y.reshape(-1, *[1] * (3 if images else 1))
    np.savez(path, x=x.astype(np.float32), y=y)
    return path


@pytest.mark.parametrize(("model", "images"), [("mlp", False), ("mlp", True), ("cnn", True)])
def test_train_writes_three_files_that_agree(run: Any, tmp_path: Path, model: str, images: bool) -> None:
    path, out = data(tmp_path / "d.npz", images), tmp_path / "deep" / "out"
    result = run("train", "--data", path, "--model", model, "--epochs", 2, "--out", out, "--batch-size", 16)
    assert result.code == 0
    assert "Epoch 2/2: 100%" in result.err
    assert "on 80 rows, judged on 20 others" in result.out
    assert "accuracy in MLX" in result.out
    assert "accuracy in onnxruntime" in result.out
    paths = [out / f"d_{model}{suffix}" for suffix in (".json", ".safetensors", ".onnx")]
    assert sorted(out.iterdir()) == sorted(paths)
    loaded = [gm.load(p) for p in paths]
    assert content(loaded[0]) == content(loaded[1]) == content(loaded[2])
    assert loaded[0].training_state.epoch == 2
    assert loaded[0].training_state.step == 2 * 5
    for p in paths:
        assert run("verify", p).code == 0


def test_train_tells_when_it_was_interrupted(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupting(Callback):
        def on_epoch_end(self, event: Event) -> None:
            if event.epoch == 2:
                os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(train, "ProgressPrinter", Interrupting)
    result = run("train", "--data", data(tmp_path / "d.npz"), "--model", "mlp", "--epochs", 9, "--out", tmp_path)
    assert result.code == 0
    assert "interrupted after 2 of 9 epochs" in result.out
    assert gm.load(tmp_path / "d_mlp.json").training_state.epoch == 2


def test_train_is_determined_by_its_seed(run: Any, tmp_path: Path) -> None:
    path = data(tmp_path / "d.npz")
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        run("train", "--data", path, "--model", "mlp", "--epochs", 1, "--out", tmp_path / name, "--seed", seed)
    a, b, c = (content(gm.load(tmp_path / name / "d_mlp.json")) for name in "abc")
    assert a == b != c


def test_train_uses_its_settings(run: Any, tmp_path: Path) -> None:
    path = data(tmp_path / "d.npz")
    options = ["--optimizer", "rms_prop", "--learning-rate", 0.005, "--epochs", 0]
    result = run("train", "--data", path, "--model", "mlp", "--out", tmp_path, *options)
    assert result.code == 0
    state = gm.load(tmp_path / "d_mlp.json").optimizer_state
    assert state is not None
    assert (state.type, state.parameters["learning_rate"]) == ("RMSProp", 0.005)


def test_train_learns_the_digits(run: Any, tmp_path: Path, compiled: None) -> None:
    result = run("train", "--model", "mlp", "--epochs", 3, "--out", tmp_path)
    assert result.code == 0
    accuracy = [float(line.split()[3].rstrip("%")) for line in result.out.splitlines() if "accuracy in" in line]
    assert len(accuracy) == 2
    assert accuracy[0] == accuracy[1] > 80  # a guess gets 10; 3 epochs get about 93


# ------------------------------------------------------------------------------------------------------------- table


def test_table_aligns_numbers_right_and_texts_left() -> None:
    rows = [("a", 1, "x"), ("bbb", 100, "yy"), ("c", -20)]
    assert table(rows, ("name", "n", "t")) == "\n".join(
        ["name    n  t", "----  ---  --", "a       1  x", "bbb   100  yy", "c     -20"]
    )


def test_table_of_nothing() -> None:
    assert table([]) == ""
    assert table([], ("a", "b")) == "a  b\n-  -"


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 KB"), (1.5e6, "1.5 MB"), (2e9, "2.00 GB"), (5e12, "5000.00 GB")],
)
def test_size_text(size: float, text: str) -> None:
    assert size_text(size) == text


@pytest.mark.parametrize("manifest", ["missing", "damaged"])
def test_verify_finds_damaged_files_without_a_manifest(run: Any, tmp_path: Path, manifest: str) -> None:
    trainer = gm.ModelTrainer(gm.ModelBuilder((1, 4)).add_dense(2).compile(), gm.TrainerConfig(seed=0))
    config = CheckpointConfig(tmp_path, save_frequency=1, filename_pattern="run_%d_%d")
    with CheckpointManager(trainer, config) as manager:
        trainer.fit((np.eye(4, dtype=np.float32), [0, 1, 0, 1]), 3, checkpoints=manager)
    (tmp_path / "config.json").write_text("{}")  # somebody else's
    assert run("verify", tmp_path).code == 0
    newest = tmp_path / "run_3_3.json"
    newest.write_bytes(newest.read_bytes()[:-99])
    if manifest == "missing":
        (tmp_path / "manifest.json").unlink()
    else:
        (tmp_path / "manifest.json").write_text("{")
    result = run("verify", tmp_path)
    assert result.code == 1
    assert "run_3_3.json: broken JSON" in result.out
    assert "run_2_2.json: ok; periodic, epoch 2" in result.out
    assert "config.json" not in result.out
    assert ("manifest.json: unusable" in result.out) == (manifest == "damaged")
    assert "files are damaged" in result.err


def test_predict_does_not_put_a_file_in_place_of_a_pipe(run: Any, files: dict[str, Path], tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((2, 3), np.float32))
    os.mkfifo(tmp_path / "pipe")
    result = run("predict", files[".json"], tmp_path / "x.npy", "--out", tmp_path / "pipe")
    assert result.code == 1
    assert "pipe: cannot be written: it is a folder or device" in result.err
    assert (tmp_path / "pipe").is_fifo()


@pytest.mark.parametrize("text", [b"", b"\x93NUMPY\x01\x00\x06\x00{'a'(\n", b"\x93NUMPY\x01\x00\x76\x00" + b"(" * 118])
def test_predict_reads_no_damaged_array(run: Any, files: dict[str, Path], tmp_path: Path, text: bytes) -> None:
    (tmp_path / "x.npy").write_bytes(text)
    result = run("predict", files[".json"], tmp_path / "x.npy")
    assert result.code == 1
    assert "x.npy: no readable .npy file" in result.err


def test_texts_of_a_file_cannot_command_a_terminal(run: Any, checkpoint: gm.Checkpoint, tmp_path: Path) -> None:
    evil = dataclasses.replace(checkpoint, metadata=gm.checkpoints.CheckpointMetadata(description="\x1b[2Jgone\x07"))
    evil.extras = {**checkpoint.extras, "info": {"\x1b[31m": "\x9b1m"}}
    assert checkpoint.optimizer_state is not None
    evil.optimizer_state = dataclasses.replace(checkpoint.optimizer_state, type="\x1b]0;title\n")
    gm.save(evil, file := tmp_path / "evil.json")
    gm.save(checkpoint, tmp_path / "plain.json")
    for arguments in (["inspect"], ["diff", tmp_path / "plain.json"], ["verify"], ["convert", tmp_path / "evil.onnx"]):
        result = run(arguments[0], file, *arguments[1:])
        assert result.code == (arguments[0] == "diff")
        assert "gone" in result.out or "title" in result.out or arguments[0] == "convert"
        assert all(c.isprintable() or c == "\n" for c in result.out)
    with pytest.raises(CheckpointError, match=r"the optimizer state is of \\x1b\]0;title\\n, the trainer uses Adam$"):
        gm.ModelTrainer(checkpoint.model_spec).restore(gm.load(file))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
def test_output_that_cannot_be_written(files: dict[str, Path]) -> None:
    command = [sys.executable, "-m", "gometal_mlx.cli.main", "inspect", str(files[".json"])]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    told = "gometal inspect: the output cannot be written: No space left on device\n"
    assert (done.returncode, done.stderr) == (1, told)


@pytest.mark.parametrize("tolerance", ["-1", "nan", "inf"])
def test_a_tolerance_is_a_number(run: Any, files: dict[str, Path], tolerance: str) -> None:
    result = run("verify", files[".onnx"], f"--tolerance={tolerance}")
    assert result.code == 1
    assert "tolerance must be a number of at least 0, got" in result.err


def test_files_that_are_not_there_are_said_to_be_so(run: Any, files: dict[str, Path], tmp_path: Path) -> None:
    missing = tmp_path / "none.npy"
    assert run("predict", files[".json"], missing).err.endswith("none.npy: cannot be read: No such file or directory\n")
    assert run("train", "--data", "digit").err.endswith("--data digit: no such file; did you mean 'digits'?\n")
    assert "batch_size must be an int of at least 1, got 0" in run("train", "--batch-size", "0").err
    assert run("verify", tmp_path / "none").err.endswith("; and there is no such file\n")
    assert "a folder; ModelTrainer.resume" in run("inspect", tmp_path).err
    assert "--read-external needs an .onnx file" in run("verify", tmp_path, "--read-external").err
    assert run("train", "--data", tmp_path).err.endswith(": cannot be read: Is a directory\n")


def test_inspect_shows_rates_as_they_were_typed(run: Any, tmp_path: Path) -> None:
    spec = gm.ModelBuilder((1, 3)).add_dense(2).compile()
    gm.ModelTrainer(spec, gm.TrainerConfig(learning_rate=0.001)).save(tmp_path / "m.json")
    assert re.search(r"^  learning_rate +0\.001$", run("inspect", tmp_path / "m.json").out, re.MULTILINE)

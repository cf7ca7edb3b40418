"""Whatever is wrong with a file: exit 1, one line on standard error, and the line names the file."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gometal_mlx.cli import train

NAMES = (
    "missing.json", "missing.onnx", "empty.json", "empty.onnx", "empty.safetensors", "noise.json", "noise.json.gz",
    "noise.onnx", "noise.safetensors", "folder.json", "unknown.txt", "unknown", "number.json", "list.json", "half.json",
    "half.json.gz", "half.onnx", "half.safetensors", "json_in.safetensors", "json_in.onnx", "safetensors_in.json",
)  # fmt: skip


@pytest.fixture(scope="module")
def bad(files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a damaged file of each name (but the missing ones)."""
    folder = tmp_path_factory.mktemp("bad")
    noise = np.random.default_rng(0).integers(128, 256, 500, np.uint8).tobytes()
    for suffix in ("json", "onnx", "safetensors", "json.gz"):
        (folder / f"empty.{suffix}").touch()
        (folder / f"noise.{suffix}").write_bytes(noise)
        whole = files[f".{suffix}"].read_bytes()
        (folder / f"half.{suffix}").write_bytes(whole[: len(whole) // 2])
    (folder / "folder.json").mkdir()
    for name in ("unknown.txt", "unknown", "json_in.safetensors", "json_in.onnx"):
        shutil.copy(files[".json"], folder / name)
    shutil.copy(files[".safetensors"], folder / "safetensors_in.json")
    (folder / "number.json").write_text("3\n")
    (folder / "list.json").write_text("[]\n")
    np.save(folder / "x.npy", np.zeros((2, 3), np.float32))
    return folder


def assert_one_line(result: Any, command: str, name: object) -> None:
    assert result.code == 1
    assert result.err.count("\n") == 1
    assert result.err.startswith(f"gometal {command}: ")
    assert str(name) in result.err


@pytest.mark.parametrize("command", ["inspect", "verify", "convert", "predict"])
@pytest.mark.parametrize("name", NAMES)
def test_damaged_file(run: Any, bad: Path, tmp_path: Path, command: str, name: str) -> None:
    more = {"convert": [tmp_path / "out.json"], "predict": [bad / "x.npy"]}.get(command, [])
    result = run(command, bad / name, *more)
    assert_one_line(result, command, bad / name)
    assert result.out == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["verify", "convert", "predict"])
@pytest.mark.parametrize("name", ["spec_zero", "weights_nil", "floats_parameters"])
def test_a_file_of_go_metal_that_cannot_run(run: Any, golden: Path, tmp_path: Path, command: str, name: str) -> None:
    path = golden / "json" / f"{name}.json"
    np.save(tmp_path / "x.npy", np.zeros((2, 3), np.float32))
    more = {"convert": [tmp_path / "out.onnx"], "predict": [tmp_path / "x.npy"]}.get(command, [])
    assert_one_line(run(command, path, *more), command, tmp_path / "out.onnx" if command == "convert" else path)
    assert not (tmp_path / "out.onnx").exists()


def test_every_go_metal_file_can_be_inspected(run: Any, golden: Path) -> None:
    for path in sorted(golden.glob("*/*.json")):
        result = run("inspect", path)
        assert (result.code, result.err) == (0, ""), path


def test_every_go_metal_onnx_file_is_either_right_or_one_line(run: Any, golden: Path) -> None:
    codes = set()
    for path in sorted(golden.glob("onnx/*.onnx")):
        result = run("verify", path)
        codes.add(result.code)
        if result.code:
            assert_one_line(result, "verify", path)
    assert codes == {0, 1}


@pytest.mark.parametrize("output", ["out.txt", "out", "no_folder/out.json", "folder.json", "folder.onnx"])
def test_output_that_cannot_be_written(run: Any, files: dict[str, Path], tmp_path: Path, output: str) -> None:
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "folder.onnx").mkdir()
    result = run("convert", files[".safetensors"], tmp_path / output)
    assert_one_line(result, "convert", tmp_path / output)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder.json", "folder.onnx"]


def test_a_spec_that_lies_is_named(run: Any, files: dict[str, Path], tmp_path: Path) -> None:
    value = json.loads(files[".json"].read_text())
    value["weights"][0]["data"].pop()
    path = tmp_path / "short.json"
    path.write_text(json.dumps(value))
    result = run("verify", path)
    assert_one_line(result, "verify", path)
    assert "fc1.weight" in result.err


# ----------------------------------------------------------------------------------------------------------- predict

INPUTS = {
    "shape.npy": np.zeros((2, 4), np.float32),
    "rank.npy": np.zeros(3, np.float32),
    "rows.npy": np.zeros((0, 3), np.float32),
    "scalar.npy": np.float32(1),
    "texts.npy": np.array([["a", "b", "c"]]),
    "complex.npy": np.zeros((2, 3), np.complex64),
}


@pytest.mark.parametrize("name", [*INPUTS, "missing.npy", "noise.npy", "empty.npy", "archive.npz", "objects.npy"])
def test_predict_names_the_array(run: Any, files: dict[str, Path], tmp_path: Path, name: str) -> None:
    for key, array in INPUTS.items():
        np.save(tmp_path / key, array)
    (tmp_path / "noise.npy").write_bytes(bytes(range(256)))
    (tmp_path / "empty.npy").touch()
    np.savez(tmp_path / "archive.npz", x=np.zeros((2, 3), np.float32))
    np.save(tmp_path / "objects.npy", np.array([[None, 1, 2]], object), allow_pickle=True)
    result = run("predict", files[".json"], tmp_path / name)
    assert_one_line(result, "predict", tmp_path / name)
    assert result.out == ""


def test_predict_names_the_output(run: Any, files: dict[str, Path], tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((2, 3), np.float32))
    out = tmp_path / "no_folder" / "p.npy"
    assert_one_line(run("predict", files[".json"], tmp_path / "x.npy", "--out", out), "predict", out)


# ------------------------------------------------------------------------------------------------------------- train


def arrays(rows: int = 10, **other: Any) -> dict[str, Any]:
    return {"x": np.zeros((rows, 3), np.float32), "y": np.arange(rows) % 2} | other


DATA = {
    "no_y.npz": {"x": np.zeros((10, 3))},
    "few.npz": arrays(4),
    "values.npz": arrays(y=np.linspace(0, 1, 10)),
    "one_hot.npz": arrays(y=np.eye(2, dtype=int)[np.arange(10) % 2]),
    "lengths.npz": arrays(y=np.arange(9)),
    "texts.npz": arrays(x=np.full((10, 3), "a")),
    "negative.npz": arrays(y=-np.arange(10)),
    "one_class.npz": arrays(y=np.zeros(10, int)),
    "stray.npz": arrays(y=np.array([0, 1] * 4 + [0, 200_000_000])),
}


@pytest.mark.parametrize("name", [*DATA, "missing.npz", "noise.npz", "array.npy"])
def test_train_names_the_data(run: Any, tmp_path: Path, name: str) -> None:
    for key, content in DATA.items():
        np.savez(tmp_path / key, **content)
    (tmp_path / "noise.npz").write_bytes(bytes(range(256)))
    np.save(tmp_path / "array.npy", np.zeros((10, 3)))
    result = run("train", "--data", tmp_path / name, "--model", "mlp", "--epochs", 1, "--out", tmp_path / "out")
    assert_one_line(result, "train", tmp_path / name)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--epochs", "-1"], "epochs"),
        (["--batch-size", "0"], "1"),
        (["--learning-rate", "0"], "learning_rate"),
        (["--learning-rate", "nan"], "learning_rate"),
        (["--optimizer", "Adan"], "did you mean 'Adam'"),
        (["--seed", "-1"], "seed"),
        (["--seed", str(2**64)], "seed"),
        (["--model", "cnn"], "use --model mlp"),
    ],
)
def test_train_refuses_settings(run: Any, tmp_path: Path, options: list[str], told: str) -> None:
    np.savez(tmp_path / "d.npz", **arrays())
    fixed = ["--data", tmp_path / "d.npz", "--model", "mlp", "--epochs", "1", "--out", tmp_path / "out"]
    assert_one_line(run("train", *fixed, *options), "train", told)


def test_train_names_the_folder(run: Any, tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", **arrays())
    (tmp_path / "out").touch()
    result = run("train", "--data", tmp_path / "d.npz", "--model", "mlp", "--epochs", "1", "--out", tmp_path / "out")
    assert_one_line(result, "train", tmp_path / "out")


def test_train_tries_to_write_before_it_trains(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**_: object) -> None:
        raise OSError(30, "Read-only file system")

    np.savez(tmp_path / "d.npz", **arrays())
    monkeypatch.setattr(train.tempfile, "TemporaryFile", fail)
    monkeypatch.setattr(train.ModelTrainer, "fit", lambda *_, **__: pytest.fail("it was trained"))
    result = run("train", "--data", tmp_path / "d.npz", "--model", "mlp", "--out", tmp_path / "out")
    assert_one_line(result, "train", f"{tmp_path / 'out'}: cannot be used as a folder: Read-only file system")

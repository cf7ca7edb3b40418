"""The frame around the subcommands: usage, exit codes, no tracebacks."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gometal_mlx as gm
from gometal_mlx.cli import inspect
from gometal_mlx.cli.main import COMMANDS, main


@pytest.mark.parametrize(
    "argv",
    [
        [], ["frobnicate"], ["--frobnicate"], ["inspect"], ["inspect", "a.json", "b.json"],
        ["inspect", "--yaml", "a.json"], ["convert", "a.json"], ["verify"],
        ["verify", "a.onnx", "--tolerance", "small"], ["predict", "a.json"], ["train", "--epochs", "many"],
        ["train", "--model", "transformer"], ["train", "extra"],
    ],
)  # fmt: skip
def test_wrong_usage_exits_2(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as e:
        main(argv)
    out, err = capsys.readouterr()
    assert (e.value.code, out) == (2, "")
    assert err.startswith("usage: gometal")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as e:
        main([command, "--help"])
    assert e.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: gometal {command}")


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    out = capsys.readouterr().out
    for command in COMMANDS:
        assert f"\n    {command} " in out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as e:
        main(["--version"])
    assert (e.value.code, capsys.readouterr().out) == (0, f"gometal_mlx {gm.__version__}\n")


def test_interrupting_is_one_line(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*paths: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(inspect, "read", interrupted)
    result = run("inspect", "a.json")
    assert (result.code, result.err) == (130, "gometal inspect: interrupted\n")


def test_as_a_program(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "gometal_mlx.cli.main", "inspect", str(tmp_path / "none.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"gometal inspect: {tmp_path / 'none.json'}: no such file\n"


def test_a_reader_that_has_gone_is_no_error_message(files: dict[str, Path]) -> None:
    command = [sys.executable, "-m", "gometal_mlx.cli.main", "inspect", str(files[".json"])]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait() == 1


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_names_that_the_output_has_no_letters_for(encoding: str, tmp_path: Path) -> None:
    trainer = gm.ModelTrainer(gm.ModelBuilder((4, 3)).add_dense(2).compile(), gm.TrainerConfig(seed=0))
    trainer.info = {"class_names": ["\u03b1", "b"]}
    trainer.save(tmp_path / "\u03b1.json")
    command = [sys.executable, "-m", "gometal_mlx.cli.main", "inspect"]
    setting = {**os.environ, "PYTHONIOENCODING": encoding}
    for name, code in (("\u03b1.json", 0), ("\u5bc6.json", 1)):
        done = subprocess.run([*command, str(tmp_path / name)], capture_output=True, env=setting, check=False)
        assert done.returncode == code, done.stderr
        told = (done.stderr if code else done.stdout).decode(encoding)
        assert "Traceback" not in told
        assert ascii(name)[1:-1] in told


def test_training_without_standard_error(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=np.random.default_rng(0).standard_normal((40, 3)), y=np.arange(40) % 2)
    told = f"--data {tmp_path / 'd.npz'} --epochs 1 --model mlp --out {tmp_path / 'o'}"
    command = f"{sys.executable} -m gometal_mlx.cli.main train {told} 2>&-"
    done = subprocess.run(["sh", "-c", command], capture_output=True, check=False)
    assert done.returncode == 0
    assert b"accuracy" in done.stdout

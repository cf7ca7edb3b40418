"""``gometal doctor``: it tells what there is, and what is broken in one line."""

import os
import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

import gometal_mlx as gm
from gometal_mlx._blas import BlasStatus
from gometal_mlx.cli import doctor

linux = pytest.mark.skipif(sys.platform != "linux", reason="g++ compiles steps on Linux only")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(doctor, "SECONDS", 0.01)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.delenv("MLX_DISABLE_COMPILE", raising=False)


def test_a_whole_installation(run: Any) -> None:
    result = run("doctor")
    assert (result.code, result.err) == (0, "")
    for text in (gm.__version__, "onnxruntime", "safetensors", "Metal", "GFLOP/s", "mx.compile", "scikit-learn"):
        assert text in result.out


def test_the_blas_and_every_reason(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLX_DISABLE_COMPILE", "1")
    status = BlasStatus("bundled", "/some/where.so", "SkylakeX", 7, ("first reason", "second reason"))
    monkeypatch.setattr(doctor, "STATUS", status)
    result = run("doctor")
    assert result.code == 0
    for text in ("scipy-openblas32", "/some/where.so", "SkylakeX", "7", "first reason", "second reason"):
        assert text in result.out
    assert "switched off by MLX_DISABLE_COMPILE" in result.out


@pytest.mark.parametrize("has", [True, False])
def test_large_pages(run: Any, monkeypatch: pytest.MonkeyPatch, has: bool) -> None:
    monkeypatch.setattr(doctor, "HAS_LARGE_PAGES", has)
    told = "for the heap's first 448 MB" if has else "none"
    assert f"large pages       {told}\n" in run("doctor").out


@pytest.mark.parametrize("folder", ["missing", "", pytest.param("/proc", marks=linux)])
def test_tmpdir_is_not_writable(run: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, folder: str) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / folder) if folder else "")
    result = run("doctor")
    assert result.code == 1
    assert result.err.startswith("gometal doctor: mx.compile fails: ")
    assert result.err.count("\n") == 1
    assert ("not writable" if folder == "/proc" else "no folder") in result.out


@linux
def test_a_broken_compiler(run: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "g++").write_text("#!/bin/sh\ntest $1 = --version\n")
    (tmp_path / "g++").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    result = run("doctor")
    assert result.code == 1
    assert "mx.compile fails" in result.err
    assert result.err.count("\n") == 1


@linux
def test_no_compiler_is_slow_but_not_broken(run: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    result = run("doctor")
    assert (result.code, result.err) == (0, "")
    assert "not found: steps run uncompiled" in result.out


def test_a_package_that_cannot_be_imported(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLX_DISABLE_COMPILE", "1")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    result = run("doctor")
    assert result.code == 1
    assert result.err.startswith("gometal doctor: onnxruntime cannot be imported")


def test_wrong_results_are_broken(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLX_DISABLE_COMPILE", "1")
    real = doctor.mx.array
    monkeypatch.setattr(doctor.mx, "array", lambda a: real(a + 1))
    result = run("doctor")
    assert result.code == 1
    assert "wrong results" in result.err


def test_a_gpu_with_half_the_digits_is_told_of(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    real = doctor.mx.array

    def rounded(a: np.ndarray) -> mx.array:  # to 11 bits
        c = a * np.float32(2**13 + 1)
        return real(c - (c - a))

    assert "TF32" not in run("doctor").out
    monkeypatch.setattr(doctor.mx, "array", rounded)
    result = run("doctor")
    assert result.code == 0
    assert "float32    products with 11 of 24 bits (TF32); MLX_ENABLE_TF32=0 takes all\n" in result.out


@pytest.mark.parametrize(("machine", "told"), [("x86_64", True), ("arm64", False)])
def test_denormal_numbers_are_slow_on_x86_alone(
    machine: str, told: bool, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor.platform, "machine", lambda: machine)
    assert ("denormal numbers" in run("doctor").out) == told

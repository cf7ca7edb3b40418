"""``gometal doctor``: what this installation is made of, how fast it multiplies, and whether something is broken."""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

import mlx.core as mx
import numpy as np

from .._blas import STATUS
from .._compile import adds_options, temporary_folder
from .._cpu import flushes_denormals
from .._lanes import most
from .._malloc import AHEAD, HAS_LARGE_PAGES, KEEPS_MEMORY, STAYS
from .._version import __version__
from ..errors import GoMetalError
from .table import table

PACKAGES = ("mlx.core", "numpy", "onnx", "onnxruntime", "safetensors")
SIZE = 512
SECONDS = 0.5
COMPILE_SECONDS = 120
Row = tuple[object, ...]
COMPILE = "import mlx.core as mx; mx.eval(mx.compile(lambda x: mx.exp(x) * 2 + 1)(mx.ones((3,))))"


def add_parser(subparsers: Any) -> None:
    """Declare the subcommand."""
    p = subparsers.add_parser("doctor", help="show versions, device, BLAS and compiler; exit 1 if something is broken")
    p.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print what was found; being slow is no error, being broken is."""
    broken: list[str] = []
    sections: dict[str, list[Row]] = {
        "Versions": _versions(broken),
        "Device": _device(),
        "BLAS": _blas(broken),
        "Compiler": _compiler(broken),
        "Optional": _extras(),
    }
    print("\n\n".join(f"{title}\n{table(rows, indent='  ')}" for title, rows in sections.items()))
    if broken:
        raise GoMetalError("; ".join(broken))
    return 0


def _device() -> list[Row]:
    told = "zeros on the CPU" if flushes_denormals() else "exact on the CPU, and slow there"
    metal = "available" if mx.metal.is_available() else "no"
    memory = f"up to {STAYS >> 20} MB stay with the process" if KEEPS_MEMORY else "as malloc does by itself"
    pages = f"for the heap's first {AHEAD >> 20} MB" if HAS_LARGE_PAGES else "none"
    rows: list[Row] = [("default", mx.default_device()), ("Metal", metal), ("lanes", most())]
    rows += [("freed memory", memory), ("large pages", pages)]
    return [*rows, ("denormal numbers", told)] if platform.machine() in ("x86_64", "AMD64") else rows


def _versions(broken: list[str]) -> list[Row]:
    system = f"{platform.system()} {platform.machine()}"
    rows: list[Row] = [("gometal_mlx", __version__), ("python", platform.python_version(), system)]
    for name in PACKAGES:
        package = name.partition(".")[0]
        try:
            rows.append((package, importlib.import_module(name).__version__))
        except Exception as e:  # whatever a damaged installation raises
            rows.append((package, "broken"))
            broken.append(f"{package} cannot be imported: {_line(str(e))}")
    return rows


def _blas(broken: list[str]) -> list[Row]:
    sources = {"mlx": "MLX's own", "system": "the system's", "bundled": "scipy-openblas32", "path": "GOMETAL_BLAS"}
    rows: list[Row] = [("library", sources[STATUS.source])]
    found = {"file": STATUS.path, "core type": STATUS.core_type, "threads": STATUS.threads}
    rows += [(name, value) for name, value in found.items() if value is not None]
    a, b = np.random.default_rng(0).standard_normal((2, SIZE, SIZE)).astype(np.float32)
    x, y = mx.array(a), mx.array(b)
    with np.errstate(all="ignore"):  # numpy before 2.4 warns of nothing on a Mac
        wanted = a @ b
    error = np.abs(np.array(x @ y) - wanted).max() / np.abs(wanted).max()
    if not error <= 1e-3:
        broken.append("matrix multiplication gives wrong results; GOMETAL_BLAS=off may help")
    elif error > 1e-5:
        rows.append(("float32", "products with 11 of 24 bits (TF32); MLX_ENABLE_TF32=0 takes all"))
    times: list[float] = []
    end = time.perf_counter() + SECONDS
    while len(times) < 3 or time.perf_counter() < end:
        start = time.perf_counter()
        mx.eval(x @ y)
        times.append(time.perf_counter() - start)
    middle, best = (2 * SIZE**3 / t / 1e9 for t in (statistics.median(times), min(times)))
    rows.append(("speed", f"{middle:.3g} GFLOP/s at {SIZE} x {SIZE} float32 (median of {len(times)}; best {best:.3g})"))
    if best > 4 * middle and STATUS.threads not in (None, 1):
        rows.append(("note", "other processes hold the threads up; OPENBLAS_NUM_THREADS=1 would be steadier"))
    return [*rows, *(("note", _line(note)) for note in STATUS.notes)]


def _compiler(broken: list[str]) -> list[Row]:
    """MLX on a CPU compiles a step with g++ into TMPDIR; without g++ it silently does not."""
    rows: list[Row] = []
    if sys.platform == "linux":
        rows.append(("g++", shutil.which("g++") or "not found: steps run uncompiled, and slower"))
        rows.append(("options", "for vector instructions" if adds_options() else "MLX's own"))
    if "MLX_DISABLE_COMPILE" in os.environ:
        return [*rows, ("mx.compile", "switched off by MLX_DISABLE_COMPILE")]
    folder = temporary_folder()
    if not os.path.isdir(folder):  # MLX goes to no other, Python would
        rows += [("TMPDIR", f"{folder!r}, no folder"), ("mx.compile", "broken")]
        broken.append(f"mx.compile fails: TMPDIR is {folder!r}; set it to a folder that can be written")
        return rows
    try:
        with tempfile.TemporaryDirectory(prefix="gometal-doctor-", dir=folder) as empty:
            rows.append(("TMPDIR", f"{folder}, writable"))
            why = _compile_in(empty)
    except OSError as e:
        rows.append(("TMPDIR", f"{folder}, not writable"))
        why = f"{folder}: {e.strerror or e}"
    rows.append(("mx.compile", "broken" if why else "works"))
    if why:
        broken.append(f"mx.compile fails: {why}; repair it or set MLX_DISABLE_COMPILE=1")
    return rows


def _compile_in(folder: str) -> str:
    """Compile in a new process with an empty folder, where nothing is remembered; why it failed, or nothing."""
    command, variables = [sys.executable, "-c", COMPILE], {**os.environ, "TMPDIR": folder}
    try:
        done = subprocess.run(command, env=variables, capture_output=True, timeout=COMPILE_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return f"not done after {COMPILE_SECONDS} s"
    failed = _line(done.stderr.decode(errors="replace")) or f"exit code {done.returncode}"
    return failed if done.returncode else ""


def _extras() -> list[Row]:
    """The packages that the extras of pyproject.toml bring, as far as they are there."""
    try:
        required = importlib.metadata.requires("gometal_mlx") or []
    except importlib.metadata.PackageNotFoundError:
        return [("gometal_mlx", "not installed, run from a folder")]
    rows: list[Row] = []
    for line in required:
        match = re.match(r"([\w.-]+)(\[)?[^;]*;.*extra == ['\"](\w+)['\"]", line)
        if match and not match[2] and match[3] != "dev":
            try:
                version = importlib.metadata.version(match[1])
            except importlib.metadata.PackageNotFoundError:
                version = f"missing: pip install 'gometal_mlx[{match[3]}]'"
            rows.append((match[3], match[1], version))
    return sorted(rows, key=str)


def _line(text: str) -> str:
    """The last line of an error's text: the one that says it."""
    return text.strip().rpartition("\n")[2]

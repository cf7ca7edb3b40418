"""How kernels are compiled; and where MLX cannot: the same numbers, and one warning that says why."""

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from gometal_mlx import _compile
from gometal_mlx._compile import compiling, evaluated

PROGRAM = """
import json, sys, warnings
import numpy as np
import gometal_mlx as gm

x = np.random.default_rng(0).standard_normal((60, 8)).astype(np.float32)
y = np.random.default_rng(1).integers(0, 3, 60)
found, told = {}, []
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for optimizer in ("Adam", "LBFGS"):
        spec = gm.ModelBuilder((16, 8)).add_dense(7).add_swish().add_dropout(0.2).add_dense(3).compile()
        config = gm.TrainerConfig(seed=0, optimizer_type=optimizer, batch_size=16, stop_on_nan=optimizer == "Adam")
        trainer = gm.ModelTrainer(spec, config)
        history = trainer.fit((x, y), 3)  # the last batch of an epoch is smaller
        found[optimizer] = [*(r["loss"] for r in history.records), trainer.evaluate((x, y))["loss"]]
        found[optimizer] += gm.Predictor(trainer.checkpoint()).predict(x[:2]).reshape(-1).tolist()
    told = [str(w.message) for w in caught if "uncompiled" in str(w.message)]
print(json.dumps({"found": found, "told": told, "kernels": gm._compile.makes_kernels()}))
"""


KERNELS = """
import hashlib, json, subprocess
import mlx.core as mx, numpy as np
from gometal_mlx._compile import evaluated
from gometal_mlx.layers._exp import elu, sigmoid, tanh
from gometal_mlx.optimizers.adam import Adam

adam, rng = Adam(0.01, weight_decay=0.1), np.random.default_rng(0)
values = [mx.array(rng.standard_normal(1003).astype(np.float32)) for _ in range(4)]
values[2] = mx.abs(values[2])

@mx.compile
def step(w, m, v, g):
    state = {"momentum": m, "variance": v}
    w = adam.rule(w, g * (w > 0), state, mx.array(3.0), mx.array(0.1))
    return mx.tanh(w), w, state["momentum"], state["variance"]

@mx.compile
def layers(x, b):  # written into products and transposed ones, read in windows, chosen by comparisons of two types
    y = mx.maximum(x @ x.T + b, 0)
    z = (x @ x.T).T * b - y.T
    windows = -(-mx.as_strided(y, (7, 6, 3, 6), (34, 2, 17, 1)))
    return windows, z, mx.where(z > 0, y, 0.5 * y) * (y < 1), sigmoid(z), elu(y, 0.5)

@mx.compile
def exponentials(x):  # MLX's own, which asks for fused multiply-adds, and sums of products, which do not
    return 2 * mx.exp(x), sigmoid(x), tanh(x), elu(x, 0.5), x * x + x, mx.exp(x[:, :7] - x[:, 7:8])

x, b = values[0][:986].reshape(17, 58), values[3][:17]
wide = np.linspace(-100, 100, 20_000, dtype=np.float32)
wide[:9] = np.inf, -np.inf, np.nan, 0, -0.0, 1e-40, 88, -88, 3e38
wide = mx.array(wide).reshape(2000, 10)
found = evaluated(lambda: (lambda y: (mx.eval(y), y)[1])([*step(*values), *layers(x, b), *exponentials(wide)]))
afterwards = subprocess.run(["sh", "-c", "command -v g++"], capture_output=True, text=True).stdout.strip()
print(json.dumps([[hashlib.sha256(np.array(y)).hexdigest() for y in found], afterwards]))
"""


def run(program: str = PROGRAM, **variables: str) -> Any:
    environment = {k: v for k, v in os.environ.items() if k != "MLX_DISABLE_COMPILE"}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment | variables, capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


def compiler(folder: Path, text: str) -> str:
    """A PATH with a g++ that does this."""
    folder.mkdir()
    (folder / "g++").write_text(f"#!/bin/sh\n{text}\n")
    (folder / "g++").chmod(0o755)
    return f"{folder}{os.pathsep}{os.environ['PATH']}"


def without_gxx(folder: Path) -> str:
    """A PATH with a shell and nothing else."""
    folder.mkdir()
    for name in ("sh", "env", "uname"):
        (folder / name).symlink_to(str(shutil.which(name)))
    return str(folder)


@pytest.mark.skipif(sys.platform != "linux", reason="on a Mac Metal compiles, without g++")
@pytest.mark.parametrize(
    "case", ["no compiler", "one that does not run", "no program", "one that fails", "no TMPDIR", "a file"]
)
def test_everything_runs_uncompiled_with_one_warning(case: str, tmp_path: Path) -> None:
    if case in ("no TMPDIR", "a file") and shutil.which("g++") is None:
        pytest.skip("there is no g++ here, so MLX never comes to look at the folder")
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()  # so that no kernel of another run is found
    variables = {"TMPDIR": str(tmp_path / "empty")}
    if case == "no compiler":
        told = "there is no g++"
        variables["PATH"] = without_gxx(tmp_path / "bin")
    elif case == "one that does not run":
        told = "does not run"
        variables["PATH"] = compiler(tmp_path / "bin", "exit 1")
    elif case == "no program":
        told = "does not run"
        variables["PATH"] = compiler(tmp_path / "bin", "")
        (tmp_path / "bin" / "g++").write_bytes(b"\0no program")
    elif case == "one that fails":
        told = "compiling failed (it is broken)"
        variables["PATH"] = compiler(
            tmp_path / "bin", 'case "$*" in *--version*) exit 0;; esac; echo it is broken; exit 1'
        )
    else:
        told = "compiling failed (filesystem error"
        variables["TMPDIR"] = str(tmp_path / ("missing" if case == "no TMPDIR" else "file"))
    usual, found = run(MLX_DISABLE_COMPILE="1"), run(**variables)
    assert usual["told"] == []
    assert not usual["kernels"]
    assert not found["kernels"]
    assert len(found["told"]) == 1
    assert told in found["told"][0]
    assert "\n" not in found["told"][0]
    assert found["found"] == usual["found"]  # to the last bit, the step that failed first included


@pytest.mark.skipif(sys.platform != "linux" or shutil.which("g++") is None, reason="only g++ gets options")
def test_options_for_the_compiler_change_speed_alone(tmp_path: Path) -> None:
    """The same numbers to the last bit, and a PATH as it was, with, without, and where g++ knows no such options."""
    real, log = shutil.which("g++"), tmp_path / "log"
    note = f'echo "$@" >>"{log}"'
    refuse = 'case "$*" in *-fno-math-errno*) echo unknown option; exit 1;; esac'
    compilers = {"ours": note, "keep": note, "refused": f"{note}\n{refuse}"}
    found, told, options = {}, {}, ""
    for name, text in compilers.items():
        (tmp_path / f"kernels {name}").mkdir()
        variables = {"TMPDIR": str(tmp_path / f"kernels {name}"), "GOMETAL_COMPILER": "keep" if name == "keep" else ""}
        variables["PATH"] = compiler(tmp_path / name, f'{text}\nexec "{real}" "$@"')
        found[name], afterwards = run(KERNELS, **variables)
        assert afterwards == str(tmp_path / name / "g++")
        options = options if name != "ours" else log.read_text()
        told[name] = ["-fno-math-errno" in line for line in log.read_text().splitlines() if ".cpp" in line]
        log.unlink()
    assert found["ours"] == found["refused"] == found["keep"]
    assert set(told["ours"]) == {True}
    assert "-finline-limit" in options  # without which exponentials are no vectors
    modern = {"avx2", "fma"} <= set(Path("/proc/cpuinfo").read_text().split())
    assert all((option in options) == modern for option in ("-mavx2", "-mfma", "-ffp-contract=off"))
    assert set(told["keep"]) == {False}
    assert told["refused"] == [True, False] * len(told["keep"])  # with the options, and then without


MANY_KINDS = """
import json, sys
import numpy as np
import gometal_mlx as gm

x, y = np.random.default_rng(0).standard_normal((8, 5)).astype(np.float32), np.arange(8) % 3
spec = gm.ModelBuilder((8, 5)).add_dense(7).add_swish().add_dense(3).compile()
for steps, labels in ((2, y), (1, y), (1, np.eye(3)[y])):
    for optimizer in ("Adam", "LBFGS"):
        if optimizer == "Adam" or steps == 1:
            config = gm.TrainerConfig(seed=0, optimizer_type=optimizer, accumulation_steps=steps, stop_on_nan=False)
            trainer = gm.ModelTrainer(spec, config)
            for given in (y, labels, labels, y, labels):
                trainer.train_batch(x, given)
            trainer.predict(x)
print(json.dumps(gm._compile.makes_kernels()))
"""


@pytest.mark.skipif(sys.platform != "linux" or shutil.which("g++") is None, reason="only g++ gets options")
def test_every_kernel_of_a_step_is_compiled_with_our_options(tmp_path: Path) -> None:
    """Also those of an update that several batches have waited for, and for other labels of a known batch."""
    assert run(MANY_KINDS, TMPDIR=str(tmp_path))
    assert len(list(tmp_path.glob("gometal_mlx-*/mlx/*/cpu/*.so"))) > 10
    assert not list(tmp_path.glob("mlx/*/cpu/*.so"))


STALE = """
import json, sys, tempfile
from gometal_mlx._compile import evaluated, kernel_folder, temporary_folder
import mlx.core as mx

function = mx.compile(lambda x: mx.exp(x) * 2)
found = (evaluated if "ours" in sys.argv else lambda call: call())(lambda: function(mx.arange(5.0)).tolist())
print(json.dumps([found, kernel_folder(), temporary_folder(), tempfile.gettempdir()]))
"""


@pytest.mark.skipif(sys.platform != "linux" or shutil.which("g++") is None, reason="only g++ gets options")
@pytest.mark.parametrize("case", ["compiled by MLX alone", "not ours", "not a folder", "a link"])
def test_kernels_that_others_have_compiled_are_not_taken(case: str, tmp_path: Path) -> None:
    """MLX takes what lies in its folder, however it was compiled: sigmoids of 15 times the time."""
    log, real = tmp_path / "log", shutil.which("g++")
    variables = {
        "TMPDIR": str(tmp_path),
        "PATH": compiler(tmp_path / "bin", f'echo "$@" >>"{log}"\nexec "{real}" "$@"'),
    }

    def compiled() -> list[bool]:
        lines = log.read_text().splitlines() if log.exists() else []
        log.unlink(missing_ok=True)
        return ["-finline-limit" in line for line in lines if ".cpp" in line]

    numbers, folder, *others = run(STALE, **variables)
    assert others == [str(tmp_path)] * 2  # which a user's program sees
    assert (compiled(), Path(folder).parent) == ([False], tmp_path)
    (mlxs,) = tmp_path.glob("mlx/*/cpu/*.so")
    if case == "not a folder":
        Path(folder).rmdir()
        Path(folder).write_text("")
    elif case == "a link":
        Path(folder).rename(tmp_path / "real")
        Path(folder).symlink_to(tmp_path / "real")
    elif case == "not ours":
        if os.geteuid():
            pytest.skip("only root can give a folder away")
        os.chown(folder, 1, 1)
    ours = STALE.replace("sys.argv", "['ours']")
    again = run(ours, **variables)
    assert (again[0], again[2:]) == (numbers, others)
    if case != "compiled by MLX alone":  # as if there were no such folder
        assert (again[1], compiled()) == (str(tmp_path), [])
        return
    assert (again[1], compiled()) == (folder, [True])
    (own,) = Path(folder).glob("mlx/*/cpu/*.so")
    assert own.name == mlxs.name
    assert run(ours, **variables)[0] == numbers
    assert compiled() == []  # it is there now


@pytest.mark.skipif(sys.platform != "linux", reason="only g++ gets options")
@pytest.mark.parametrize("tmpdir", ["its own", None])
def test_variables_are_as_before_when_the_last_thread_has_compiled(
    tmpdir: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TMPDIR", raising=False)
    if tmpdir:
        monkeypatch.setenv("TMPDIR", str(tmp_path))
    before = dict(os.environ)
    first_has_left = threading.Event()
    seen: list[tuple[str, str]] = []

    def second() -> None:
        first_has_left.wait(10)
        seen.append((os.environ["PATH"], os.environ["TMPDIR"]))

    thread = threading.Thread(target=lambda: evaluated(second))

    def first() -> None:
        thread.start()
        seen.append((os.environ["PATH"], os.environ["TMPDIR"]))
        while len(_compile._inside) < 2:
            time.sleep(0.001)

    evaluated(first)
    first_has_left.set()
    thread.join()
    assert seen[0] == seen[1]
    assert seen[0][0].endswith(before["PATH"])
    assert seen[0][0] != before["PATH"]
    assert "gometal_mlx-" in seen[0][1]
    assert dict(os.environ) == before


@pytest.mark.parametrize("on", [True, False])
def test_an_error_that_is_not_the_compilers_comes_out(on: bool, compiled: None) -> None:
    """Compilation is then on or off as it was."""
    if not on:
        mx.disable_compile()
    before, calls, undone = compiling(), [], []

    def call() -> None:
        calls.append(1)
        raise RuntimeError("something else")

    with pytest.raises(RuntimeError, match="something else"):
        evaluated(call, lambda: undone.append(1))
    assert len(calls) == len(undone) == 1 + before  # put back after each
    assert compiling() == before


def test_a_predictor_alone_warns_as_well(tmp_path: Path) -> None:
    program = """
import warnings
import gometal_mlx as gm
from gometal_mlx.checkpoints import extract_weights
spec = gm.ModelBuilder((2, 3)).add_dense(2).compile()
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    gm.Predictor(gm.Checkpoint(spec, extract_weights(gm.Model(spec, seed=0)))).predict([[1, 2, 3]])
print(sum("there is no g++" in str(w.message) for w in caught))
"""
    environment = {k: v for k, v in os.environ.items() if k != "MLX_DISABLE_COMPILE"}
    environment["PATH"] = without_gxx(tmp_path / "bin")
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == ("1\n" if sys.platform == "linux" else "0\n")


@pytest.mark.parametrize("variable", ["", "relative"])
def test_a_temporary_folder_that_is_none_is_left_to_mlx(
    variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", variable)
    assert _compile.kernel_folder() == variable
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform != "linux", reason="only g++ gets options")
def test_where_no_folder_can_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> str:
        raise FileNotFoundError("No usable temporary directory found")

    monkeypatch.setattr(_compile.tempfile, "gettempdir", none)
    assert evaluated(lambda: os.environ["PATH"]).startswith(str(_compile.SCRIPT))
    assert not os.environ["PATH"].startswith(str(_compile.SCRIPT))


def test_threads_that_find_out_at_the_same_time_all_run_uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second to fail finds compilation switched off, and must not take that for an error of its own."""
    both_run, tries, on = threading.Barrier(2), [], [True]
    found: list[int] = []
    monkeypatch.setattr(_compile, "compiling", lambda: on[0])
    monkeypatch.setattr(_compile.mx, "disable_compile", lambda: on.insert(0, False))
    monkeypatch.setattr(_compile, "_told", ["said before"])
    monkeypatch.setattr(_compile, "_given_up", [])

    def call() -> int:
        tries.append(1)
        if len(tries) <= 2:
            both_run.wait(10)
            raise RuntimeError("compilation failed")
        return 7

    def work() -> None:
        found.append(evaluated(call))

    thread = threading.Thread(target=work)
    thread.start()
    work()
    thread.join()
    assert found == [7, 7]
    assert len(tries) == 4

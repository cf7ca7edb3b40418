"""What is set up for computing on a CPU: denormal numbers, memory. Each case is a process of its own."""

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

x86 = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() != "x86_64", reason="only x86's register for it is known to us"
)
TELL = """
import numpy as np
{before}
import gometal_mlx as gm, mlx.core as mx
from gometal_mlx._compile import evaluated
from gometal_mlx._cpu import flushes_denormals
mx.set_default_device(mx.cpu)
tiny = np.full(1000, 2.0**-140, np.float32)
x = mx.array(tiny)
tinies = mx.array(np.full((600, 600), 2.0**-140, np.float32))
product = mx.ones((600, 600)) @ tinies  # large enough for all of BLAS's threads
doubled = evaluated(lambda: float(mx.compile(lambda v: v * 2)(x)[0]))
print(flushes_denormals(), float(mx.sum(x * 2)), doubled, float(mx.max(product)))
print((tiny * 2 == 2.0**-139).all(), np.array_equal(np.array(x), tiny))
"""


def told(before: str = "", **environment: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", TELL.format(before=before)],
        env={**os.environ, **environment}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout.splitlines()


@x86
def test_mlx_takes_them_for_zeros_and_numpy_does_not() -> None:
    assert told() == ["True 0.0 0.0 0.0", "True True"]


@x86
@pytest.mark.parametrize(
    ("before", "environment"),
    [("", {"GOMETAL_DENORMALS": "keep"}), ("import mlx.core as mx; mx.eval(mx.zeros(1, stream=mx.cpu) + 1)", {})],
    ids=["as the variable asks", "where MLX computed before"],
)
def test_they_are_kept(before: str, environment: dict[str, str]) -> None:
    flushes, *values = told(before, **environment)[0].split()
    assert flushes == "False"
    assert all(float(v) > 0 for v in values)


@x86
def test_other_processors_are_left_alone() -> None:
    before = "import platform; platform.machine = lambda: 'riscv64'"
    assert told(before)[0].startswith("False ")


def test_a_checkpoint_keeps_them(tmp_path: Path) -> None:
    """Files hold what numpy reads; nothing is computed with on the way."""
    code = """
import sys, numpy as np, gometal_mlx as gm
from gometal_mlx.checkpoints import extract_weights
trainer = gm.ModelTrainer(gm.ModelBuilder((1, 4)).add_dense(3, name="fc").compile())
weights = [w for w in extract_weights(trainer.model)]
for w in weights:
    w.data[:] = np.arange(1, w.data.size + 1, dtype=np.float32).reshape(w.shape) * np.float32(2.0**-149)
gm.checkpoints.load_weights(trainer.model, weights)
for name in ("a.json", "a.safetensors"):
    trainer.save(sys.argv[1] + name)
    again = gm.ModelTrainer.resume(sys.argv[1] + name)
    for w, v in zip(weights, extract_weights(again.model), strict=True):
        assert w.data.tobytes() == v.data.tobytes() and v.data.any()
"""
    subprocess.run([sys.executable, "-c", code, f"{tmp_path}{os.sep}"], check=True)


HELD = """
import gometal_mlx, os, mlx.core as mx
from gometal_mlx._malloc import KEEPS_MEMORY
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE") >> 20
mx.set_default_device(mx.cpu)
before, arrays = resident(), [mx.zeros((1 << 20,)) + i for i in range(75)]  # 300 MB, 4 MB each
mx.eval(arrays)
arrays.clear()
print(KEEPS_MEMORY, resident() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc's malloc")
@pytest.mark.parametrize(
    ("environment", "stays"),
    [({}, True), ({"GOMETAL_MALLOC": "keep"}, False), ({"MALLOC_TRIM_THRESHOLD_": "1000000"}, False)],
)
def test_freed_memory_stays_unless_the_user_has_told_malloc_something(environment: dict[str, str], stays: bool) -> None:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("GOMETAL_MALLOC", "MALLOC_", "GLIBC_TUNABLES"))}
    done = subprocess.run(
        [sys.executable, "-c", HELD], env={**clean, **environment}, capture_output=True, text=True, check=True
    )
    keeps, megabytes = done.stdout.split()
    assert keeps == str(stays)
    assert int(megabytes) > 250 if stays else int(megabytes) < 100


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc's malloc")
@pytest.mark.skipif(shutil.which("g++") is None, reason="another malloc must be compiled")
def test_another_malloc_is_left_alone(tmp_path: Path) -> None:
    source, library = tmp_path / "other.cpp", tmp_path / "other.so"
    source.write_text(
        'extern "C" void *__libc_malloc(unsigned long);\n'
        'extern "C" void *malloc(unsigned long n) { return __libc_malloc(n); }\n'
    )
    writable = {**os.environ, "TMPDIR": str(tmp_path)}
    subprocess.run(["g++", "-shared", "-fPIC", "-o", library, source], env=writable, check=True)
    program = "from gometal_mlx import _malloc; print(_malloc.KEEPS_MEMORY, _malloc.HAS_LARGE_PAGES)"
    environment = {**os.environ, "LD_PRELOAD": str(library)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "False False\n"


AHEAD = """
import gometal_mlx, re
areas = re.split(r"(?m)^(?=[0-9a-f]+-[0-9a-f]+ )", open("/proc/self/smaps").read())
heap = [dict(re.findall(r"(?m)^(\\w+): +(.*)", area)) for area in areas if "[heap]" in area]
asked = [a for a in heap if "hg" in a["VmFlags"].split()]
print(sum(int(a["Size"].split()[0]) for a in asked) >> 10, sum(int(a["Rss"].split()[0]) for a in heap) >> 10)
"""


@pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc" or not Path("/sys/kernel/mm/transparent_hugepage").is_dir(),
    reason="a setting of glibc's malloc, and a kernel that knows large pages",
)
@pytest.mark.parametrize("keep", [False, True])
def test_the_heap_grows_in_large_pages_that_are_not_there_before_somebody_writes_them(keep: bool) -> None:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("GOMETAL_MALLOC", "MALLOC_", "GLIBC_TUNABLES"))}
    environment = {**clean, **({"GOMETAL_MALLOC": "keep"} if keep else {})}
    done = subprocess.run([sys.executable, "-c", AHEAD], env=environment, capture_output=True, text=True, check=True)
    asked, resident = map(int, done.stdout.split())
    assert asked == 0 if keep else asked > 400
    assert resident < 100


IN_THREADS = """
import gometal_mlx, os, threading
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE") >> 20
def hold():
    blocks = [bytearray(30 << 20) for _ in range(20)]
    barrier.wait()
before, barrier = resident(), threading.Barrier(3)
threads = [threading.Thread(target=hold) for _ in range(3)]
[t.start() for t in threads]
[t.join() for t in threads]
print(resident() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc's malloc")
def test_threads_give_back_what_they_freed() -> None:
    done = subprocess.run([sys.executable, "-c", IN_THREADS], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 700  # of 1,800


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc's malloc")
def test_nothing_is_taken_beforehand_where_address_space_is_limited() -> None:
    code = """
import resource
if LIMITED:
    resource.setrlimit(resource.RLIMIT_AS, (4 << 30, resource.getrlimit(resource.RLIMIT_AS)[1]))
import gometal_mlx._malloc as m
print(m.HAS_LARGE_PAGES, int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize())
"""
    sizes = {}
    for limited in (True, False):
        program = code.replace("LIMITED", str(limited))
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        has, size = done.stdout.split()
        sizes[has == "True"] = int(size) >> 20
        assert not (limited and has == "True")
    if len(sizes) == 2:  # else the system gives no large pages, or the whole test is limited
        assert sizes[True] - sizes[False] > 400


@pytest.mark.skipif(sys.platform != "linux", reason="on a Mac there is nothing to leave alone")
@pytest.mark.parametrize("variable", ["GOMETAL_MALLOC", "GOMETAL_DENORMALS", "GOMETAL_COMPILER"])
def test_a_value_that_means_nothing_is_told(variable: str) -> None:
    code = "import gometal_mlx; from gometal_mlx._compile import adds_options; print(adds_options())"
    for value, lines in (("kep", 1), ("keep", 0), ("", 0)):
        environment = {**os.environ, variable: value, "PYTHONWARNINGS": "default"}
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        told = f"{variable} must be 'keep' or unset, got 'kep'; it is ignored"
        assert done.stderr.count(told) == lines, done.stderr

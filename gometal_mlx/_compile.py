"""How ``mx.compile`` makes kernels for a CPU, and what happens where it cannot.

On a CPU MLX builds a compiled function with g++ in ``$TMPDIR/mlx`` when it is first evaluated, with options that leave
many loops without vector instructions: those with a square root or an exponential, over many arrays, with strides, and
all that write into one of their inputs. Adam takes up to twice as long, a bias with ReLU six times, a sigmoid fifteen.
So ``_compiler/g++``, a script, stands before g++ meanwhile and adds options and a header that change no result. MLX
takes a kernel that is in its folder, whoever compiled it and how, so ours are in a folder of their own in ``$TMPDIR``.
``GOMETAL_COMPILER=keep`` leaves MLX its own options and folder.

Without g++ MLX silently compiles nothing; with a g++ that fails, or a folder that cannot be written, the evaluation
raises RuntimeError. Everything then runs uncompiled, and one warning says why.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import mlx.core as mx

from ._processor import processor
from ._setting import keeps

T = TypeVar("T")
SWITCH = "MLX_DISABLE_COMPILE"  # MLX's own
SCRIPT = Path(__file__).parent / "_compiler"  # the folder with the g++ that adds options
_told: list[str] = []  # the one reason that was given
_inside: list[bool] = []  # an entry for each thread that compiles
_before: dict[str, str | None] = {}  # the variables that are changed meanwhile
_given_up: list[bool] = []  # an entry for each time that compilation was switched off, because it did not work
_lock = threading.Lock()
_falling_back = threading.Lock()


def evaluated(call: Callable[[], T], undo: Callable[[], object] = lambda: None, *, new: bool = True) -> T:
    """``call()``, which calls compiled functions and evaluates what they give.

    Args:
        undo: puts back what a failed call has changed, before it is made again without compilation.
        new: whether kernels may be missing: g++ then gets our options.
    """
    before = len(_given_up)
    try:
        with _own_options() if new else contextlib.nullcontext():
            return call()
    except RuntimeError as e:
        undo()
        if mx.default_device().type != mx.cpu:
            raise  # a GPU has kernels without a compiler: it was something else, its memory perhaps
        with _falling_back:
            if not compiling():
                if len(_given_up) == before:
                    raise
                return call()  # another thread has found out meanwhile that it does not work
            mx.disable_compile()
            _given_up.append(True)
            try:
                found = call()
            except BaseException as other:  # it was not the compilation, or Ctrl-C came before that was known
                mx.enable_compile()
                _given_up.pop()
                if not isinstance(other, RuntimeError):
                    raise
                undo()
                raise e from None
            _tell(f"compiling failed ({_reason(e)})")
            return found


def adds_options() -> bool:
    """Whether kernels that are missing are compiled with our options."""
    return sys.platform == "linux" and not keeps("GOMETAL_COMPILER")


def temporary_folder() -> str:
    """Where MLX and g++ write: C++'s ``temp_directory_path``. Python's ``gettempdir`` would go elsewhere in silence."""
    names = ("TMPDIR", "TMP", "TEMP", "TEMPDIR")
    return next((os.environ[name] for name in names if name in os.environ), "/tmp")


@contextlib.contextmanager
def _own_options() -> Iterator[None]:
    """The variables by which MLX finds our g++ and our folder; as they were when the last thread has left."""
    if "PATH" not in os.environ or not adds_options():
        yield
        return
    with _lock:
        if not _inside:
            with contextlib.suppress(OSError):  # there may be none
                tempfile.gettempdir()  # which another thread may ask for meanwhile, and remembers for ever
            ours = {"TMPDIR": kernel_folder(), "PATH": f"{SCRIPT}{os.pathsep}{os.environ['PATH']}"}
            _before.update({name: os.environ.get(name) for name in ours})
            os.environ.update(ours)
        _inside.append(True)
    try:
        yield
    finally:
        with _lock:
            _inside.pop()
            if not _inside:
                for name, value in _before.items():
                    if value is None:
                        os.environ.pop(name, None)
                    else:
                        os.environ[name] = value


def kernel_folder() -> str:
    """What takes the place of ``$TMPDIR`` while kernels are compiled with our options: a folder in it.

    Another user, processor, compiler or version of the options has another one. Where it cannot be made, or is not the
    user's own, it is ``$TMPDIR`` itself, and MLX says what is wrong with that.
    """
    usual = temporary_folder()
    if not os.path.isabs(usual):
        return usual  # MLX says what it thinks of that
    folder = os.path.join(usual, f"gometal_mlx-{os.geteuid()}-{_key(os.path.realpath(shutil.which('g++') or ''))}")
    try:
        with contextlib.suppress(FileExistsError):
            os.mkdir(folder, 0o700)
        found = os.lstat(folder)  # a link would be somebody else's choice
        return folder if stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() else usual
    except OSError:
        return usual


@functools.cache
def _key(compiler: str) -> str:
    """Of all that our kernels depend on; MLX has a folder for each of its versions by itself."""
    parts = [compiler.encode(), repr(processor()).encode()]
    parts += [path.read_bytes() for path in sorted(SCRIPT.rglob("*")) if path.is_file()]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def compiling() -> bool:
    """Whether MLX keeps what it has traced; it has no question for that."""
    traced = []

    def trace(x: mx.array) -> mx.array:
        traced.append(1)
        return x + 1

    function = mx.compile(trace)
    function(mx.zeros(1))
    function(mx.zeros(1))
    return len(traced) == 1


def makes_kernels() -> bool:
    """Whether compiled functions become kernels on the CPU, as far as is known before they are evaluated."""
    return not (SWITCH in os.environ or _given_up or _missing_compiler())


@functools.cache
def tell_if_there_is_no_compiler() -> None:
    """Warn, once, where MLX finds no g++ that runs."""
    if not mx.metal.is_available() and SWITCH not in os.environ and (why := _missing_compiler()):
        _tell(why)


@functools.cache
def _missing_compiler() -> str | None:
    """Why MLX cannot compile kernels for a CPU, if that is so."""
    path = shutil.which("g++")
    if path is None:
        return "there is no g++"
    return None if _runs(path) else f"{path} does not run"


def _runs(program: str) -> bool:
    try:
        done = subprocess.run([program, "--version"], capture_output=True, timeout=10, check=False)
    except (OSError, subprocess.SubprocessError):
        return False
    return done.returncode == 0


def _tell(why: str) -> None:
    if _told:
        return
    _told.append(why)
    advice = f"install g++, set TMPDIR to a folder that can be written, or set {SWITCH}=1 to silence this"
    warnings.warn(
        f"MLX runs uncompiled, which takes up to four times as long: {why}; {advice}", RuntimeWarning, stacklevel=2
    )


def _reason(e: RuntimeError) -> str:
    """What the compiler said, without its long command line; other messages as they are."""
    return " ".join(str(e).rpartition("the output is: ")[2].split())[:200]

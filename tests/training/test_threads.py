"""Python threads: they share a model, and do not end the process with an abort."""

import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from training_support import arrays, blobs, mlp

from gometal_mlx import _leaving
from gometal_mlx.errors import GoMetalError
from gometal_mlx.training import ModelTrainer, TrainerConfig

IN_A_POOL = """
import sys, warnings
from concurrent.futures import ThreadPoolExecutor
import numpy as np, gometal_mlx as gm

warnings.simplefilter("error")
warnings.filterwarnings("ignore", "MLX runs uncompiled")
spec = gm.ModelBuilder((16, 3, 4, 4)).add_conv2d(4, 3).add_swish().add_dense(3).compile()
predict = gm.Predictor(gm.ModelTrainer(spec, gm.TrainerConfig(seed=0)).checkpoint()).predict
x = np.random.default_rng(0).standard_normal((6, 3, 4, 4)).astype(np.float32)
pool = ThreadPoolExecutor(4)
found = [f.result() for f in [pool.submit(predict, x[: 1 + i % 6]) for i in range(60)]]
print(all(np.allclose(y, predict(x)[: len(y)], rtol=1e-5) for y in found))
"""
# images enough, with channels enough, for Winograd's algorithm, whose constants the threads share
MANY_IMAGES = IN_A_POOL.replace("(16, 3, 4, 4)", "(16, 32, 16, 16)").replace("(6, 3, 4, 4)", "(48, 32, 16, 16)")
MANY_IMAGES = MANY_IMAGES.replace("add_conv2d(4, 3)", "add_conv2d(32, 3)").replace("1 + i % 6", "40 + i % 8")
TRAINERS = """
import threading, warnings
import numpy as np, gometal_mlx as gm

warnings.filterwarnings("ignore", "MLX runs uncompiled")

def work(seed):
    x = np.random.default_rng(0).standard_normal((60, 8)).astype(np.float32)
    spec = gm.ModelBuilder((16, 8)).add_dense(7).add_swish().add_dropout(0.2).add_dense(3).compile()
    trainer = gm.ModelTrainer(spec, gm.TrainerConfig(seed=7, batch_size=16))
    trainer.fit((x, np.arange(60) % 3), 3)
    found.append(trainer.predict(x[:4]).tobytes())

found = []
threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
[t.start() for t in threads]
[t.join() for t in threads]
print(len(found) == 3 and len(set(found)) == 1)
"""


@pytest.mark.parametrize("run", range(3))  # an abort came in half of the runs
@pytest.mark.parametrize("program", [IN_A_POOL, MANY_IMAGES, TRAINERS], ids=["a predictor", "tiles", "trainers"])
def test_threads_compute_and_end(program: str, run: int) -> None:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "True\n", "")


def test_predictions_in_another_thread(compiled: None) -> None:
    """From the first on, between the runs of a trainer; they disturb nothing."""
    x, y = blobs(400)
    alone, watched = (ModelTrainer(mlp(), TrainerConfig(seed=0, batch_size=8)) for _ in range(2))
    for _ in range(3):
        found: list[np.ndarray] = []
        run(lambda: found.append(watched.predict(x)))  # noqa: B023 (called at once)
        assert np.array_equal(found[0], alone.predict(x))
        alone.fit((x, y), 1)
        watched.fit((x, y), 1)
    assert all(np.array_equal(v, arrays(watched)[k]) for k, v in arrays(alone).items())


def test_a_trainer_made_in_one_thread_trains_in_another() -> None:
    x, y = blobs(80)
    alone, moved = (ModelTrainer(mlp(), TrainerConfig(seed=0, batch_size=8)) for _ in range(2))
    alone.fit((x, y), 2)
    run(lambda: moved.fit((x, y), 2))
    assert moved.epoch == 2
    for name, values in arrays(alone).items():
        np.testing.assert_allclose(arrays(moved)[name], values, rtol=1e-4, atol=1e-6)


def test_arrays_that_another_thread_computes_are_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = ModelTrainer(mlp(), TrainerConfig(seed=0))

    def refused(*_: object) -> None:
        raise RuntimeError("There is no Stream(cpu, 0) in current thread.")  # as MLX says it

    monkeypatch.setattr(trainer._training_step.predict, "_function", refused)
    with pytest.raises(GoMetalError, match=r"another thread trains this model.*; save a checkpoint there and use"):
        trainer.predict(blobs(3)[0])


def run(function: Callable[[], None]) -> None:
    thread = threading.Thread(target=function)
    thread.start()
    thread.join()


@pytest.mark.parametrize("tasks", [_leaving.TASKS, "/nowhere"])
def test_threads_that_are_gone_are_forgotten(tasks: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server may make a thread for each request."""
    monkeypatch.setattr(_leaving, "TASKS", tasks)
    monkeypatch.setattr(_leaving, "_computed", set())
    monkeypatch.setattr(_leaving, "MANY", 5)
    monkeypatch.setattr(_leaving.atexit, "register", lambda wait: None)
    for _ in range(20):
        thread = threading.Thread(target=_leaving.remember_thread)
        thread.start()
        thread.join()
    assert 1 <= len(_leaving._computed) <= 6
    monkeypatch.setattr(_leaving, "_here", threading.local())
    _leaving.remember_thread()  # the main one ends with Python
    assert threading.get_native_id() not in _leaving._computed


@pytest.mark.parametrize("tasks", [_leaving.TASKS, "/nowhere"])
def test_the_end_of_python_waits_for_a_thread_that_is_ending(tasks: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_leaving, "TASKS", tasks)
    slept: list[float] = []
    monkeypatch.setattr(_leaving.time, "sleep", slept.append)
    known = Path("/proc/self/task").is_dir() and tasks != "/nowhere"
    monkeypatch.setattr(_leaving, "SECONDS", 0.01)
    monkeypatch.setattr(_leaving, "_computed", {threading.get_native_id(), 2**30})  # this one stays, that one is gone
    _leaving._wait()
    assert slept == ([] if known else [_leaving.PAUSE])
    monkeypatch.setattr(_leaving.threading, "enumerate", list)  # as if this one were ending
    _leaving._wait()
    assert len(slept) > 1

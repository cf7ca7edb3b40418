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
from gometal_mlx.training import Callback, Event, ModelTrainer, TrainerConfig

IN_A_POOL = """
import sys, warnings
from concurrent.futures import ThreadPoolExecutor
import numpy as np, gometal_mlx as gm

warnings.simplefilter("error")
spec = gm.ModelBuilder((16, 3, 4, 4)).add_conv2d(4, 3).add_swish().add_dense(3).compile()
predict = gm.Predictor(gm.ModelTrainer(spec, gm.TrainerConfig(seed=0)).checkpoint()).predict
x = np.random.default_rng(0).standard_normal((6, 3, 4, 4)).astype(np.float32)
pool = ThreadPoolExecutor(4)
found = [f.result() for f in [pool.submit(predict, x[: 1 + i % 6]) for i in range(60)]]
print(all(np.allclose(y, predict(x)[: len(y)], rtol=1e-5) for y in found))
"""
TRAINERS = """
import threading
import numpy as np, gometal_mlx as gm

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
@pytest.mark.parametrize("program", [IN_A_POOL, TRAINERS], ids=["a predictor", "trainers"])
def test_threads_compute_and_end(program: str, run: int) -> None:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "True\n", "")


def test_predictions_in_another_thread(compiled: None) -> None:
    """Between the runs of a trainer they disturb nothing; while it computes there is one line."""
    x, y = blobs(400)
    alone, watched = (ModelTrainer(mlp(), TrainerConfig(seed=0, batch_size=8)) for _ in range(2))
    told: list[str] = []

    def watch() -> None:
        found.append(watched.predict(x))

    class Watch(Callback):
        def on_step_end(self, event: Event) -> None:
            run(refused)

    def refused() -> None:
        try:
            watched.predict(x[:3])
        except GoMetalError as e:
            told.append(str(e))

    for _ in range(3):
        found: list[np.ndarray] = []
        alone.fit((x, y), 1)
        watched.fit((x, y), 1, callbacks=[Watch()])
        run(watch)
        assert np.array_equal(found[0], alone.predict(x))
    assert all(np.array_equal(v, arrays(watched)[k]) for k, v in arrays(alone).items())
    assert all("another thread trains this model" in t for t in told)


def run(function: Callable[[], None]) -> None:
    thread = threading.Thread(target=function)
    thread.start()
    thread.join()


def test_threads_that_are_gone_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server may make a thread for each request."""
    if not Path(_leaving.TASKS).is_dir():
        pytest.skip("nobody tells here which threads there are")
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

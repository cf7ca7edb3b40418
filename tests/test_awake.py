"""BLAS's threads are kept spinning while predictions follow each other closely, and only then."""

import subprocess
import sys

import numpy as np
import pytest

from gometal_mlx import ModelBuilder, ModelTrainer, TrainerConfig, _awake, _blas


class Clock:
    """Time that passes when it is told to; and what happened in it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.woken = 100.0, 0
        monkeypatch.setattr(_awake, "_begun", 0.0)
        monkeypatch.setattr(_awake, "_woken", 0.0)
        monkeypatch.setattr(_awake, "on_cpu", lambda: True)
        monkeypatch.setattr(_awake.time, "perf_counter", lambda: self.now)
        monkeypatch.setattr(_awake, "wake_threads", self._wake)
        monkeypatch.delenv(_awake.SETTING, raising=False)

    def _wake(self) -> None:
        self.woken += 1

    def evaluations(self, count: int, apart: float) -> int:
        """How often threads were woken in them."""
        before = self.woken
        for _ in range(count):
            self.now += apart
            _awake.keep_awake()
        return self.woken - before


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_evaluations_that_follow_closely_wake_them_now_and_then(clock: Clock) -> None:
    assert clock.evaluations(1, 1.0) == 0  # nobody knows yet that others follow
    assert clock.evaluations(1, 1e-4) == 1
    assert clock.evaluations(150, 1e-4) == 0  # they spin
    assert clock.evaluations(1000, 1e-4) == 5  # a tenth of a second


@pytest.mark.parametrize("apart", [3e-3, 0.1])
def test_a_server_with_few_requests_does_not_spin(apart: float, clock: Clock) -> None:
    assert clock.evaluations(100, apart) == 0


def test_the_users_own_setting_goes_before(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(_awake.SETTING, "16")
    assert clock.evaluations(1000, 1e-4) == 0


def test_not_on_a_gpu(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_awake, "on_cpu", lambda: False)
    assert clock.evaluations(1000, 1e-4) == 0


@pytest.mark.parametrize(("threads", "woken"), [(1, 0), (None, 0), (2, 1)])
def test_threads_there_must_be(threads: int | None, woken: int, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(_blas, "threads", lambda: threads)
    monkeypatch.setattr(_blas, "_wake_threads", [lambda: calls.append(1)])
    _blas.wake_threads()
    assert len(calls) == woken


def test_predictions_say_that_they_begin_and_steps_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    told = []
    monkeypatch.setattr("gometal_mlx.training.pieces.keep_awake", lambda: told.append(1))
    trainer = ModelTrainer(ModelBuilder((3, 4)).add_dense(2).compile(), TrainerConfig(seed=0))
    trainer.predict(np.ones((2, 4), "f"))
    assert len(told) == 1
    trainer.train_batch(np.ones((3, 4), "f"), np.zeros(3, int))
    assert len(told) == 1


def test_products_that_threads_share_keep_them_awake(monkeypatch: pytest.MonkeyPatch) -> None:
    told = []
    monkeypatch.setattr("gometal_mlx.training.pieces.keep_awake", lambda: told.append(1))
    trainer = ModelTrainer(ModelBuilder((3, 512)).add_dense(512).add_dense(2).compile(), TrainerConfig(seed=0))
    for rows, expected in ((3, 1), (4, 2), (5, 2), (200, 2)):  # four rows are multiplied in slices, by one thread
        trainer.predict(np.ones((rows, 512), "f"))
        assert len(told) == expected


SPIN = """
import time
from gometal_mlx import _blas
_blas.wake_threads()
best = 0.0
for _ in range(20):  # other programs may hold the processors for a while
    _blas.wake_threads()
    before = time.process_time()
    time.sleep(0.02)
    best = max(best, time.process_time() - before)
print(best)
"""


@pytest.mark.skipif(
    not _blas._wake_threads or (_blas.threads() or 1) < 2, reason="only OpenBLAS with several threads needs it"
)
def test_openblas_threads_then_spin() -> None:
    """They use a processor while nothing is computed: half of 20 ms at least once in twenty times."""
    done = subprocess.run([sys.executable, "-c", SPIN], capture_output=True, text=True, check=True)
    assert float(done.stdout) > 0.01

"""Processes made by fork, in which MLX would wait for ever: multiprocessing's way on Linux, up to Python 3.13."""

import os
import signal

import numpy as np
import pytest

from gometal_mlx import Model, ModelBuilder, ModelTrainer, Predictor, TrainerConfig
from gometal_mlx.errors import GoMetalError


@pytest.mark.filterwarnings("ignore:This process")  # is multi-threaded, use of fork() may lead to deadlocks
def test_a_child_says_so() -> None:
    spec = ModelBuilder((4, 4)).add_dense(3).compile()
    trainer = ModelTrainer(spec, TrainerConfig(seed=0))
    predictor, x = Predictor(trainer.checkpoint()), np.ones((2, 4), np.float32)
    y = np.zeros(2, int)
    for ask in (
        lambda: Model(spec), lambda: predictor.predict(x), lambda: trainer.train_batch(x, y),
        lambda: Predictor(trainer.checkpoint()),
    ):  # fmt: skip
        child = os.fork()
        if not child:
            signal.alarm(20)  # a child that waits for ever is killed, which fails here
            try:
                ask()
            except GoMetalError as e:
                os._exit(0 if str(e).startswith("MLX cannot compute in a process made by fork; start it with") else 2)
            except BaseException:
                os._exit(3)
            os._exit(4)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert predictor.predict(x).shape == (2, 3)

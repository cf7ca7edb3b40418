"""Milliseconds of a prediction, numpy to numpy: gometal_mlx against onnxruntime on the ONNX file it exports.

All give probabilities: the file ends in a Softmax. The contestants take turns as in step_time.py, whose models these
are.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from step_time import Turn, command, installed, measure, report, spec, torch_model

CASES = {f"{kind.upper()}, batch {batch}": (kind, batch) for kind in ("mlp", "cnn") for batch in (1, 256)}
CONTESTANTS = {
    "gometal": "gometal_mlx, predict",
    "openblas": "the same without MKL",
    "predictor": "Predictor with engine onnxruntime",
    "onnxruntime": "onnxruntime",
    "shipped": "gometal_mlx, MLX's own BLAS",
    "torch": "PyTorch eager",
}


def trainer(kind: str, batch: int) -> Any:
    """An untrained model: its numbers cost what others cost."""
    import gometal_mlx as gm

    return gm.ModelTrainer(spec(kind, batch), gm.TrainerConfig(seed=0))


def exported(kind: str, batch: int) -> bytes:
    """Its ONNX file."""
    import gometal_mlx as gm

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.onnx")
        gm.save(trainer(kind, batch).checkpoint(), path, softmax=True)
        return path.read_bytes()


def gometal(kind: str, batch: int) -> Turn:
    predict = trainer(kind, batch).predict
    return lambda x, _: predict(x), lambda: None


def predictor(kind: str, batch: int) -> Turn:
    import gometal_mlx as gm

    predict = gm.Predictor(trainer(kind, batch).checkpoint(), engine="onnxruntime").predict
    return lambda x, _: predict(x), lambda: None


def onnxruntime(kind: str, batch: int) -> Turn:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = int(os.environ.get("OMP_NUM_THREADS", "0"))  # 0: as many as there are cores
    session = onnxruntime.InferenceSession(exported(kind, batch), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda x, _: session.run(None, {name: x}), lambda: None


def torch(kind: str, batch: int) -> Turn:
    import torch

    model = torch_model(kind).eval()

    def one(x: np.ndarray, _: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return torch.softmax(model(torch.from_numpy(x)), dim=1).numpy()

    return one, lambda: None


MAKE: dict[str, Callable[[str, int], Turn]] = {
    "gometal": gometal,
    "openblas": gometal,
    "predictor": predictor,
    "onnxruntime": onnxruntime,
    "shipped": partial(gometal),
    "torch": torch,
}

NOTE = (
    "The models of step_time.py, from a numpy batch to numpy probabilities, which everybody computes. "
    "Milliseconds a call: median (quartiles) of turns; bold: gometal_mlx's time divided by this one's, median within "
    "rounds, and in brackets the same without MKL, where that is used. The second table counts what one thread "
    "computes."
)


def main(rounds: int = 25) -> str:
    """Measure, write inference_time.md and .json, return the Markdown."""
    times = measure(__file__, CASES, installed(MAKE), rounds)
    one_thread = measure(__file__, CASES, installed(MAKE), max(2, rounds // 3), one_thread=True)
    return report("Prediction", NOTE, CONTESTANTS, times, one_thread, "inference_time")


if __name__ == "__main__":
    command(__doc__, MAKE, main)

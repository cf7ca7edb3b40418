"""Files for the subcommands, and a way to run them."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

import gometal_mlx as gm
from gometal_mlx.checkpoints import OptimizerState, OptimizerTensor, TrainingState, extract_weights
from gometal_mlx.cli.main import main

SUFFIXES = (".json", ".json.gz", ".safetensors", ".onnx")


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str


Run = Callable[..., Result]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run ``gometal`` in this process."""

    def run(*argv: object) -> Result:
        capsys.readouterr()
        code = main([str(a) for a in argv])
        return Result(code, *capsys.readouterr())

    return run


@pytest.fixture(scope="session")
def checkpoint() -> gm.Checkpoint:
    """A small model with an Adam state at step 7."""
    spec = gm.ModelBuilder((4, 3)).add_dense(5, name="fc1").add_relu("act").add_dense(2, name="fc2").compile()
    weights = extract_weights(gm.Model(spec, seed=0))
    rng = np.random.default_rng(0)
    tensors = []
    for kind in ("momentum", "variance"):
        for i, w in enumerate(weights):
            data = rng.uniform(0, 1, w.data.size).astype(np.float32)
            tensors.append(OptimizerTensor(f"{kind}_{i}", (w.data.size,), data, kind))
    parameters = {"beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8, "weight_decay": 0.0, "learning_rate": 0.001}
    state = TrainingState(epoch=2, step=7, learning_rate=0.001, best_loss=0.5, best_accuracy=0.75, total_steps=7)
    optimizer = OptimizerState("Adam", {**parameters, "step_count": 7}, tensors)
    ckpt = gm.Checkpoint(spec, weights, state, optimizer)
    ckpt.metadata.description = "a small model"
    ckpt.metadata.tags = ["test", "tiny"]
    return ckpt


@pytest.fixture(scope="session")
def files(checkpoint: gm.Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The checkpoint in each format, by suffix."""
    folder = tmp_path_factory.mktemp("files")
    paths = {suffix: folder / f"model{suffix}" for suffix in SUFFIXES}
    for path in paths.values():
        gm.save(checkpoint, path)
    return paths

"""Milliseconds of a training step and of a prediction with layers of every kind, against PyTorch eager.

Small networks, each with one thing that the models of step_time.py do not have. The contestants take turns as there.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import step_time
from step_time import Step, Turn, command, installed, measure, report

IMAGES, PIXELS = (3, 32, 32), (784,)
# name: batch, input shape, layers; a number stands for a dense layer of that width, c for a convolution:
# channels, kernel, stride, padding
NETS: dict[str, tuple[int, tuple[int, ...], str]] = {
    "max_pool": (32, IMAGES, "c32,3,1,1 relu max2,2 c64,3,1,1 relu max2,2 128 relu 10"),
    "overlapping_pool": (32, IMAGES, "c32,3,1,1 relu max3,2 c64,3,1,1 relu max3,2 128 relu 10"),
    "average_pool": (32, IMAGES, "c32,3,1,1 relu avg2,2 c64,3,1,1 relu mean 10"),
    "leaky_relu": (32, IMAGES, "c32,3,1,1 leaky c64,3,2,1 leaky 10"),
    "elu": (32, IMAGES, "c32,3,1,1 elu c64,3,2,1 elu 10"),
    "swish": (32, IMAGES, "c32,3,1,1 swish c64,3,2,1 swish 10"),
    "tanh": (32, IMAGES, "c32,3,1,1 tanh c64,3,2,1 tanh 10"),
    "dropout": (32, IMAGES, "c32,3,1,1 relu drop c64,3,2,1 relu drop 10"),
    "kernel_5": (32, IMAGES, "c32,5,1,2 relu c64,5,2,2 relu 10"),
    "kernel_1": (32, IMAGES, "c32,3,1,1 relu c64,1,1,0 relu c32,1,1,0 relu c64,3,2,1 relu 10"),
    "six_convolutions": (
        16, IMAGES,
        "c32,3,1,1 relu c32,3,1,1 relu max2,2 c64,3,1,1 relu c64,3,1,1 relu max2,2 c128,3,1,1 relu c128,3,1,1 relu "
        "mean 10",
    ),
    "thousand_classes": (128, (256,), "512 relu 1000"),
    "mlp_swish": (128, PIXELS, "512 swish 256 swish 10"),
    "mlp_dropout": (128, PIXELS, "512 relu drop 256 relu drop 10"),
    "mlp_batch_norm": (128, PIXELS, "512 norm relu 256 norm relu 10"),
    "twenty_layers": (64, (128,), "128 relu " * 20 + "10"),
}  # fmt: skip
CASES = {
    f"{name}, {what}": (f"{name}-{what}", batch) for name, (batch, *_) in NETS.items() for what in ("step", "predict")
}
CONTESTANTS = {"gometal": "gometal_mlx", "openblas": "gometal_mlx without MKL", "torch": "PyTorch eager"}
step_time.INPUTS.update({kind: NETS[kind.partition("-")[0]][1] for kind, _ in CASES.values()})


def parsed(kind: str) -> list[tuple[str, list[int]]]:
    """The layers of a network: name and numbers."""
    words = NETS[kind.partition("-")[0]][2].split()
    heads = [word.rstrip("0123456789,") for word in words]
    return [(h, [int(n) for n in w[len(h) :].split(",") if n]) for h, w in zip(heads, words, strict=True)]


def gometal(kind: str, batch: int) -> Turn:
    import gometal_mlx as gm  # isort: skip  (before mlx, whose BLAS it chooses)
    import mlx.core as mx

    builder = gm.ModelBuilder((batch, *step_time.INPUTS[kind]))
    add = {
        "": builder.add_dense, "c": builder.add_conv2d, "max": builder.add_max_pool2d, "avg": builder.add_avg_pool2d,
        "mean": builder.add_global_avg_pool2d, "norm": builder.add_batch_norm, "drop": builder.add_dropout,
        "relu": builder.add_relu, "leaky": builder.add_leaky_relu, "elu": builder.add_elu,
        "swish": builder.add_swish, "tanh": builder.add_tanh,
    }  # fmt: skip
    for name, numbers in parsed(kind):
        add[name](*numbers)
    trainer = gm.ModelTrainer(builder.compile(), gm.TrainerConfig(learning_rate=1e-3, optimizer_type="Adam", seed=0))
    if kind.endswith("predict"):
        return lambda x, _: trainer.predict(x), lambda: None
    return trainer.train_batch, lambda: mx.eval(trainer.model.state, trainer.optimizer.state)


def torch(kind: str, batch: int) -> Turn:
    import torch
    from torch import nn

    modules: list[Any] = []
    shape = step_time.INPUTS[kind]
    simple = {"relu": nn.ReLU, "leaky": nn.LeakyReLU, "elu": nn.ELU, "swish": nn.SiLU, "tanh": nn.Tanh}
    for name, numbers in parsed(kind):
        if name in ("", "mean") and len(shape) == 3:
            modules += [nn.AdaptiveAvgPool2d(1), nn.Flatten()] if name else [nn.Flatten()]
            shape = (shape[0],) if name else (math.prod(shape),)
        if name == "":
            modules.append(nn.Linear(shape[0], numbers[0]))
            shape = (numbers[0],)
        elif name == "c":
            modules.append(nn.Conv2d(shape[0], *numbers))
            _, kernel, stride, padding = numbers
            shape = (numbers[0], *((d + 2 * padding - kernel) // stride + 1 for d in shape[1:]))
        elif name in ("max", "avg"):
            modules.append((nn.MaxPool2d if name == "max" else nn.AvgPool2d)(*numbers))
            shape = (shape[0], *((d - numbers[0]) // numbers[1] + 1 for d in shape[1:]))
        elif name == "norm":
            modules.append(nn.BatchNorm2d(shape[0]) if len(shape) == 3 else nn.BatchNorm1d(shape[0]))
        elif name != "mean":
            modules.append(nn.Dropout(0.5) if name == "drop" else simple[name]())
    model = nn.Sequential(*modules)
    if kind.endswith("predict"):
        return predicting(model.eval()), lambda: None
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    def one(x: np.ndarray, y: np.ndarray) -> None:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(torch.from_numpy(x)), torch.from_numpy(y)).backward()
        optimizer.step()

    return one, lambda: None


def predicting(model: Any) -> Step:
    """Probabilities, numpy to numpy."""
    import torch

    def one(x: np.ndarray, _: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return torch.softmax(model(torch.from_numpy(x)), dim=1).numpy()

    return one


MAKE = {"gometal": gometal, "openblas": gometal, "torch": torch}
NOTE = (
    "Adam, cross-entropy; each network is written out in layer_time.py. Milliseconds: median (quartiles) of turns; "
    "bold: gometal_mlx's time divided by this one's, median within rounds. The second table counts what one thread "
    "computes."
)


def main(rounds: int = 10) -> str:
    """Measure, write layer_time.md and .json, return the Markdown."""
    times = measure(__file__, CASES, installed(MAKE), rounds)
    one_thread = measure(__file__, CASES, installed(MAKE), max(2, rounds // 3), one_thread=True)
    return report("Layers of every kind", NOTE, CONTESTANTS, times, one_thread, "layer_time")


if __name__ == "__main__":
    command(__doc__, MAKE, main)

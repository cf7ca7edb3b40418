"""``gometal train``: from data to checkpoints in all three formats, proven in onnxruntime."""

from __future__ import annotations

import argparse
import tempfile
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from ..checkpoints import load
from ..data import ArrayDataset, load_digits
from ..errors import GoMetalError, ShapeError, SpecError, suggest
from ..inference import Predictor
from ..layers import ModelBuilder, ModelSpec
from ..training import ModelTrainer, OptimizerType, ProgressPrinter, TrainerConfig
from .table import say, size_text, table

EPOCHS = {"mlp": 40, "cnn": 20}


def add_parser(subparsers: Any) -> None:
    """Declare the subcommand."""
    p = subparsers.add_parser("train", help="train a model and save it as JSON, safetensors and ONNX")
    p.add_argument(
        "--data", default="digits", help="digits (ships with scikit-learn), or an .npz file with arrays x and y"
    )
    p.add_argument(
        "--model", choices=sorted(EPOCHS), default="cnn", help="mlp or cnn (cnn needs images, N x C x H x W)"
    )
    p.add_argument("--epochs", type=int, help="default: 40 for mlp, 20 for cnn")
    p.add_argument("--batch-size", type=int, default=32)
    p.add_argument("--learning-rate", type=float, default=None, help="default: the optimizer's own")
    p.add_argument("--optimizer", default="Adam", help=f"one of {', '.join(m.name for m in OptimizerType)}")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument(
        "--out", type=Path, default=Path("out"), help="folder for the files, named DATA_MODEL (default: out)"
    )
    p.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Train, save, check, print the table."""
    if not 0 <= args.seed < 2**63:
        raise SpecError(f"--seed must be from 0 to 2**63 - 1, got {args.seed}")
    config = TrainerConfig(
        batch_size=args.batch_size, learning_rate=args.learning_rate, optimizer_type=args.optimizer, seed=args.seed
    )
    train, test = _data(args.data, images=args.model == "cnn", seed=args.seed)
    classes = int(max(train.y.max(), test.y.max())) + 1
    spec = (build_cnn if args.model == "cnn" else build_mlp)(train.x.shape[1:], classes, args.batch_size)
    trainer = ModelTrainer(spec, config)
    try:  # before anything is trained that could not be saved
        args.out.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=args.out).close()
    except OSError as e:
        raise GoMetalError(f"{args.out}: cannot be used as a folder: {e.strerror or e}") from e
    say(
        f"{args.model} with {spec.total_parameters:,} parameters on {len(train):,} rows, judged on {len(test):,} others"
    )
    start = time.perf_counter()
    epochs = args.epochs if args.epochs is not None else EPOCHS[args.model]
    trainer.fit((train.x, train.y), epochs, validation_data=(test.x, test.y), callbacks=[ProgressPrinter()])
    told = f"{epochs} epochs" if trainer.epoch == epochs else f"interrupted after {trainer.epoch} of {epochs} epochs"
    rows: list[tuple[object, ...]] = [("training", f"{time.perf_counter() - start:.1f} s", told)]
    rows += _save_and_check(trainer, args.out / f"{Path(args.data).stem}_{args.model}", test)
    say(table(rows))
    return 0


def _save_and_check(trainer: ModelTrainer, stem: Path, test: ArrayDataset) -> list[tuple[object, ...]]:
    rows: list[tuple[object, ...]] = []
    paths = [stem.with_name(stem.name + suffix) for suffix in (".json", ".safetensors", ".onnx")]
    for path in paths:
        start = time.perf_counter()
        trainer.save(path)
        saved = time.perf_counter() - start
        start = time.perf_counter()
        load(path)
        times = f"saved in {saved:.2f} s, loaded in {time.perf_counter() - start:.2f} s"
        rows.append((str(path), size_text(path.stat().st_size), times))
    ours = Predictor(paths[0]).predict(test.x)
    theirs = _softmax(_onnxruntime(paths[-1], test.x))
    rows.append(("accuracy in MLX", f"{_accuracy(ours, test.y):.2%}", "from the JSON file"))
    rows.append(("accuracy in onnxruntime", f"{_accuracy(theirs, test.y):.2%}", "from the ONNX file"))
    rows.append(("largest difference", f"{np.abs(ours - theirs).max():.1e}", f"of {ours.size:,} probabilities"))
    return rows


def build_mlp(shape: tuple[int, ...], classes: int, batch_size: int) -> ModelSpec:
    """Two hidden layers of 128 and 64 with a little Dropout."""
    builder = (
        ModelBuilder((batch_size, *shape)).add_dense(128, name="hidden1").add_relu("relu1").add_dropout(0.2, "drop1")
    )
    return builder.add_dense(64, name="hidden2").add_relu("relu2").add_dense(classes, name="output").compile()


def build_cnn(shape: tuple[int, ...], classes: int, batch_size: int) -> ModelSpec:
    """Two convolutions with BatchNorm, a pool, a hidden layer."""
    if len(shape) != 3:
        raise SpecError(f"cnn: images (rows, channels, height, width) needed, the rows are {shape}; use --model mlp")
    builder = ModelBuilder((batch_size, *shape)).add_conv2d(16, 3, 1, 1, name="conv1").add_batch_norm(name="bn1")
    builder.add_relu("relu1").add_conv2d(32, 3, 1, 1, name="conv2").add_batch_norm(name="bn2").add_relu("relu2")
    builder.add_max_pool2d(2, name="pool").add_dropout(0.25, "drop").add_dense(64, name="hidden").add_relu("relu3")
    return builder.add_dense(classes, name="output").compile()


def _data(source: str, *, images: bool, seed: int) -> tuple[ArrayDataset, ArrayDataset]:
    if source == "digits":
        return load_digits(images=images, seed=0)
    try:
        with zipfile.ZipFile(source) as archive:
            x, y = (np.lib.format.read_array(archive.open(f"{k}.npy"), allow_pickle=False) for k in ("x", "y"))
    except FileNotFoundError as e:
        raise SpecError(f"--data {source}: no such file{suggest(source, ['digits'])}") from e
    except OSError as e:
        raise SpecError(f"--data {source}: cannot be read: {e.strerror or e}") from e
    except Exception as e:  # zipfile, zlib and numpy have no common error
        raise SpecError(f"--data {source}: 'digits' or an .npz file with arrays x and y needed: {e}") from e
    if x.dtype.kind not in "iubf" or y.dtype.kind not in "iu" or y.ndim != 1 or len(y) < 5:
        kinds = f"{x.dtype} {x.shape} and {y.dtype} {y.shape}"
        raise SpecError(f"--data {source}: x must be numbers, y at least 5 class numbers, got {kinds}")
    if y.min() < 0 or y.max() < 1:
        raise SpecError(f"--data {source}: y must have classes from 0 to at least 1, got {y.min()} to {y.max()}")
    if y.max() >= len(y):
        told = f"y reaches {y.max()}, but has {len(y)} rows; classes are numbered from 0 without gaps"
        raise SpecError(f"--data {source}: {told}")
    try:
        data = ArrayDataset(x, y)
    except ShapeError as e:
        raise ShapeError(f"--data {source}: {e}") from e
    order = np.random.default_rng(seed).permutation(len(data))
    cut = max(1, len(data) // 5)
    return ArrayDataset(data.x[order[cut:]], data.y[order[cut:]]), ArrayDataset(
        data.x[order[:cut]], data.y[order[:cut]]
    )


def _onnxruntime(path: Path, x: Any) -> Any:
    from ..checkpoints.onnx.verify import run, session

    return run(session(path.read_bytes(), str(path)), x)


def _softmax(x: Any) -> Any:
    e = np.exp(x - x.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def _accuracy(probabilities: Any, y: Any) -> float:
    return float((probabilities.argmax(axis=1) == y).mean())

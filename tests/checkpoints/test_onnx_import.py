"""Graphs as other exporters write them, made by hand: what onnxruntime gives, or every reason why not."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import onnx
import pytest
from checkpoint_samples import bounded, files, one_line
from contracts import randomise
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx_graphs import (
    CLOSE,
    DOUBLE,
    FLOAT,
    HALF,
    INT64,
    NEWEST_RUN,
    Graph,
    assert_close,
    ints,
    normal,
    run_model,
    run_onnx,
)

from gometal_mlx.checkpoints import Checkpoint, extract_weights, load, save
from gometal_mlx.checkpoints.onnx import load as load_onnx
from gometal_mlx.checkpoints.onnx import verify_file
from gometal_mlx.checkpoints.onnx.graph import OLDEST_READ
from gometal_mlx.checkpoints.onnx.writer import NEWEST_OPSET
from gometal_mlx.errors import CheckpointError, GoMetalError, ShapeError, UnsupportedError
from gometal_mlx.layers import (
    ELU,
    Affine,
    AvgPool2D,
    BatchNorm,
    Conv2D,
    Dense,
    Dropout,
    Flatten,
    GlobalAvgPool2D,
    Layer,
    LeakyReLU,
    LogSoftmax,
    MaxPool2D,
    Model,
    ModelSpec,
    ReLU,
    ReLU6,
    Sigmoid,
    Softmax,
    Swish,
    Tanh,
)
from gometal_mlx.layers.base import LAYERS


def kinds(c: Checkpoint) -> list[str]:
    return [s.type_name for s in c.model_spec.layers]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "c.onnx"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("import")


def assert_imported(g: Graph, layers: str, path: Path, *, nhwc: bool = False, output: str | None = None) -> Checkpoint:
    """The layers are those, and the model gives what onnxruntime gives, for one row and several."""
    proto = g.save(path)
    c = load(path)
    assert kinds(c) == layers.split()
    for size in (g.batch,) if isinstance(g.batch, int) else (1, 5):
        x = normal(size, *g.shape, seed=size)
        theirs = run_onnx(proto, x.astype(np.float64 if g.kind == DOUBLE else np.float32), output)
        assert_close(run_model(c, x.transpose(0, 3, 1, 2) if nhwc else x), theirs)
    inferred = onnx.shape_inference.infer_shapes(proto)
    for end in inferred.graph.output:  # the checker wants their shapes
        if not end.type.tensor_type.HasField("shape"):
            for _ in theirs.shape:
                end.type.tensor_type.shape.dim.add()
    onnx.save(inferred, path)
    assert verify_file(path).ok
    return c


def test_a_fixed_batch_may_be_large(path: Path) -> None:
    """torch.onnx.export fixes it unless it is told otherwise."""
    kernels = {"k": normal(64, 3, 3, 3), "l": normal(64, 64, 3, 3) / 24}
    attributes = {name: {"pads": [1] * 4} for name in ("a", "b")} | {"m": {"kernel_shape": [2, 2], "strides": [2, 2]}}
    text = "Conv x k > a | Relu a > r | Conv r l > b | MaxPool b > m | GlobalAveragePool m > y"
    Graph(text, kernels, (3, 32, 32), attributes, batch=64).save(path)
    assert kinds(load(path)) == ["Conv2D", "ReLU", "Conv2D", "MaxPool2D", "GlobalAvgPool2D"]


def test_edge_cases_of_a_fixed_batch_are_judged_together(path: Path) -> None:
    """Of zeros the output is nearly 0, so that rounding is all of it; other rows say how large outputs are."""
    w1, b1, w2 = normal(64, 32), normal(32, seed=1), normal(32, 8, seed=2)
    b2 = -(np.maximum(b1, 0) @ w2)
    assert_imported(Graph("Gemm x w b > h | Relu h > r | Gemm r v c > y", {"w": w1, "b": b1, "v": w2, "c": b2}, (64,),
        batch=1), "Dense ReLU Dense", path)  # fmt: skip


# ------------------------------------------------------------------------------------------------------ channels last

K, CB, KERNEL5 = normal(5, 3, 3, 3, seed=1), normal(5, 1, 1, seed=2), normal(4, 5, 2, 2, seed=3)
IN, OUT = {"perm": [0, 3, 1, 2]}, {"perm": [0, 2, 3, 1]}
POOL = {"kernel_shape": [2, 2], "strides": [2, 2]}
CONV = {"pads": [1, 1, 1, 1], "strides": [1, 1], "kernel_shape": [3, 3]}


@pytest.mark.parametrize("flat", [ints(-1, 60), ints(0, -1)])
def test_tf2onnx(flat: np.ndarray, path: Path) -> None:
    """Keras's data format: a Flatten behind the transposition runs through H, W, C, and the matrix rows with it."""
    g = Graph(
        "Transpose x > a | Conv a k > b | Add b cb > c | Relu c > d | MaxPool d > e | Transpose e > f | "
        "Reshape f flat > g | MatMul g w > h | Add h wb > y",
        {"k": K, "cb": CB[None], "flat": flat, "w": normal(60, 7), "wb": normal(7)}, (6, 8, 3),
        {"a": IN, "b": CONV, "e": POOL, "f": OUT},
    )  # fmt: skip
    c = assert_imported(g, "Conv2D ReLU MaxPool2D Dense", path, nhwc=True)
    assert c.model_spec.input_shape == (1, 3, 6, 8)
    assert any("(N, H, W, C)" in n for n in c.notes)
    dense = next(w for w in c.weights if w.layer == c.model_spec.layers[-1].name and w.type == "weight")
    rows = np.arange(60).reshape(3, 4, 5).transpose(2, 0, 1).ravel()  # ours, C, H, W, from the file's H, W, C
    assert dense.data.tobytes() == np.ascontiguousarray(g.constants["w"][rows]).tobytes()


NHWC: dict[str, tuple[Graph, str]] = {
    "Flatten, then Gemm with transB": (Graph("Transpose x > a | Relu a > b | Transpose b > c | Flatten c > d | "
        "Gemm d w wb > y", {"w": normal(2, 30), "wb": normal(2)}, (2, 5, 3), {"a": IN, "c": OUT, "y": {"transB": 1}}),
        "ReLU Dense"),
    "activation between Flatten and Dense": (Graph("Transpose x > a | Relu a > b | Transpose b > c | Flatten c > d | "
        "Tanh d > e | MatMul e w > y", {"w": normal(30, 2)}, (2, 5, 3), {"a": IN, "c": OUT}),
        "ReLU Flatten Tanh Dense"),
    "scaled columns between Flatten and Dense": (Graph("Transpose x > a | Relu a > b | Transpose b > c | "
        "Flatten c > d | Mul d m > e | Add e n > f | MatMul f w > y",
        {"m": normal(30, seed=4), "n": normal(30, seed=5), "w": normal(30, 2)}, (2, 5, 3), {"a": IN, "c": OUT}),
        "ReLU Flatten Affine Dense"),
    "Dropout in channels last": (Graph("Transpose x > a | Relu a > b | Transpose b > c | Dropout c > d | Flatten d > e "
        "| MatMul e w > y", {"w": normal(30, 2)}, (2, 5, 3), {"a": IN, "c": OUT}), "ReLU Dropout Dense"),
    "Softmax over the last axis": (Graph("Transpose x > a | Relu a > b | Transpose b > c | Softmax c > d | "
        "Transpose d > y", {}, (2, 5, 3), {"a": IN, "c": OUT, "y": IN}), "ReLU Softmax"),
    "Softmax over the last axis before opset 13": (Graph("Transpose x > a | Relu a > b | Transpose b > c | "
        "Softmax c > d | Transpose d > y", {}, (2, 5, 3), {"a": IN, "c": OUT, "d": {"axis": 3}, "y": IN}, 11),
        "ReLU Softmax"),
    "LogSoftmax over the last axis": (Graph("Transpose x > a | Relu a > b | Transpose b > c | LogSoftmax c > d | "
        "Transpose d > y", {}, (2, 5, 3), {"a": IN, "c": OUT, "d": {"axis": 3}, "y": IN}), "ReLU LogSoftmax"),
    "bias of the last axis": (Graph("Transpose x > a | Conv a k > b | Transpose b > c | Add c m > d | Transpose d > y",
        {"k": K, "m": normal(5)}, (5, 5, 3), {"a": IN, "c": OUT, "y": IN}), "Conv2D Affine"),
    "scale and shift of the last axis": (Graph("Transpose x > a | Conv a k > b | Transpose b > c | Mul c m > d | "
        "Add d n > e | Transpose e > y", {"k": K, "m": normal(5), "n": normal(5, seed=7)}, (5, 5, 3),
        {"a": IN, "c": OUT, "y": IN}), "Conv2D Affine"),
    "pool and squeeze": (Graph("Transpose x > a | GlobalAveragePool a > b | Transpose b > c | Squeeze c axes > d | "
        "MatMul d w > y", {"axes": ints(1, 2), "w": normal(3, 2)}, (4, 5, 3), {"a": IN, "c": OUT}),
        "GlobalAvgPool2D Dense"),
    "there and back": (Graph("Transpose x > a | Transpose a > b | Transpose b > c | Conv c k > y", {"k": K}, (5, 5, 3),
        {"a": IN, "b": OUT, "c": IN}), "Conv2D"),
}  # fmt: skip


@pytest.mark.parametrize("name", NHWC)
def test_channels_last(name: str, path: Path) -> None:
    g, layers = NHWC[name]
    assert_imported(g, layers, path, nhwc=True)


def test_a_square_image_in_channels_last_is_not_confused_with_its_channels(path: Path) -> None:
    g = Graph("Transpose x > a | Conv a k > b | Transpose b > c | Reshape c f > d | MatMul d w > y",
        {"k": normal(4, 4, 1, 1), "f": ints(-1, 64), "w": normal(64, 3)}, (4, 4, 4), {"a": IN, "c": OUT})  # fmt: skip
    assert_imported(g, "Conv2D Dense", path, nhwc=True)


# ------------------------------------------------------------------------------------------------------------ flatten

W12, SHAPE = normal(12, 5), (3, 2, 2)
DENSE = "| MatMul f w > y"
FLATTEN: dict[str, Graph] = {
    "(0, -1)": Graph(f"Reshape x s > f {DENSE}", {"s": ints(0, -1), "w": W12}, SHAPE),
    "(-1, 12)": Graph(f"Reshape x s > f {DENSE}", {"s": ints(-1, 12), "w": W12}, SHAPE),
    "(0, 12)": Graph(f"Reshape x s > f {DENSE}", {"s": ints(0, 12), "w": W12}, SHAPE),
    "(4, -1) of a batch of 4": Graph(f"Reshape x s > f {DENSE}", {"s": ints(4, -1), "w": W12}, SHAPE, batch=4),
    "(4, 12) of a batch of 4": Graph(f"Reshape x s > f {DENSE}", {"s": ints(4, 12), "w": W12}, SHAPE, batch=4),
    "(1, 12) of a batch of 1": Graph(f"Reshape x s > f {DENSE}", {"s": ints(1, 12), "w": W12}, SHAPE, batch=1),
    "(-1, 12) with allowzero": Graph(f"Reshape x s > f {DENSE}", {"s": ints(-1, 12), "w": W12}, SHAPE,
        {"f": {"allowzero": 1}}),
    "(4, 12) with allowzero": Graph(f"Reshape x s > f {DENSE}", {"s": ints(4, 12), "w": W12}, SHAPE,
        {"f": {"allowzero": 1}}, batch=4),
    "batch computed": Graph("Shape x > a | Gather a zero > b | Unsqueeze b zero1 > c | Concat c rest > s | "
        f"Reshape x s > f {DENSE}", {"zero": np.int64(0), "zero1": ints(0), "rest": ints(-1), "w": W12}, SHAPE,
        {"s": {"axis": 0}}),
    "batch computed before opset 13": Graph("Shape x > a | Gather a zero > b | Unsqueeze b > c | Concat c rest > s | "
        f"Reshape x s > f {DENSE}", {"zero": np.int64(0), "rest": ints(-1), "w": W12}, SHAPE,
        {"s": {"axis": 0}, "c": {"axes": [0]}}, opset=11),
    "batch sliced, in int32": Graph("Shape x > a | Cast a > i | Slice i zero one zero > b | Concat b rest > c | "
        f"Cast c > s | Reshape x s > f {DENSE}",
        {"zero": ints(0), "one": ints(1), "rest": np.array([12], np.int32), "w": W12}, SHAPE,
        {"i": {"to": TensorProto.INT32}, "c": {"axis": 0}, "s": {"to": INT64}}),
    "first dimension": Graph(f"Shape x > b | Concat b rest > s | Reshape x s > f {DENSE}",
        {"rest": ints(-1), "w": W12}, SHAPE, {"b": {"start": 0, "end": 1}, "s": {"axis": 0}}),
    "batch of a later tensor": Graph("Relu x > r | Shape r > a | Gather a zero > b | Concat b rest > s | "
        f"Reshape r s > f {DENSE}", {"zero": ints(0), "rest": ints(-1), "w": W12}, SHAPE, {"s": {"axis": 0}}),
    "rows of the weight": Graph("Shape w > a | Gather a zero > b | Concat m b > s | "
        f"Reshape x s > f {DENSE}", {"zero": ints(0), "m": ints(-1), "w": W12}, SHAPE, {"s": {"axis": 0}}),
    "Flatten twice": Graph(f"Flatten x > e | Flatten e > f {DENSE}", {"w": W12}, SHAPE),
    "Squeeze after pooling": Graph(f"GlobalAveragePool x > g | Squeeze g axes > f {DENSE}",
        {"axes": ints(2, 3), "w": W12[:3]}, SHAPE),
    "Squeeze from the end": Graph(f"GlobalAveragePool x > g | Squeeze g axes > f {DENSE}",
        {"axes": ints(-1, -2), "w": W12[:3]}, SHAPE),
    "Squeeze before opset 13": Graph(f"GlobalAveragePool x > g | Squeeze g > f {DENSE}",
        {"w": W12[:3]}, SHAPE, {"f": {"axes": [2, 3]}}, opset=11),
    "Squeeze of all, batch of 4": Graph(f"GlobalAveragePool x > g | Squeeze g > f {DENSE}", {"w": W12[:3]}, SHAPE,
        batch=4),
    "Flatten after pooling": Graph(f"GlobalAveragePool x > g | Flatten g > f {DENSE}", {"w": W12[:3]}, SHAPE),
}  # fmt: skip


@pytest.mark.parametrize("name", FLATTEN)
def test_ways_to_flatten(name: str, path: Path) -> None:
    c = load_of(FLATTEN[name], path)
    layers = [k for k in kinds(c) if k in ("ReLU", "GlobalAvgPool2D", "Flatten")]
    assert_imported(FLATTEN[name], " ".join([*layers, "Dense"]), path)
    assert ("Flatten" in layers) == (name == "Flatten twice")


def load_of(g: Graph, path: Path, **options: Any) -> Checkpoint:
    g.save(path)
    return load_onnx(path, **options)


FLATTEN_REFUSED: dict[str, tuple[Graph, str]] = {
    "(1, -1) of a free batch": (Graph("Reshape x s > y", {"s": ints(1, -1)}, SHAPE), "must keep the batch"),
    "(-1, 6)": (Graph("Reshape x s > y", {"s": ints(-1, 6)}, SHAPE), "must keep the batch"),
    "(4, -1) of a batch of 2": (Graph("Reshape x s > y", {"s": ints(4, -1)}, SHAPE, batch=2), "must keep the batch"),
    "three axes": (Graph("Reshape x s > y", {"s": ints(0, 3, 4)}, SHAPE), "must keep the batch"),
    "no rows": (Graph("Reshape x s > y", {"s": ints(0, 12)}, SHAPE, {"y": {"allowzero": 1}}), "must keep the batch"),
    "Squeeze of all, batch of 1": (Graph("GlobalAveragePool x > g | Squeeze g > y", {}, SHAPE, batch=1),
        "must keep the batch"),
    "Squeeze of the batch": (Graph("GlobalAveragePool x > g | Squeeze g a > y", {"a": ints(0, 2, 3)}, SHAPE, batch=1),
        "must keep the batch"),
    "Squeeze of one axis": (Graph("GlobalAveragePool x > g | Squeeze g a > y", {"a": ints(3)}, SHAPE),
        "must keep the batch"),
    "second dimension for the batch": (Graph("Shape x > a | Cast a > i | Slice i one two > b | Concat b m > c | "
        "Cast c > s | Reshape x s > y", {"one": ints(1), "two": ints(2), "m": np.array([-1], np.int32)}, SHAPE,
        {"i": {"to": TensorProto.INT32}, "c": {"axis": 0}, "s": {"to": INT64}}), "must keep the batch"),
    "batch times a number": (Graph("Shape x > a | Gather a z > b | Mul b n > c | Concat c m > s | Reshape x s > y",
        {"z": ints(0), "n": ints(2**24), "m": ints(-1)}, SHAPE, {"s": {"axis": 0}}), "computes with the batch size"),
    "batch squared": (Graph("Shape x > a | Gather a z > b | Mul b b > c | Concat c m > s | Reshape x s > y",
        {"z": ints(0), "m": ints(-1)}, SHAPE, {"s": {"axis": 0}}), "computes with the batch size"),
    "dimensions from the end": (Graph("Shape x > s | Reshape x s > y", {}, SHAPE, {"s": {"start": -2}}),
        "counts dimensions from the end"),
}  # fmt: skip


@pytest.mark.parametrize("check", [True, False])
@pytest.mark.parametrize("name", FLATTEN_REFUSED)
def test_what_does_not_flatten_is_refused(name: str, check: bool, path: Path) -> None:
    g, told = FLATTEN_REFUSED[name]
    with pytest.raises(GoMetalError) as e:
        load_of(g, path, check=check)
    one_line(e.value, str(path), told)


# ------------------------------------------------------------------------------------------------- constants and types

W = normal(3, 4, seed=1)
B = normal(4, seed=2)
FOLDED: dict[str, tuple[Graph, str]] = {
    "transposed weight": (Graph("Transpose w > v | MatMul x v > y", {"w": W.T.copy()}, (3,)), "Dense"),
    "transposed and named": (Graph("Transpose w > v | Identity v > u | Gemm x u b > y", {"w": W.T.copy(), "b": B}, (3,),
        {"v": {"perm": [1, 0]}}), "Dense"),
    "float16 weight": (Graph("Cast w > v | MatMul x v > y", {"w": W.astype(np.float16)}, (3,), {"v": {"to": FLOAT}}),
        "Dense"),
    "weight rounded to float16": (Graph("Cast w > u | Cast u > v | MatMul x v > y", {"w": W}, (3,),
        {"u": {"to": HALF}, "v": {"to": FLOAT}}), "Dense"),
    "double weight": (Graph("Cast w > v | MatMul x v > y", {"w": W.astype(np.float64)}, (3,), {"v": {"to": FLOAT}}),
        "Dense"),
    "reshaped weight": (Graph("Reshape w s > v | MatMul x v > y", {"w": W.ravel(), "s": ints(3, -1)}, (3,)), "Dense"),
    "sum of weights": (Graph("Mul w two > u | Sub u w > v | MatMul x v > y", {"w": W, "two": np.float32(2)}, (3,)),
        "Dense"),
    "sliced weight": (Graph("Slice w a b c > v | MatMul x v > y", {"w": normal(3, 9), "a": ints(1), "b": ints(5),
        "c": ints(1)}, (3,)), "Dense"),
    "joined weights": (Graph("Concat w v > u | MatMul x u > y", {"w": W, "v": normal(3, 2)}, (3,), {"u": {"axis": 1}}),
        "Dense"),
    "gathered columns": (Graph("Gather w i > u | MatMul x u > y", {"w": W, "i": ints(2, 0)}, (3,), {"u": {"axis": 1}}),
        "Dense"),
    "Constant nodes": (Graph("Constant > w | Constant > b | Gemm x w b > y", {}, (3,),
        {"w": {"value": numpy_helper.from_array(W)}, "b": {"value_floats": [1.0, 2.0, 3.0, 4.0]}}), "Dense"),
    "kernel from OHWI": (Graph("Transpose k > v | Conv x v > y", {"k": K.transpose(2, 3, 1, 0).copy()}, (3, 5, 5),
        {"v": {"perm": [3, 2, 0, 1]}}), "Conv2D"),
    "nodes out of order": (Graph("MatMul x v > y | Identity u > v | Transpose w > u", {"w": W.T.copy()}, (3,)),
        "Dense"),
}  # fmt: skip


@pytest.mark.parametrize("name", FOLDED)
def test_constants_are_computed(name: str, path: Path) -> None:
    g, layers = FOLDED[name]
    if name != "nodes out of order":
        assert_imported(g, layers, path)
        return
    ordered = Graph(" | ".join(g.text.split(" | ")[::-1]), g.constants, g.shape)
    x = normal(4, 3)  # onnxruntime wants them in order
    assert_close(run_model(load_of(g, path, check=False), x), run_onnx(ordered.proto(), x))


BAD_CONSTANTS: dict[str, tuple[str, dict[str, Any], dict[str, dict[str, Any]]]] = {
    "Reshape that does not fit": ("Reshape w s > v | MatMul x v > y", {"w": W, "s": ints(5, 5)}, {}),
    "Reshape without a shape": ("Reshape w _ > v | MatMul x v > y", {"w": W}, {}),
    "Gather outside": ("Gather w i > v | MatMul x v > y", {"w": W, "i": ints(9)}, {}),
    "Add that does not fit": ("Add w b > v | MatMul x v > y", {"w": W, "b": normal(5)}, {}),
    "Transpose of wrong axes": ("Transpose w > v | MatMul x v > y", {"w": W}, {"v": {"perm": [0, 1, 2]}}),
    "Concat without an axis": ("Concat w w > v | MatMul x v > y", {"w": W}, {}),
    "Squeeze of 3": ("Squeeze w a > v | MatMul x v > y", {"w": W, "a": ints(0)}, {}),
    "Unsqueeze far away": ("Unsqueeze w a > v | MatMul x v > y", {"w": W, "a": ints(7)}, {}),
    "a product that fits no memory": ("Mul a b > v | MatMul x v > y",
        {"a": np.ones((2**20, 1), np.float32), "b": np.ones((1, 2**20), np.float32)}, {}),
    "Div by zero": ("Div w z > v | MatMul x v > y", {"w": W, "z": np.float32(0)}, {}),
    "Div of whole numbers": ("Div w z > v | MatMul x v > y", {"w": ints(1, 2), "z": ints(2)}, {}),
    "Cast to no type": ("Cast w > v | MatMul x v > y", {"w": W}, {"v": {"to": 99}}),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_CONSTANTS)
def test_constants_that_do_not_fit_are_an_error(name: str, path: Path) -> None:
    text, constants, attributes = BAD_CONSTANTS[name]
    with pytest.raises(GoMetalError) as e:
        load_of(Graph(text, constants, (3,), attributes), path, check=False)
    one_line(e.value, str(path))


CHAINS = {
    "Identity at every place": "Identity x > a | Relu a > b | Identity b > c | Identity c > d | Tanh d > e | "
    "Identity e > y",
    "Cast to the same": "Cast x > a | Relu a > b | Cast b > c | Tanh c > y",
    "Identity and Cast": "Identity x > a | Cast a > b | Relu b > e | Identity e > c | Tanh c > y",
}


@pytest.mark.parametrize("name", CHAINS)
def test_nodes_that_do_nothing(name: str, path: Path) -> None:
    casts = {n: {"to": FLOAT} for n in "abc" if f"Cast {'x' if n == 'a' else chr(ord(n) - 1)} > {n}" in CHAINS[name]}
    assert_imported(Graph(CHAINS[name], {}, (3,), casts), "ReLU Tanh", path)


@pytest.mark.parametrize("to", [HALF, TensorProto.BFLOAT16, TensorProto.INT32, TensorProto.BOOL])
def test_a_cast_that_rounds_is_refused(to: int, path: Path) -> None:
    g = Graph("c=Cast x > a | Cast a > b | Relu b > y", {}, (3,), {"a": {"to": to}, "b": {"to": FLOAT}})
    with pytest.raises(UnsupportedError) as e:
        load_of(g, path, check=False)
    one_line(e.value, str(path), "'c' (Cast)")


def test_a_double_model(path: Path) -> None:
    weights = {"w": W.astype(np.float64), "b": B.astype(np.float64)}
    g = Graph("MatMul x w > a | Add a b > c | Tanh c > y", weights, (3,), kind=DOUBLE)
    assert_imported(g, "Dense Tanh", path)


def test_a_double_input_computed_in_float(path: Path) -> None:
    casts = {"a": {"to": FLOAT}, "y": {"to": DOUBLE}}
    g = Graph("Cast x > a | MatMul a w > b | Cast b > y", {"w": W}, (3,), casts, kind=DOUBLE)
    assert_imported(g, "Dense", path)


def test_a_float16_model(path: Path) -> None:
    half = Graph("MatMul x w > a | Relu a > y", {"w": W.astype(np.float16)}, (3,), kind=HALF)
    c = load_of(half, path)
    onnx.save(onnx.shape_inference.infer_shapes(half.proto()), path)
    assert verify_file(path).tolerance == 1e-2
    assert any("float16" in n for n in c.notes)
    assert c.weights[0].data.tobytes() == W.astype(np.float16).astype(np.float32).tobytes()


EXACT = np.float32(np.arange(12).reshape(3, 4)) / 4 - 1  # the same number in all of these types


def stored(kind: int, raw: bool) -> TensorProto:
    if not raw:
        return helper.make_tensor("w", kind, [3, 4], EXACT.ravel().tolist())
    return numpy_helper.from_array(EXACT.astype(helper.tensor_dtype_to_np_dtype(kind)), "w")


@pytest.mark.parametrize("raw", [True, False])
@pytest.mark.parametrize("kind", [FLOAT, DOUBLE, HALF, TensorProto.BFLOAT16])
def test_every_type_of_weight(kind: int, raw: bool, path: Path) -> None:
    tensor = stored(kind, raw)
    assert tensor.HasField("raw_data") == raw
    c = load_of(Graph("MatMul x w > y", {"w": tensor}, (3,)), path, check=False)
    assert c.weights[0].data.tobytes() == EXACT.tobytes()


def test_initializers_among_the_inputs(path: Path) -> None:
    proto = Graph("MatMul x w > a | Add a b > y", {"w": W, "b": B}, (3,)).proto()
    for tensor in proto.graph.initializer:  # as all files of IR version 3 have it
        proto.graph.input.append(helper.make_tensor_value_info(tensor.name, FLOAT, tensor.dims))
    path.write_bytes(proto.SerializeToString())
    x = normal(4, 3)
    assert_close(run_model(load(path), x), run_onnx(proto, x))


# -------------------------------------------------------------------------------------------------------------- opsets

BN = {n: np.abs(normal(3, seed=i)) + np.float32(0.5) for i, n in enumerate("sbmv")}
IMAGE = (3, 4, 4)
OPS: dict[str, tuple[Graph, str]] = {
    "Conv": (Graph("Conv x k > y", {"k": K}, IMAGE, {"y": CONV}), "Conv2D"),
    "Gemm": (Graph("Gemm x w b > y", {"w": W, "b": B}, (3,)), "Dense"),
    "MatMul": (Graph("MatMul x w > a | Add a b > y", {"w": W, "b": B}, (3,)), "Dense"),
    "BatchNormalization": (Graph("BatchNormalization x s b m v > y", BN, IMAGE), "BatchNorm"),
    "MaxPool": (Graph("MaxPool x > y", {}, IMAGE, {"y": POOL}), "MaxPool2D"),
    "AveragePool": (Graph("AveragePool x > y", {}, IMAGE, {"y": POOL}), "AvgPool2D"),
    "AveragePool padded": (Graph("AveragePool x > y", {}, IMAGE, {"y": {"kernel_shape": [3, 3], "pads": [1] * 4}}),
        "AvgPool2D"),
    "GlobalAveragePool": (Graph("GlobalAveragePool x > y", {}, IMAGE), "GlobalAvgPool2D"),
    "Flatten": (Graph("Flatten x > y", {}, IMAGE), "Flatten"),
    "Reshape": (Graph("Reshape x s > y", {"s": ints(0, -1)}, IMAGE), "Flatten"),
    "Relu": (Graph("Relu x > y", {}, (3,)), "ReLU"),
    "LeakyRelu": (Graph("LeakyRelu x > y", {}, (3,), {"y": {"alpha": 0.3}}), "LeakyReLU"),
    "Elu": (Graph("Elu x > y", {}, (3,)), "ELU"),
    "Sigmoid": (Graph("Sigmoid x > y", {}, (3,)), "Sigmoid"),
    "Swish": (Graph("Sigmoid x > a | Mul x a > y", {}, (3,)), "Swish"),
    "Tanh": (Graph("Tanh x > y", {}, (3,)), "Tanh"),
    "Softmax": (Graph("Softmax x > y", {}, (3,)), "Softmax"),
    "LogSoftmax": (Graph("LogSoftmax x > y", {}, (3,)), "LogSoftmax"),
    "Dropout": (Graph("Dropout x > a | Relu a > y", {}, (3,)), "Dropout ReLU"),
    "Sub, Div": (Graph("Sub x m > a | Div a s > y", {"m": BN["m"][:, None, None], "s": BN["s"][:, None, None]}, IMAGE),
        "Affine"),
    "Transpose": (Graph("Transpose x > a | Conv a k > y", {"k": K}, (5, 5, 3), {"a": IN}), "Conv2D"),
}  # fmt: skip


@pytest.mark.parametrize("opset", range(OLDEST_READ, NEWEST_RUN + 1))
@pytest.mark.parametrize("name", OPS)
def test_every_operator_in_every_opset(name: str, opset: int, path: Path) -> None:
    g, layers = OPS[name]
    g = Graph(g.text, g.constants, g.shape, g.attributes, opset)
    proto = g.save(path)
    c = load(path)
    assert kinds(c) == layers.split()
    x = normal(4, *g.shape)
    ours = run_model(c, x.transpose(0, 3, 1, 2) if name == "Transpose" else x)
    assert_close(ours, run_onnx(proto, x))


@pytest.mark.parametrize("opset", [6, 1, NEWEST_OPSET + 1])
def test_other_opsets_are_refused(opset: int, path: Path) -> None:
    with pytest.raises(UnsupportedError) as e:
        load_of(Graph("Relu x > y", {}, (3,), opset=opset), path)
    one_line(e.value, str(path), f"opset {opset}", f"{OLDEST_READ} to {NEWEST_OPSET}")


@pytest.mark.parametrize("opset", [7, 10])
def test_clip_with_attributes(opset: int, path: Path) -> None:
    assert_imported(Graph("Clip x > y", {}, (3,), {"y": {"min": 0.0, "max": 6.0}}, opset), "ReLU6", path)
    assert_imported(Graph("Clip x > y", {}, (3,), {"y": {"min": 0.0}}, opset), "ReLU", path)


@pytest.mark.parametrize("opset", [11, 13, NEWEST_RUN])
def test_clip_with_inputs(opset: int, path: Path) -> None:
    limits = {"a": np.float32(0), "b": np.float32(6)}
    assert_imported(Graph("Clip x a b > y", limits, (3,), opset=opset), "ReLU6", path)
    assert_imported(Graph("Clip x a > y", {"a": np.float32(0)}, (3,), opset=opset), "ReLU", path)


def test_an_input_that_is_left_out_is_not_the_next_one(path: Path) -> None:
    """Dropout's ratio; and Clip's least number, above."""
    off = {"t": np.array(False)}
    c = assert_imported(Graph("Dropout x _ t > a | Relu a > y", off, (3,)), "Dropout ReLU", path)
    assert c.model_spec.layers[0].parameters["rate"] == 0.5  # ONNX's default
    with pytest.raises(UnsupportedError, match="training_mode is true"):
        load_of(Graph("Dropout x _ t > a | Relu a > y", {"t": np.array(True)}, (3,)), path)


ZERO, SIX = np.float32(0), np.float32(6)
CLIPS: dict[str, Graph] = {
    "only another lower limit": Graph("Clip x a > y", {"a": np.float32(1)}, (3,)),
    "only an upper limit": Graph("Clip x _ b > y", {"b": SIX}, (3,)),
    "no limits": Graph("Clip x > y", {}, (3,)),
    "other limits": Graph("Clip x a b > y", {"a": ZERO, "b": np.float32(1)}, (3,)),
    "limits exchanged": Graph("Clip x a b > y", {"a": SIX, "b": ZERO}, (3,)),
    "only an upper limit, as attribute": Graph("Clip x > y", {}, (3,), {"y": {"max": 6.0}}, 9),
    "the data is the upper limit": Graph("Clip a b x > y", {"a": ZERO, "b": SIX}, (3,)),
    "the data is the lower limit": Graph("Clip a x b > y", {"a": ZERO, "b": SIX}, (3,)),
}


@pytest.mark.parametrize("name", CLIPS)
def test_another_clip_is_refused(name: str, path: Path) -> None:
    with pytest.raises(UnsupportedError) as e:
        load_of(CLIPS[name], path, check=False)
    one_line(e.value, str(path), "'n_y' (Clip)")


@pytest.mark.parametrize("opset", [7, 11, 13, 17, 18, NEWEST_RUN])
@pytest.mark.parametrize("axes", [(2, 3), (-1, -2), (3, -2)])
def test_a_mean_over_the_image(axes: tuple[int, int], opset: int, path: Path) -> None:
    if opset < 11 and min(axes) < 0:  # onnx allows them from opset 11 on
        axes = (2, 3)
    given = {"keepdims": 1} if opset >= 18 else {"axes": list(axes)}
    g = Graph("ReduceMean x > y", {}, IMAGE, {"y": given}, opset)
    if opset >= 18:
        g = Graph("ReduceMean x a > y", {"a": ints(*axes)}, IMAGE, {"y": given}, opset)
    assert_imported(g, "GlobalAvgPool2D", path)
    for node in g.attributes.values():
        node["keepdims"] = 0
    c = assert_imported(g, "GlobalAvgPool2D Flatten", path)
    assert [s.name for s in c.model_spec.layers] == ["n_y", "n_y_flatten"]
    g.text = g.text.replace("> y", "> m | MatMul m w > y")
    g.constants["w"], g.attributes = normal(3, 4), {"m": g.attributes["y"]}
    assert_imported(g, "GlobalAvgPool2D Dense", path)


@pytest.mark.parametrize("op", ["MaxPool", "AveragePool"])
def test_windows_that_divide_the_image_need_no_ceiling(op: str, path: Path) -> None:
    window = {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1}
    layer = "MaxPool2D" if op == "MaxPool" else "AvgPool2D"
    assert_imported(Graph(f"{op} x > y", {}, (3, 6, 8), {"y": window}), layer, path)
    with pytest.raises(UnsupportedError, match=r"ceil_mode adds windows that reach beyond the image of \(6, 7\)"):
        load_of(Graph(f"{op} x > y", {}, (3, 6, 7), {"y": window}), path)


@pytest.mark.parametrize("zero", [np.float32(0), np.zeros((1, 1), np.float32)], ids=["number", "array"])
@pytest.mark.parametrize("inputs", ["x a", "a x"])
def test_the_maximum_with_zero_is_a_relu(inputs: str, zero: np.ndarray, path: Path) -> None:
    assert_imported(Graph(f"Max {inputs} > y", {"a": zero}, (3,)), "ReLU", path)
    for other in (np.float32(1), np.zeros(3, np.float32), np.zeros((1, 1, 1), np.float32)):
        with pytest.raises(UnsupportedError, match=r"\(Max\): only the maximum of the data and the number 0"):
            load_of(Graph(f"Max {inputs} > y", {"a": other}, (3,)), path)


MEANS: dict[str, Graph] = {
    "over channels": Graph("ReduceMean x > y", {}, IMAGE, {"y": {"axes": [1]}}),
    "over rows": Graph("ReduceMean x > y", {}, IMAGE, {"y": {"axes": [2]}}),
    "over everything": Graph("ReduceMean x > y", {}, IMAGE),
    "over nothing": Graph("ReduceMean x a > y", {"a": ints()}, IMAGE, {"y": {"noop_with_empty_axes": 1}}, 18),
    "over channels, without them": Graph("ReduceMean x > y", {}, IMAGE, {"y": {"axes": [1], "keepdims": 0}}),
    "of a sequence": Graph("ReduceMean x > y", {}, (3, 4), {"y": {"axes": [2]}}),
    "over H, W of channels last": Graph("Transpose x > a | ReduceMean a > y", {}, IMAGE,
        {"a": {"perm": [0, 2, 3, 1]}, "y": {"axes": [1, 2]}}),
}  # fmt: skip


@pytest.mark.parametrize("name", MEANS)
def test_another_mean_is_refused(name: str, path: Path) -> None:
    with pytest.raises(UnsupportedError) as e:
        load_of(MEANS[name], path, check=False)
    one_line(e.value, str(path), "(ReduceMean)")


# --------------------------------------------------------------------------------------------------------- affine maps

M, S = normal(3, 1, 1, seed=8), np.abs(normal(3, 1, 1, seed=9)) + np.float32(0.5)
AFFINE: dict[str, tuple[Graph, str]] = {
    "normalised input": (Graph("Sub x m > a | Div a s > b | Conv b k > y", {"m": M, "s": S, "k": K}, IMAGE),
        "Affine Conv2D"),
    "one number for all": (Graph("Div x n > a | Conv a k > y", {"n": np.float32(255), "k": K}, IMAGE), "Affine Conv2D"),
    "one number in brackets": (Graph("Mul x n > a | Sub a n > y", {"n": np.full((1, 1), 2, np.float32)}, IMAGE),
        "Affine"),
    "constants on the left": (Graph("Mul s x > a | Sub m a > y", {"m": M, "s": S}, IMAGE), "Affine"),
    "four operations": (Graph("Mul x s > a | Add a m > b | Div b s > c | Sub c m > y", {"m": M, "s": S}, IMAGE),
        "Affine Affine"),
    "with a batch axis": (Graph("Mul x s > y", {"s": S[None]}, IMAGE), "Affine"),
    "columns of a table": (Graph("Sub x m > a | Div a s > b | MatMul b w > y",
        {"m": M.ravel(), "s": S.ravel(), "w": W}, (3,)), "Affine Dense"),
    "rows of a table": (Graph("Sub x m > a | Div a s > b | MatMul b w > y",
        {"m": M.reshape(1, 3), "s": S.reshape(1, 3), "w": W}, (3,)), "Affine Dense"),
    "a sequence": (Graph("Add x m > y", {"m": M.reshape(3, 1)}, (3, 5)), "Affine"),
    "bias of a Conv that has one": (Graph("Conv x k b > a | Add a c > y", {"k": K, "b": CB.ravel(), "c": CB}, IMAGE),
        "Conv2D Affine"),
    "one number after a Conv": (Graph("Conv x k > a | Add a c > y", {"k": K, "c": np.float32(0.5)}, IMAGE),
        "Conv2D Affine"),
}  # fmt: skip


@pytest.mark.parametrize("name", AFFINE)
def test_scale_and_shift(name: str, path: Path) -> None:
    g, layers = AFFINE[name]
    assert_imported(g, layers, path)


NO_AFFINE: dict[str, Graph] = {
    "a number for each column": Graph("Add x m > y", {"m": normal(4)}, (3, 4, 4)),
    "as many rows as channels": Graph("Add x m > y", {"m": normal(4, 1)}, (4, 4, 4)),
    "as many columns as channels": Graph("Add x m > y", {"m": normal(4)}, (4, 4, 4)),
    "a number for each pixel": Graph("Add x m > y", {"m": normal(3, 4, 4)}, (3, 4, 4)),
    "a number for each row of the batch": Graph("Add x m > y", {"m": normal(3, 1)}, (3,), batch=3),
    "makes channels": Graph("Add x m > y", {"m": normal(3, 1, 1)}, (1, 4, 4)),
    "makes an axis": Graph("Add x m > y", {"m": normal(1, 1, 3, 1, 1)}, (3, 4, 4)),
    "divides by the data": Graph("Div m x > y", {"m": normal(3)}, (3,)),
    "divides by 0": Graph("Div x m > y", {"m": np.zeros(3, np.float32)}, (3,)),
    "two tensors": Graph("Mul x x > y", {}, (3,)),
}


@pytest.mark.parametrize("name", NO_AFFINE)
def test_what_is_no_scale_and_shift_is_refused(name: str, path: Path) -> None:
    with pytest.raises(GoMetalError) as e:
        load_of(NO_AFFINE[name], path, check=False)
    one_line(e.value, str(path), "y")


# ------------------------------------------------------------------------------------------------------ several outputs


def classifier(outputs: Sequence[tuple[str, int]]) -> Graph:
    """As skl2onnx writes one: labels beside probabilities."""
    return Graph(
        "MatMul x w > a | Add a b > z | Softmax z > p | ArgMax p > i | Cast i > label",
        {"w": W, "b": B}, (3,), {"i": {"axis": 1, "keepdims": 0}, "label": {"to": INT64}}, outputs=tuple(outputs),
    )  # fmt: skip


@pytest.mark.parametrize("outputs", [[("label", INT64), ("p", FLOAT)], [("p", FLOAT), ("label", INT64)]])
def test_labels_are_left_out(outputs: list[tuple[str, int]], path: Path) -> None:
    c = assert_imported(classifier(outputs), "Dense Softmax", path, output="p")
    assert any("'p'" in n and "'label' is left out" in n for n in c.notes)


def test_two_float_outputs_are_refused(path: Path) -> None:
    with pytest.raises(UnsupportedError) as e:
        load_of(classifier([("z", FLOAT), ("p", FLOAT)]), path)
    one_line(e.value, str(path), "2 outputs ('z', 'p')")


def test_a_label_alone_is_refused(path: Path) -> None:
    with pytest.raises(UnsupportedError) as e:
        load_of(classifier([("label", INT64)]), path)
    one_line(e.value, str(path), "(ArgMax)", "no layer does this")


def test_nodes_that_nobody_needs_are_left_out(path: Path) -> None:
    g = Graph("Relu x > y | Erf x > z | LSTM z z z > q", {}, (3,))
    assert kinds(load_of(g, path, check=False)) == ["ReLU"]


# ------------------------------------------------------------------------------------------------------- external data


def with_external(
    path: Path, location: str = "w.bin", offset: Any = 8, length: Any = None, data: bytes | None = None
) -> onnx.ModelProto:
    """A MatMul whose weight lies in another file, behind eight other bytes."""
    proto = Graph("MatMul x w > y", {"w": W}, (3,)).proto()
    tensor = proto.graph.initializer[0]
    raw = tensor.raw_data
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    entries = {"location": location, "offset": offset, "length": len(raw) if length is None else length}
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=str(value))
    path.write_bytes(proto.SerializeToString())
    (path.parent / "w.bin").write_bytes(b"12345678" + raw if data is None else data)
    return proto


def test_external_data_is_read_when_asked_for(path: Path) -> None:
    with_external(path)
    c = load(path, external_data=True)
    assert c.weights[0].data.tobytes() == W.tobytes()
    x = normal(5, 3)
    assert_close(run_model(c, x), run_onnx(path, x))


def test_external_data_as_onnx_writes_it(path: Path) -> None:
    g = Graph("Transpose x > a | Conv a k > y", {"k": K}, (5, 5, 3), {"a": IN})
    onnx.save_model(g.proto(), path, save_as_external_data=True, location="weights.data", size_threshold=0)
    assert (path.parent / "weights.data").stat().st_size >= K.nbytes
    assert load(path, external_data=True).weights[0].data.tobytes() == K.tobytes()


def test_external_data_in_a_folder_below(path: Path) -> None:
    with_external(path, "sub/w.bin")
    (path.parent / "sub").mkdir()
    (path.parent / "w.bin").rename(path.parent / "sub" / "w.bin")
    assert load(path, external_data=True).weights[0].data.tobytes() == W.tobytes()


@pytest.mark.parametrize("check", [True, False])
def test_external_data_is_not_read_unasked(check: bool, path: Path) -> None:
    with_external(path)
    with pytest.raises(UnsupportedError) as e:
        load_onnx(path, check=check)
    one_line(e.value, str(path), "'w'", "external_data=True")


OUTSIDE = "is not a plain file inside the model's folder"
EXTERNAL: dict[str, tuple[dict[str, Any], str]] = {
    "parent folder": ({"location": "../secret.bin"}, OUTSIDE),
    "parent folder, hidden": ({"location": "sub/../../secret.bin"}, OUTSIDE),
    "no location": ({"location": ""}, OUTSIDE),
    "the folder": ({"location": "."}, OUTSIDE),
    "missing": ({"location": "other.bin"}, "other.bin"),
    "too short": ({"data": b"12345678" + W.tobytes()[:-1]}, "is damaged"),
    "empty": ({"data": b""}, "is damaged"),
    "negative offset": ({"offset": -8}, "is damaged"),
    "offset behind the end": ({"offset": 2**62}, "is damaged"),
    "offset that is no number": ({"offset": "eight"}, "w.bin"),
    "length of something else": ({"length": 44}, "is damaged"),
    "negative length": ({"length": -48}, "is damaged"),
}


@pytest.mark.parametrize("name", EXTERNAL)
def test_external_data_that_is_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / "model" / "c.onnx"
    path.parent.mkdir()
    (tmp_path / "secret.bin").write_bytes(b"12345678" + W.tobytes())
    settings, told = EXTERNAL[name]
    with_external(path, **settings)
    with pytest.raises(CheckpointError) as e:
        load(path, external_data=True)
    one_line(e.value, str(path), "'w'", told)


def test_an_absolute_location_is_refused(path: Path) -> None:
    with_external(path, str(path.parent / "w.bin"))
    with pytest.raises(CheckpointError) as e:
        load(path, external_data=True)
    one_line(e.value, OUTSIDE)


@pytest.mark.parametrize("inside", [True, False])
def test_a_symbolic_link_is_refused(inside: bool, tmp_path: Path) -> None:
    path = tmp_path / "model" / "c.onnx"
    path.parent.mkdir()
    with_external(path, "link.bin")
    (tmp_path / "secret.bin").write_bytes(b"12345678" + W.tobytes())
    (path.parent / "link.bin").symlink_to(path.parent / "w.bin" if inside else tmp_path / "secret.bin")
    with pytest.raises(CheckpointError) as e:
        load(path, external_data=True)
    one_line(e.value, OUTSIDE)


def test_a_linked_folder_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model" / "c.onnx"
    path.parent.mkdir()
    with_external(path, "sub/w.bin")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "w.bin").write_bytes(b"12345678" + W.tobytes())
    (path.parent / "sub").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError) as e:
        load(path, external_data=True)
    one_line(e.value, OUTSIDE)


# ------------------------------------------------------------------------------------------------------------ refusals

SUB = helper.make_graph(
    [helper.make_node("Relu", ["x"], ["z"])], "s", [], [helper.make_tensor_value_info("z", 1, None)]
)
IF = {"then_branch": SUB, "else_branch": SUB}
REFUSED: dict[str, tuple[Graph, list[str]]] = {
    "branches": (Graph("r=Relu x > a | t=Tanh x > b | s=Add a b > y", {}, (3,)),
        ["'r' (Relu)", "'t' (Tanh)", "branches are not supported"]),
    "residual": (Graph("c=Conv x k > a | r=Relu a > b | d=Conv b m > e | s=Add e a > y",
        {"k": normal(3, 3, 1, 1), "m": normal(3, 3, 1, 1)}, IMAGE), ["'r' (Relu)", "'s' (Add)", "branches"]),
    "groups": (Graph("c=Conv x k > y", {"k": normal(3, 1, 3, 3)}, IMAGE, {"y": {"group": 3}}), ["'c' (Conv)", "group"]),
    "dilation": (Graph("c=Conv x k > y", {"k": K}, (3, 9, 9), {"y": {"dilations": [2, 2]}}),
        ["'c' (Conv)", "dilations = [2, 2]"]),
    "auto_pad that is uneven": (Graph("c=Conv x k > y", {"k": K}, IMAGE,
        {"y": {"auto_pad": "SAME_UPPER", "strides": [2, 2]}}), ["'c' (Conv)", "pads = [0, 0, 1, 1]"]),
    "auto_pad of a pool that is uneven": (Graph("p=AveragePool x > y", {}, IMAGE,
        {"y": {"auto_pad": "SAME_LOWER", "kernel_shape": [2, 2]}}), ["'p' (AveragePool)", "pads = [1, 1, 0, 0]"]),
    "asymmetric pads": (Graph("c=Conv x k > y", {"k": K}, IMAGE, {"y": {"pads": [0, 0, 1, 1]}}),
        ["'c' (Conv)", "pads = [0, 0, 1, 1]"]),
    "oblong window": (Graph("p=MaxPool x > y", {}, IMAGE, {"y": {"kernel_shape": [1, 2]}}),
        ["'p' (MaxPool)", "kernel_shape = [1, 2]"]),
    "ceil_mode": (Graph("p=AveragePool x > y", {}, (3, 4, 5), {"y": {**POOL, "ceil_mode": 1}}),
        ["'p' (AveragePool)", "ceil_mode"]),
    "transposed output": (Graph("Transpose x > a | Conv a k > b | t=Transpose b > y", {"k": K}, (6, 6, 3),
        {"a": IN, "y": OUT}), ["the output is of the layout (0, 2, 3, 1)"]),
    "batch moved": (Graph("t=Transpose x > y", {}, (3,)), ["'t' (Transpose)", "the batch must stay first"]),
    "flattened in another order": (Graph("Transpose x > a | Relu a > b | Transpose b > c | Flatten c > y", {},
        (6, 6, 3), {"a": IN, "c": OUT}), ["layout"]),
    "Conv in channels last": (Graph("t=Transpose x > a | c=Conv a k > y", {"k": normal(2, 4, 1, 1)}, (3, 4, 4),
        {"a": {"perm": [0, 3, 2, 1]}}), ["'c' (Conv)", "layout"]),
    "Softmax before opset 13 in channels last": (Graph("Transpose x > a | Relu a > b | Transpose b > c | "
        "s=Softmax c > d | Transpose d > y", {}, (2, 5, 3), {"a": IN, "c": OUT, "d": {"axis": 2}, "y": IN}, 11),
        ["'s' (Softmax)", "before opset 13"]),
    "axis far away in channels last": (Graph("Transpose x > a | Relu a > b | Transpose b > c | s=Softmax c > d | "
        "Transpose d > y", {}, (2, 5, 3), {"a": IN, "c": OUT, "d": {"axis": 4}, "y": IN}), ["'s' (Softmax)", "axis 4"]),
    "the data is the ratio": (Graph("d=Dropout r x > a | Relu a > y", {"r": normal(3)}, (3,)), ["Dropout"]),
}  # fmt: skip


@pytest.mark.parametrize("check", [True, False])
@pytest.mark.parametrize("name", REFUSED)
def test_what_a_chain_of_layers_cannot_do_is_refused(name: str, check: bool, path: Path) -> None:
    g, parts = REFUSED[name]
    with pytest.raises(UnsupportedError) as e:
        load_of(g, path, check=check)
    one_line(e.value, str(path), *parts)


def test_one_message_names_all_the_nodes_that_no_layer_can_take(path: Path) -> None:
    g = Graph(
        "e=Erf x > a | g=Gelu a > b | c=com.example:Thing b > c | i=If c > d | l=LSTM d w w > e | Relu e > y",
        {"w": normal(1, 2, 3)}, (3,), {"d": IF}, 20,
    )  # fmt: skip
    with pytest.raises(UnsupportedError) as e:
        load_of(g, path, check=False)
    parts = ["'e' (Erf)", "'g' (Gelu)", "'c' ('com.example:Thing')", "'i' (If)", "control flow", "'l' (LSTM)"]
    one_line(e.value, str(path), *parts)


def test_one_message_names_all_the_attributes_of_a_node_that_no_layer_reads(path: Path) -> None:
    g = Graph("r=Relu x > y", {}, (3,), {"y": {"slope": 2.0, "other": 3}})
    with pytest.raises(UnsupportedError) as e:
        load_of(g, path, check=False)
    one_line(e.value, "'r' (Relu)", "attribute slope = 2.0", "attribute other = 3")


def test_one_message_names_all_that_is_wrong_with_all_the_nodes(path: Path) -> None:
    """Behind a refused node, in each branch and behind their meeting the search goes on."""
    g = Graph(
        "g=Conv x a > t1 | p=MaxPool t1 > t2 | l=Conv t2 b > t3 | r=Conv t2 c > t4 | m=Add t3 t4 > t5 "
        "| u=Gelu t5 > t6 | Flatten t6 > t7 | s=Softmax t7 > t8 | q=Cast t8 > t9 | d=Gemm t9 w > y",
        {"a": normal(4, 1, 3, 3), "b": normal(4, 4, 1, 3), "c": normal(4, 4, 1, 1), "w": normal(64, 2)},
        (4, 20, 20),
        {
            "t1": {"group": 4, "dilations": [2, 2], "pads": [0, 1, 0, 1]},
            "t2": {"kernel_shape": [2, 3], "ceil_mode": 1, "strides": [2, 1]},
            "t3": {"pads": [0, 1, 0, 1]},
            "t8": {"axis": 1},
            "t9": {"to": TensorProto.BFLOAT16},
            "y": {"transA": 1},
        },
        20,
    )
    with pytest.raises(UnsupportedError) as e:
        load_of(g, path, check=False)
    parts = ["'g' (Conv): group = 4", "'g' (Conv): dilations = [2, 2]", "'g' (Conv): pads = [0, 1, 0, 1]"]
    parts += ["'p' (MaxPool): kernel_shape = [2, 3]", "'p' (MaxPool): strides = [2, 1]"]
    parts += ["'l' (Conv), node 'r' (Conv); branches", "'l' (Conv): kernel_shape = [1, 3]", "'m' (Add)", "'u' (Gelu)"]
    text = str(e.value)
    for part in (*parts, str(path), "'q' (Cast)", "'d' (Gemm): transA = 1"):
        assert text.count(part) == 1, text
    assert "\n" not in text


def test_a_message_of_very_many_problems_is_cut(path: Path) -> None:
    names = [f"t{i}" for i in range(100)]
    nodes = " | ".join(f"{b}=Erf {a} > {b}" for a, b in zip(["x", *names], [*names, "y"], strict=False))
    with pytest.raises(UnsupportedError) as e:
        load_of(Graph(nodes, {}, (3,)), path, check=False)
    assert "'t0' (Erf)" in str(e.value)
    assert str(e.value).endswith("; and 71 more")
    assert len(str(e.value)) < 3000


SAME = {
    "odd window": ("Conv x k > y", {"auto_pad": "SAME_UPPER"}, 1),
    "odd window, lower": ("Conv x k > y", {"auto_pad": "SAME_LOWER"}, 1),
    "nothing lacks": ("MaxPool x > y", {"auto_pad": "SAME_UPPER", **POOL}, 0),
    "a step": ("MaxPool x > y", {"auto_pad": "SAME_LOWER", "kernel_shape": [3, 3], "strides": [3, 3]}, 1),
    "no padding": ("Conv x k > y", {"auto_pad": "VALID"}, 0),
}


@pytest.mark.parametrize("name", SAME)
def test_padding_that_the_graph_leaves_to_be_computed(name: str, path: Path) -> None:
    """onnxruntime computes the same."""
    text, attributes, padding = SAME[name]
    checkpoint = load_of(Graph(text, {"k": K} if "k" in text.split() else {}, IMAGE, {"y": attributes}), path)
    assert checkpoint.model_spec.layers[0].parameters["padding"] == padding


# --------------------------------------------------------------------------------------------------- a wrong import

WRONG: dict[type[Layer], Graph] = {
    Dense: Graph("Gemm x w b > y", {"w": W, "b": B}, (3,)),
    Conv2D: Graph("Conv x k > y", {"k": K}, IMAGE),
    BatchNorm: Graph("BatchNormalization x s b m v > y", BN, IMAGE),
    Affine: Graph("Mul x m > y", {"m": M}, IMAGE),
}


@pytest.mark.parametrize("layer", WRONG, ids=lambda c: c.__name__)
def test_a_wrong_import_is_caught(layer: type[Layer], path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One weight changed in its fourth digit; nothing is handed out, the file stays as it is."""
    right = layer.from_onnx

    def wrong(m: Any) -> Any:
        found = right(m)
        if found is None:
            return None
        made, weights = found
        weights = {n: np.array(w) for n, w in weights.items()}
        weights["weight"].reshape(-1)[0] *= np.float32(1.001)
        return made, weights

    WRONG[layer].save(path)
    before = files(path.parent)
    load(path)
    monkeypatch.setattr(layer, "from_onnx", staticmethod(wrong))
    with pytest.raises(CheckpointError) as e:
        load(path)
    one_line(e.value, str(path), "onnxruntime differs from MLX")
    assert files(path.parent) == before
    assert load_onnx(path, check=False).weights  # only the comparison knows


# --------------------------------------------------------------------------------------------- random stacks, via ONNX


def drawn_layer(draw: st.DrawFn, kind: type[Layer], name: str) -> Layer:
    def size(low: int, high: int) -> int:
        return draw(st.integers(low, high))

    flag, rate = st.booleans(), st.floats(0, 0.875, width=32)
    settings: dict[type[Layer], Callable[[], dict[str, Any]]] = {
        Dense: lambda: {"output_size": size(1, 6), "use_bias": draw(flag)},
        Conv2D: lambda: {"output_channels": size(1, 4), "kernel_size": size(1, 3), "stride": size(1, 2),
            "padding": size(0, 2), "use_bias": draw(flag)},
        MaxPool2D: lambda: {"pool_size": size(1, 3), "stride": size(0, 2)},
        AvgPool2D: lambda: {"pool_size": (k := size(1, 3)), "stride": size(0, 2), "padding": size(0, k // 2),
            "count_include_pad": draw(flag)},
        BatchNorm: lambda: {"affine": draw(flag), "eps": draw(st.sampled_from([1e-5, 1e-3])), "momentum": draw(rate)},
        Softmax: lambda: {"axis": size(-1, 3)}, LogSoftmax: lambda: {"axis": size(-1, 3)},
        Dropout: lambda: {"rate": draw(rate)}, ELU: lambda: {"alpha": draw(rate)},
        LeakyReLU: lambda: {"negative_slope": draw(rate)},
    }  # fmt: skip
    return kind(name=name, **settings.get(kind, dict)())


PLAIN = (Flatten, GlobalAvgPool2D, ReLU, ReLU6, Sigmoid, Swish, Tanh, Affine)


@st.composite
def stacks(draw: st.DrawFn) -> Model:
    """Up to seven layers that fit each other; at least one stays in an inference graph."""
    shape = draw(st.sampled_from([(1, 4), (1, 3, 6, 5), (1, 2, 5, 5), (2, 4, 4, 4), (1, 3, 4)]))
    layers: list[Layer] = []
    for _ in range(draw(st.integers(1, 7))):
        made = drawn_layer(draw, LAYERS[draw(st.sampled_from(sorted(LAYERS)))], f"l{len(layers)}")
        try:
            layers = list(ModelSpec.from_layers([*layers, made], shape).typed_layers())
        except ShapeError:
            continue
    if not any(type(layer) is not Dropout for layer in layers):
        layers.append(ReLU(name="last"))
    model = Model(ModelSpec.from_layers(layers, shape))
    randomise(model, draw(st.integers(0, 99)))
    return model.eval()


def expected_from_nodes(model: Model) -> tuple[list[Layer], dict[str, bytes]]:
    """What the graph alone can tell: no Dropout; scale and bias at every BatchNorm; one flattening, not two."""
    layers: list[Layer] = []
    weights = {w.name: w.data.tobytes() for w in extract_weights(model)}
    kept = [layer for layer in model.layers if type(layer) is not Dropout]
    for i, layer in enumerate(kept):
        follower = kept[i + 1] if i + 1 < len(kept) else None
        if type(layer) is Flatten and type(follower) is Dense:
            continue  # both orders of the same two nodes
        if type(layer) is BatchNorm and not layer.affine:
            weights[f"{layer.name}.weight"] = np.ones(layer.num_features, np.float32).tobytes()
            weights[f"{layer.name}.bias"] = np.zeros(layer.num_features, np.float32).tobytes()
            layer = BatchNorm(name=layer.name, num_features=layer.num_features, eps=layer.eps, momentum=layer.momentum)
        if type(layer) is AvgPool2D and not layer.padding:  # nothing to count
            layer = AvgPool2D(name=layer.name, pool_size=layer.pool_size, stride=layer.stride)
        layers.append(layer)
    return layers, weights


def same_settings(a: Layer, b: Layer) -> bool:
    """Momentum goes through ``1 - m`` twice, which rounds."""
    if type(a) is BatchNorm and type(b) is BatchNorm:
        momentum = abs(a.momentum - b.momentum) <= 1e-7  # two roundings of numbers below 1
        b = BatchNorm(name=b.name, num_features=b.num_features, eps=b.eps, momentum=a.momentum, affine=b.affine)
        return momentum and a == b
    return a == b


@bounded(250)
@given(stacks(), st.integers(13, NEWEST_RUN))
def test_a_random_stack_survives_its_graph(folder: Path, model: Model, opset: int) -> None:
    path = folder / "stack.onnx"
    save(Checkpoint(model.spec, extract_weights(model)), path, opset=opset)
    proto = onnx.load(path)
    x = normal(3, *model.spec.input_shape[1:])
    ours = np.asarray(model(mx.array(x)))
    assert np.abs(run_onnx(proto, x) - ours).max() <= CLOSE * max(1e-30, float(np.abs(ours).max()))
    del proto.metadata_props[:]
    onnx.save(proto, path)
    again = load(path)
    layers, weights = expected_from_nodes(model)
    found = again.model_spec.typed_layers()
    assert [(type(a), a.name) for a in found] == [(type(b), b.name) for b in layers]
    assert all(same_settings(a, b) for a, b in zip(found, layers, strict=True))
    assert {w.name: w.data.tobytes() for w in again.weights} == weights


def test_random_stacks_have_every_layer(folder: Path) -> None:
    drawn: set[type[Layer]] = set()

    @bounded(250)
    @given(stacks())
    def collect(model: Model) -> None:
        drawn.update(type(layer) for layer in model.layers)

    collect()
    assert drawn == set(LAYERS.values())

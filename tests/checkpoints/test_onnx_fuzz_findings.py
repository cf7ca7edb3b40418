"""What benchmarks/fuzz_onnx.py found, made small: each file is refused in one line, at once, or read right."""

import os
import re
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from checkpoint_samples import one_line
from onnx import TensorProto, helper
from onnx_graphs import DOUBLE, Graph, assert_close, normal, run_model, run_onnx

from gometal_mlx.checkpoints import Checkpoint, WeightTensor, load, save
from gometal_mlx.checkpoints.onnx import load as load_onnx
from gometal_mlx.errors import CheckpointError, GoMetalError, UnsupportedError
from gometal_mlx.layers import Model, ModelBuilder

HUGE = 2**27
MOST_BYTES = 64 << 20
DESCRIPTION = "gometal_mlx"  # the entry of metadata_props with the checkpoint's description


def saved(g: Graph, path: Path, change: Callable[[onnx.ModelProto], object] | None = None) -> Path:
    proto = g.proto()
    if change is not None:
        change(proto)
    path.write_bytes(proto.SerializeToString())
    return path


def peak_bytes(action: Callable[[], object]) -> int:
    """The most that Python and numpy had allocated at once."""
    tracemalloc.start()
    try:
        action()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def refused(path: Path, *parts: str, **options: Any) -> None:
    with pytest.raises(GoMetalError) as e:
        load_onnx(path, check=False, **options)
    one_line(e.value, str(path), *parts)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "c.onnx"


# --------------------------------------------------------------------------------------------------- a wrong result


@pytest.mark.parametrize("opset", [11, 12])
def test_an_opset_that_was_changed_afterwards_counts(opset: int, path: Path) -> None:
    """Softmax has another meaning there; the stored description does not know."""
    spec = ModelBuilder((1, 3, 4, 4)).add_softmax(1).compile()
    save(Checkpoint(spec, []), path)
    proto = onnx.load(path)
    proto.opset_import[0].version = opset
    onnx.save(proto, path)
    refused(path, "before opset 13")


def test_two_opsets_of_one_domain_are_refused(path: Path) -> None:
    def change(proto: onnx.ModelProto) -> None:
        proto.opset_import.append(helper.make_opsetid("", 6))

    refused(saved(Graph("Softmax x > y", {}, (3,), {"y": {"axis": 1}}), path, change), "opsets [17, 6]")


def test_a_description_with_other_shapes_gives_the_models_own(path: Path) -> None:
    spec = ModelBuilder((2, 3)).add_dense(4, name="fc").add_relu("r").compile()
    model = Model(spec, seed=0)
    weights = [WeightTensor(f"fc.{n}", v.shape, np.array(v), "fc", n) for n, v in model["fc"].items()]
    save(Checkpoint(spec, weights), path)
    proto = onnx.load(path)
    text = next(p for p in proto.metadata_props if p.key == DESCRIPTION)
    wrong = re.sub(r'("output_shape": \[\s+2,\s+)4', r"\g<1>9", text.value)
    assert wrong != text.value
    text.value = wrong
    onnx.save(proto, path)
    assert load(path).model_spec == spec


# --------------------------------------------------------------------------------------------- hangs, memory and time


def external(location: str) -> Callable[[onnx.ModelProto], None]:
    def change(proto: onnx.ModelProto) -> None:
        tensor = proto.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=location)

    return change


DENSE = Graph("Gemm x w > y", {"w": normal(3, 4)}, (3,))


def test_a_pipe_is_no_external_data(path: Path) -> None:
    os.mkfifo(path.parent / "pipe")
    refused(saved(DENSE, path, external("pipe")), "'pipe'", external_data=True)


@pytest.mark.parametrize("location", ["\0", "x" * 300, "a\0b/c"], ids=["zero", "long", "zero inside"])
def test_a_name_that_no_system_takes_is_no_external_data(location: str, path: Path) -> None:
    refused(saved(DENSE, path, external(location)), "not a plain file", external_data=True)


def test_an_external_name_that_is_no_text(path: Path) -> None:
    data = saved(DENSE, path, external("somewhere.data")).read_bytes()
    path.write_bytes(data.replace(b"somewhere.data", b"somewhere\xff\xfe\xfd\xfc\xfb"))
    refused(path, "UTF-8", external_data=True)


def test_a_tensor_that_is_here_and_elsewhere(path: Path) -> None:
    """onnxruntime takes what is here."""

    def change(proto: onnx.ModelProto) -> None:
        proto.graph.initializer[0].external_data.add(key="location", value="w.bin")

    (path.parent / "w.bin").write_bytes(bytes(48))
    for external_data in (False, True):
        refused(saved(DENSE, path, change), "'w'", "names another file", external_data=external_data)


def doubled(times: int) -> str:
    nodes = [f"Concat t{i} t{i} > t{i + 1}" for i in range(times)]
    return " | ".join([*nodes, f"Mul x t{times} > y"])


BOMBS: dict[str, Graph] = {
    "concat": Graph(doubled(22), {"t0": normal(4)}, (3,), {f"t{i + 1}": {"axis": 0} for i in range(22)}),
    "gather": Graph("Gather a i > b | Gather b i > c | Gather c i > d | Gather d i > e | Mul x e > y",
        {"a": normal(1), "i": np.zeros((1, 1000), np.int64)}, (3,)),
    "broadcast": Graph("Mul a b > d | Mul d c > e | Mul x e > y",
        {"a": normal(800, 1, 1), "b": normal(1, 800, 1), "c": normal(1, 1, 800)}, (3,)),
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_constants_that_grow_out_of_proportion_are_refused(name: str, path: Path) -> None:
    saved(BOMBS[name], path)
    assert peak_bytes(lambda: refused(path, "numbers from constants")) < MOST_BYTES


WIDE: dict[str, Graph] = {
    "one number for all": Graph("Mul x m > y", {"m": normal(1)}, (HUGE,)),
    "Sub": Graph("Sub x m > a | Div a m > y", {"m": normal(3)}, (HUGE,)),
    "flattened": Graph("Transpose x > a | Relu a > b | Transpose b > c | Flatten c > d | MatMul d w > y",
        {"w": normal(3, 4)}, (2**9, 2**9, 2**9), {"a": {"perm": [0, 3, 1, 2]}, "c": {"perm": [0, 2, 3, 1]}}),
}  # fmt: skip


def test_a_small_file_with_many_wide_layers_costs_no_memory(path: Path) -> None:
    """A number a layer, each of which would become four megabytes of weights."""
    nodes = [f"Mul {x} s > m{i} | Relu m{i} > r{i}" for i, x in enumerate(["x", *(f"r{i}" for i in range(39))])]
    graph = Graph(" | ".join([*nodes, "Relu r39 > y"]), {"s": normal(1)}, (2**20,))
    told = "its layers need 83886080 weights; the file holds 1 numbers"
    assert peak_bytes(lambda: refused(saved(graph, path), told)) < MOST_BYTES


@pytest.mark.parametrize("operator", ["Div", "Mul"])
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("kind", [TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.BOOL])
def test_a_dimension_is_no_number_of_the_model(operator: str, axis: int, kind: int, path: Path) -> None:
    """``x / x.shape[0]``: the symbol of the batch became a weight, -2**40."""
    text = f"Shape x > s | Gather s i > n | Cast n > f | Cast f > g | {operator} x g > y"
    graph = Graph(text, {"i": np.array(axis)}, (3,), {"f": {"to": kind}, "g": {"to": TensorProto.FLOAT}})
    refused(saved(graph, path), "'n_f' (Cast): computes with the batch size")


@pytest.mark.parametrize("name", WIDE)
def test_a_small_file_with_giant_shapes_costs_no_memory(name: str, path: Path) -> None:
    saved(WIDE[name], path)
    assert peak_bytes(lambda: refused(path)) < MOST_BYTES


# --------------------------------------------------------------------------------------------------- other exceptions


def stated(text: str) -> Callable[[onnx.ModelProto], object]:
    return lambda proto: helper.set_model_props(proto, {"gometal_mlx_export": text})


REFUSED: dict[str, tuple[Graph, str]] = {
    "a product of constants": (Graph("lora=MatMul a a > w | MatMul x w > y", {"a": normal(4, 4)}, (4,)),
        "node 'lora' (MatMul): computes with constants alone; of those only Shape, Gather, "),
    "limits that are computed": (Graph("Relu x > a | Clip x a > y", {}, (3,)), "branches"),
    "a limit a column": (Graph("Clip x a > y", {"a": normal(3)}, (3,)), "its min must be a single number"),
    "rank": (Graph("Mul x m > y", {"m": normal(1)}, (1,) * 3000), "rank 3001"),
    "ratio of two": (Graph("Dropout x r > y", {"r": normal(2)}, (3,)), "single values"),
    "training_mode of two": (Graph("Dropout x r t > y", {"r": np.float32(0.5), "t": np.array([0, 0], bool)}, (3,)),
        "single values"),
    "axes of a mean in a matrix": (Graph("ReduceMean x a > y", {"a": np.array([[2], [3]])}, (3, 4, 4), opset=18),
        "only a mean over height and width"),
    "keepdims of 3": (Graph("ReduceMean x > y", {}, (3, 4, 4), {"y": {"axes": [2, 3], "keepdims": 3}}),
        "only a mean over height and width"),
    "fractional axes": (Graph("Squeeze x a > y", {"a": normal(1)}, (3, 1)), "'n_y' (Squeeze)"),
    "a tensor as attribute": (Graph("Relu x > y", {}, (3,),
        {"y": {"value": helper.make_tensor("t", TensorProto.FLOAT, [30], range(30))}}), "an array of shape (30,)"),
    "a squeeze that takes the batch of a single row": (Graph("Squeeze x > y", {}, (3, 1)), "'n_y' (Squeeze)"),
    "a cast to text": (Graph("Cast m > a | Erf x > b | Mul b a > y", {"m": normal(1)}, (3,),
        {"a": {"to": TensorProto.STRING}}), "'n_a' (Cast)"),
    "a cast to complex numbers": (Graph("Cast m > a | Mul x a > y", {"m": normal(1)}, (3,),
        {"a": {"to": TensorProto.COMPLEX64}}), "'n_a' (Cast)"),
    "a transposition of another domain": (Graph("com.example:Transpose x > a | Relu a > y", {}, (3,),
        {"a": {"perm": 1}}), "'com.example:Transpose'"),
    "windows over a volume": (Graph("Conv x k > y", {"k": normal(4, 3, 1, 1)}, (3, 6, 6, 3),
        {"y": {"auto_pad": "SAME_UPPER"}}), "rank 5"),
    "no rows": (Graph("Relu x > y", {}, (3,), batch=0), "batch of 0 rows"),
    "very many rows": (Graph("Relu x > y", {}, (3,), batch=2**53 + 1), f"batch of {2**53 + 1} rows"),
    "a name of several lines": (Graph("Relu x > y", {}, (3,), {"y": {"a\nb": 1}}), "no name of an attribute"),
    "texts of several lines": (Graph("Relu x > y", {}, (3,), {"y": {"a": "b\nc"}}), r"attribute a = 'b\nc'"),
    "axes without end": (Graph(" | ".join(f"Gather t{i} t{i} > t{i + 1}" for i in range(7)) + " | Mul x t7 > y",
        {"t0": np.zeros((1, 1), np.int64)}, (3,)), "(Gather)"),
    "NaN": (Graph("Mul x m > y", {"m": np.full(1, np.nan, np.float32)}, (1,)), "NaN and infinity"),
    "complex": (Graph("Gemm x w > y", {"w": helper.make_tensor("w", TensorProto.COMPLEX64, [1, 1], [1j])}, (1,)),
        "COMPLEX64"),
    "four bits": (Graph("Gemm x w > y", {"w": TensorProto(name="w", data_type=TensorProto.INT4, dims=[2**30, 4],
        raw_data=b"1")}, (1,)), "INT4"),
    "double beyond float": (Graph("Mul x m > y", {"m": np.array([1e300])}, (1,), kind=DOUBLE), "NaN and infinity"),
    "product beyond float": (Graph("Mul x m > a | Mul a m > y", {"m": np.full(1, 1e30, np.float32)}, (1,)),
        "NaN and infinity"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused_in_one_line(name: str, path: Path) -> None:
    g, part = REFUSED[name]
    refused(saved(g, path), part)


def test_an_identity_of_nothing(path: Path) -> None:
    refused(saved(Graph("i=Identity _ > a | Mul x a > y", {}, (3,)), path), "'i' (Identity)")


def test_shapes_whose_rank_doubles_are_not_followed(path: Path) -> None:
    """The search for further problems asks onnx for shapes; this one would have two to the power of forty axes."""
    nodes = " | ".join(f"Gather t{i} t{i} > t{i + 1}" for i in range(40))
    with pytest.raises(UnsupportedError, match=r"'e' \(Erf\)"):
        load(saved(Graph(f"e=Erf x > t0 | {nodes} | Relu t40 > y", {}, (3,)), path))


SELF: dict[str, Graph] = {
    "Dense": Graph("MatMul x w > a | Add a a > y", {"w": normal(3, 4)}, (3,)),
    "Dense and its input": Graph("MatMul x w > a | Add a x > y", {"w": normal(3, 3)}, (3,)),
    "Conv": Graph("Conv x w > a | Add a a > y", {"w": normal(3, 3, 1, 1)}, (3, 4, 4)),
    "Swish": Graph("Sigmoid x > a | Mul a a > y", {}, (3,)),
    "Affine": Graph("Mul x m > a | Add a a > y", {"m": normal(1)}, (3,)),
    "Affine and its input": Graph("Mul x m > a | Sub a x > y", {"m": normal(1)}, (3,)),
}


@pytest.mark.parametrize("name", SELF)
def test_data_that_meets_itself_is_no_bias(name: str, path: Path) -> None:
    refused(saved(SELF[name], path))


def test_a_pool_of_another_domain_is_not_looked_into(path: Path) -> None:
    g = Graph("com.example:MaxPool x > a | Relu a > y", {}, (3, 4, 4), {"a": {"kernel_shape": 1.5}})
    refused(saved(g, path), "'com.example:MaxPool'")


def test_a_cast_of_another_domain(path: Path) -> None:
    refused(saved(Graph("com.example:Cast > a | Relu a > y", {}, (3,), {"a": {"to": 1}}), path), "'com.example:Cast'")


def test_limits_of_a_clip_may_be_arrays_of_one_number(path: Path) -> None:
    g = Graph("Clip x a b > y", {"a": np.zeros(1, np.float32), "b": np.full((1, 1), 6, np.float32)}, (3,))
    c = load_onnx(saved(g, path), check=False)
    assert [s.type_name for s in c.model_spec.layers] == ["ReLU6"]


def test_a_ratio_may_be_an_array_of_one_number(path: Path) -> None:
    c = load_onnx(saved(Graph("Dropout x r > y", {"r": np.full(1, 0.25, np.float32)}, (3,)), path), check=False)
    assert c.model_spec.layers[0].parameters["rate"] == np.float32(0.25)


def test_options_that_nest_without_end_are_ignored(path: Path) -> None:
    """The graph is then read, as for any file that is not ours."""
    save(Checkpoint(ModelBuilder((2, 3)).add_relu("r").compile(), []), path)
    proto = onnx.load(path)
    next(p for p in proto.metadata_props if p.key == "gometal_mlx_export").value = "[" * 9000
    onnx.save(proto, path)
    assert [s.type_name for s in load(path).model_spec.layers] == ["ReLU"]


def test_shapes_that_onnx_cannot_infer_do_not_hide_the_reason(path: Path) -> None:
    def change(proto: onnx.ModelProto) -> None:
        for _ in range(2):
            proto.functions.add(name="f", domain="d")

    refused(saved(Graph("Erf x > a | Relu a > y", {}, (3,)), path, change), "'n_a' (Erf)")


def test_a_description_with_weights_beyond_float16(path: Path) -> None:
    """A file that says it was exported with float16 weights, and was not: the graph is read, without a warning."""
    spec = ModelBuilder((2, 3)).add_dense(1, False, "fc").compile()
    save(Checkpoint(spec, [WeightTensor("fc.weight", (3, 1), np.full((3, 1), 1e6, np.float32), "fc", "weight")]), path)
    proto = onnx.load(path)
    next(p for p in proto.metadata_props if p.key == "gometal_mlx_export").value = '{"float16_weights": true}'
    onnx.save(proto, path)
    x = normal(2, 3)
    assert_close(run_model(load(path), x), run_onnx(path, x))


def test_an_error_is_not_its_own_cause(path: Path) -> None:
    refused_file = saved(Graph("Erf x > y", {}, (3,)), path)
    for action, kind in (
        (lambda: load(refused_file), UnsupportedError),
        (lambda: save(Checkpoint(ModelBuilder((2, 3)).add_relu("r").compile(), []), path, opset=99), UnsupportedError),
        (lambda: load(path.parent / "none.onnx"), CheckpointError),
    ):
        with pytest.raises(kind) as e:
            action()
        assert e.value.__cause__ is not e.value

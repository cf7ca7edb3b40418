"""ONNX out: what onnxruntime runs with the model's own results. ONNX in: the same numbers, or a reason why not."""

import itertools
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import onnx
import onnxruntime
import pytest
from checkpoint_samples import (
    GOLDEN,
    GOLDEN_ONNX,
    SUFFIXES,
    assert_same,
    assert_same_arrays,
    bounded,
    cnn_spec,
    files,
    full_checkpoint,
    one_line,
    small_checkpoint,
    stem,
    weights_of,
)
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx_graphs import NEWEST_RUN

from gometal_mlx import errors
from gometal_mlx.checkpoints import Checkpoint, CheckpointMetadata, load, save
from gometal_mlx.checkpoints.onnx import VerifyReport, verify, verify_file, writer
from gometal_mlx.checkpoints.onnx.writer import NEWEST_OPSET, OLDEST_OPSET
from gometal_mlx.errors import CheckpointError, GoMetalError, UnsupportedError
from gometal_mlx.layers import Model, ModelBuilder, Softmax
from gometal_mlx.layers.spec import describe_difference
from gometal_mlx.training import ModelTrainer, TrainerConfig
from gometal_mlx.training.losses import LOSSES

# float32 sums in another order differ by about 1e-6 of the largest output; ten times that
CLOSE = 1e-5
STAMPED = CheckpointMetadata(created_at="2026-01-31T12:00:00Z")


def run_onnx(proto: onnx.ModelProto | Path, x: np.ndarray) -> np.ndarray:
    data = proto.read_bytes() if isinstance(proto, Path) else proto.SerializeToString()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x})[0]


def run_model(c: Checkpoint, x: np.ndarray) -> np.ndarray:
    return np.asarray(Model.from_checkpoint(c)(mx.array(x)))


def assert_close(a: np.ndarray, b: np.ndarray) -> None:
    assert a.shape == b.shape
    assert np.abs(a - b).max() <= CLOSE * max(1.0, float(np.abs(b).max()))


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "c.onnx"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("onnx")


# --------------------------------------------------------------------------------------------------- go-metal's own


@pytest.mark.parametrize("path", [p for p in GOLDEN_ONNX if (GOLDEN / "json" / f"{p.stem}.json").exists()], ids=stem)
def test_go_metals_onnx_gives_the_numbers_of_its_json(path: Path) -> None:
    ours, theirs = load(path), load(GOLDEN / "json" / f"{path.stem}.json")
    a, b = Model.from_checkpoint(ours), Model.from_checkpoint(theirs)
    assert describe_difference(a.spec, b.spec) == []
    stored = {w.name: w.data for w in theirs.weights}
    assert {w.name: w.data.tobytes() for w in ours.weights} == {n: d.tobytes() for n, d in stored.items()}
    assert all(w.data.shape == stored[w.name].shape for w in ours.weights)
    assert any("not compared with onnxruntime" in n for n in ours.notes)


def test_go_metals_square_dense_is_transposed() -> None:
    proto = onnx.load(GOLDEN / "onnx" / "layer_dense_square.onnx")
    stored = {t.name: np.array(t.float_data, np.float32).reshape(t.dims) for t in proto.graph.initializer}
    c = load(GOLDEN / "onnx" / "layer_dense_square.onnx")
    (name,) = (n for n in stored if n.endswith(".weight"))
    assert [w.data.tobytes() for w in c.weights if w.name == name] == [stored[name].T.tobytes()]
    assert any("transposed its weight" in n for n in c.notes)


def test_an_import_computes_the_same_bits_after_saving(tmp_path: Path) -> None:
    """Transposed weights are ours in memory too: MLX sums the columns of another memory order in another order."""
    c = load(GOLDEN / "onnx" / "model_cnn.onnx")
    assert all(w.data.flags.c_contiguous for w in c.weights)
    save(c, tmp_path / "c.json")
    x = normal(3, *c.model_spec.input_shape[1:])
    assert run_model(c, x).tobytes() == run_model(load(tmp_path / "c.json"), x).tobytes()


# the others hold weights such as 1e20 and 1e-45, with which sums overflow or lose all digits
EXPORTABLE = [p for p in GOLDEN_ONNX if p.stem not in ("layer_conv2d_bias", "layer_dense_on4d")]


@pytest.mark.parametrize("path", EXPORTABLE, ids=stem)
def test_go_metals_onnx_becomes_valid_onnx(path: Path, tmp_path: Path) -> None:
    c = load(path)
    report = save(c, tmp_path / "c.onnx")
    assert report.ok
    again = load(tmp_path / "c.onnx")
    assert [(w.name, w.data.tobytes()) for w in again.weights] == [(w.name, w.data.tobytes()) for w in c.weights]


def test_a_model_whose_outputs_overflow_is_not_exported_unless_asked(path: Path) -> None:
    c = load(GOLDEN / "onnx" / "layer_conv2d_bias.onnx")  # weights up to 3e38
    with pytest.raises(CheckpointError) as e:
        save(c, path)
    one_line(e.value, str(path), "gives NaN, or infinity, in MLX or onnxruntime")
    assert not path.exists()
    save(c, path, verify=False)
    assert [w.data.tobytes() for w in load(path, check=False).weights] == [w.data.tobytes() for w in c.weights]


def test_an_import_is_described() -> None:
    c = load(GOLDEN / "onnx" / "layer_dense_bias.onnx")
    assert c.metadata.description == "Imported from ONNX (producer: go-metal 1.0.0)"
    assert (c.metadata.framework, c.metadata.version) == ("gometal_mlx", "1.0.0")
    assert c.training_state.learning_rate == pytest.approx(0.001)  # go-metal's importer sets it; float32 in files
    assert c.optimizer_state is None


# ---------------------------------------------------------------------------------------------------------- writing


@pytest.mark.parametrize("opset", range(OLDEST_OPSET, NEWEST_RUN + 1))
def test_every_opset_is_run_by_onnxruntime_with_the_models_results(opset: int, path: Path) -> None:
    c = full_checkpoint()
    report = save(c, path, opset=opset)
    assert isinstance(report, VerifyReport)
    assert report.ok
    proto = onnx.load(path)
    onnx.checker.check_model(proto, full_check=True)
    assert [(o.domain, o.version) for o in proto.opset_import] == [("", opset)]
    x = normal(4, 3, 8, 8)
    assert_close(run_onnx(path, x), run_model(c, x))
    assert_same(load(path), replace(c, optimizer_state=None))


def test_the_range_of_opsets_reaches_from_13_to_the_newest() -> None:
    """onnx knows one that is under development, too; onnxruntime may be older than either."""
    assert OLDEST_OPSET == 13
    assert onnx.defs.onnx_opset_version() - NEWEST_OPSET in (0, 1)
    assert 26 <= NEWEST_RUN <= NEWEST_OPSET


@pytest.mark.parametrize("opset", [12, NEWEST_OPSET + 1, 0, -1])
def test_other_opsets_are_refused(opset: int, path: Path) -> None:
    with pytest.raises(UnsupportedError) as e:
        save(small_checkpoint(), path, opset=opset)
    one_line(e.value, str(path), f"opset {opset}", f"13 to {NEWEST_OPSET}")
    assert not path.exists()


def test_the_container_is_what_was_promised(path: Path) -> None:
    save(full_checkpoint(), path)
    proto = onnx.load(path)
    assert (proto.producer_name, proto.ir_version, proto.opset_import[0].version) == ("gometal_mlx", 8, 17)
    assert {t.name for t in proto.graph.initializer} >= {
        w.name for w in full_checkpoint().weights if not w.name.startswith("plain")
    }
    assert {n.domain for n in proto.graph.node} == {""}
    (x,), (y,) = proto.graph.input, proto.graph.output
    assert [d.dim_param or d.dim_value for d in x.type.tensor_type.shape.dim] == ["batch", 3, 8, 8]
    assert [d.dim_param or d.dim_value for d in y.type.tensor_type.shape.dim] == ["batch", 3]
    assert (x.name, y.name) == ("input", "output")


@pytest.mark.parametrize("batch", [1, 2, 33])
def test_the_batch_is_free(batch: int, path: Path) -> None:
    save(full_checkpoint(), path)
    x = normal(batch, 3, 8, 8, seed=batch)
    assert_close(run_onnx(path, x), run_model(full_checkpoint(), x))


LAYERS: dict[str, Callable[[ModelBuilder], ModelBuilder]] = {
    "dense": lambda b: b.add_dense(3), "dense without bias": lambda b: b.add_dense(3, False),
    "conv": lambda b: b.add_conv2d(3, 3, 2, 1), "conv without bias": lambda b: b.add_conv2d(2, 2, 1, 0, False),
    "batch norm": lambda b: b.add_batch_norm(eps=0.01, momentum=0.3),
    "plain norm": lambda b: b.add_batch_norm(affine=False), "relu": lambda b: b.add_relu(),
    "pool": lambda b: b.add_max_pool2d(3, 2, 1), "pool of 2": lambda b: b.add_max_pool2d(),
    "leaky": lambda b: b.add_leaky_relu(0.2), "leaky 0": lambda b: b.add_leaky_relu(0.0),
    "elu": lambda b: b.add_elu(0.7),
    "sigmoid": lambda b: b.add_sigmoid(), "tanh": lambda b: b.add_tanh(), "swish": lambda b: b.add_swish(),
    "softmax": lambda b: b.add_softmax(), "softmax over channels": lambda b: b.add_softmax(1),
    "softmax over rows": lambda b: b.add_softmax(-2), "dropout": lambda b: b.add_dropout(0.25),
    "dropout at the end": lambda b: b.add_relu().add_dropout(0.25),
    "three dropouts": lambda b: b.add_dropout().add_dropout().add_dropout(),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYERS)
def test_every_layer_alone(name: str, path: Path) -> None:
    spec = LAYERS[name](ModelBuilder((1, 2, 6, 6))).compile()
    c = Checkpoint(spec, weights_of(spec, 2), metadata=STAMPED)
    save(c, path)
    x = normal(3, 2, 6, 6)
    assert_close(run_onnx(path, x), run_model(c, x))
    assert_same(load(path), c)


@pytest.mark.parametrize("name", [n for n in LAYERS if "dropout" not in n and n != "plain norm"])
def test_every_layer_alone_is_read_from_its_graph_too(name: str, path: Path) -> None:
    """Without our metadata the graph alone has to tell the layer."""
    spec = LAYERS[name](ModelBuilder((1, 2, 6, 6))).compile()
    c = Checkpoint(spec, weights_of(spec, 2), metadata=STAMPED)
    save(c, path)
    proto = onnx.load(path)
    del proto.metadata_props[:]
    onnx.save(proto, path)
    again = load(path)
    assert describe_difference(Model.from_checkpoint(again).spec, Model.from_checkpoint(c).spec) == []
    assert [(w.name, w.data.tobytes()) for w in again.weights] == [(w.name, w.data.tobytes()) for w in c.weights]


@pytest.mark.parametrize("name", ["input", "output", "batch", "gemm", "a_gemm", "relu_1_output", "é 🙂", "a/b:0"])
def test_layer_names_do_not_collide_with_the_graphs_own(name: str, path: Path) -> None:
    spec = (
        ModelBuilder((1, 2, 2, 2)).add_relu("a").add_dense(2, name=name).add_swish("b").add_dense(2, name="c").compile()
    )
    c = Checkpoint(spec, weights_of(spec), metadata=STAMPED)
    save(c, path)
    assert_same(load(path), c)


# --------------------------------------------------------------------------------------------------- safe replacement


def bad_report(*args: Any, **kwargs: Any) -> VerifyReport:
    return VerifyReport((1, 7), 0.5, 1.0, 1e-5)


def nan_report(*args: Any, **kwargs: Any) -> VerifyReport:
    return VerifyReport((1, 7), float("nan"), 1.0, 1e-5)


@pytest.mark.parametrize("report", [bad_report, nan_report])
@pytest.mark.parametrize("old", [b"the old file", None])
def test_a_mismatch_leaves_the_old_file_alone(
    report: Any, old: bytes | None, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if old is not None:
        path.write_bytes(old)
    before = files(path.parent)
    monkeypatch.setattr(writer, "compare", report)
    with pytest.raises(CheckpointError) as e:
        save(small_checkpoint(), path)
    one_line(e.value, str(path), "onnxruntime differs from MLX" if report is bad_report else "gives NaN")
    assert files(path.parent) == before


def test_a_checker_that_objects_leaves_the_old_file_alone(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def object_(*args: Any, **kwargs: Any) -> None:
        raise onnx.checker.ValidationError("several\nlines\nof reasons")

    path.write_bytes(b"old")
    monkeypatch.setattr(onnx.checker, "check_model", object_)
    with pytest.raises(CheckpointError) as e:
        save(small_checkpoint(), path)
    one_line(e.value, str(path), "the onnx checker objects: several lines of reasons")
    assert files(path.parent) == {path.name: b"old"}


def test_without_verification_nothing_is_compared(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "compare", bad_report)
    assert save(small_checkpoint(), path, verify=False) is None
    assert_same(load(path), small_checkpoint())


def test_the_tolerance_is_the_callers(path: Path) -> None:
    with pytest.raises(CheckpointError, match="differs"):
        save(full_checkpoint(), path, tolerance=0.0)
    assert not path.exists()
    assert save(full_checkpoint(), path, tolerance=0.5).tolerance == 0.5


def test_edge_cases_are_compared_as_well(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A difference that random rows do not show; the worst batch is reported."""
    right = verify.run

    def wrong(running: Any, x: np.ndarray, output: str | None = None) -> np.ndarray:
        y = right(running, x, output)
        return y + 0.5 * (x == 0).all(axis=1, keepdims=True)

    monkeypatch.setattr(verify, "run", wrong)
    report = save(small_checkpoint(), path, tolerance=100.0)
    assert (report.edge_rows, report.largest_difference) == (8, 0.5)
    with pytest.raises(CheckpointError, match=r"differs from MLX by 0\.5"):
        save(small_checkpoint(), path)


@pytest.mark.parametrize(
    ("difference", "largest", "ok"),
    [(1e-6, 1.0, True), (1e-5, 1.0, True), (2e-5, 1.0, False), (0, 0, True), (1, 0, False), (np.nan, 1, False)],
)
def test_a_report_judges_by_the_largest_output(difference: float, largest: float, ok: bool) -> None:
    assert VerifyReport((1,), difference, largest, 1e-5).ok == ok


def test_verify_file_checks_a_file(path: Path) -> None:
    save(full_checkpoint(), path)
    report = verify_file(path)
    assert report.ok
    assert report.batch_sizes == (1, 7)
    proto = onnx.load(path)
    proto.graph.output[0].type.tensor_type.shape.dim[1].dim_value += 1
    onnx.save(proto, path)
    with pytest.raises(CheckpointError) as e:
        verify_file(path)
    one_line(e.value, str(path), "checker objects")
    proto.graph.node[0].op_type = "Nothing"
    onnx.save(proto, path)
    with pytest.raises(UnsupportedError, match=r"\(Nothing\): no layer does this"):
        verify_file(path)


@pytest.mark.parametrize(
    ("most", "row", "told"),
    [
        (2**33, 2**38, None),
        (100, 2**38, "singly"),  # the model takes more than 20 operations a row
        (100, 3, r"a row takes [^ ]+ operations and [^ ]+ numbers at once, too many to be compared; check=False reads"),
    ],
)
def test_a_comparison_is_as_large_as_can_be_waited_for(
    most: int, row: int, told: str | None, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for limits in (("MAX_OPERATIONS", "MAX_ROW_OPERATIONS"), ("MAX_NUMBERS", "MAX_ROW_NUMBERS")):
        with monkeypatch.context() as m:
            for name, value in zip(limits, (most, row), strict=True):
                m.setattr(verify, name, value)
            if told not in (None, "singly"):
                with pytest.raises(CheckpointError, match=told):
                    save(full_checkpoint(), path)
                save(full_checkpoint(), path, verify=False)
                assert load(path, check=False).weights
                continue
            report = save(full_checkpoint(), path)
            assert (report.batch_sizes, report.edge_rows) == (((1,), 1) if told else ((1, 7), 8))


def test_windows_are_work(path: Path) -> None:
    """A hundred bytes would take minutes a row."""
    spec = ModelBuilder((1, 1, 3000, 3000)).add_avg_pool2d(1001, 1).compile()
    with pytest.raises(CheckpointError, match=r"a row takes 4e\+12 operations"):
        save(Checkpoint(spec, []), path)


def test_what_other_tools_say_moves_no_cursor() -> None:
    assert errors.one_line(ValueError("a \x1b[31m\n b\x9b é")) == "a \\x1b[31m b\\x9b é"


# --------------------------------------------------------------------------------------------------------- metadata


def edit(path: Path, change: Callable[[onnx.ModelProto], object]) -> None:
    proto = onnx.load(path)
    change(proto)
    onnx.save(proto, path)


def bias(proto: onnx.ModelProto) -> onnx.TensorProto:
    return next(t for t in proto.graph.initializer if t.name == "fc1.bias")


def test_another_value_of_a_weight_is_read(path: Path) -> None:
    save(small_checkpoint(), path)
    values = np.array([1, 2, 3, 4], np.float32)
    edit(path, lambda p: bias(p).CopyFrom(numpy_helper.from_array(values, "fc1.bias")))
    assert next(w for w in load(path).weights if w.name == "fc1.bias").data.tolist() == values.tolist()


def leaky(proto: onnx.ModelProto) -> None:
    relu = next(n for n in proto.graph.node if n.op_type == "Relu")
    relu.op_type = "LeakyRelu"
    relu.attribute.append(helper.make_attribute("alpha", 0.25))


def test_an_edited_graph_wins_with_a_note(path: Path) -> None:
    c = replace(small_checkpoint(), extras={"x": 1})
    c.training_state.epoch = 9
    save(c, path)
    edit(path, leaky)
    again = load(path)
    assert [s.type_name for s in again.model_spec.layers] == ["Dense", "LeakyReLU", "Dense"]
    assert any("the graph decides" in n for n in again.notes)
    assert (again.extras, again.training_state.epoch, again.metadata) == ({"x": 1}, 9, c.metadata)
    x = normal(2, 3)
    assert_close(run_onnx(path, x), run_model(again, x))


@pytest.mark.parametrize(
    "text", ["", "{", "null", "[]", '{"model_spec": null}', '{"model_spec": {}, "weights": [{"name": "x"}]}']
)
def test_a_damaged_description_is_an_error(text: str, path: Path) -> None:
    save(small_checkpoint(), path)
    edit(path, lambda p: helper.set_model_props(p, {"gometal_mlx": text}))
    with pytest.raises(CheckpointError) as e:
        load(path)
    one_line(e.value, str(path))


def test_a_description_of_another_model_does_not_decide(path: Path) -> None:
    save(small_checkpoint(), path)
    other = path.with_name("other.onnx")
    c = small_checkpoint()
    c.weights[1].data += 1
    save(replace(c, metadata=replace(c.metadata, description="other")), other)
    text = onnx.load(other).metadata_props[0].value
    edit(path, lambda p: helper.set_model_props(p, {"gometal_mlx": text}))
    again = load(path)  # same architecture and names: the description fits, the numbers are the graph's
    assert [w.data.tobytes() for w in again.weights] == [w.data.tobytes() for w in small_checkpoint().weights]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("described", [True, False])
def test_nan_in_a_file_names_the_weight(bad: float, described: bool, path: Path) -> None:
    save(small_checkpoint(), path)
    values = numpy_helper.from_array(np.array([0, bad, 0, 0], np.float32), "fc1.bias")

    def change(p: onnx.ModelProto) -> None:
        bias(p).CopyFrom(values)
        if not described:
            del p.metadata_props[:]

    edit(path, change)
    with pytest.raises(CheckpointError) as e:
        load(path)
    one_line(e.value, str(path), "fc1.bias", "element 1", "NaN and infinity")


def test_a_foreign_file_has_no_training_state(path: Path) -> None:
    save_graph(path, [node("Relu", ["x"], ["y"])], {}, (3,))
    c = load(path)
    assert c.metadata.description == "Imported from ONNX (producer: by hand)"
    assert c.optimizer_state is None
    assert (c.training_state.epoch, c.training_state.step) == (0, 0)


# -------------------------------------------------------------------------------------------------- foreign graphs


def node(
    op: str, inputs: Sequence[str], outputs: Sequence[str], name: str | None = None, **attributes: Any
) -> onnx.NodeProto:
    name = f"n_{outputs[0]}" if name is None else name  # onnxruntime wants unique names
    return helper.make_node(op, list(inputs), list(outputs), name=name, **attributes)


def nodes(text: str, **attributes: Any) -> list[onnx.NodeProto]:
    """``f=Flatten x > h | Gemm h w > y``: a node named f and one without; the attributes are the first one's."""
    made = []
    for part in text.split(" | "):
        left, outputs = part.split(" > ")
        op, *inputs = left.split()
        name, _, op = op.rpartition("=")
        made.append(node(op, inputs, outputs.split(), name or None, **({} if made else attributes)))
    return made


def graph(
    nodes: Sequence[onnx.NodeProto], constants: dict[str, Any], x: Sequence[Any], *, opset: int = 17, y: str = "y"
) -> onnx.ModelProto:
    """A model by hand: input ``x`` of (N, *x), output ``y`` of any shape."""
    initializers = [v if isinstance(v, TensorProto) else numpy_helper.from_array(v, k) for k, v in constants.items()]
    g = helper.make_graph(
        list(nodes),
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", *x])],
        [helper.make_tensor_value_info(y, TensorProto.FLOAT, None)],
        initializers,
    )
    return helper.make_model(g, opset_imports=[helper.make_opsetid("", opset)], ir_version=8, producer_name="by hand")


def save_graph(path: Path, *args: Any, **kwargs: Any) -> onnx.ModelProto:
    proto = graph(*args, **kwargs)
    path.write_bytes(proto.SerializeToString())
    return proto


W, B, K = normal(3, 4, seed=1), normal(4, seed=2), normal(2, 3, 3, 3, seed=3)
BN = {n: np.abs(normal(3, seed=i)) + np.float32(0.5) for i, n in enumerate(("s", "b", "m", "v"))}
BN_INPUTS = ["x", "s", "b", "m", "v"]
FOREIGN: dict[str, tuple[list[onnx.NodeProto], dict[str, Any], tuple[int, ...], int]] = {
    "MatMul": (nodes("MatMul x w > y"), {"w": W}, (3,), 17),
    "MatMul + Add": (nodes("MatMul x w > h | Add h b > y"), {"w": W, "b": B}, (3,), 17),
    "bias + MatMul": (nodes("MatMul x w > h | Add b h > y"), {"w": W, "b": B}, (3,), 17),
    "MatMul + row": (nodes("MatMul x w > h | Add h b > y"), {"w": W, "b": B[None]}, (3,), 17),
    "MatMul + one": (nodes("MatMul x w > h | Add h b > y"), {"w": W, "b": B[:1]}, (3,), 17),
    "MatMul + scalar": (nodes("MatMul x w > h | Add h b > y"), {"w": W, "b": B[0]}, (3,), 17),
    "square MatMul": (nodes("MatMul x w > y"), {"w": W[:, :3]}, (3,), 17),
    "Gemm": (nodes("Gemm x w b > y"), {"w": W, "b": B}, (3,), 17),
    "Gemm without bias": (nodes("Gemm x w > y"), {"w": W}, (3,), 17),
    "Gemm transB": (nodes("Gemm x w b > y", transB=1), {"w": W.T.copy(), "b": B}, (3,), 17),
    "Gemm alpha beta": (nodes("Gemm x w b > y", alpha=0.5, beta=-2.0), {"w": W, "b": B}, (3,), 17),
    "Gemm transB alpha beta": (nodes("Gemm x w b > y", alpha=3.0, beta=0.25, transB=1), {"w": W.T.copy(), "b": B}, (3,),
        17),
    "Gemm beta 0": (nodes("Gemm x w b > y", beta=0.0), {"w": W, "b": B}, (3,), 17),
    "Gemm row": (nodes("Gemm x w b > y"), {"w": W, "b": B[None]}, (3,), 17),
    "Gemm scalar": (nodes("Gemm x w b > y"), {"w": W, "b": B[0]}, (3,), 17),
    "Flatten": (nodes("Flatten x > h | Gemm h w > y"), {"w": normal(12, 2)}, (3, 2, 2), 17),
    "Flatten -3": (nodes("Flatten x > h | MatMul h w > y", axis=-3), {"w": normal(12, 2)}, (3, 2, 2), 17),
    "Flatten of rank 2": (nodes("Flatten x > h | Gemm h w > y"), {"w": W}, (3,), 17),
    "Conv defaults": (nodes("Conv x k > y"), {"k": K}, (3, 5, 5), 17),
    "Conv": (nodes("Conv x k b > y", strides=[2, 2], pads=[1] * 4), {"k": K, "b": B[:2]}, (3, 5, 5), 17),
    "Conv VALID": (nodes("Conv x k > y", auto_pad="VALID"), {"k": K}, (3, 5, 5), 17),
    "BatchNormalization": (nodes("BatchNormalization x s b m v > y", epsilon=0.01, momentum=0.7), BN, (3, 2, 2), 17),
    "BatchNormalization 9": (nodes("BatchNormalization x s b m v > y"), BN, (3,), 9),
    "MaxPool": (nodes("MaxPool x > y", kernel_shape=[2, 2], strides=[2, 2]), {}, (3, 4, 4), 17),
    "MaxPool stride 1": (nodes("MaxPool x > y", kernel_shape=[2, 2]), {}, (3, 4, 4), 17),
    "LeakyRelu": (nodes("LeakyRelu x > y"), {}, (3,), 17),
    "Elu": (nodes("Elu x > y", alpha=0.3), {}, (3,), 17),
    "Swish": (nodes("Sigmoid x > h | Mul x h > y"), {}, (3,), 17),
    "Swish turned": (nodes("Sigmoid x > h | Mul h x > y"), {}, (3,), 17),
    "Sigmoid": (nodes("Sigmoid x > y"), {}, (3,), 17),
    "Softmax": (nodes("Softmax x > y"), {}, (3, 2), 17),
    "Softmax 1": (nodes("Softmax x > y", axis=1), {}, (3, 2), 17),
    "Softmax 11": (nodes("Softmax x > y"), {}, (3,), 11),
    "Dropout": (nodes("Dropout x > h | r=Relu h > y"), {}, (3,), 17),
    "Dropout with ratio": (nodes("Dropout x r > h | t=Tanh h > y"), {"r": np.float32(0.2)}, (3,), 17),
    "Identity": (nodes("i=Identity x > h | Relu h > g | j=Identity g > y"), {}, (3,), 17),
    "Identity of a weight": (nodes("i=Identity w > v | MatMul x v > y"), {"w": W}, (3,), 17),
    "Constant": (
        [node("Constant", [], ["w"], "c", value=numpy_helper.from_array(W)), node("MatMul", ["x", "w"], ["y"])], {},
        (3,), 17),
    "nodes without names": ([node("Relu", ["x"], ["h"], ""), node("Tanh", ["h"], ["y"], "")], {}, (3,), 17),
    "old opset": (nodes("Gemm x w b > y"), {"w": W, "b": B}, (3,), 9),
}  # fmt: skip


@pytest.mark.parametrize("name", FOREIGN)
def test_a_foreign_graph_gives_what_onnxruntime_gives(name: str, path: Path) -> None:
    nodes, constants, shape, opset = FOREIGN[name]
    proto = save_graph(path, nodes, constants, shape, opset=opset)
    x = normal(5, *shape)
    assert_close(run_model(load(path), x), run_onnx(proto, x))


@pytest.mark.parametrize("name", ["MatMul + Add", "Conv", "BatchNormalization"])
def test_an_imported_model_survives_every_other_format(name: str, path: Path) -> None:
    nodes, constants, shape, _ = FOREIGN[name]
    save_graph(path, nodes, constants, shape)
    c = load(path)
    for suffix in (".json", ".safetensors", ".onnx"):
        save(c, path.with_name(f"again{suffix}"))
        again = load(path.with_name(f"again{suffix}"))
        assert [w.data.tobytes() for w in again.weights] == [w.data.tobytes() for w in c.weights]


@pytest.mark.parametrize("kind", ["raw_data", "float_data", "double", "float16", "bfloat16"])
def test_every_way_to_store_numbers(kind: str, path: Path) -> None:
    values = np.float32(np.arange(12).reshape(3, 4)) / 4 - 1  # exact in all of these types
    types = {"double": TensorProto.DOUBLE, "float16": TensorProto.FLOAT16, "bfloat16": TensorProto.BFLOAT16}
    tensor = helper.make_tensor("w", types.get(kind, TensorProto.FLOAT), [3, 4], values.ravel().tolist())
    if kind == "raw_data":
        tensor = numpy_helper.from_array(values, "w")
    save_graph(path, [node("MatMul", ["x", "w"], ["y"])], {"w": tensor}, (3,))
    # onnxruntime would refuse to multiply two types; what counts here are the numbers
    from gometal_mlx.checkpoints.onnx import load as load_onnx

    assert load_onnx(path, check=False).weights[0].data.tobytes() == values.tobytes()


def test_momentum_is_the_weight_of_the_old_value_in_onnx(path: Path) -> None:
    save_graph(path, *FOREIGN["BatchNormalization"][:3])
    parameters = load(path).model_spec.layers[0].parameters
    assert parameters["momentum"] == pytest.approx(0.3, abs=1e-7)  # 1 - 0.7 in float32
    assert parameters["eps"] == np.float32(0.01)


def test_an_import_that_computes_something_else_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gometal_mlx.checkpoints.onnx import reader

    save_graph(path, *FOREIGN["Gemm"][:3])
    monkeypatch.setattr(reader, "compare", bad_report)
    with pytest.raises(CheckpointError) as e:
        load(path)
    one_line(e.value, str(path), "onnxruntime differs from MLX")


def test_initializers_that_are_inputs_too_are_no_inputs(path: Path) -> None:
    proto = graph([node("MatMul", ["x", "w"], ["y"])], {"w": W}, (3,))
    proto.graph.input.insert(0, helper.make_tensor_value_info("w", TensorProto.FLOAT, W.shape))
    path.write_bytes(proto.SerializeToString())
    assert load(path).model_spec.input_shape == (1, 3)


# ---------------------------------------------------------------------------------------------------------- refused


def external() -> TensorProto:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[3, 4], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="/etc/passwd")
    return tensor


def tensor_of(dims: list[int], data: bytes = b"", kind: int = TensorProto.FLOAT) -> TensorProto:
    return TensorProto(name="w", data_type=kind, dims=dims, raw_data=data)


MATMUL = [node("MatMul", ["x", "w"], ["y"], "mul")]
SUBGRAPH = helper.make_graph([node("Relu", ["x"], ["z"])], "sub", [], [helper.make_tensor_value_info("z", 1, None)])
REFUSED: dict[str, tuple[list[onnx.NodeProto], dict[str, Any], tuple[int, ...], list[str]]] = {
    "unsupported op": (nodes("e=Erf x > y"), {}, (3,), ["'e' (Erf)", "no layer does this"]),
    "two unsupported ops": (nodes("e=Erf x > h | s=Sin h > y"), {}, (3,), ["'e' (Erf)", "'s' (Sin)"]),
    "unnamed op": ([node("Erf", ["x"], ["y"], "")], {}, (3,), ["erf_1", "Erf"]),
    "other domain": ([helper.make_node("Relu", ["x"], ["y"], name="r", domain="com.x")], {}, (3,),
        ["'r' ('com.x:Relu')"]),
    "If": (nodes("if=If x > y", then_branch=SUBGRAPH, else_branch=SUBGRAPH), {}, (3,), ["'if' (If)"]),
    "residual": (nodes("r=Relu x > h | add=Add h x > y"), {}, (3,), ["'r' (Relu)", "'add' (Add)", "branches"]),
    "left operand": (nodes("mul=MatMul w x > y"), {"w": normal(3, 3)}, (3,), ["'mul' (MatMul)", "right operand"]),
    "MatMul over rank 4": (MATMUL, {"w": normal(2, 4)}, (3, 2, 2), ["'mul' (MatMul)", "rank"]),
    "wrong matrix": (MATMUL, {"w": W.T.copy()}, (3,), ["'mul' (MatMul)", "(4, 3)", "3 input features"]),
    "bias of a matrix": (nodes("mul=MatMul x w > h | add=Add h b > y"), {"w": W, "b": normal(2, 4)}, (3,),
        ["'add' (Add)", "bias (2, 4)"]),
    "bias of a column": (nodes("mul=MatMul x w > h | add=Add h b > y"), {"w": W, "b": B[:, None]}, (3,),
        ["'add' (Add)", "bias (4, 1)"]),
    "transA": (nodes("g=Gemm x w > y", transA=1), {"w": W}, (3,), ["'g' (Gemm)", "transA"]),
    "Flatten 2": (nodes("f=Flatten x > h | Gemm h w > y", axis=2), {"w": normal(4, 2)}, (3, 2, 2),
        ["'f' (Flatten)", "axis"]),
    "Flatten -4": (nodes("f=Flatten x > h | Gemm h w > y", axis=-4), {"w": normal(12, 2)}, (3, 2, 2),
        ["'f' (Flatten)", "axis"]),
    "nodes of one name": (nodes("n=Relu x > h | n=Tanh h > y"), {}, (3,), ["same node name"]),
    "Flatten 0": (nodes("f=Flatten x > h | Gemm h w > y", axis=0), {"w": W}, (3,), ["'f' (Flatten)", "axis"]),
    "groups": (nodes("c=Conv x w > y", group=3), {"w": normal(3, 1, 3, 3)}, (3, 5, 5), ["'c' (Conv)", "group = 3"]),
    "dilations": (nodes("c=Conv x w > y", dilations=[2, 2]), {"w": K}, (3, 5, 5), ["'c' (Conv)", "dilations = [2, 2]"]),
    "pads": (nodes("c=Conv x w > y", pads=[1, 1, 0, 0]), {"w": K}, (3, 5, 5), ["'c' (Conv)", "pads = [1, 1, 0, 0]"]),
    "strides": (nodes("c=Conv x w > y", strides=[1, 2]), {"w": K}, (3, 5, 5), ["'c' (Conv)", "strides = [1, 2]"]),
    "auto_pad": (nodes("c=Conv x w > y", auto_pad="SAME_UPPER", strides=[2, 2]), {"w": K}, (3, 4, 4),
        ["'c' (Conv)", "pads = [0, 0, 1, 1]"]),
    "window": (nodes("c=Conv x w > y"), {"w": normal(2, 3, 3, 2)}, (3, 5, 5), ["'c' (Conv)"]),
    "Conv of rank 3": (nodes("c=Conv x w > y"), {"w": normal(2, 3, 3)}, (3, 5), ["'c' (Conv)", "rank 4"]),
    "kernel_shape": (nodes("c=Conv x w > y", kernel_shape=[2, 2]), {"w": K}, (3, 5, 5),
        ["'c' (Conv)", "kernel_shape 2"]),
    "channels": (nodes("c=Conv x w > y"), {"w": K}, (4, 5, 5), ["'c' (Conv)", "3 input channels"]),
    "small image": (nodes("c=Conv x w > y"), {"w": K}, (3, 2, 2), ["'c'", "larger than"]),
    "ceil_mode": (nodes("p=MaxPool x > y", kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1), {}, (3, 5, 5),
        ["'p' (MaxPool)", "ceil_mode"]),
    "storage_order": (nodes("p=MaxPool x > y", kernel_shape=[2, 2], storage_order=1), {}, (3, 5, 5),
        ["'p' (MaxPool)", "storage_order"]),
    "training_mode": (nodes("bn=BatchNormalization x s b m v > y", training_mode=1), BN, (3, 2),
        ["'bn' (BatchNormalization)", "training_mode"]),
    "statistics": (nodes("bn=BatchNormalization x s b m v > y"), BN, (4, 2), ["'bn' (BatchNormalization)", "(4,)"]),
    "momentum of 2": (nodes("bn=BatchNormalization x s b m v > y", momentum=2.0), BN, (3, 2), ["'bn'", "momentum"]),
    "active Dropout": (nodes("d=Dropout x r t > h | Relu h > y"), {"r": np.float32(0.5), "t": np.array(True)}, (3,),
        ["'d' (Dropout)", "training_mode"]),
    "ratio of 1": (nodes("d=Dropout x r > h | Relu h > y"), {"r": np.float32(1)}, (3,), ["'d'", "rate"]),
    "Softmax before 13": (nodes("s=Softmax x > y", axis=1), {}, (3, 2), ["'s' (Softmax)", "before opset 13"]),
    "unknown attribute": (nodes("r=Relu x > y", slope=2.0), {}, (3,), ["'r' (Relu)", "slope"]),
    "external data": (MATMUL, {"w": external()}, (3,), ["'w'", "another file"]),
    "giant dimensions": (MATMUL, {"w": tensor_of([2**40, 2**40])}, (3,), ["'w'", "impossible"]),
    "negative dimensions": (MATMUL, {"w": tensor_of([-3, -4], W.tobytes())}, (3,), ["'w'", "impossible"]),
    "large dimensions": (MATMUL, {"w": tensor_of([2**20, 2**19], W.tobytes())}, (3,), ["'w'", "numbers"]),
    "too few bytes": (MATMUL, {"w": tensor_of([3, 4], W.tobytes()[:-1])}, (3,),
        ["'w'", "need 12 numbers, the file has 11"]),
    "too many bytes": (MATMUL, {"w": tensor_of([3, 4], W.tobytes() + b"0000")}, (3,),
        ["'w'", "need 12 numbers, the file has 13"]),
    "no numbers": (MATMUL, {"w": tensor_of([3, 4])}, (3,), ["'w'", "need 12 numbers, the file has 0"]),
    "texts": (MATMUL, {"w": helper.make_tensor("w", TensorProto.STRING, [1], [b"x"])}, (3,), ["'w'", "STRING"]),
    "unknown type": (MATMUL, {"w": tensor_of([3, 4], W.tobytes(), 99)}, (3,), ["'w'", "type 99"]),
    "NaN": (MATMUL, {"w": W * np.float32(np.nan)}, (3,), ["mul.weight", "element 0 is nan"]),
    "circle": (nodes("r=Relu x > a | t=Tanh c > b | u=Tanh b > c"), {}, (3,), ["leads nowhere"]),
    "made twice": (nodes("r=Relu x > y | t=Tanh x > y"), {}, (3,), ["'t' (Tanh)", "'y' is made twice"]),
    "makes its own input": (nodes("r=Relu x > x"), {}, (3,), ["'r' (Relu)", "'x' is made twice"]),
    "eats its own output": (nodes("r=Relu y > y"), {}, (3,), ["leads nowhere"]),
    "no way to the output": (nodes("r=Relu x > h"), {}, (3,), ["leads nowhere", "'y'"]),
    "unknown tensor": (nodes("mul=MatMul x nowhere > y"), {}, (3,), ["'mul' (MatMul)"]),
    "nothing but Identity": (nodes("i=Identity x > y"), {}, (3,), ["no layer"]),
    "unknown sizes": (nodes("r=Relu x > y"), {}, ("C", 3), ["'x'", "must be known"]),
    "no features": (nodes("r=Relu x > y"), {}, (), ["'x'"]),
    "unknown constant": ([node("Constant", [], ["w"], "c", value_string="x"), *MATMUL], {}, (3,),
        ["'c' (Constant)", "only numbers"]),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_exact_equivalent_is_refused_with_the_reason(name: str, path: Path) -> None:
    nodes, constants, shape, parts = REFUSED[name]
    save_graph(path, nodes, constants, shape, opset=11 if "before 13" in name else 17)
    with pytest.raises(GoMetalError) as e:
        load(path)
    one_line(e.value, str(path), *parts)
    assert isinstance(e.value, UnsupportedError | CheckpointError)


def test_a_reference_cycle_ends(path: Path) -> None:
    """Two Identity nodes that feed each other, and a chain that runs into itself."""
    for nodes in (
        [node("Identity", ["b"], ["a"], "i"), node("Identity", ["a"], ["b"], "j"), node("Relu", ["x"], ["y"], "r")],
        [node("Relu", ["x"], ["a"], "r"), node("Identity", ["a"], ["x"], "i")],
        [node("Identity", ["y"], ["y"], "i"), node("Relu", ["x"], ["h"], "r")],
    ):
        save_graph(path, nodes, {}, (3,))
        with pytest.raises(GoMetalError) as e:
            load(path)
        one_line(e.value, str(path))


PROTO_CHANGES: dict[str, tuple[Callable[[onnx.ModelProto], object], str]] = {
    "duplicate initializers": (lambda p: p.graph.initializer.append(p.graph.initializer[0]), "'w' stands twice"),
    "two inputs": (lambda p: p.graph.input.append(helper.make_tensor_value_info("z", 1, [1, 2])), "2 inputs"),
    "no input": (lambda p: p.graph.ClearField("input"), "0 inputs"),
    "two outputs": (lambda p: p.graph.output.append(p.graph.output[0]), "2 outputs"),
    "no output": (lambda p: p.graph.ClearField("output"), "no output"),
    "integer input": (lambda p: setattr(p.graph.input[0].type.tensor_type, "elem_type", 7), "float needed"),
    "sparse weights": (lambda p: p.graph.sparse_initializer.add(), "sparse"),
    "no nodes": (lambda p: p.graph.ClearField("node"), "no graph"),
    "no graph": (lambda p: p.ClearField("graph"), "no graph"),
    "too many nodes": (lambda p: p.graph.node.extend([node("Relu", ["x"], ["y"])] * 10_001), "at most 2000"),
    "opset 0": (lambda p: setattr(p.opset_import[0], "version", 0), ""),
    "opset -1": (lambda p: setattr(p.opset_import[0], "version", -1), ""),
    "opset of the far future": (lambda p: setattr(p.opset_import[0], "version", 2**60), ""),
    "node without inputs": (lambda p: p.graph.node[0].ClearField("input"), ""),
    "node without outputs": (lambda p: p.graph.node[0].ClearField("output"), ""),
    "node of empty names": (lambda p: p.graph.node[0].input.__setitem__(slice(0, 2), ["", ""]), ""),
    "Constant without outputs": (lambda p: p.graph.node.append(node("Constant", [], [], "c", value_float=1.0)), ""),
    "Identity without inputs": (lambda p: p.graph.node.append(node("Identity", [], ["i"], "c")), ""),
    "Identity without outputs": (lambda p: p.graph.node.append(node("Identity", ["x"], [], "c")), ""),
    "attribute of a wrong type": (lambda p: p.graph.node[0].attribute.append(helper.make_attribute("transB", "x")), ""),
    "list attribute": (lambda p: p.graph.node[0].attribute.append(helper.make_attribute("alpha", [1.0, 2.0])), ""),
    "untyped attribute": (lambda p: p.graph.node[0].attribute.add(name="other", i=3), ""),
    "attribute of an unknown type": (lambda p: p.graph.node[0].attribute.add(name="alpha", type=13), ""),
    "reference attribute": (lambda p: p.graph.node[0].attribute.add(name="alpha", type=1, ref_attr_name="a"), ""),
    "infinite attribute": (lambda p: p.graph.node[0].attribute.append(helper.make_attribute("alpha", np.inf)), ""),
    "graph attribute": (lambda p: p.graph.node[0].attribute.append(helper.make_attribute("alpha", SUBGRAPH)), ""),
    "sequence input": (lambda p: p.graph.input[0].type.sequence_type.SetInParent(), ""),
    "giant input": (lambda p: setattr(p.graph.input[0].type.tensor_type.shape.dim[1], "dim_value", 2**62), ""),
}  # fmt: skip


@pytest.mark.parametrize("name", PROTO_CHANGES)
def test_a_broken_model_is_refused_in_one_line(name: str, path: Path) -> None:
    change, part = PROTO_CHANGES[name]
    proto = graph([node("Gemm", ["x", "w"], ["y"], "g")], {"w": W}, (3,))
    change(proto)
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(GoMetalError) as e:
        load(path)
    one_line(e.value, str(path), part)


@pytest.mark.parametrize("size", [2**50, 2**62, 2**63 - 1])
def test_inputs_that_no_memory_holds_are_refused(size: int, path: Path) -> None:
    save_graph(path, [node("Relu", ["x"], ["y"])], {}, (size,))
    with pytest.raises(GoMetalError) as e:
        load(path)
    one_line(e.value, str(path))


@pytest.mark.parametrize("padding", [2**20, 2**40])
def test_outputs_that_no_memory_holds_are_refused(padding: int, path: Path) -> None:
    """In a process of its own: MLX crashes where it cannot allocate."""
    save_graph(path, [node("Conv", ["x", "k"], ["y"], pads=[padding] * 4)], {"k": K}, (3, 5, 5))
    code = (
        f"import gometal_mlx as gm\ntry:\n    gm.load({str(path)!r})\nexcept gm.errors.GoMetalError as e:\n    print(e)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert str(path) in done.stdout


@pytest.mark.parametrize(("op", "attribute", "values"), [
    ("Conv", "strides", [[], [0, 0], [-1, -1], [2**62] * 2, 1.5, "x", [2]]),
    ("Conv", "pads", [[], [-1] * 4, 1, [1, 1]]),
    ("Conv", "dilations", [[], 1, [1]]),
    ("Conv", "kernel_shape", [[], [0, 0], [3], 3]),
    ("Conv", "group", [0, -1, [1], "x"]),
    ("MaxPool", "kernel_shape", [[], [0, 0], [-1, -1], [2**62] * 2, [2], 2]),
    ("Softmax", "axis", [5, -5, 2**62, 1.5, "x", [1]]),
    ("LeakyRelu", "alpha", [float("nan"), float("inf"), 3, "x", [0.5]]),
    ("Elu", "alpha", [float("nan"), "x"]),
    ("Flatten", "axis", ["x", [1], 1.0]),
])  # fmt: skip
def test_absurd_attributes_are_an_error_or_what_onnxruntime_does(
    op: str, attribute: str, values: list[Any], path: Path
) -> None:
    for value in values:
        made = helper.make_node(op, ["x", "k"] if op == "Conv" else ["x"], ["y"], name="n")
        kind = onnx.AttributeProto.INTS if value == [] else None
        made.attribute.append(helper.make_attribute(attribute, value, attr_type=kind))
        path.write_bytes(graph([made], {"k": K} if op == "Conv" else {}, (3, 5, 5)).SerializeToString())
        try:
            load(path)  # compares with onnxruntime
        except GoMetalError as e:
            one_line(e, str(path))


# ------------------------------------------------------------------------------------------------------------ damage


def samples() -> list[tuple[str, bytes]]:
    ours = writer.build(Model.from_checkpoint(full_checkpoint()), full_checkpoint())
    foreign = graph(*FOREIGN["Gemm transB alpha beta"][:3])
    golden = [
        (p.stem, p.read_bytes()) for p in GOLDEN_ONNX if p.stem in ("layer_batchnorm_affine", "layer_conv2d_bias")
    ]
    return [("ours", b"".join(ours.chunks())), ("foreign", foreign.SerializeToString()), *golden]


SAMPLES = samples()


@pytest.mark.parametrize(("name", "data"), SAMPLES, ids=[n for n, _ in SAMPLES])
def test_a_file_cut_off_anywhere_is_an_error(name: str, data: bytes, path: Path) -> None:
    """A protobuf cut between two fields is a protobuf: only what stands behind the graph can be missing unnoticed."""
    for n in sorted({round(i * len(data) / 200) for i in range(1, 200)}):
        path.write_bytes(data[:n])
        try:
            load(path)
        except GoMetalError as e:
            one_line(e, str(path))
        else:
            assert n > len(data) * 0.4  # the graph is there, something after it is missing


@bounded(400)
@given(
    st.sampled_from(SAMPLES),
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=3),
)
def test_flipped_bytes_are_an_error_or_a_model(
    folder: Path, sample: tuple[str, bytes], flips: list[tuple[float, int]]
) -> None:
    data = bytearray(sample[1])
    for where, byte in flips:
        data[int(where * len(data))] = byte
    path = folder / "flipped.onnx"
    path.write_bytes(data)
    try:
        c = load(path)
    except GoMetalError as e:
        one_line(e, str(path))
    else:
        assert all(np.isfinite(w.data).all() for w in c.weights)


@pytest.mark.parametrize("name", ["foreign", "layer_conv2d_bias"])
def test_every_byte_flipped_once_is_an_error_or_a_model(name: str, path: Path) -> None:
    data = dict(SAMPLES)[name]
    for at, change in itertools.product(range(len(data)), (0x01, 0x80)):
        path.write_bytes(data[:at] + bytes([data[at] ^ change]) + data[at + 1 :])
        try:
            load(path)
        except GoMetalError as e:
            one_line(e, str(path))


# ------------------------------------------------------------------------------------------- checkpoints to be exported


def test_go_metals_json_becomes_onnx(path: Path) -> None:
    """go-metal itself cannot export a model it has loaded (reference, ONNX exporter defect E9)."""
    for name in ("model_cnn", "model_mlp"):
        c = load(GOLDEN / "json" / f"{name}.json")
        assert save(c, path).ok
        x = normal(3, *c.model_spec.input_shape[1:])
        assert_close(run_onnx(path, x), run_model(c, x))


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda c: c.weights.pop(), "needs 3 arrays, got 2"),
        (lambda c: c.weights.append(replace(c.weights[0], name="more")), "got 4"),
        (lambda c: c.weights.__setitem__(0, replace(c.weights[0], shape=(4, 3), data=W.T.copy())), "fc1.weight"),
    ],
)  # fmt: skip
def test_weights_that_do_not_fit_are_not_exported(
    change: Callable[[Checkpoint], object], part: str, path: Path
) -> None:
    c = small_checkpoint()
    change(c)
    path.write_bytes(b"old")
    with pytest.raises(CheckpointError) as e:
        save(c, path)
    one_line(e.value, str(path), part)
    assert files(path.parent) == {path.name: b"old"}


def test_a_layer_of_unknown_type_is_not_exported(path: Path) -> None:
    c = small_checkpoint()
    layers = (*c.model_spec.layers[:1], replace(c.model_spec.layers[1], type=99), c.model_spec.layers[2])
    with pytest.raises(GoMetalError) as e:
        save(replace(c, model_spec=replace(c.model_spec, layers=layers)), path)
    one_line(e.value, str(path), "'relu'", "type 99")
    assert not path.exists()


def test_weights_too_large_for_protobuf_go_into_a_file_beside_it(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "MAX_PROTO_BYTES", 10)
    c = small_checkpoint()
    save(c, path)
    (beside,) = path.parent.glob(f"{path.name}.*.data")
    again = load(path, external_data=True)
    assert [w.data.tobytes() for w in again.weights] == [w.data.tobytes() for w in c.weights]
    assert again.notes == []
    with pytest.raises(UnsupportedError, match=r"external_data=True"):
        load(path)
    c.weights[0].data[0, 0] += 1
    save(c, path, external_data=True)
    assert len(list(path.parent.glob("*.data"))) == 1
    assert not beside.exists()
    assert load(path, external_data=True).weights[0].data[0, 0] == c.weights[0].data[0, 0]
    monkeypatch.undo()
    save(c, path)
    assert not list(path.parent.glob("*.data"))  # nobody would ever read it again


@pytest.mark.parametrize("external_data", [False, True])
@pytest.mark.parametrize("how", ["moved", "copied"])
def test_weights_that_another_graph_names_stay(how: str, external_data: bool, path: Path) -> None:
    c = small_checkpoint()
    save(c, path, external_data=True)
    other = path.with_name("v1.onnx")
    path.rename(other) if how == "moved" else shutil.copy(path, other)
    changed = small_checkpoint()
    changed.weights[0].data[:] += 1
    save(changed, path, external_data=external_data)
    assert load(other, external_data=True).weights[0].data.tobytes() == c.weights[0].data.tobytes()
    assert load(path, external_data=True).weights[0].data.tobytes() == changed.weights[0].data.tobytes()


@pytest.mark.parametrize("options", [{"softmax": True}, {"float16_weights": True}, {"keep_dropout": True}])
def test_options_of_the_graph_are_proven_and_come_back(path: Path, options: dict[str, bool]) -> None:
    c = Checkpoint(cnn_spec(), weights_of(cnn_spec()))
    assert save(c, path, **options).ok
    again = load(path)
    assert again.notes == []
    ops = [n.op_type for n in onnx.load(path).graph.node]
    if "softmax" in options:
        assert ops[-1] == "Softmax"
    if "float16_weights" in options:
        assert "Cast" in ops
        half = [w.data.astype(np.float16).astype(np.float32) for w in c.weights]
        assert all(np.array_equal(a, b.data) for a, b in zip(half, again.weights, strict=True))
    if "keep_dropout" in options:
        assert ("Dropout" in ops) == any(s.type_name == "Dropout" for s in c.model_spec.layers)


def test_ends_get_the_names_that_are_asked_for(path: Path) -> None:
    c = Checkpoint(cnn_spec(), weights_of(cnn_spec()))
    save(c, path, input_name="image", output_name="scores")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert [session.get_inputs()[0].name, session.get_outputs()[0].name] == ["image", "scores"]
    again = load(path)
    assert again.notes == []
    assert_same_arrays(c, again)


@pytest.mark.parametrize("name", ["", "fc1.weight", "relu_output", "output"])
def test_names_of_the_input_that_cannot_be_are_refused(name: str, path: Path) -> None:
    with pytest.raises(CheckpointError) as e:
        save(small_checkpoint(), path, input_name=name)
    one_line(e.value, str(path), repr(name))
    assert not path.exists()


def test_the_name_of_a_constant_is_refused(path: Path) -> None:
    spec = ModelBuilder((2, 3)).add_batch_norm(affine=False, name="bn").compile()
    with pytest.raises(CheckpointError, match=r"'bn\.weight'"):
        save(Checkpoint(spec, weights_of(spec)), path, input_name="bn.weight", verify=False)


def test_a_report_tells_the_outputs_of_models_that_agree_exactly(path: Path) -> None:
    report = save(Checkpoint(ModelBuilder((2, 3)).add_relu().compile(), []), path)
    assert report.largest_difference < 2**-126  # a denormal edge input is 0 to MLX (_denormals.py)
    assert report.largest_output > 0


@pytest.mark.parametrize("option", [{"opset": "17"}, {"opset": True}, {"gemm": 1}, {"input_name": None}, {"gem": True}])
def test_options_of_another_type_or_name_are_refused(option: dict[str, Any], path: Path) -> None:
    with pytest.raises(CheckpointError) as e:
        save(small_checkpoint(), path, **option)
    one_line(e.value, str(path), f"option {next(iter(option))!r}")
    assert not path.exists()


def test_dense_layers_as_matmul_and_add(path: Path) -> None:
    c = small_checkpoint()
    assert save(c, path, gemm=False).ok
    proto = onnx.load(path)
    assert [n.op_type for n in proto.graph.node] == ["MatMul", "Add", "Relu", "MatMul"]
    again = load(path)
    assert again.notes == []
    assert_same_arrays(c, again)
    del proto.metadata_props[:]  # now the graph is read
    onnx.save(proto, path)
    assert_same_arrays(c, load(path))


def test_what_the_author_says_is_readable_for_everybody_and_comes_back(path: Path) -> None:
    c = small_checkpoint()
    c.info = {"class_names": ["a", "ü"], "preprocessing": {"scale": 1 / 255, "mean": [0.5]}, "licence": "MIT"}
    save(c, path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    props = session.get_modelmeta().custom_metadata_map
    assert json.loads(props["class_names"]) == ["a", "ü"]
    assert json.loads(props["preprocessing"]) == {"scale": 1 / 255, "mean": [0.5]}
    assert props["licence"] == "MIT"
    assert load(path).info == c.info
    for suffix in SUFFIXES:  # through every format
        save(load(path), path.with_suffix(suffix))
        assert load(path.with_suffix(suffix)).info == c.info


def test_numbers_and_arrays_of_the_author_come_back(path: Path) -> None:
    """As they do from JSON, which has 1 for 1.0; arrays come back as lists."""
    c = small_checkpoint()
    c.info = {
        "std": [1.0, 0.5], "n": 5, "flag": True, "none": None, "scale": 255.0, "large": 1e15, "larger": 1e25,
        "mean": np.array([0.25, 2], np.float32), "deep": {"a": [np.float32(0.1), (2.0,)]},
    }  # fmt: skip
    save(c, path)
    found = load(path)
    assert found.notes == []
    assert found.info == c.info | {"mean": [0.25, 2], "deep": {"a": [0.1, [2]]}}
    assert [type(v) for v in (found.info["n"], found.info["flag"])] == [int, bool]
    save(found, path.with_suffix(".json"))
    assert load(path.with_suffix(".json")).info == found.info


@pytest.mark.parametrize("key", [writer.METADATA_KEY, writer.OPTIONS_KEY])
def test_names_that_the_file_needs_are_refused(key: str, path: Path) -> None:
    c = small_checkpoint()
    c.info = {key: "mine", "licence": "MIT"}
    with pytest.raises(CheckpointError) as e:
        save(c, path)
    one_line(e.value, str(path), f"the name {key!r} is taken")
    assert not path.exists()


def test_a_softmax_is_for_what_was_trained_as_logits_of_classes(path: Path) -> None:
    takes = [loss.__name__ for loss in LOSSES.values() if loss.answer is Softmax]
    assert sorted(writer.LOSSES_OF_LOGITS) == sorted(takes)
    spec = ModelBuilder((4, 3)).add_dense(2).compile()
    for settings, fits in (
        ({}, True), ({"loss_function": "BCEWithLogits"}, False),
        ({"problem_type": "Regression", "loss_function": "MeanSquaredError"}, False),
    ):  # fmt: skip
        c = ModelTrainer(spec, TrainerConfig(seed=0, **settings)).checkpoint()
        if fits:
            save(c, path, softmax=True)
            continue
        with pytest.raises(UnsupportedError) as e:
            save(c, path.with_name("none.onnx"), softmax=True)
        one_line(e.value, "none.onnx", settings["loss_function"], "leave softmax away")


def test_what_another_author_says_is_kept(path: Path) -> None:
    proto = graph(*FOREIGN["Gemm transB alpha beta"][:3])
    texts = {"class_names": '["x", "y"]', "names": "{0: 'x'}", "author": "A. B.", "deep": "[" * 100_000, "n": "12"}
    helper.set_model_props(proto, texts)
    onnx.save(proto, path)
    assert load(path).info == texts | {"class_names": ["x", "y"]}


def test_numbers_do_not_pass_through_protobuf_but_arrive(path: Path) -> None:
    """What is written piece by piece is what protobuf would have written."""
    export = writer.build(Model.from_checkpoint(full_checkpoint()), full_checkpoint())
    whole = onnx.ModelProto.FromString(b"".join(export.chunks()))
    assert export.same_graph(whole.graph)
    onnx.checker.check_model(whole, full_check=True)
    assert [t.name for t in whole.graph.initializer] == [t.name for t in export.tensors]
    whole.graph.initializer[0].raw_data = bytes(len(whole.graph.initializer[0].raw_data))
    assert not export.same_graph(whole.graph)


def test_exporting_does_not_change_the_checkpoint(path: Path) -> None:
    c = Checkpoint(cnn_spec(), weights_of(cnn_spec()))
    before = [w.data.tobytes() for w in c.weights]
    save(c, path)
    assert [w.data.tobytes() for w in c.weights] == before
    assert c.notes == []

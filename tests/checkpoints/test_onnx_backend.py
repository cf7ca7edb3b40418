"""onnx's own tests of its operators, imported: the expected numbers, or one line that says why not; never others.

All graph inputs but the first become initializers with the test's data. The packaged tests have each operator's newest
version. onnx's converter gives the older ones, where it can; where it cannot, the same node is stamped with the older
opset if it is valid there, and onnxruntime says what that means.
"""

import importlib.util
import warnings
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

from gometal_mlx.checkpoints.onnx import load
from gometal_mlx.errors import CheckpointError, UnsupportedError
from gometal_mlx.layers import Model

CLOSE = 1e-5  # relative to the largest output; float32 sums in another order differ by about 1e-6
OLDEST = 7  # of the opsets that are read
MODULES = {"BatchNormalization": ("batch_normalization", "batchnorm")}  # the cases, as new and old versions keep them
# operator: at least so many cases (of all versions together) are imported, at least so many there are
EXPECTED: dict[str, tuple[int, int]] = {
    "Conv": (15, 18), "Gemm": (30, 42), "MatMul": (3, 21), "Add": (0, 16), "Mul": (0, 19), "Sub": (0, 19), "Div":
    (0, 22), "Relu": (3, 3), "LeakyRelu": (4, 6), "Elu": (4, 6), "Sigmoid": (2, 4), "HardSigmoid": (0, 6), "Tanh":
    (2, 4), "Softmax": (17, 21), "LogSoftmax": (17, 21), "BatchNormalization": (8, 12), "Dropout": (15, 36),
    "Identity": (0, 17), "Flatten": (22, 64), "Reshape": (8, 78), "Squeeze": (0, 12), "Unsqueeze": (0, 49),
    "Transpose": (0, 42), "MaxPool": (35, 96), "AveragePool": (30, 92), "GlobalAveragePool": (4, 4), "Constant":
    (0, 10), "Cast": (0, 238), "Clip": (0, 33),
}  # fmt: skip


@cache
def cases(op: str) -> list[Any]:
    """onnx's test cases whose graph is this operator alone."""
    from onnx.backend.test.case import node as collection

    with warnings.catch_warnings(action="ignore"):  # Cast's cases overflow on purpose
        names = [f"{collection.__name__}.{name}" for name in MODULES.get(op, (op.lower(),))]
        importlib.import_module(next(filter(importlib.util.find_spec, names)))
    return [t for t in collection._NodeTestCases if [n.op_type for n in t.model.graph.node] == [op]]


def versions(op: str) -> list[int]:
    """The opsets in which the operator changed, from the oldest that is read."""
    found = {s.since_version for s in onnx.defs.get_all_schemas_with_history() if s.name == op and not s.domain}
    return sorted({max(v, OLDEST) for v in found})


def older(proto: onnx.ModelProto, version: int, x: np.ndarray, expected: np.ndarray) -> Any:
    """The case in an older opset with its result; None where there is no such case."""
    try:
        return onnx.version_converter.convert_version(proto, version), expected
    except Exception:  # the converter has no common exception type
        made = onnx.ModelProto.FromString(proto.SerializeToString())
        made.opset_import[0].version = version
    try:
        onnx.checker.check_model(made, full_check=True)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        session = onnxruntime.InferenceSession(made.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return made, session.run(None, {i.name: x for i in session.get_inputs()})[0]
    except Exception:  # neither has onnxruntime
        return None


def every_version(op: str, proto: onnx.ModelProto, x: np.ndarray, expected: np.ndarray) -> Iterator[Any]:
    """The closed case as it is, and in every older version there is."""
    yield proto, expected
    newest = proto.opset_import[0].version
    for version in (v for v in versions(op) if v < newest):
        if (made := older(proto, version, x, expected)) is not None:
            yield made


def closed(proto: onnx.ModelProto, inputs: list[np.ndarray]) -> onnx.ModelProto:
    """With the test's data in the place of all inputs but the first."""
    made = onnx.ModelProto.FromString(proto.SerializeToString())
    for value, array in list(zip(made.graph.input, inputs, strict=True))[1:]:
        tensor = numpy_helper.from_array(np.asarray(array), value.name)
        made.graph.initializer.append(tensor)
        made.graph.input.remove(value)
    return made


def outcome(proto: onnx.ModelProto, x: np.ndarray, expected: np.ndarray, path: Path) -> str:
    """``imported`` or the reason for a refusal; anything else fails."""
    path.write_bytes(proto.SerializeToString())
    try:
        checkpoint = load(path, check=False)
    except (UnsupportedError, CheckpointError) as e:
        reason = str(e).removeprefix(f"{path}: ")
        assert "\n" not in reason
        assert 10 < len(reason) < 400, reason
        return reason
    model = Model.from_checkpoint(checkpoint)
    if any("(N, H, W, C)" in note for note in checkpoint.notes):
        x = x.transpose(0, 3, 1, 2)
    y = np.asarray(model(mx.array(x.astype(np.float32))))
    wanted = np.asarray(expected, np.float32)
    assert y.shape == wanted.shape
    assert np.abs(y - wanted).max() <= CLOSE * np.abs(wanted).max()
    return "imported"


def counted(op: str, path: Path) -> Counter[str]:
    """How many cases of the operator are imported, with the right numbers, and how many refused."""
    counts: Counter[str] = Counter()
    for case in cases(op):
        for inputs, outputs in case.data_sets:
            x = inputs[0] if inputs else np.zeros(0)
            for proto, expected in every_version(op, closed(case.model, inputs), x, outputs[0]):
                try:
                    found = outcome(proto, x, expected, path)
                except Exception as e:
                    raise AssertionError(f"{case.name}, opset {proto.opset_import[0].version}: {e!r}") from e
                counts["imported" if found == "imported" else "refused"] += 1
    return counts


@pytest.mark.parametrize("op", EXPECTED)
def test_the_operators_own_tests(op: str, tmp_path: Path) -> None:
    counts = counted(op, tmp_path / "case.onnx")
    print(f"{op}: {counts['imported']} imported, {counts['refused']} refused")
    imported, total = EXPECTED[op]
    assert counts["imported"] >= imported
    assert counts.total() >= total

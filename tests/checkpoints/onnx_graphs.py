"""Small ONNX graphs made by hand, and what onnxruntime and a model give for them."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from gometal_mlx.checkpoints import Checkpoint
from gometal_mlx.checkpoints.onnx.writer import NEWEST_OPSET, OLDEST_OPSET
from gometal_mlx.layers import Model

CLOSE = 1e-5  # of the largest output: float32 sums in another order differ by about 1e-6, and there are several layers
FLOAT, DOUBLE, HALF, INT64 = TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.INT64


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


@dataclass
class Graph:
    """``Graph("Relu x > h | Flatten h > y", {}, (3,))``; a node's attributes stand under its output's name.

    Args:
        text: nodes; ``name=Op inputs > outputs``, ``_`` for an input left out.
        constants: initializers, arrays or TensorProtos.
        shape: of the input, without the batch.
        attributes: by the first output of their node.
        batch: a number fixes it.
    """

    text: str
    constants: dict[str, Any]
    shape: tuple[int, ...]
    attributes: dict[str, dict[str, Any]] = field(default_factory=dict)
    opset: int = 17
    batch: int | str = "N"
    kind: int = FLOAT
    outputs: tuple[tuple[str, int], ...] = ()

    def proto(self) -> onnx.ModelProto:
        nodes = []
        for part in filter(None, self.text.split(" | ")):
            left, right = part.split(" > ")
            op, *inputs = left.split()
            name, _, op = op.rpartition("=")
            outputs = right.split()
            domain, _, op = op.rpartition(":")
            inputs = ["" if i == "_" else i for i in inputs]
            made = self.attributes.get(outputs[0], {})
            nodes.append(helper.make_node(op, inputs, outputs, name=name or f"n_{outputs[0]}", domain=domain, **made))
        tensors = [
            v if isinstance(v, TensorProto) else numpy_helper.from_array(np.asarray(v), k)
            for k, v in self.constants.items()
        ]
        x = helper.make_tensor_value_info("x", self.kind, [self.batch, *self.shape])
        y = [helper.make_tensor_value_info(n, k, None) for n, k in self.outputs or (("y", self.kind),)]
        g = helper.make_graph(nodes, "g", [x], y, tensors)
        opsets = [helper.make_opsetid("", self.opset)]
        return helper.make_model(g, opset_imports=opsets, ir_version=8, producer_name="by hand")

    def save(self, path: Path) -> onnx.ModelProto:
        proto = self.proto()
        path.write_bytes(proto.SerializeToString())
        return proto


def runs(opset: int) -> bool:
    """Whether onnxruntime knows the opset, which may be newer than it is."""
    proto = Graph("Relu x > y", {}, (3,), opset=opset).proto()
    proto.ir_version = helper.find_min_ir_version_for(proto.opset_import)
    try:
        run_onnx(proto, normal(1, 3))
    except Exception:  # onnxruntime's own exception types have no common base but Exception
        return False
    return True


def run_onnx(source: onnx.ModelProto | Path, x: np.ndarray, output: str | None = None) -> np.ndarray:
    data = str(source) if isinstance(source, Path) else source.SerializeToString()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return session.run(output and [output], {session.get_inputs()[0].name: x})[0]


def run_model(c: Checkpoint, x: np.ndarray) -> np.ndarray:
    return np.asarray(Model.from_checkpoint(c)(mx.array(x.astype(np.float32))))


def assert_close(a: np.ndarray, b: np.ndarray) -> None:
    assert a.shape == b.shape
    assert np.abs(a - b).max() <= CLOSE * np.abs(b).max()


NEWEST_RUN = next(v for v in range(NEWEST_OPSET, OLDEST_OPSET, -1) if runs(v))  # of those that are written and read

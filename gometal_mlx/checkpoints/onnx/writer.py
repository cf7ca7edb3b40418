"""A checkpoint as an ONNX inference graph: walks the layers and names none of them."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from ..._types import FloatArray, Shape
from ..._version import __version__
from ...errors import CheckpointError, GoMetalError, UnsupportedError
from ...layers import Layer, Model
from .. import json_format
from ..atomic import replacing
from ..checkpoint import Checkpoint, check_finite, extra_arrays, extract_weights
from .verify import TOLERANCE, VerifyReport, check_proto, compare

PRODUCER = "gometal_mlx"  # never go-metal's own name, which tells readers that MatMul weights are transposed
METADATA_KEY = "gometal_mlx"
OPSET, IR_VERSION = 17, 8
OLDEST_OPSET, NEWEST_OPSET = 13, onnx.defs.onnx_opset_version()
MAX_PROTO_BYTES = 2**31 - 1  # protobuf's own limit


def save(
    checkpoint: Checkpoint, path: Path, *, opset: int = OPSET, verify: bool = True, tolerance: float = TOLERANCE
) -> VerifyReport | None:
    """Export the model; only a file that onnxruntime runs with the model's own results is put in place.

    Args:
        opset: ONNX operator set, from 13 on.
        verify: check the graph and compare onnxruntime with MLX; None is returned without it.
        tolerance: largest allowed difference, relative to the largest output.
    Raises: CheckpointError naming file and reason; the file on disk is then as it was.
    """
    try:
        checkpoint.validate()
        model = Model.from_checkpoint(checkpoint)
        data = build(model, checkpoint, opset).SerializeToString()
        report = None
        if verify:
            check_proto(data, str(path))
            report = compare(data, model, tolerance=tolerance)
            report.raise_if_different(str(path))
        with replacing(path) as temporary:
            temporary.write_bytes(data)
    except GoMetalError as e:
        raise e if str(path) in str(e) else type(e)(f"{path}: not saved: {e}") from e
    return report


def build(model: Model, checkpoint: Checkpoint, opset: int = OPSET) -> onnx.ModelProto:
    """The graph of a model in evaluation mode, with a symbolic batch; the checkpoint gives the metadata.

    Raises: UnsupportedError for an opset out of range or a model too large for one file.
    """
    if not OLDEST_OPSET <= opset <= NEWEST_OPSET:
        raise UnsupportedError(f"opset {opset}: this version writes {OLDEST_OPSET} to {NEWEST_OPSET}")
    spec = model.spec
    weights = {w.name: w.data for w in extract_weights(model)}
    for name, data in weights.items():
        check_finite(data, f"weight {name!r}")
    if (size := sum(w.nbytes for w in weights.values())) > MAX_PROTO_BYTES - 2**20:
        raise UnsupportedError(
            f"{size >> 20} MB of weights do not fit one ONNX file (limit 2048 MB); save as safetensors"
        )
    graph = _Graph(opset, weights, [layer.name for layer in model.layers])
    tensor = "input"
    for layer, layer_spec in zip(model.layers, spec.layers, strict=True):
        tensor = graph.layer(layer, layer_spec.input_shape, tensor)
    graph.finish(tensor)
    proto = helper.make_model(
        helper.make_graph(
            graph.nodes,
            "gometal_mlx",
            [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", *spec.input_shape[1:]])],
            [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["batch", *spec.output_shape[1:]])],
            graph.initializers,
        ),
        producer_name=PRODUCER,
        producer_version=__version__,
        opset_imports=[helper.make_opsetid("", opset)],
        ir_version=max(IR_VERSION, helper.find_min_ir_version_for([helper.make_opsetid("", opset)])),
    )
    text = io.BytesIO()
    # arrays of optimizer and training stay behind: an ONNX file is for inference
    extras = {k: v for k, v in checkpoint.extras.items() if not any(extra_arrays(v))}
    kept = extract_weights(model)
    stored = replace(checkpoint, model_spec=spec, weights=kept, optimizer_state=None, extras=extras, notes=[])
    json_format.write(json_format.to_tree(stored, data=False), text)
    helper.set_model_props(proto, {METADATA_KEY: text.getvalue().decode()})
    return proto


class _Graph:
    """The nodes and initializers so far; what a layer sees of it is the GraphWriter protocol."""

    def __init__(self, opset: int, weights: Mapping[str, FloatArray], layer_names: list[str]) -> None:
        self.opset = opset
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self._weights = weights
        self._taken = {"input", "output", *layer_names, *(f"{n}_output" for n in layer_names)}
        self._first, self._layer = 0, ""
        self._shape: Shape = ()

    def layer(self, layer: Layer, shape: Shape, tensor: str) -> str:
        """Let the layer write itself; its last node gets its name, and ``<layer>_output`` as result."""
        self._first, self._layer, self._shape = len(self.nodes), layer.name, shape
        result = layer.to_onnx(self, tensor)
        if len(self.nodes) > self._first:
            last = self.nodes[-1]
            last.name, last.output[0], result = layer.name, f"{layer.name}_output", f"{layer.name}_output"
        return result

    def finish(self, tensor: str) -> None:
        """Give the last tensor the name ``output``."""
        if not self.nodes:
            self.nodes.append(helper.make_node("Identity", [tensor], ["output"], name="identity"))
        self.nodes[-1].output[0] = "output"

    def shape(self) -> Shape:
        return self._shape

    def node(self, op: str, *inputs: str, **attributes: Any) -> str:
        name = self._unique(f"{self._layer}_{op.lower()}")
        self.nodes.append(helper.make_node(op, list(inputs), [f"{name}_output"], name=name, **attributes))
        return f"{name}_output"

    def _unique(self, name: str) -> str:
        found = name
        n = 1
        while found in self._taken or f"{found}_output" in self._taken:
            n += 1
            found = f"{name}_{n}"
        self._taken |= {found, f"{found}_output"}
        return found

    def scalar(self, name: str, value: float) -> str:
        return self.constant(name, np.array(value, np.float32))

    def weight(self, param: str, shape: Shape | None = None) -> str:
        name = f"{self._layer}.{param}"
        if name not in self._weights:
            raise CheckpointError(f"{name}: the layer writes a weight it does not have")
        data = self._weights[name]
        return self.constant(param, data if shape is None else data.reshape(shape))

    def constant(self, param: str, value: FloatArray) -> str:
        name = f"{self._layer}.{param}"
        tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=value.shape)
        tensor.raw_data = np.ascontiguousarray(value, "<f4").tobytes()
        self.initializers.append(tensor)
        return name

"""An ONNX graph as a checkpoint: walks a chain of nodes and asks the layers which of them they recognise."""

from __future__ import annotations

import io
import math
from collections import defaultdict
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import AttributeProto, TensorProto, numpy_helper

from ..._types import FloatArray, Shape
from ...errors import CheckpointError, GoMetalError, ShapeError, SpecError, UnsupportedError
from ...layers import Layer, Model, ModelSpec
from ...layers.base import LAYERS
from ...layers.spec import MAX_ELEMENTS, usable_name
from .. import json_reader
from ..checkpoint import Checkpoint, CheckpointMetadata, TrainingState, WeightTensor, check_finite
from ..go_json import decode
from .verify import compare
from .writer import METADATA_KEY, NEWEST_OPSET, build

GOMETAL = "go-metal"
MAX_NODES = 10_000
OLDEST_READ = 7  # before it broadcasting had other rules
# go-metal writes attributes without their type; proto3 then leaves a zero out altogether
_UNTYPED = {"kernel_shape": "ints", "strides": "ints", "pads": "ints", "dilations": "ints", "axis": "i", "group": "i"}
_UNTYPED |= {"alpha": "f", "epsilon": "f", "momentum": "f", "ratio": "f"}
_FLOATS = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16)


def load(path: Path, *, check: bool = True) -> Checkpoint:
    """Read an ONNX file into a trainable checkpoint.

    Args:
        check: run the original in onnxruntime and compare it with the imported model.
    Raises: CheckpointError for a damaged file; UnsupportedError naming each node that has no exact equivalent.
    """
    where = str(path)
    try:
        data = path.read_bytes()
    except OSError as e:
        raise CheckpointError(f"{where}: cannot be read: {e.strerror or e}") from e
    try:
        proto = onnx.ModelProto.FromString(data)
    except (DecodeError, ValueError, RecursionError) as e:
        raise CheckpointError(f"{where}: no ONNX file, or a damaged one: {e}") from e
    if not proto.graph.node:
        raise CheckpointError(f"{where}: no graph in it; no ONNX file, or a damaged one")
    try:
        _check_texts(proto)
        checkpoint = _read(proto, where)
        if proto.producer_name == GOMETAL:
            checkpoint.notes.append("not compared with onnxruntime: go-metal's ONNX files are not valid there")
        elif check:
            model = Model.from_checkpoint(replace(checkpoint, notes=[]))
            compare(data, model, where=where).raise_if_different(f"{where}: imported model")
    except (SpecError, ShapeError) as e:
        raise UnsupportedError(f"{where}: {e}") from e
    except GoMetalError as e:
        raise e if where in str(e) else type(e)(f"{where}: {e}") from e
    return checkpoint


def _read(proto: onnx.ModelProto, where: str) -> Checkpoint:
    if (stored := _stored(proto, where)) is not None and _is_export_of(proto, stored):
        return stored
    notes: list[str] = []
    spec, weights = _Walk(_Graph.read(proto), proto.producer_name == GOMETAL, notes).run()
    for w in weights:
        check_finite(w.data, f"weight {w.name!r}")
    found = Checkpoint(spec, weights, TrainingState(learning_rate=0.001, best_loss=1e9), notes=notes)
    if stored is None:
        producer = " ".join(filter(None, (proto.producer_name, proto.producer_version))) or "unknown"
        return replace(found, metadata=CheckpointMetadata.now(f"Imported from ONNX (producer: {producer})"))
    notes.append("the graph is not what this version exports for the stored description; the graph decides")
    return replace(found, training_state=stored.training_state, metadata=stored.metadata, extras=stored.extras)


@dataclass
class _Node:
    op: str
    name: str
    inputs: list[str]
    outputs: list[str]
    attributes: dict[str, Any]
    read: set[str] = field(default_factory=set)

    def __str__(self) -> str:
        return f"node {self.name!r} ({self.op if self.op.isidentifier() else repr(self.op)})"


class _Graph:
    """The nodes with their constants resolved, and who consumes what."""

    def __init__(self, opset: int) -> None:
        self.opset = opset
        self.nodes: list[_Node] = []
        self.constants: dict[str, FloatArray] = {}
        self.consumers: dict[str, list[_Node]] = defaultdict(list)
        self.input, self.output = "", ""
        self.input_shape: Shape = (1,)

    @classmethod
    def read(cls, proto: onnx.ModelProto) -> _Graph:
        g = proto.graph
        versions = [o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")]
        if not versions or not OLDEST_READ <= max(versions) <= NEWEST_OPSET:
            raise UnsupportedError(
                f"opset {max(versions, default='missing')}: {OLDEST_READ} to {NEWEST_OPSET} are read"
            )
        graph = cls(max(versions))
        if len(g.node) > MAX_NODES:
            raise UnsupportedError(f"{len(g.node)} nodes; at most {MAX_NODES} are read")
        for tensor in g.initializer:
            if tensor.name in graph.constants:
                raise CheckpointError(f"initializer {tensor.name!r} stands twice")
            graph.constants[tensor.name] = _array(tensor)
        if g.sparse_initializer:
            raise UnsupportedError("sparse initializers are not supported")
        problems = []
        for i, n in enumerate(g.node):
            node = _node(n, i, graph.opset)
            if n.domain not in ("", "ai.onnx"):
                problems.append(f"{node}: domain {n.domain!r} is unknown")
            elif n.op_type == "Constant":
                graph.constants[n.output[0]] = _constant(node)
            else:
                graph.nodes.append(node)
        known = {op for layer in LAYERS.values() for pattern in layer.onnx_patterns for op in pattern} | {"Identity"}
        problems += [f"{n}: no layer does this" for n in graph.nodes if n.op not in known]
        if problems:
            raise UnsupportedError("; ".join(problems))
        graph._connect(g)
        return graph

    def _connect(self, g: onnx.GraphProto) -> None:
        inputs = [i for i in g.input if i.name not in self.constants]
        if len(inputs) != 1 or len(g.output) != 1:
            raise UnsupportedError(f"{len(inputs)} inputs and {len(g.output)} outputs; a model has one of each")
        tensor = inputs[0].type.tensor_type
        if tensor.elem_type not in _FLOATS:
            raise UnsupportedError(f"input {inputs[0].name!r}: element type {tensor.elem_type}; float needed")
        dims = [d.dim_value for d in tensor.shape.dim]
        if len(dims) < 2 or any(d < 1 for d in dims[1:]):
            raise UnsupportedError(f"input {inputs[0].name!r}: shape {dims}; all but the batch must be known")
        self.input, self.output = inputs[0].name, g.output[0].name
        self.input_shape = (dims[0] if dims[0] > 0 else 1, *dims[1:])
        for node in [n for n in self.nodes if n.op == "Identity"]:
            self._bypass(node)
        seen: set[str] = set()
        for node in self.nodes:
            for name in node.outputs:
                if name in seen or name in self.constants or name == self.input:
                    raise CheckpointError(f"{node}: its output {name!r} is made twice")
                seen.add(name)
            for name in dict.fromkeys(node.inputs):
                if name and name not in self.constants:
                    self.consumers[name].append(node)

    def _bypass(self, node: _Node) -> None:
        source, result = node.inputs[0], node.outputs[0]
        if result == self.output and source == self.input:
            return  # a graph that only hands its input on
        self.nodes.remove(node)
        if result == self.output:
            self.output = source
        if source in self.constants:
            self.constants[result] = self.constants[source]
        for other in self.nodes:
            other.inputs = [source if name == result else name for name in other.inputs]


def _node(n: onnx.NodeProto, position: int, opset: int) -> _Node:
    """The node with its attributes read, after a check against its operator's schema."""
    name = n.name or f"{n.op_type.lower()}_{position + 1}"
    node = _Node(n.op_type, name, list(n.input), list(n.output), {})
    schema = None
    if n.domain in ("", "ai.onnx") and onnx.defs.has(n.op_type, max_inclusive_version=opset):
        schema = onnx.defs.get_schema(n.op_type, opset)
        if not schema.min_input <= len(n.input) <= schema.max_input:
            raise CheckpointError(f"{node}: {len(n.input)} inputs; it takes {schema.min_input} to {schema.max_input}")
    if not n.output:
        raise CheckpointError(f"{node}: has no output")
    for a in n.attribute:
        node.attributes[a.name] = _attribute(a, node, schema)
    return node


def _array(tensor: TensorProto) -> FloatArray:
    """A tensor's numbers, checked against its dimensions before any memory is spent on them."""
    where = f"tensor {tensor.name!r}"
    if tensor.data_location == TensorProto.EXTERNAL or tensor.external_data:
        raise UnsupportedError(
            f"{where}: its data lies in another file; merge it into one (onnx.save without external data)"
        )
    if any(d < 0 for d in tensor.dims) or (count := math.prod(tensor.dims)) > MAX_ELEMENTS:
        raise CheckpointError(f"{where}: dimensions {list(tensor.dims)} are impossible")
    try:
        kind = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    except (KeyError, TypeError) as e:
        raise CheckpointError(f"{where}: element type {tensor.data_type} is unknown") from e
    if tensor.data_type == TensorProto.STRING:
        raise UnsupportedError(f"{where}: texts are no weights")
    if tensor.HasField("raw_data"):
        held = len(tensor.raw_data) // max(kind.itemsize, 1)
        exact = len(tensor.raw_data) == count * kind.itemsize
    else:
        held = max(
            map(len, (tensor.float_data, tensor.int32_data, tensor.int64_data, tensor.double_data, tensor.uint64_data))
        )
        exact = held == count
    if not exact:
        raise CheckpointError(f"{where}: dimensions {list(tensor.dims)} need {count} numbers, the file has {held}")
    try:
        array = numpy_helper.to_array(tensor)
    except (ValueError, TypeError) as e:
        raise CheckpointError(f"{where}: cannot be read: {e}") from e
    return array.astype(np.float32) if tensor.data_type in _FLOATS else array


def _check_texts(proto: onnx.ModelProto) -> None:
    """Names must be UTF-8: protobuf hands over bytes where they are not."""
    g = proto.graph
    texts = [proto.producer_name, proto.producer_version, *(p.key for p in proto.metadata_props)]
    texts += [*(p.value for p in proto.metadata_props), *(t.name for t in g.initializer)]
    for v in (*g.input, *g.output):
        texts += [v.name, *(d.dim_param for d in v.type.tensor_type.shape.dim)]
    for n in g.node:
        texts += [n.name, n.op_type, n.domain, *n.input, *n.output, *(a.name for a in n.attribute)]
    if any(not isinstance(t, str) for t in texts):
        raise CheckpointError("a name in it is not UTF-8; the file is damaged")


def _attribute(a: AttributeProto, node: _Node, schema: onnx.defs.OpSchema | None) -> Any:
    if a.ref_attr_name:
        raise UnsupportedError(f"{node}: attribute {a.name!r} refers to a function's; functions are not supported")
    declared = schema.attributes.get(a.name) if schema else None
    if declared and a.type != AttributeProto.UNDEFINED and a.type != declared.type.value:  # type: ignore[attr-defined]  # stubs lack it
        raise CheckpointError(f"{node}: attribute {a.name!r} has another type than its operator declares")
    if a.type == AttributeProto.UNDEFINED:
        kind = _UNTYPED.get(a.name)
        if kind is None:
            raise UnsupportedError(f"{node}: attribute {a.name!r} has no type")
        value = getattr(a, kind)
        return list(value) if kind == "ints" else value
    if a.type in (AttributeProto.GRAPH, AttributeProto.GRAPHS):
        raise UnsupportedError(f"{node}: attribute {a.name!r} holds a graph; control flow is not supported")
    if a.type == AttributeProto.TENSOR:
        return _array(a.t)
    try:
        value = onnx.helper.get_attribute_value(a)
    except ValueError as e:
        raise CheckpointError(f"{node}: attribute {a.name!r} cannot be read") from e
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def _constant(node: _Node) -> FloatArray:
    for key, value in node.attributes.items():
        if key == "value":
            tensor: FloatArray = value
            return tensor
        if key in ("value_float", "value_floats"):
            return np.asarray(value, np.float32)
        if key in ("value_int", "value_ints"):
            return np.asarray(value, np.int64)
    raise UnsupportedError(f"{node}: only numbers are read as constants")


@dataclass
class _Match:
    """See layers.base.Match."""

    name: str
    input_shape: Shape
    opset: int
    from_gometal: bool
    nodes: list[_Node]
    graph: _Graph
    notes: list[str]

    @property
    def ops(self) -> tuple[str, ...]:
        return tuple(n.op for n in self.nodes)

    def attr(self, node: int, name: str, default: Any) -> Any:
        self.nodes[node].read.add(name)
        return self.nodes[node].attributes.get(name, default)

    def consts(self, node: int) -> list[FloatArray]:
        return [self.graph.constants[i] for i in self.nodes[node].inputs if i in self.graph.constants]

    def data_first(self, node: int) -> bool:
        return self.nodes[node].inputs[0] not in self.graph.constants

    def note(self, text: str) -> None:
        self.notes.append(f"{self.nodes[0]}: {text}")

    def refuse(self, node: int, reason: str) -> Exception:
        return UnsupportedError(f"{self.nodes[node]}: {reason}")


class _Walk:
    """From the graph's input to its output, one recognised layer after the other."""

    def __init__(self, graph: _Graph, from_gometal: bool, notes: list[str]) -> None:
        self.graph, self.from_gometal, self.notes = graph, from_gometal, notes
        rows = [(pattern, layer) for layer in LAYERS.values() for pattern in layer.onnx_patterns]
        self.patterns = sorted(rows, key=lambda row: -len(row[0]))
        self.names: set[str] = set()

    def run(self) -> tuple[ModelSpec, list[WeightTensor]]:
        graph, tensor, shape = self.graph, self.graph.input, self.graph.input_shape
        layers: list[Layer] = []
        arrays: dict[str, FloatArray] = {}
        left = len(graph.nodes)
        if all(n.op == "Identity" for n in graph.nodes):
            raise UnsupportedError("the graph only hands its input on; there is no layer in it")
        while tensor != graph.output:
            layer, params, nodes = self._next(tensor, shape)
            layers.append(layer.resolve(shape))
            shape = layers[-1].output_shape(shape)
            arrays |= {f"{layer.name}.{k}": v for k, v in params.items()}
            tensor = nodes[-1].outputs[0]
            left -= len(nodes)
            if left < 0:
                raise CheckpointError("the graph runs in a circle")
        if graph.consumers[tensor]:
            raise UnsupportedError(f"{graph.consumers[tensor][0]}: uses the graph's output; branches are not supported")
        spec = ModelSpec.from_layers(layers, graph.input_shape)
        weights = []
        slots = [
            (x, n, p) for x, s in zip(layers, spec.layers, strict=True) for n, p in x.params(s.input_shape).items()
        ]
        for layer, name, param in sorted(slots, key=lambda s: not s[2].trainable):
            value = np.array(arrays[f"{layer.name}.{name}"], np.float32, order="C")
            if value.shape != param.shape:
                raise UnsupportedError(f"layer {layer.name!r}: {name} has shape {value.shape}; {param.shape} needed")
            weights.append(WeightTensor(f"{layer.name}.{name}", value.shape, value, layer.name, param.kind))
        return spec, weights

    def _next(self, tensor: str, shape: Shape) -> tuple[Layer, dict[str, FloatArray], list[_Node]]:
        consumers = self.graph.consumers[tensor]
        if not consumers:
            raise CheckpointError(f"tensor {tensor!r} leads nowhere; the output {self.graph.output!r} is never reached")
        for pattern, layer_class in self.patterns:
            if (nodes := self._match(tensor, pattern)) is None:
                continue
            name = self._name(nodes)
            m = _Match(name, shape, self.graph.opset, self.from_gometal, nodes, self.graph, self.notes)
            if (found := layer_class.from_onnx(m)) is None:
                continue
            self._check_unread(nodes)
            self.names.add(name)
            return (*found, nodes)
        if len(consumers) > 1:
            listed = ", ".join(str(n) for n in consumers[:4])
            raise UnsupportedError(f"tensor {tensor!r} goes to {listed}; branches are not supported")
        raise UnsupportedError(f"{consumers[0]}: no layer does exactly this with inputs {consumers[0].inputs}")

    def _match(self, tensor: str, pattern: tuple[str, ...]) -> list[_Node] | None:
        """The nodes of a pattern that starts at a tensor, if nothing else uses what they pass on."""
        nodes: list[_Node] = []
        inside = [tensor]
        for op in pattern:
            following = [n for n in self.graph.consumers[inside[-1]] if n.op == op and n not in nodes]
            if not following or not following[0].outputs:
                return None
            nodes.append(following[0])
            inside.append(following[0].outputs[0])
        uses = [n for t in inside[:-1] for n in self.graph.consumers[t]]
        inputs = [i for n in nodes for i in n.inputs if i and i not in self.graph.constants]
        closed = all(n in nodes for n in uses) and all(i in inside[:-1] for i in inputs)
        return nodes if closed and self.graph.output not in inside[1:-1] else None

    def _name(self, nodes: list[_Node]) -> str:
        name = nodes[-1].name
        if self.from_gometal:  # its Dense is L_matmul_op and L_add_bias, its Swish L_sigmoid_op and L
            name = next((n.name for n in nodes if n.op == "MatMul"), name).removesuffix("_matmul_op")
        usable = usable_name(name, self.names)
        if usable != name:
            self.notes.append(f"layer {name!r}: renamed to {usable!r}")
        return usable

    def _check_unread(self, nodes: list[_Node]) -> None:
        """An attribute that no layer looked at must have its schema's default, or the import would be wrong."""
        problems = []
        for node in nodes:
            schema = onnx.defs.get_schema(node.op, min(self.graph.opset, onnx.defs.onnx_opset_version()))
            for name in node.attributes.keys() - node.read:
                known = schema.attributes.get(name)
                default = (
                    onnx.helper.get_attribute_value(known.default_value) if known and known.default_value.name else None
                )
                default = default.decode() if isinstance(default, bytes) else default
                if node.attributes[name] != default:
                    problems.append(f"{node}: attribute {name} = {node.attributes[name]} is not supported")
        if problems:
            raise UnsupportedError("; ".join(problems))


def _stored(proto: onnx.ModelProto, where: str) -> Checkpoint | None:
    """What our exporter stored beside the graph; its tensors are the graph's initializers of the same names."""
    text = next((p.value for p in proto.metadata_props if p.key == METADATA_KEY), None)
    if text is None:
        return None
    tensors = {t.name: t for t in proto.graph.initializer}

    def arrays(section: str, name: str) -> FloatArray:
        if name not in tensors:
            raise CheckpointError(f"{section} {name!r} of the description is missing in the graph")
        array = _array(tensors[name])
        check_finite(array, f"weight {name!r}")
        return array

    value, _ = decode(lambda: io.BytesIO(text.encode()), f"{where}: metadata")
    return json_reader.from_value(value, f"{where}: metadata", arrays)


def _is_export_of(proto: onnx.ModelProto, stored: Checkpoint) -> bool:
    """Whether the graph is, to the byte, what we write for the stored checkpoint: nobody edited it."""
    try:
        model = Model.from_checkpoint(replace(stored, notes=[]))
        return bool(build(model, stored, proto.opset_import[0].version).graph == proto.graph)
    except (GoMetalError, IndexError):
        return False

"""An ONNX file as a small graph: parsed, checked, pruned to one output, everything constant computed."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, numpy_helper

from ..._types import FloatArray, Shape
from ...errors import CheckpointError, UnsupportedError, shown
from ...layers.base import LAYERS
from ...layers.spec import MAX_ELEMENTS
from .folding import FOLDED, fold
from .writer import NEWEST_OPSET

MAX_NODES = 2_000
MAX_RANK, MAX_BATCH = 8, 2**24
SPARE_NUMBERS, GROWTH = 2**20, 8  # constants that may be computed: so many, and times those that the file holds
OLDEST_READ = 7  # before it broadcasting had other rules
# go-metal writes attributes without their type; proto3 then leaves a zero out altogether
_UNTYPED = {"kernel_shape": "ints", "strides": "ints", "pads": "ints", "dilations": "ints", "axis": "i", "group": "i"}
_UNTYPED |= {"alpha": "f", "epsilon": "f", "momentum": "f", "ratio": "f"}
_FLOATS = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16)
_WHOLE = [TensorProto.DataType.Value(f"{u}INT{bits}") for u in ("", "U") for bits in (8, 16, 32, 64)]
_NAMES = dict(zip(TensorProto.DataType.values(), TensorProto.DataType.keys(), strict=True))
LAYOUT_OPS = ("Identity", "Cast", "Transpose")  # understood by the walk itself


@dataclass(repr=False)
class Node:
    """One operator with its attributes.

    Args:
        op: with its domain in front (``com.example:Thing``) where that is not ONNX's own.
        read: the attributes that a layer has looked at.
        problems: why no layer can take it, whatever stands around it.
    """

    op: str
    name: str
    inputs: list[str]
    outputs: list[str]
    attributes: dict[str, Any]
    read: set[str] = field(default_factory=set)
    problems: list[str] = field(default_factory=list)

    def __repr__(self) -> str:
        return f"node {shown(self.name)} ({self.op if self.op.isidentifier() else shown(self.op)})"


def listed(values: Iterable[Any]) -> str:
    """The first few of the file's values for a message of one line."""
    return ", ".join(shown(v) for v in itertools.islice(values, 5))


class Graph:
    """The nodes with their constants resolved, and who consumes what.

    Args:
        opset: of the default domain.
    """

    def __init__(self, opset: int) -> None:
        self.opset = opset
        self.nodes: list[Node] = []
        self.constants: dict[str, FloatArray] = {}
        self.consumers: dict[str, list[Node]] = defaultdict(list)
        self.notes: list[str] = []
        self.input, self.output, self.output_name = "", "", ""
        self.input_shape: Shape = (1,)
        self.fixed_batch = False  # the file takes one batch size only
        self.element_type = int(TensorProto.FLOAT)
        self._proto = onnx.ModelProto()

    @classmethod
    def read(cls, proto: onnx.ModelProto) -> Graph:
        """Parse and check; what no layer could take stands in the nodes' ``problems``.

        Raises: CheckpointError for a damaged graph, UnsupportedError for one that has not one input and one output.
        """
        g = proto.graph
        versions = [o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")]
        if len(versions) > 1:
            raise UnsupportedError(f"opsets {versions} of one domain; only one can be meant")
        if not versions or not OLDEST_READ <= versions[0] <= NEWEST_OPSET:
            told = f"opset {versions[0] if versions else 'missing'}: {OLDEST_READ} to {NEWEST_OPSET} are read"
            raise UnsupportedError(told)
        graph = cls(versions[0])
        graph._proto = proto
        if len(g.node) > MAX_NODES:
            raise UnsupportedError(f"{len(g.node)} nodes; at most {MAX_NODES} are read")
        for tensor in g.initializer:
            if tensor.name in graph.constants:
                raise CheckpointError(f"initializer {tensor.name!r} stands twice")
            graph.constants[tensor.name] = array_of(tensor)
        if g.sparse_initializer:
            raise UnsupportedError("sparse initializers are not supported")
        graph._choose_ends(g)
        graph._take_nodes(graph._needed(g.node))
        graph._connect()
        return graph

    def _choose_ends(self, g: onnx.GraphProto) -> None:
        """The one input that is no initializer, and the output; of several the only one that is a float matrix."""
        inputs = [i for i in g.input if i.name not in self.constants]
        if len(inputs) != 1:
            raise UnsupportedError(f"{len(inputs)} inputs ({listed(i.name for i in inputs)}); a model has one")
        tensor = inputs[0].type.tensor_type
        if tensor.elem_type not in _FLOATS:
            raise UnsupportedError(f"input {inputs[0].name!r}: element type {tensor.elem_type}; float needed")
        dims = [d.dim_value for d in tensor.shape.dim]
        if len(dims) > MAX_RANK:
            raise UnsupportedError(f"input {inputs[0].name!r}: rank {len(dims)}; at most {MAX_RANK} is supported")
        if len(dims) < 2 or any(d < 1 for d in dims[1:]):
            raise UnsupportedError(f"input {inputs[0].name!r}: shape {dims}; all but the batch must be known")
        if tensor.shape.dim[0].HasField("dim_value") and not (dims[0] < 0 or 0 < dims[0] <= MAX_BATCH):
            told = f"a fixed batch of {dims[0]} rows; leave it free, or give a size up to {MAX_BATCH}"
            raise UnsupportedError(f"input {inputs[0].name!r}: {told}")
        outputs = [o.name for o in g.output]
        if len(outputs) > 1:
            floats = [o.name for o in g.output if o.type.tensor_type.elem_type in _FLOATS]
            if len(floats) != 1:
                raise UnsupportedError(f"{len(outputs)} outputs ({listed(outputs)}); a model has one")
            self.notes.append(
                f"took the output {shown(floats[0])}; {listed(n for n in outputs if n not in floats)} is left out"
            )
            outputs = floats
        if not outputs:
            raise CheckpointError("the graph has no output")
        self.input, self.output, self.element_type = inputs[0].name, outputs[0], tensor.elem_type
        self.output_name = self.output  # the walk may end at a tensor that Identity nodes rename
        self.input_shape = (dims[0] if dims[0] > 0 else 1, *dims[1:])
        self.fixed_batch = dims[0] > 0

    def _needed(self, nodes: Iterable[onnx.NodeProto]) -> list[tuple[int, onnx.NodeProto]]:
        """The nodes that the output depends on, in their order."""
        numbered = list(enumerate(nodes))
        makers: dict[str, tuple[int, onnx.NodeProto]] = {}
        for i, n in numbered:
            for name in filter(None, n.output):
                if name in makers or name in self.constants or name == self.input:
                    told = str(Node(n.op_type, n.name or n.op_type, [], [], {}))
                    raise CheckpointError(f"{told}: its output {name!r} is made twice")
                makers[name] = (i, n)
        if self.output not in makers and self.output != self.input:
            raise CheckpointError(f"tensor {self.input!r} leads nowhere; the output {self.output!r} is never reached")
        wanted, needed = [self.output], set[int]()
        while wanted:
            if (maker := makers.get(wanted.pop())) and maker[0] not in needed:
                needed.add(maker[0])
                wanted += maker[1].input
        if left := [n.name or n.op_type for i, n in numbered if i not in needed and n.op_type != "Constant"]:
            self.notes.append(f"left out {len(left)} nodes that the output does not depend on ({listed(left)})")
        return [(i, n) for i, n in numbered if i in needed]

    def _take_nodes(self, protos: list[tuple[int, onnx.NodeProto]]) -> None:
        nodes = [part for i, n in protos for part in _keeping_axes(_node(n, i, self.opset))]
        for node in nodes:
            if node.op == "Constant" and not node.problems:
                self._compute(node, partial(_constant, node))
        room = SPARE_NUMBERS + GROWTH * sum(c.size for c in self.constants.values())
        progress = True
        while progress:  # nodes need not be in order
            progress = False
            for node in [n for n in nodes if n.op in FOLDED and not n.problems and n.outputs[0] not in self.constants]:
                if node.op == "Shape" or all(not i or i in self.constants for i in node.inputs):
                    inputs = [self.constants.get(i) for i in node.inputs]
                    room -= self._compute(node, partial(fold, node, inputs, self.opset, room))
                    progress = True
        self.nodes = [n for n in nodes if n.outputs[0] not in self.constants]
        known = {op for layer in LAYERS.values() for pattern in layer.onnx_patterns for op in pattern} | {*LAYOUT_OPS}
        for node in self.nodes:
            if not node.problems and node.op not in known:
                node.problems.append(f"{node}: no layer does this")
            elif not node.problems and node.inputs and all(not i or i in self.constants for i in node.inputs):
                node.problems.append(f"{node}: computes with constants alone; of those only {', '.join(FOLDED)} can")

    def _compute(self, node: Node, value: Callable[[], FloatArray]) -> int:
        """Make a node's output a constant; how many numbers it has."""
        try:
            found = self.constants[node.outputs[0]] = value()
        except UnsupportedError as e:
            node.problems.append(str(e))
            return 0
        return found.size

    @property
    def problems(self) -> list[str]:
        """What no layer could take, node by node."""
        return [p for n in self.nodes for p in n.problems]

    def inferred_shapes(self) -> dict[str, Shape]:
        """Shapes of the tensors in between, as far as onnx can tell them, node by node; batch 1 where it is free."""
        g = self._proto.graph
        types = {i.name: i.type for i in g.input if i.name == self.input}
        for n in g.node:
            usual = n.domain in ("", "ai.onnx") and onnx.defs.has(n.op_type, max_inclusive_version=self.opset)
            control = any(a.type in (AttributeProto.GRAPH, AttributeProto.GRAPHS) for a in n.attribute)
            if usual and not control and n.output and n.output[0] not in self.constants:
                types |= self._inferred(n, types)
        return {name: shape for name, t in types.items() if (shape := _usable(t)) is not None and name != self.input}

    def _inferred(self, n: onnx.NodeProto, types: dict[str, onnx.TypeProto]) -> dict[str, onnx.TypeProto]:
        """The types of a node's outputs; not those of a rank that no layer has: it could double with every node."""
        constants = {i: self.constants[i] for i in n.input if i in self.constants}
        shapes = {i: c for i, c in constants.items() if c.size <= MAX_RANK and c.dtype == np.int64}
        tensors = {i: numpy_helper.from_array(c) for i, c in shapes.items()}
        given = {i: types[i] for i in n.input if i in types}
        for name, c in constants.items():
            kind = onnx.helper.np_dtype_to_tensor_dtype(c.dtype)
            given[name] = onnx.helper.make_tensor_type_proto(kind, c.shape)
        try:
            found: dict[str, onnx.TypeProto] = onnx.shape_inference.infer_node_outputs(
                onnx.defs.get_schema(n.op_type, self.opset), n, given, tensors,
                opset_imports=[onnx.helper.make_opsetid("", self.opset)],
            )  # fmt: skip
        except (onnx.shape_inference.InferenceError, onnx.checker.ValidationError, ValueError, KeyError, RuntimeError):
            return {}
        return {name: t for name, t in found.items() if len(t.tensor_type.shape.dim) <= MAX_RANK}

    def _connect(self) -> None:
        for node in [n for n in self.nodes if n.op == "Identity" or self._is_identity_cast(n)]:
            if not node.problems:
                self._bypass(node)
        for node in self.nodes:
            for name in dict.fromkeys(node.inputs):
                if name and name not in self.constants:
                    self.consumers[name].append(node)

    def _is_identity_cast(self, node: Node) -> bool:
        exact = (TensorProto.FLOAT, TensorProto.DOUBLE)  # of what a model computes; what is no float never gets here
        return node.op == "Cast" and node.attributes.get("to") in (self.element_type, *exact)

    def _bypass(self, node: Node) -> None:
        source, result = node.inputs[0], node.outputs[0]
        if result == self.output and source == self.input:
            return  # a graph that only hands its input on
        self.nodes.remove(node)
        if result == self.output:
            self.output = source
        for other in self.nodes:
            other.inputs = [source if name == result else name for name in other.inputs]


def _usable(t: onnx.TypeProto) -> Shape | None:
    """The shape, if all but the batch is known and possible."""
    dims = [d.dim_value for d in t.tensor_type.shape.dim]
    known = len(dims) >= 2 and all(d > 0 for d in dims[1:]) and math.prod(dims[1:]) <= MAX_ELEMENTS
    return (max(dims[0], 1), *dims[1:]) if known else None


def _node(n: onnx.NodeProto, position: int, opset: int) -> Node:
    """The node with its attributes read, after a check against its operator's schema."""
    own = n.domain in ("", "ai.onnx")
    op = n.op_type if own else f"{n.domain}:{n.op_type}"
    node = Node(op, n.name or f"{n.op_type.lower()}_{position + 1}", list(n.input), list(n.output), {})
    schema = None
    if own and onnx.defs.has(op, max_inclusive_version=opset):
        schema = onnx.defs.get_schema(op, opset)
        if not schema.min_input <= len(n.input) <= schema.max_input:
            raise CheckpointError(f"{node}: {len(n.input)} inputs; it takes {schema.min_input} to {schema.max_input}")
    if not n.output:
        raise CheckpointError(f"{node}: has no output")
    for a in n.attribute:
        if not a.name.isidentifier():
            raise CheckpointError(f"{node}: {shown(a.name)} is no name of an attribute")
        try:
            node.attributes[a.name] = _attribute(a, node, schema)
        except UnsupportedError as e:
            node.problems.append(str(e))
    return node


def _keeping_axes(node: Node) -> list[Node]:
    """A mean that drops its axes as one that keeps them and a Flatten, for which there are layers."""
    if node.op != "ReduceMean" or node.problems or node.attributes.get("keepdims", 1) != 0 or len(node.outputs) != 1:
        return [node]
    kept = f"{node.outputs[0]}\0"  # a name that no file has
    mean = replace(node, outputs=[kept], attributes={**node.attributes, "keepdims": 1})
    return [mean, Node("Flatten", f"{node.name}_flatten", [kept], node.outputs, {})]


def array_of(tensor: TensorProto) -> FloatArray:
    """A tensor's numbers, checked against its dimensions before any memory is spent on them."""
    where = f"tensor {tensor.name!r}"
    if tensor.external_data and tensor.data_location != TensorProto.EXTERNAL:
        raise CheckpointError(f"{where}: names another file, but says that its data is here")
    if tensor.data_location == TensorProto.EXTERNAL:
        told = "its data lies in another file; load(path, external_data=True), or --read-external, reads that, too"
        raise UnsupportedError(f"{where}: {told}")
    if any(d < 0 for d in tensor.dims) or (count := math.prod(tensor.dims)) > MAX_ELEMENTS:
        raise CheckpointError(f"{where}: dimensions {list(tensor.dims)} are impossible")
    if tensor.data_type not in (*_FLOATS, *_WHOLE, TensorProto.BOOL):
        raise UnsupportedError(f"{where}: type {_NAMES.get(tensor.data_type, tensor.data_type)} is not read as numbers")
    kind = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
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
    with np.errstate(over="ignore", invalid="ignore"):  # whoever uses it checks that it is finite
        numbers: FloatArray = array.astype(np.float32) if tensor.data_type in _FLOATS else array
    return numbers


def take_in(proto: onnx.ModelProto, folder: Path) -> None:
    """Put the tensors that lie in other files of the folder into the graph itself.

    Raises: CheckpointError for a file that is not plainly inside the folder, or too short.
    """
    for tensor in proto.graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL:
            raw = _external_bytes(tensor, folder)
            tensor.ClearField("external_data")
            tensor.ClearField("data_location")
            tensor.raw_data = raw


def _external_bytes(tensor: TensorProto, folder: Path) -> bytes:
    where = f"tensor {tensor.name!r}"
    entries = {e.key: e.value for e in tensor.external_data}
    name = entries.get("location", "")
    path = folder / name
    try:
        inside = name and not Path(name).is_absolute() and folder.resolve() in path.resolve().parents
        plain = inside and path.is_file() and not path.is_symlink()  # opening a pipe would wait for ever
    except (OSError, ValueError):  # a name that no system takes
        plain = False
    if not plain:
        raise CheckpointError(f"{where}: external data {name!r} is not a plain file inside the model's folder")
    try:
        kind = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
        size = math.prod(tensor.dims) * kind.itemsize
        offset, length = int(entries.get("offset", 0)), int(entries.get("length", size))
        with path.open("rb") as file:
            if offset < 0 or length != size or path.stat().st_size < offset + size or any(d < 0 for d in tensor.dims):
                told = f"{length} bytes at {offset} of {path.stat().st_size}; {size} needed"
                raise CheckpointError(f"{where}: external data {name!r} is damaged: {told}")
            file.seek(offset)
            data: bytes = file.read(size)
            return data
    except (OSError, ValueError, KeyError, TypeError) as e:
        if isinstance(e, CheckpointError):
            raise
        raise CheckpointError(f"{where}: external data {name!r}: {e}") from e


def check_texts(proto: onnx.ModelProto) -> None:
    """Names must be UTF-8: protobuf hands over bytes where they are not."""
    g = proto.graph
    texts = [proto.producer_name, proto.producer_version, *(p.key for p in proto.metadata_props)]
    texts += [*(p.value for p in proto.metadata_props), *(t.name for t in g.initializer)]
    texts += [text for t in g.initializer for e in t.external_data for text in (e.key, e.value)]
    for v in (*g.input, *g.output):
        texts += [v.name, *(d.dim_param for d in v.type.tensor_type.shape.dim)]
    for n in g.node:
        texts += [n.name, n.op_type, n.domain, *n.input, *n.output, *(a.name for a in n.attribute)]
    if any(not isinstance(t, str) for t in texts):
        raise CheckpointError("a name in it is not UTF-8; the file is damaged")


def _attribute(a: AttributeProto, node: Node, schema: onnx.defs.OpSchema | None) -> Any:
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
        return array_of(a.t)
    try:
        value = onnx.helper.get_attribute_value(a)
    except ValueError as e:
        raise CheckpointError(f"{node}: attribute {a.name!r} cannot be read") from e
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def _constant(node: Node) -> FloatArray:
    for key, value in node.attributes.items():
        if key == "value":
            tensor: FloatArray = value
            return tensor
        if key in ("value_float", "value_floats"):
            return np.asarray(value, np.float32)
        if key in ("value_int", "value_ints"):
            return np.asarray(value, np.int64)
    raise UnsupportedError(f"{node}: only numbers are read as constants")

"""The walk through an ONNX graph: a chain of nodes, of which the layers are asked which they recognise."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx

from ..._types import FloatArray, Shape
from ...errors import CheckpointError, GoMetalError, UnsupportedError, shown
from ...layers import Layer, ModelSpec
from ...layers.base import LAYERS
from ...layers.spec import usable_name
from ..checkpoint import WeightTensor
from .folding import BATCH
from .graph import GROWTH, SPARE_NUMBERS, Graph, Node, listed

MAX_TOLD = 30  # problems in one message
ARITHMETIC = ("Add", "Sub", "Mul", "Div")  # element by element; the data may stand on either side


@dataclass
class _Place:
    """Where the walk stands: a tensor, its NCHW shape, and how the file's own tensor differs from that.

    Args:
        tensor: its name in the graph.
        shape: as our layers see it.
        layout: the file's axes in terms of ours: ``(0, 2, 3, 1)`` is NHWC.
        flattened: of a matrix that was flattened in another layout: what it was before.
    """

    tensor: str
    shape: Shape
    layout: tuple[int, ...]
    flattened: _Place | None = None

    @property
    def plain(self) -> bool:
        return self.layout == tuple(range(len(self.shape))) and self.flattened is None

    def in_our_order(self, weight: FloatArray, axis: int) -> FloatArray:
        """A constant whose axis counts the file's columns, as ours count them; one that does not fit as it is."""
        place = self.flattened or self
        if weight.ndim != 2 or weight.shape[axis] != math.prod(place.shape[1:]):
            return weight  # the layer says so
        # our column for each column that flattening in the file's layout gives
        columns = np.arange(weight.shape[axis]).reshape(place.shape[1:])
        rows = columns.transpose([axis - 1 for axis in place.layout[1:]]).reshape(-1)
        result = np.empty_like(weight)
        if axis:
            result[:, rows] = weight
        else:
            result[rows] = weight
        return result


@dataclass
class _Match:
    """See layers.base.Match."""

    name: str
    place: _Place
    opset: int
    from_gometal: bool
    nodes: list[Node]
    graph: Graph
    notes: list[str]
    problems: list[str] = field(default_factory=list)

    @property
    def input_shape(self) -> Shape:
        return self.place.shape

    @property
    def ops(self) -> tuple[str, ...]:
        return tuple(n.op for n in self.nodes)

    def attr(self, node: int, name: str, default: Any) -> Any:
        self.nodes[node].read.add(name)
        return self.nodes[node].attributes.get(name, default)

    def axis(self, node: int, axis: int) -> int:
        layout = self.place.layout
        if layout == tuple(range(len(layout))):
            return axis
        if not -len(layout) <= axis < len(layout):
            raise self.refuse(node, f"axis {axis} is outside the input of rank {len(layout)}")
        return layout[axis]

    def consts(self, node: int) -> list[FloatArray]:
        found = [self.graph.constants[i] for i in self.nodes[node].inputs if i in self.graph.constants]
        if self.place.plain or not found:
            return found
        op, place = self.nodes[node].op, self.place
        if op in ("MatMul", "Gemm"):
            axis = 1 if op == "Gemm" and self.attr(node, "transB", 0) else 0
            return [place.in_our_order(found[0], axis), *found[1:]]
        if all(o in ARITHMETIC for o in self.ops[: node + 1]):  # nothing before it has changed the layout
            if any(c.ndim > len(place.shape) for c in found):
                raise self.refuse(node, f"its constant {found[0].shape} has more axes than the data {place.shape}")
            wide = [c.reshape((1,) * (len(place.shape) - c.ndim) + c.shape) for c in found]
            if place.flattened is not None:
                return [place.in_our_order(c, 1) for c in wide]
            return [np.transpose(c, np.argsort(place.layout)) for c in wide]
        return found

    def const(self, node: int, position: int) -> FloatArray | None:
        name = "".join(self.nodes[node].inputs[position : position + 1])
        if name and name not in self.graph.constants:
            raise self.refuse(node, f"its input {name!r} must be a constant")
        return self.graph.constants[name] if name else None

    def ints(self, node: int) -> list[int] | None:
        lists = [c for c in self.consts(node) if c.ndim == 1 and c.dtype.kind in "iu"]
        found: list[int] | None = lists[0].tolist() if lists else None
        return found

    def data_first(self, node: int) -> bool:
        return self.nodes[node].inputs[0] not in self.graph.constants

    def flattens(self, node: int) -> bool:
        """Whether a Flatten, Reshape or Squeeze makes ``(N, everything else)`` of the input."""
        n, size = self.nodes[node], int(np.prod(self.input_shape[1:]))
        if n.op == "Flatten":
            return self.attr(node, "axis", 1) in (1, 1 - len(self.input_shape))
        target = self.ints(node)
        if target is None and self.consts(node):
            return False
        if n.op == "Squeeze":
            axes = self.attr(node, "axes", target)
            if axes is None and not (self.graph.fixed_batch and self.input_shape[0] > 1):
                return False  # of a single row it would take the batch away
            ones = [i for i, d in enumerate(self.input_shape) if d == 1 and i]
            given = ones if axes is None else [self.place.layout[a % len(self.input_shape)] for a in axes]
            left = [d for i, d in enumerate(self.input_shape) if i not in given]
            return 0 not in given and set(given) <= set(ones) and len(left) == 2
        if target is None or len(target) != 2 or (self.attr(node, "allowzero", 0) and 0 in target):
            return False
        batch, rest = target
        baked = self.graph.fixed_batch and batch == self.input_shape[0]
        return (batch in (0, -1, BATCH) or baked) and rest in (-1, size) and (batch, rest) != (-1, -1)

    def note(self, text: str) -> None:
        self.notes.append(f"{self.nodes[0]}: {text}")

    def refuse(self, node: int, reason: str) -> Exception:
        return UnsupportedError(f"{self.nodes[node]}: {reason}")

    def problem(self, node: int, reason: str) -> None:
        self.problems.append(f"{self.nodes[node]}: {reason}")

    def only(self, node: int, name: str, value: float) -> None:
        found = self.attr(node, name, value)
        if any(v != value for v in (found if isinstance(found, list) else [found])):
            self.problem(node, f"{name} = {shown(found)}; only {value} is supported")


class Walk:
    """From the graph's input to its output, one recognised layer after the other."""

    def __init__(self, graph: Graph, from_gometal: bool, notes: list[str]) -> None:
        self.graph, self.from_gometal, self.notes = graph, from_gometal, notes
        rows = [(pattern, layer) for layer in LAYERS.values() for pattern in layer.onnx_patterns]
        self.patterns = sorted(rows, key=lambda row: -len(row[0]))
        self.names: set[str] = set()
        self.channels_last = False  # the file's input is NHWC

    def run(self) -> tuple[ModelSpec, list[WeightTensor]]:
        """The architecture and its weights, statistics last.

        Raises: UnsupportedError naming each node that stands in the way, CheckpointError for a damaged graph.
        """
        graph, place = self.graph, self._start()
        input_shape = place.shape
        layers: list[Layer] = []
        arrays: dict[str, FloatArray] = {}
        if all(n.op == "Identity" for n in graph.nodes):
            raise UnsupportedError("the graph only hands its input on; there is no layer in it")
        if graph.problems:
            raise self._refusal(place)
        while place.tensor != graph.output:
            if len(layers) > len(graph.nodes):
                raise CheckpointError("the graph runs in a circle")
            try:
                place, found = self._step(place)
            except CheckpointError:  # damaged: what follows means nothing
                raise
            except GoMetalError as e:
                raise self._refusal(place) from e
            if found is not None:
                layer, params = found
                layers.append(layer)
                arrays |= {f"{layer.name}.{k}": v for k, v in params.items()}
        if graph.consumers[place.tensor]:
            told = f"{graph.consumers[place.tensor][0]}: uses the graph's output; branches are not supported"
            raise UnsupportedError(told)
        if not place.plain:
            order = "flattened from" if place.flattened else "of"
            layout = place.flattened.layout if place.flattened else place.layout
            raise UnsupportedError(f"the output is {order} the layout {layout}; a model has (N, C, H, W)")
        return self._described(layers, input_shape, arrays)

    def _described(
        self, layers: list[Layer], input_shape: Shape, arrays: dict[str, FloatArray]
    ) -> tuple[ModelSpec, list[WeightTensor]]:
        spec = ModelSpec.from_layers(layers, input_shape)
        held = sum(c.size for c in self.graph.constants.values())
        needed = sum(a.size for a in arrays.values())  # of one number for many channels, say
        if needed > SPARE_NUMBERS + GROWTH * held:
            raise UnsupportedError(f"its layers need {needed} weights; the file holds {held} numbers")
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

    def _step(self, place: _Place) -> tuple[_Place, tuple[Layer, dict[str, FloatArray]] | None]:
        """The place after the next layer and that layer, or after a Transpose and none."""
        if (moved := self._transposed(place)) is not None:
            return moved, None
        layer, params, nodes = self._next(place)
        layer = layer.resolve(place.shape)
        return self._after(place, layer, nodes), (layer, params)

    def _refusal(self, place: _Place) -> UnsupportedError:
        """One message with every reason from here on; behind a refused node the shapes that onnx infers are taken."""
        told, seen = dict.fromkeys(self.graph.problems), set[str]()
        shapes = self.graph.inferred_shapes()
        self.names.clear()  # the first node is looked at again
        waiting = [place]
        while waiting:
            place = waiting.pop(0)
            if place.tensor in seen or place.tensor == self.graph.output:
                continue
            seen.add(place.tensor)
            consumers = self.graph.consumers[place.tensor]
            try:
                waiting.append(self._step(place)[0])
                continue
            except GoMetalError as e:
                if not all(n.problems for n in consumers):  # those are in the message already
                    told[str(e)] = None
            if len(consumers) > 1:  # look into each branch
                for node in consumers:
                    self.graph.consumers[place.tensor] = [node]
                    try:
                        waiting.append(self._step(place)[0])
                    except GoMetalError as e:
                        if not node.problems:
                            told[str(e)] = None
            for name in [o for n in consumers for o in n.outputs if o in shapes]:
                known = shapes[name]
                layout = place.layout if len(known) == len(place.shape) else tuple(range(len(known)))
                ours = [known[layout.index(axis)] for axis in range(len(known))]
                waiting.append(_Place(name, (place.shape[0], *ours[1:]), layout))
        parts = [*told][:MAX_TOLD] + ([f"and {len(told) - MAX_TOLD} more"] if len(told) > MAX_TOLD else [])
        return UnsupportedError("; ".join(parts))

    def _start(self) -> _Place:
        """The graph's input; one that is transposed at once to NCHW is NHWC."""
        graph, shape = self.graph, self.graph.input_shape
        consumers = graph.consumers[graph.input]
        nhwc = len(shape) == 4 and len(consumers) == 1 and consumers[0].op == "Transpose"
        if nhwc and consumers[0].attributes.get("perm") == [0, 3, 1, 2]:
            self.channels_last = True
            self.notes.append("the file's input is (N, H, W, C); the model takes (N, C, H, W)")
            return _Place(graph.input, (shape[0], shape[3], shape[1], shape[2]), (0, 2, 3, 1))
        return _Place(graph.input, shape, tuple(range(len(shape))))

    def _transposed(self, place: _Place) -> _Place | None:
        """The place after a Transpose, which only renames the axes."""
        consumers = self.graph.consumers[place.tensor]
        if len(consumers) != 1 or consumers[0].op != "Transpose" or place.flattened is not None:
            return None
        node, rank = consumers[0], len(place.shape)
        perm = node.attributes.get("perm", list(range(rank))[::-1])
        if sorted(perm) != list(range(rank)) or place.layout[perm[0]] != 0:
            raise UnsupportedError(f"{node}: perm {perm} is no layout; the batch must stay first")
        return replace(place, tensor=node.outputs[0], layout=tuple(place.layout[p] for p in perm))

    def _after(self, place: _Place, layer: Layer, nodes: list[Node]) -> _Place:
        shape, result = layer.output_shape(place.shape), nodes[-1].outputs[0]
        if len(shape) == len(place.shape) and not any(n.op in ("MatMul", "Gemm") for n in nodes):
            return _Place(result, shape, place.layout, place.flattened)
        plain = _Place(result, shape, tuple(range(len(shape))))
        flattened = len(place.shape) > 2 and nodes[-1].op in ("Flatten", "Reshape", "Squeeze")
        return replace(plain, flattened=place) if flattened and not place.plain else plain

    def _next(self, place: _Place) -> tuple[Layer, dict[str, FloatArray], list[Node]]:
        tensor = place.tensor
        consumers = self.graph.consumers[tensor]
        if not consumers:
            raise CheckpointError(f"tensor {tensor!r} leads nowhere; the output {self.graph.output!r} is never reached")
        for pattern, layer_class in self.patterns:
            if (nodes := self._match(tensor, pattern)) is None:
                continue
            name = self._name(nodes)
            m = _Match(name, place, self.graph.opset, self.from_gometal, nodes, self.graph, self.notes)
            if not place.plain and not layer_class.any_layout:
                raise UnsupportedError(f"{nodes[0]}: works on data that the file has turned to layout {place.layout}")
            try:
                found = layer_class.from_onnx(m)
            except GoMetalError as e:
                raise type(e)("; ".join([*m.problems, str(e)])) from e
            if found is None:
                continue
            if problems := [*m.problems, *self._unread(nodes)]:
                raise UnsupportedError("; ".join(problems))
            self.names.add(name)
            return (*found, nodes)
        if len(consumers) > 1:
            raise UnsupportedError(f"tensor {tensor!r} goes to {listed(consumers)}; branches are not supported")
        raise UnsupportedError(f"{consumers[0]}: no layer does exactly this with inputs {consumers[0].inputs}")

    def _match(self, tensor: str, pattern: tuple[str, ...]) -> list[Node] | None:
        """The nodes of a pattern that starts at a tensor, if nothing else uses what they pass on."""
        nodes: list[Node] = []
        inside = [tensor]
        for op in pattern:
            following = [n for n in self.graph.consumers[inside[-1]] if n.op == op and n not in nodes]
            if not following or not following[0].outputs:
                return None
            nodes.append(following[0])
            inside.append(following[0].outputs[0])
        if any(n.op not in (*ARITHMETIC, "MatMul", "Max") and n.inputs[0] not in inside for n in nodes):
            return None  # the data is its limits, its ratio or its shape
        if any(n.inputs.count(t) > 1 for n in nodes for t in inside):
            return None  # data added to itself, or multiplied
        uses = [n for t in inside[:-1] for n in self.graph.consumers[t]]
        inputs = [i for n in nodes for i in n.inputs if i and i not in self.graph.constants]
        closed = all(n in nodes for n in uses) and all(i in inside[:-1] for i in inputs)
        return nodes if closed and self.graph.output not in inside[1:-1] else None

    def _name(self, nodes: list[Node]) -> str:
        name = nodes[-1].name
        if self.from_gometal:  # its Dense is L_matmul_op and L_add_bias, its Swish L_sigmoid_op and L
            name = next((n.name for n in nodes if n.op == "MatMul"), name).removesuffix("_matmul_op")
        usable = usable_name(name, self.names)
        if usable != name:
            self.notes.append(f"layer {name!r}: renamed to {usable!r}")
        return usable

    def _unread(self, nodes: list[Node]) -> list[str]:
        """An attribute that no layer looked at must have its schema's default, or the import would be wrong."""
        problems = []
        for node in nodes:
            schema = onnx.defs.get_schema(node.op, self.graph.opset)
            for name in node.attributes.keys() - node.read:
                known = schema.attributes.get(name)
                default = (
                    onnx.helper.get_attribute_value(known.default_value) if known and known.default_value.name else None
                )
                default = default.decode() if isinstance(default, bytes) else default
                if isinstance(node.attributes[name], np.ndarray) or node.attributes[name] != default:
                    problems.append(f"{node}: attribute {name} = {shown(node.attributes[name])} is not supported")
        return problems

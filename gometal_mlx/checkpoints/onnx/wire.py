"""An ONNX model whose numbers never pass through protobuf: the arrays are written as they lie in memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import GraphProto, ModelProto, TensorProto

from ..._types import Shape

Bytes = bytes | memoryview
_BYTES_FIELD = 2  # protobuf's wire type of texts, bytes and messages


@dataclass
class Export:
    """A model without its initializers, which are kept as arrays.

    Args:
        proto: everything else.
        tensors: the initializers' names, types and dimensions.
        arrays: their numbers, little-endian and in C order.
    """

    proto: ModelProto
    tensors: list[TensorProto] = field(default_factory=list)
    arrays: list[npt.NDArray[Any]] = field(default_factory=list)

    def add(self, name: str, value: npt.NDArray[Any], shape: Shape) -> None:
        """Append an initializer, float16 or float32."""
        kind = TensorProto.FLOAT16 if value.dtype == np.float16 else TensorProto.FLOAT
        self.tensors.append(TensorProto(name=name, data_type=kind, dims=shape))
        self.arrays.append(value)

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(a.nbytes for a in self.arrays)

    def chunks(self) -> Iterator[Bytes]:
        """The serialised model. Fields of a message may come in any order, so what protobuf wrote is continued."""
        head = ModelProto()
        head.CopyFrom(self.proto)
        head.ClearField("graph")
        yield head.SerializeToString()
        graph = self.proto.graph.SerializeToString()
        parts = [_tensor(t, a) for t, a in zip(self.tensors, self.arrays, strict=True)]
        yield _start(ModelProto, "graph", len(graph) + sum(len(p) for pair in parts for p in pair))
        yield graph
        for pair in parts:
            yield from pair

    def external_chunks(self, location: str) -> Iterator[Bytes]:
        """The serialised model without the numbers, which stand one after the other in another file."""
        proto, offset = ModelProto(), 0
        proto.CopyFrom(self.proto)
        for tensor, array in zip(self.tensors, self.arrays, strict=True):
            outside = proto.graph.initializer.add()
            outside.CopyFrom(tensor)
            outside.data_location = TensorProto.EXTERNAL
            for key, value in (("location", location), ("offset", offset), ("length", array.nbytes)):
                outside.external_data.add(key=key, value=str(value))
            offset += array.nbytes
        yield proto.SerializeToString()

    def same_graph(self, graph: onnx.GraphProto) -> bool:
        """Whether a graph is this one, to the last number."""
        if len(graph.initializer) != len(self.tensors) or _fields(graph, "initializer") != _fields(self.proto.graph):
            return False
        pairs = zip(graph.initializer, self.tensors, self.arrays, strict=True)
        return all(_fields(t, "raw_data") == _fields(ours) and t.raw_data == data(a) for t, ours, a in pairs)


def data(array: npt.NDArray[Any]) -> memoryview:
    """The array's bytes, not copied."""
    return array.reshape(-1).view(np.uint8).data


def _tensor(tensor: TensorProto, array: npt.NDArray[Any]) -> tuple[Bytes, Bytes]:
    head, start = tensor.SerializeToString(), _start(TensorProto, "raw_data", array.nbytes)
    length = len(head) + len(start) + array.nbytes
    return _start(GraphProto, "initializer", length) + head + start, data(array)


def _start(message: Any, name: str, length: int) -> bytes:
    """A field's tag and length."""
    return _varint(message.DESCRIPTOR.fields_by_name[name].number << 3 | _BYTES_FIELD) + _varint(length)


def _varint(value: int) -> bytes:
    """Seven bits a byte, the lowest first; the top bit says that more follow."""
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*found, value])


def _fields(message: Any, *without: str) -> dict[str, Any]:
    return {f.name: v for f, v in message.ListFields() if f.name not in without}

"""Operators on constants, computed while a graph is read, the shape arithmetic of exporters included."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from ...errors import CheckpointError, UnsupportedError

if TYPE_CHECKING:
    from .graph import Node

BATCH = -(2**40)  # stands for the batch size in a constant that describes a shape
_UNKNOWN = -(2**41)  # any other dimension: nothing that depends on it is understood
_MAX_RANK = 8
_FLOAT_KINDS = tuple(onnx.TensorProto.DataType.Value(n) for n in ("FLOAT", "DOUBLE", "FLOAT16", "BFLOAT16"))


def fold(node: Node, inputs: Sequence[Any], opset: int, room: int) -> Any:
    """The value of a node whose inputs are constants (``Shape`` takes any: the batch stays a symbol).

    Args:
        room: how many numbers it may have.
    Raises: UnsupportedError if it is not understood, CheckpointError if its inputs do not fit each other.
    """
    if node.op != "Shape" and inputs[0] is None:
        raise CheckpointError(f"{node}: its first input is left out")
    try:
        if node.op != "Shape" and (size := _size(node, inputs)) > room:
            raise UnsupportedError(f"{node}: computes {size} numbers from constants; the file holds far fewer")
        value = _value(node, inputs, opset)
    except (ValueError, IndexError, TypeError, KeyError, AttributeError, OverflowError, RuntimeError) as e:
        raise CheckpointError(f"{node}: its constants do not fit it: {e}") from e
    return value


def _size(node: Node, inputs: Sequence[Any]) -> int:
    """How many numbers the result will have, at most."""
    if node.op in _ARITHMETIC:
        return math.prod(np.broadcast_shapes(*(x.shape for x in inputs)))
    if node.op == "Gather":
        if inputs[0].ndim + inputs[1].ndim > _MAX_RANK:
            raise ValueError("more axes than any layer has")  # numpy crashes from some number on
        taken = inputs[0].shape[node.attributes.get("axis", 0)]
        return int(inputs[0].size // max(taken, 1) * inputs[1].size)
    return sum(x.size for x in inputs if x is not None)


def _symbolic(value: Any) -> bool:
    """Whether whole numbers describe a shape that is not known yet."""
    return bool(value is not None and value.dtype.kind in "iu" and value.size and value.min() <= BATCH)


def _value(node: Node, inputs: Sequence[Any], opset: int) -> Any:
    if node.op == "Shape":
        start, end = node.attributes.get("start", 0), node.attributes.get("end")
        if inputs[0] is not None:  # a weight's
            return np.array(inputs[0].shape, np.int64)[start:end]
        if start < 0 or (end or 0) < 0:
            raise UnsupportedError(f"{node}: counts dimensions from the end")
        return np.array([BATCH] + [_UNKNOWN] * (_MAX_RANK - 1), np.int64)[start:end]
    if any(_symbolic(x) for x in inputs) and (node.op in _ARITHMETIC or _to_float(node)):  # before it means nothing
        raise UnsupportedError(f"{node}: computes with the batch size")
    return _RULES[node.op](node.attributes, list(inputs), opset)


def _to_float(node: Node) -> bool:
    return node.op == "Cast" and onnx.helper.tensor_dtype_to_np_dtype(node.attributes["to"]).kind not in "iu"


def _axes(a: dict[str, Any], inputs: list[Any], opset: int) -> tuple[int, ...] | None:
    given = a.get("axes") if opset < 13 else (inputs[1].tolist() if len(inputs) > 1 else None)
    return None if given is None else tuple(given)


def _reshape(a: dict[str, Any], inputs: list[Any], opset: int) -> Any:
    return inputs[0].reshape([inputs[0].shape[i] if d == 0 else d for i, d in enumerate(inputs[1].tolist())])


def _cast(a: dict[str, Any], inputs: list[Any], opset: int) -> Any:
    kind = onnx.helper.tensor_dtype_to_np_dtype(a["to"])
    if a["to"] not in _FLOAT_KINDS and kind.kind not in "iub":
        raise TypeError(f"{kind} is not read as numbers")
    if _symbolic(inputs[0]) and kind.kind in "iu":
        return inputs[0]  # a shape in int32 is the same shape
    with np.errstate(all="ignore"):  # whoever uses the result checks that it is finite
        value = inputs[0].astype(kind)
        return value.astype(np.float32) if a["to"] in _FLOAT_KINDS else value


def _arithmetic(function: Any) -> Any:
    def compute(a: dict[str, Any], inputs: list[Any], opset: int) -> Any:
        if function is np.divide and inputs[0].dtype.kind in "iu":
            raise ValueError("division of whole numbers")
        with np.errstate(all="ignore"):  # as above
            return np.asarray(function(*inputs)).astype(inputs[0].dtype)

    return compute


def _slice(a: dict[str, Any], inputs: Sequence[Any]) -> Any:
    if "starts" in a:  # before opset 10
        starts, ends, axes, steps = a["starts"], a["ends"], a.get("axes"), None
    else:
        starts, ends, axes, steps = ([*inputs[1:], None, None, None])[:4]
    starts, ends = np.asarray(starts).tolist(), np.asarray(ends).tolist()
    axes = list(range(len(starts))) if axes is None else np.asarray(axes).tolist()
    steps = [1] * len(starts) if steps is None else np.asarray(steps).tolist()
    index: list[Any] = [slice(None)] * inputs[0].ndim
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        index[axis] = slice(start, end, step)
    return inputs[0][tuple(index)]


_RULES = {
    "Gather": lambda a, x, _: np.asarray(np.take(x[0], x[1], axis=a.get("axis", 0))),
    "Slice": lambda a, x, _: _slice(a, x),
    "Concat": lambda a, x, _: np.concatenate(x, axis=a["axis"]),
    "Unsqueeze": lambda a, x, opset: np.expand_dims(x[0], _axes(a, x, opset) or ()),
    "Squeeze": lambda a, x, opset: np.squeeze(x[0], _axes(a, x, opset)),
    "Reshape": _reshape,
    "Transpose": lambda a, x, _: np.transpose(x[0], a.get("perm")),
    "Cast": _cast,
    "Identity": lambda a, x, _: x[0],
    "Neg": _arithmetic(np.negative),
    "Add": _arithmetic(np.add),
    "Sub": _arithmetic(np.subtract),
    "Mul": _arithmetic(np.multiply),
    "Div": _arithmetic(np.divide),
}
_ARITHMETIC = ("Neg", "Add", "Sub", "Mul", "Div")
FOLDED = ("Shape", *_RULES)

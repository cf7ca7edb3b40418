"""Damage for ONNX files: changes of a ModelProto at random, any field of it and what readers are known to trip over."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from typing import Any

import fuzz_mutations
import numpy as np
import onnx
from google.protobuf.message import DecodeError, EncodeError
from onnx import TensorProto, helper, numpy_helper

Proto = Any  # protobuf messages have no useful stubs
EXTERNAL_FILE = "w.bin"  # what the fuzzer puts beside its files, among other things

INTEGERS = (
    0, 1, 1, 2, 3, 4, -1, -2, 5, 7, 8, 16, 255, 256, 1000, 2**15, 2**20, 2**24, 2**27, 2**31 - 1, 2**31, 2**32,
    2**40, 2**53 + 1, 2**62, 2**63 - 1, -(2**31), -(2**40), -(2**41), -(2**62), -(2**63),
)  # fmt: skip
FLOATS = (0.0, -0.0, 1.0, -1.0, 0.5, 2.0, 6.0, 1e-45, 1e-5, 1e20, -1e20, 3.4e38, math.nan, math.inf, -math.inf)
TEXTS = (
    *fuzz_mutations.TEXTS, "x", "y", "input", "output", "ai.onnx", "com.example", "N", "NOTSET", "VALID",
    "\x01\n" * 2500,
)  # fmt: skip
OPS = (
    "Relu", "Tanh", "Sigmoid", "Elu", "LeakyRelu", "Clip", "Softmax", "LogSoftmax", "Dropout", "Identity", "Cast",
    "Transpose", "Flatten", "Reshape", "Squeeze", "Unsqueeze", "Add", "Sub", "Mul", "Div", "Neg", "MatMul", "Gemm",
    "Conv", "BatchNormalization", "MaxPool", "AveragePool", "GlobalAveragePool", "ReduceMean", "Shape", "Gather",
    "Slice", "Concat", "Constant", "ConstantOfShape", "Pad", "If", "Erf",
)  # fmt: skip
LOCATIONS = (
    EXTERNAL_FILE, EXTERNAL_FILE, "sub/w.bin", "./w.bin", "../secret.bin", "/etc/hostname", "link.bin", "linked/w.bin",
    ".", "..", "", "sub", "sub/../w.bin", "case.onnx", "missing.bin", "w.bin\0", "\0", "x" * 300, "/dev/zero",
    "w.bin/w.bin", "fifo", "~/w.bin", "\ud800".encode("utf-16", "surrogatepass").decode("latin-1"),
)  # fmt: skip
ATTRIBUTES: dict[str, tuple[Any, ...]] = {
    "kernel_shape": ([2, 2], [3, 3], [1, 1], [2], [2, 3]), "strides": ([1, 1], [2, 2], [3, 3], [1, 2]),
    "pads": ([0, 0, 0, 0], [1, 1, 1, 1], [1, 0, 1, 0], [2, 2, 2, 2], [1, 1]), "dilations": ([1, 1], [2, 2]),
    "group": (1, 2, 3), "axis": (0, 1, 2, 3, -1, -2), "axes": ([2, 3], [1], [0], [-1, -2], [1, 2], [3]),
    "perm": ([0, 3, 1, 2], [0, 2, 3, 1], [0, 1, 2, 3], [0, 2, 1, 3], [1, 0], [0, 1]), "keepdims": (0, 1),
    "alpha": (0.3, 1.0, 0.0, -1.0, 2.0), "beta": (0.0, 1.0, 0.5), "transA": (0, 1), "transB": (0, 1),
    "auto_pad": ("NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"), "ceil_mode": (0, 1), "count_include_pad": (0, 1),
    "epsilon": (1e-5, 0.1, 1e-3), "momentum": (0.9, 0.0, 1.0), "training_mode": (0, 1), "spatial": (0, 1),
    "to": (1, 2, 6, 7, 9, 10, 11, 16), "min": (0.0, 1.0), "max": (6.0, 5.0), "ratio": (0.0, 0.5), "seed": (1,),
    "allowzero": (0, 1), "start": (0, 1, -1), "end": (1, 2, -1), "saturate": (0, 1), "storage_order": (0, 1),
    "noop_with_empty_axes": (0, 1), "value_int": (0, 3), "value_floats": ([1.0, 2.0],), "value_ints": ([0, -1],),
    "starts": ([0], [1]), "ends": ([1], [2]), "is_test": (0, 1), "consumed_inputs": ([0, 0],), "broadcast": (0, 1),
}  # fmt: skip


def messages(proto: Proto) -> Iterator[Proto]:
    """The message and every one inside it."""
    todo = [proto]
    while todo:
        message = todo.pop()
        yield message
        for field, value in message.ListFields():
            if field.type == field.TYPE_MESSAGE:
                todo += list(value) if field.is_repeated else [value]


def copied_message(message: Proto) -> Proto:
    """A copy of its own: protobuf crashes where a message is put inside itself."""
    result = type(message)()
    result.CopyFrom(message)
    return result


def _repeated(proto: Proto) -> list[Any]:
    return [v for m in messages(proto) for f, v in m.ListFields() if f.is_repeated and len(v)]


def _scalar(r: random.Random, field: Any) -> Any:
    if field.cpp_type in (field.CPPTYPE_INT32, field.CPPTYPE_INT64, field.CPPTYPE_UINT64, field.CPPTYPE_ENUM):
        return r.choice(INTEGERS) if r.random() < 0.6 else r.randrange(30)
    if field.cpp_type in (field.CPPTYPE_FLOAT, field.CPPTYPE_DOUBLE):
        return r.choice(FLOATS)
    if field.type == field.TYPE_BYTES:
        return r.choice((b"", b"\0", b"\xff" * 7, b"\0\0\x80\x7f" * 3, bytes(48), b"VALID", b"x" * 500))
    return r.choice(TEXTS)


# ---------------------------------------------------------------------------------------------------------- mutations


def _any_field(r: random.Random, m: Proto, donor: Proto) -> None:
    message = r.choice(list(messages(m)))
    field = r.choice(message.DESCRIPTOR.fields)
    if field.type == field.TYPE_MESSAGE:
        others = [o for o in messages(r.choice((m, donor))) if o.DESCRIPTOR is field.message_type]
        empty = field.message_type._concrete_class()
        other = copied_message(r.choice(others)) if others and r.random() < 0.8 else empty
        place = getattr(message, field.name)
        (place.add() if field.is_repeated else place).MergeFrom(other)
    elif not field.is_repeated:
        setattr(message, field.name, _scalar(r, field))
    else:
        values = getattr(message, field.name)
        if len(values) and r.random() < 0.7:
            values[r.randrange(len(values))] = _scalar(r, field)
        else:
            values.append(_scalar(r, field))


def _clear(r: random.Random, m: Proto, donor: Proto) -> None:
    message = r.choice([x for x in messages(m) if x.ListFields()])
    message.ClearField(r.choice(message.ListFields())[0].name)


def _drop(r: random.Random, m: Proto, donor: Proto) -> None:
    values = r.choice(_repeated(m))
    del values[r.randrange(len(values))]


def _double(r: random.Random, m: Proto, donor: Proto) -> None:
    values = r.choice(_repeated(m))
    values.extend([r.choice(list(values))] * r.choice((1, 1, 1, 2, 30, 3000)))


def _swap(r: random.Random, m: Proto, donor: Proto) -> None:
    values = r.choice(_repeated(m))
    kept = list(values)
    r.shuffle(kept)
    del values[:]
    values.extend(kept)


def _tensor_name(r: random.Random, m: Proto, donor: Proto) -> None:
    """Cycles, self loops, branches, missing tensors, constants as data."""
    g = m.graph
    names = [i for n in g.node for i in (*n.input, *n.output)] + [t.name for t in g.initializer]
    ends = [v for v in (*g.input, *g.output) if r.random() < 0.2]
    if ends:
        r.choice(ends).name = r.choice((*names, ""))
        return
    slots = r.choice([s for n in g.node for s in (n.input, n.input, n.output) if len(s)])
    slots[r.randrange(len(slots))] = r.choice((*names, *names, "", "nowhere", r.choice(TEXTS)))


def _remove_node(r: random.Random, m: Proto, donor: Proto) -> None:
    """What it made is replaced by what it took."""
    at = r.randrange(len(m.graph.node))
    node = m.graph.node[at]
    for other in (*m.graph.node, *m.graph.output):
        if isinstance(other, onnx.ValueInfoProto):
            other.name = node.input[0] if other.name in node.output else other.name
        else:
            for i, name in enumerate(other.input):
                other.input[i] = node.input[0] if name in node.output else name
    del m.graph.node[at]


def _insert_node(r: random.Random, m: Proto, donor: Proto) -> None:
    """An operator, or a whole node of the donor with its constants, between two nodes or behind a constant."""
    g = m.graph
    at = r.randrange(len(g.node))
    follower = g.node[at]
    slot = 0 if r.random() < 0.7 else r.randrange(len(follower.input))
    result = f"t{r.randrange(10**6)}"
    if r.random() < 0.5:
        node = copied_message(r.choice(donor.graph.node))
        mine = {t.name for t in g.initializer}
        g.initializer.extend(t for t in donor.graph.initializer if t.name in node.input and t.name not in mine)
        if not len(node.input):
            node.input.append("")
        node.input[0] = follower.input[slot]
        del node.output[:]
        node.output.append(result)
    else:
        constants = [t.name for t in g.initializer] or [""]
        more = r.sample(constants, min(len(constants), r.choice((0, 0, 0, 1, 1, 2))))
        node = helper.make_node(r.choice(OPS), [follower.input[slot], *more], [result])
        for _ in range(r.choice((0, 0, 1, 2))):
            name = r.choice(list(ATTRIBUTES))
            node.attribute.append(helper.make_attribute(name, r.choice(ATTRIBUTES[name])))
    follower.input[slot] = result
    g.node.insert(at, node)


def _op(r: random.Random, m: Proto, donor: Proto) -> None:
    node = r.choice(m.graph.node)
    node.op_type = r.choice(OPS)
    if r.random() < 0.3:
        node.domain = r.choice(("", "ai.onnx", "ai.onnx.ml", "com.example", "ai.onnx.training", "com.microsoft"))


def _attribute(r: random.Random, m: Proto, donor: Proto) -> None:
    """A plausible value, an extreme one, another name or another type."""
    node = r.choice(m.graph.node)
    schema = onnx.defs.get_schema(node.op_type) if onnx.defs.has(node.op_type) else None
    names = list(schema.attributes) if schema and schema.attributes and r.random() < 0.8 else list(ATTRIBUTES)
    name = r.choice(names)
    if node.attribute and r.random() < 0.4:
        a = r.choice(node.attribute)
        kind = r.randrange(4)
        if kind == 0:
            a.name = name
        elif kind == 1:
            a.type = r.randrange(15)
        elif kind == 2 and len(a.ints):
            a.ints[r.randrange(len(a.ints))] = r.choice(INTEGERS)
        else:
            a.i, a.f = r.choice(INTEGERS), r.choice(FLOATS)
        return
    made = helper.make_attribute(name, r.choice(ATTRIBUTES.get(name, (0, 1, 0.5, "x", [1, 1]))))
    if r.random() < 0.9:  # onnxruntime and others differ in which of two attributes of one name counts
        kept = [a for a in node.attribute if a.name != name]
        del node.attribute[:]
        node.attribute.extend(kept)
    node.attribute.append(made)


def _tensors(m: Proto) -> list[Proto]:
    return [t for t in messages(m) if isinstance(t, TensorProto)]


def _initializer(r: random.Random, m: Proto, donor: Proto) -> None:
    """Lies about its size or type, data twice or cut."""
    t = r.choice(_tensors(m))
    kind = r.randrange(7)
    if kind == 0 and len(t.dims):
        t.dims[r.randrange(len(t.dims))] = r.choice(INTEGERS)
    elif kind == 1:
        t.dims.insert(r.randrange(len(t.dims) + 1), r.choice((1, 1, 1, 0, -1, 2, 2**62)))
    elif kind == 2:
        t.data_type = r.randrange(-1, 30)
    elif kind == 3:
        t.raw_data = t.raw_data[: r.randrange(len(t.raw_data) + 1)] if r.random() < 0.7 else t.raw_data + b"\0\0\0\0"
    elif kind == 4:
        getattr(t, r.choice(("float_data", "double_data"))).extend([0.5] * r.choice((1, 4, 12)))
    elif kind == 5:
        getattr(t, r.choice(("int32_data", "int64_data", "uint64_data"))).extend([r.choice((0, 1, 2**31 - 1))] * 3)
    else:
        del t.dims[:]
        t.dims.extend(r.choice(INTEGERS) for _ in range(r.choice((0, 1, 2, 4, 9, 33, 65, 3000))))


def _numbers(r: random.Random, m: Proto, donor: Proto) -> None:
    """Other numbers, another shape of as many, or another type of the same."""
    t = r.choice(list(m.graph.initializer))
    array = numpy_helper.to_array(t).copy()
    with np.errstate(all="ignore"):
        array = _changed(r, array)
    name = t.name
    t.CopyFrom(numpy_helper.from_array(array, name))
    if r.random() < 0.2:
        t.CopyFrom(helper.make_tensor(name, t.data_type, t.dims, array.reshape(-1).tolist()))


def _changed(r: random.Random, array: Any) -> Any:
    kind = r.randrange(5)
    if kind == 0 and array.dtype.kind == "f":
        array.reshape(-1)[r.randrange(array.size)] = r.choice(FLOATS)
    elif kind == 0:
        array.reshape(-1)[r.randrange(array.size)] = r.choice(INTEGERS)
    elif kind == 1:
        array = array.reshape(r.choice(((-1,), (1, -1), (-1, 1), (*array.shape, 1), (1, *array.shape), array.shape)))
    elif kind == 2:
        array = np.ascontiguousarray(array.T)
    elif kind == 3:
        array = array.astype(r.choice(("f2", "f4", "f8", "i4", "i8", "i1", "u1", "?", "u8")))
    else:
        axis = r.randrange(array.ndim)
        array = np.take(array, range(r.randrange(array.shape[axis] + 1)), axis)
    return array


def _computed(r: random.Random, m: Proto, donor: Proto) -> None:
    """A constant that is made by nodes, which change nothing, something or far too much."""
    g = m.graph
    t = r.choice(list(g.initializer))
    made, rank = f"c{r.randrange(10**6)}", len(t.dims)
    kind = r.randrange(5)
    if kind == 0:
        nodes = [helper.make_node("Constant", [], [made], value=t)]
    elif kind == 1:
        nodes = [helper.make_node(r.choice(("Identity", "Neg", "Relu")), [t.name], [made])]
    elif kind == 2:
        perm = r.sample(range(rank), rank)
        back = [perm.index(i) for i in range(rank)] if r.random() < 0.7 else perm
        nodes = [helper.make_node("Transpose", [t.name], [made + "t"], perm=perm)]
        nodes.append(helper.make_node("Transpose", [made + "t"], [made], perm=back))
    elif kind == 3:
        other = r.choice(list(g.initializer)).name
        nodes = [helper.make_node(r.choice(("Add", "Sub", "Mul", "Div", "Gather")), [t.name, other], [made])]
    else:
        nodes, last = [], t.name
        op, other = r.choice(("Concat", "Mul", "Gather", "Unsqueeze", "Reshape")), r.choice(list(g.initializer)).name
        attribute = {"axis": r.choice((0, 0, 1, -1))} if op in ("Concat", "Gather") else {}
        for i in range(r.choice((1, 2, 24, 40))):
            taken = [last, r.choice((last, last, t.name, other))]
            nodes.append(helper.make_node(op, taken, [f"{made}_{i}"], **attribute))
            last = f"{made}_{i}"
        nodes.append(helper.make_node("Identity", [last], [made]))
    for node in g.node:
        for i, name in enumerate(node.input):
            node.input[i] = made if name == t.name else name
    for node in nodes[::-1]:
        g.node.insert(0, node)


def _shape(r: random.Random, m: Proto, donor: Proto) -> None:
    """The input's dimensions, or what is told about other tensors."""
    infos = [*m.graph.input, *m.graph.output, *m.graph.value_info]
    tensor = r.choice(infos).type.tensor_type if r.random() < 0.5 else m.graph.input[0].type.tensor_type
    kind = r.randrange(5)
    if kind == 0:
        tensor.elem_type = r.choice((0, 1, 1, 6, 7, 9, 10, 11, 16, 99))
    elif kind == 1:
        tensor.shape.dim.add().dim_value = r.choice((1, 2, 3))
    elif kind == 2:
        r.choice(tensor.shape.dim).dim_param = r.choice(("N", "", "height", "x" * 300))
    else:
        r.choice(tensor.shape.dim).dim_value = r.choice(INTEGERS) if kind == 3 else r.randrange(9)


def _told(r: random.Random, m: Proto, donor: Proto) -> None:
    """A value info of any tensor, right or wrong."""
    name = r.choice([o for n in m.graph.node for o in (*n.input, *n.output) if o])
    shape = r.choice((None, [], [1], ["N", 3], ["N", 3, 4, 4], [2**62], [-1, -1]))
    m.graph.value_info.append(helper.make_tensor_value_info(name, r.choice((1, 1, 7, 10)), shape))


def _opset(r: random.Random, m: Proto, donor: Proto) -> None:
    o = r.choice(m.opset_import)
    if r.random() < 0.8:
        o.version = r.choice((*range(6, 29), *INTEGERS))
    else:
        m.opset_import.add(domain=r.choice(("", "ai.onnx", "com.example")), version=r.randrange(1, 29))


def _function(r: random.Random, m: Proto, donor: Proto) -> None:
    """An operator's name given to a function that does something else."""
    node = r.choice(m.graph.node)
    domain = r.choice((node.domain, node.domain, "com.example"))
    body = [helper.make_node(r.choice(("Neg", "Identity", "Tanh")), ["a"], ["b"])]
    names = ["a", *(f"i{i}" for i in range(1, len(node.input)))]
    versions = [helper.make_opsetid("", 17)]
    m.functions.append(helper.make_function(domain, node.op_type, names, ["b"], body, versions))
    if r.random() < 0.5:
        node.domain = domain
        m.opset_import.add(domain=domain, version=1)


def _external(r: random.Random, m: Proto, donor: Proto) -> None:
    t = r.choice(list(m.graph.initializer))
    length = len(t.raw_data)
    t.ClearField("raw_data")
    t.data_location = TensorProto.EXTERNAL
    del t.external_data[:]
    odd = r.random() < 0.7
    t.external_data.add(key="location", value=r.choice(LOCATIONS) if odd and r.random() < 0.6 else EXTERNAL_FILE)
    for key, value in (("offset", 0), ("length", length)):
        if r.random() < 0.7:
            other = r.choice((*map(str, INTEGERS), "", "one", "1e3", "٣", "0x10", "9" * 5000))
            t.external_data.add(key=key, value=other if odd and r.random() < 0.4 else str(value))


def _metadata(r: random.Random, m: Proto, donor: Proto) -> None:
    """The description that our exporter stores, or its options."""
    p = r.choice(m.metadata_props)
    kind = r.randrange(5)
    if kind == 0:
        p.value = p.value[: r.randrange(len(p.value) + 1)]
    elif kind == 1:
        p.key = r.choice([x.key for x in m.metadata_props])
    elif kind == 2:
        p.value = r.choice(("[" * 9000, '{"opset": 13}', '{"float16_weights": true}', "null", "[]", '{"opset": 1e400}'))
    else:
        other = r.choice(donor.metadata_props or m.metadata_props).value.encode()
        if (changed := fuzz_mutations.mutate(p.value.encode(), other, r)) is not None:
            p.value = changed.decode("utf-8", "replace")


MUTATIONS: tuple[Callable[[random.Random, Proto, Proto], None], ...] = (
    _any_field, _any_field, _clear, _drop, _double, _swap, _tensor_name, _remove_node, _insert_node, _insert_node, _op,
    _attribute, _attribute, _attribute, _initializer, _numbers, _numbers, _computed, _computed, _shape, _told, _opset,
    _function, _external, _metadata,
)  # fmt: skip


def mutate(data: bytes, donor: bytes, r: random.Random) -> bytes | None:
    """The file after one to four changes of its structure; None if it has none (no protobuf)."""
    try:
        m, other = onnx.ModelProto.FromString(data), onnx.ModelProto.FromString(donor)
        for _ in range(r.choice((1, 1, 1, 2, 2, 4))):
            try:
                r.choice(MUTATIONS)(r, m, other)
            except Exception:  # nothing of the kind is left to change, or the value doesn't fit there
                continue
        return bytes(m.SerializeToString())
    except (DecodeError, EncodeError, ValueError, RecursionError):
        return None


def smaller(data: bytes, still: Callable[[bytes], bool]) -> bytes:
    """The file with the fewest fields found for which ``still`` holds."""
    try:
        m = onnx.ModelProto.FromString(data)
        if not still(m.SerializeToString()):
            return data
    except (DecodeError, ValueError):
        return data
    before = 0
    while m.ByteSize() != before:
        before = m.ByteSize()
        for message in messages(m):  # reads a message's parts after it has been dealt with
            for field, _ in message.ListFields():
                _without(m, message, field, still)
    return bytes(m.SerializeToString())


def _without(m: Proto, message: Proto, field: Any, still: Callable[[bytes], bool]) -> None:
    """Take out a field, or else runs of its elements."""
    kept = copied_message(message)
    message.ClearField(field.name)
    if still(m.SerializeToString()):
        return
    message.CopyFrom(kept)
    size = len(getattr(message, field.name)) // 2 if field.is_repeated else 0
    while size:
        at = 0
        while at < len(values := getattr(message, field.name)):
            kept.CopyFrom(message)
            del values[at : at + size]
            if not still(m.SerializeToString()):
                message.CopyFrom(kept)
                at += size
        size //= 2

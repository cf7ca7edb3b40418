"""go-metal's JSON checkpoint: which keys, in which order, of which Go types.

Writing gives the bytes of Go's encoder for the same content; reading follows Go's decoder, then checks what Go leaves
unchecked.
Source: go-metal checkpoints/checkpoint.go (structs and their JSON tags, ensureBatchNormStatistics).
"""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from .._types import FloatArray, Shape
from ..errors import CheckpointError
from ..layers import BatchNorm, LayerSpec, LayerType, ModelSpec
from ..layers.base import STATISTICS
from .atomic import replacing
from .checkpoint import (
    EXTRAS_VERSION,
    ZERO_TIME,
    Checkpoint,
    CheckpointMetadata,
    OptimizerState,
    OptimizerTensor,
    TrainingState,
    WeightTensor,
    elements,
)
from .go_json import Number, Numbers, Object, decode, encode

EXTRAS_KEY = "gometal_mlx"  # the one top-level key that go-metal does not know, and so ignores

# ----------------------------------------------------------------------------------------------------------- writing


def save(checkpoint: Checkpoint, path: Path, *, extras: bool = True) -> None:
    """Write the file whole or not at all; ``.gz`` compresses it.

    Args:
        extras: False leaves out the key that only gometal_mlx reads.
    Raises: CheckpointError naming file and field; the file on disk is then as it was.
    """
    try:
        checkpoint.validate()
        tree = to_tree(checkpoint, extras=extras)
        with replacing(path) as temporary, temporary.open("wb") as raw:
            if path.suffix == ".gz":
                with gzip.GzipFile(fileobj=raw, mode="wb", compresslevel=6, mtime=0, filename="") as file:
                    write(tree, file)
            else:
                write(tree, raw)
    except CheckpointError as e:
        raise e if str(path) in str(e) else CheckpointError(f"{path}: not saved: {e}") from e


def write(tree: dict[str, Any], file: Any) -> None:
    """The tree as Go's encoder prints it, with the final newline."""
    encode(tree, file.write)
    file.write(b"\n")


def to_tree(c: Checkpoint, *, extras: bool = True, data: bool = True) -> dict[str, Any]:
    """The checkpoint as the JSON object go-metal writes.

    Args:
        data: False leaves the arrays' numbers out (safetensors and ONNX hold them elsewhere).
    """
    tree: dict[str, Any] = {
        "model_spec": _spec_tree(c.model_spec),
        "weights": [_weight_tree(w, data) for w in c.weights] or _empty(c, "weights", default=None),
        "training_state": {
            "epoch": int(c.training_state.epoch),
            "step": int(c.training_state.step),
            "learning_rate": np.float32(c.training_state.learning_rate),
            "best_loss": np.float32(c.training_state.best_loss),
            "best_accuracy": np.float32(c.training_state.best_accuracy),
            "total_steps": int(c.training_state.total_steps),
        },
    }
    if (o := c.optimizer_state) is not None:
        tree["optimizer_state"] = {
            "type": o.type,
            "parameters": _sorted_map(o.parameters) or _empty(o, "parameters", default={}),
            "state_data": [_tensor_tree(t, data) for t in o.state_data] or _empty(o, "state_data", default=[]),
        }
    tree["metadata"] = _metadata_tree(c.metadata)
    if extras and c.extras:
        tree[EXTRAS_KEY] = {"version": EXTRAS_VERSION, **{k: v for k, v in c.extras.items() if k != "version"}}
    return tree


def _empty(owner: Any, name: str, default: Any) -> Any:
    """What stands for an empty list or map: null where the file had null, else what go-metal's own code produces."""
    if name in owner.nulls:
        return None
    return {} if name == "parameters" else [] if "read" in owner.nulls else default


def _spec_tree(s: ModelSpec) -> dict[str, Any]:
    return {
        "layers": [_layer_tree(x) for x in s.layers] or _empty(s, "layers", default=[]),
        "total_parameters": s.total_parameters,
        "parameter_shapes": _lists(s.parameter_shapes) or _empty(s, "parameter_shapes", default=[]),
        "input_shape": list(s.input_shape) or _empty(s, "input_shape", default=[]),
        "output_shape": list(s.output_shape) or _empty(s, "output_shape", default=[]),
        "compiled": s.compiled,
    }


def _layer_tree(s: LayerSpec) -> dict[str, Any]:
    tree: dict[str, Any] = {
        "type": int(s.type),
        "name": s.name,
        "parameters": _sorted_map(s.parameters) or _empty(s, "parameters", default={}),
        "input_shape": list(s.input_shape),
        "output_shape": list(s.output_shape),
        "parameter_shapes": _lists(s.parameter_shapes),
        "parameter_count": s.parameter_count,
        "running_statistics": _sorted_map(s.running_statistics),
    }
    return {k: v for k, v in tree.items() if v or k in ("type", "name", "parameters")}


def _weight_tree(w: WeightTensor, data: bool) -> dict[str, Any]:
    tree = {
        "name": w.name,
        "shape": list(w.shape) or _empty(w, "shape", default=[]),
        "data": w.data if w.data.size else _empty(w, "data", default=[]),
        "layer": w.layer,
        "type": w.type,
    }
    return tree if data else {k: v for k, v in tree.items() if k != "data"}


def _tensor_tree(t: OptimizerTensor, data: bool) -> dict[str, Any]:
    tree = {
        "name": t.name,
        "shape": list(t.shape) or _empty(t, "shape", default=[]),
        "data": t.data if t.data.size else _empty(t, "data", default=[]),
        "state_type": t.state_type,
    }
    return tree if data else {k: v for k, v in tree.items() if k != "data"}


def _metadata_tree(m: CheckpointMetadata) -> dict[str, Any]:
    if not m.framework:  # go-metal's saver fills an unsigned checkpoint in; its framework name says so
        m = replace(CheckpointMetadata.now(m.description, m.tags), framework="go-metal")
    tree = {
        "version": m.version,
        "framework": m.framework,
        "created_at": go_time(m.created_at) if m.created_at else ZERO_TIME,
        "description": m.description,
        "tags": list(m.tags),
    }
    return {k: v for k, v in tree.items() if v or k not in ("description", "tags")}


def _sorted_map(m: Mapping[str, Any]) -> dict[str, Any]:
    """Go prints maps by key, bytewise."""
    keys = sorted(m, key=lambda k: k.encode("utf-8", "surrogatepass"))
    return {k: _sorted_map(m[k]) if isinstance(m[k], dict) else m[k] for k in keys}


def _lists(shapes: tuple[Shape, ...]) -> list[list[int]]:
    return [list(s) for s in shapes]


# ----------------------------------------------------------------------------------------------------------- reading


def load(path: Path) -> Checkpoint:
    """Read a file (``.gz`` or not); repairs and oddities are in the checkpoint's ``notes``.

    Raises: CheckpointError naming file, JSON path and reason.
    """
    try:
        value, trailing = decode(lambda: open_plain(path), str(path))
    except (OSError, EOFError, zlib.error) as e:
        raise CheckpointError(f"{path}: cannot be read: {getattr(e, 'strerror', None) or e}") from e
    checkpoint = from_value(value, str(path))
    if trailing:
        checkpoint.notes.append("ignored what follows the JSON object")
    return checkpoint


def open_plain(path: Path) -> BinaryIO:
    """The file, decompressed if it is gzip (by its first bytes, whatever its name)."""
    file = path.open("rb")
    if file.peek(2)[:2] != b"\x1f\x8b":
        return file
    file.close()
    return gzip.open(path, "rb")  # type: ignore[return-value]


def from_value(value: Any, where: str, arrays: Callable[[str, str], FloatArray] | None = None) -> Checkpoint:
    """The checkpoint a decoded JSON object describes.

    Args:
        arrays: gives a tensor's numbers by section and name, where they are stored outside of the JSON.
    Raises: CheckpointError naming file, JSON path and reason.
    """
    return _Reader(where, arrays).checkpoint(value)


Decode = Callable[[Any, str], Any]


def _fold(key: str) -> str:
    """Go's folding: letter by letter (so that a sharp s does not match ss)."""
    return "".join(f if len(f := c.casefold()) == 1 else c for c in key)


class _Reader:
    """Go's decoding rules, field by field; a path such as ``$.weights[2].shape`` stands in every error."""

    def __init__(self, where: str, arrays: Callable[[str, str], FloatArray] | None) -> None:
        self.where, self.arrays = where, arrays
        self.notes: list[str] = []

    def error(self, path: str, text: str) -> CheckpointError:
        return CheckpointError(f"{self.where}: {path}: {text}")

    # -------------------------------------------------------------------------------------------------- Go's types

    def struct(self, value: Any, path: str, fields: Mapping[str, Decode]) -> tuple[dict[str, Any], frozenset[str]]:
        """The fields' values by name, and which of them are null or absent lists and maps."""
        if value is None:
            value = Object()
        if not isinstance(value, Object):
            raise self.error(path, f"an object is needed, got {_kind(value)}")
        folded = {_fold(name): name for name in fields}
        found: dict[str, Any] = {}
        for key, item in value:
            name = key if key in fields else folded.get(_fold(key))
            if name is None:
                self.notes.append(f"{path}: ignored the unknown key {key!r}")
            elif isinstance(item, Object) and isinstance(found.get(name), Object):
                found[name] = Object(found[name] + item)  # Go merges the second object into the first
            elif item is not None or name not in found or isinstance(found[name], list | Numbers):
                found[name] = item
        values = {name: read(found.get(name), f"{path}.{name}") for name, read in fields.items()}
        return values, frozenset(name for name in fields if found.get(name) is None) | {"read"}

    def integer(self, value: Any, path: str) -> int:
        if value is None:
            return 0
        if not isinstance(value, Number):
            raise self.error(path, f"an integer is needed, got {_kind(value)}")
        if not value.is_integer or len(value) > 20 or not -(2**63) <= int(value) < 2**63:
            raise self.error(path, f"an integer without fraction or exponent is needed (64 bits), got {value[:40]}")
        return int(value)

    def float32(self, value: Any, path: str) -> float:
        if value is None:
            return 0.0
        if not isinstance(value, Number):
            raise self.error(path, f"a number is needed, got {_kind(value)}")
        try:
            return float(value.float32())
        except OverflowError as e:
            raise self.error(path, f"{value[:40]} does not fit a float32") from e

    def boolean(self, value: Any, path: str) -> bool:
        if value is not None and not isinstance(value, bool):
            raise self.error(path, f"true or false is needed, got {_kind(value)}")
        return bool(value)

    def text(self, value: Any, path: str) -> str:
        if value is None:
            return ""
        if not isinstance(value, str) or isinstance(value, Number):
            raise self.error(path, f"a text is needed, got {_kind(value)}")
        return value

    def items(self, value: Any, path: str, read: Decode) -> list[Any]:
        if value is None:
            return []
        if isinstance(value, Numbers):
            try:
                value = value.items()
            except OverflowError as e:
                raise self.error(path, f"a list of {e} is no list of sizes") from e
        if not isinstance(value, list) or isinstance(value, Object):
            raise self.error(path, f"an array is needed, got {_kind(value)}")
        return [read(v, f"{path}[{i}]") for i, v in enumerate(value)]

    def shape(self, value: Any, path: str) -> Shape:
        return tuple(self.items(value, path, self.integer))

    def shapes(self, value: Any, path: str) -> tuple[Shape, ...]:
        return tuple(self.items(value, path, self.shape))

    def floats(self, value: Any, path: str) -> FloatArray:
        if not isinstance(value, Numbers):
            return np.array(self.items(value, path, self.float32), np.float32)
        try:
            return value.float32()
        except OverflowError as e:
            raise self.error(f"{path}[{e}]", "the number does not fit a float32") from e
        except ValueError as e:
            raise self.error(f"{path}[{e}]", "a number is needed") from e

    def mapping(self, value: Any, path: str, read: Decode) -> dict[str, Any]:
        if value is None:
            return {}
        if not isinstance(value, Object):
            raise self.error(path, f"an object is needed, got {_kind(value)}")
        return {k: read(v, f"{path}.{k}") for k, v in value}

    def anything(self, value: Any, path: str) -> Any:
        """A value of a map that holds any type: numbers become float64 (whole ones int, which prints alike)."""
        if isinstance(value, Number):
            try:
                number = value.float64()
            except OverflowError as e:
                raise self.error(path, f"{value[:40]} does not fit a float64") from e
            whole = number.is_integer() and abs(number) < 2**53 and str(number) != "-0.0"
            return int(number) if whole else number
        if isinstance(value, Object):
            return self.mapping(value, path, self.anything)
        if isinstance(value, list | Numbers):
            return self.items(value, path, self.anything)
        return value

    # ----------------------------------------------------------------------------------------------------- structs

    def checkpoint(self, value: Any) -> Checkpoint:
        if not isinstance(value, Object):
            raise self.error("$", f"a checkpoint is a JSON object, got {_kind(value)}")
        fields: dict[str, Decode] = {
            "model_spec": lambda v, p: None if v is None else self.model_spec(v, p),
            "weights": lambda v, p: self.items(v, p, self.weight),
            "training_state": self.training_state,
            "optimizer_state": lambda v, p: None if v is None else self.optimizer_state(v, p),
            "metadata": self.metadata,
            EXTRAS_KEY: lambda v, p: self.mapping(v, p, self.anything),
        }
        values, nulls = self.struct(value, "$", fields)
        extras = values.pop(EXTRAS_KEY)
        if values["model_spec"] is None:
            raise self.error("$.model_spec", "missing; without the architecture the weights have no meaning")
        if extras and not (isinstance(v := extras.pop("version", None), int) and 1 <= v <= EXTRAS_VERSION):
            raise self.error(
                f"$.{EXTRAS_KEY}.version",
                f"this gometal_mlx reads up to {EXTRAS_VERSION}, the file has {v}; install a newer one",
            )
        checkpoint = Checkpoint(**values, extras=extras, nulls=nulls, notes=self.notes)
        self._report_duplicates(checkpoint)
        add_missing_statistics(checkpoint)
        return checkpoint

    def _report_duplicates(self, c: Checkpoint) -> None:
        for what, names in (("layer", [s.name for s in c.model_spec.layers]), ("weight", [w.name for w in c.weights])):
            for name in sorted({n for n in names if names.count(n) > 1}) if len(set(names)) < len(names) else ():
                self.notes.append(f"{what} name {name!r} stands {names.count(name)} times; matched by position")
        for s in c.model_spec.layers:
            if not isinstance(s.type, LayerType):
                self.notes.append(f"layer {s.name!r}: type {s.type} is unknown; a model cannot be built from this file")

    def model_spec(self, value: Any, path: str) -> ModelSpec:
        fields: dict[str, Decode] = {
            "layers": lambda v, p: tuple(self.items(v, p, self.layer_spec)),
            "total_parameters": self.integer,
            "parameter_shapes": self.shapes,
            "input_shape": self.shape,
            "output_shape": self.shape,
            "compiled": self.boolean,
        }
        values, nulls = self.struct(value, path, fields)
        return ModelSpec(**values, nulls=nulls)

    def layer_spec(self, value: Any, path: str) -> LayerSpec:
        fields: dict[str, Decode] = {
            "type": self.integer,
            "name": self.text,
            "parameters": lambda v, p: self.mapping(v, p, self.anything),
            "input_shape": self.shape,
            "output_shape": self.shape,
            "parameter_shapes": self.shapes,
            "parameter_count": self.integer,
            "running_statistics": lambda v, p: self.mapping(v, p, self.floats),
        }
        values, nulls = self.struct(value, path, fields)
        return LayerSpec(**values, nulls=nulls)

    def weight(self, value: Any, path: str) -> WeightTensor:
        fields: dict[str, Decode] = {
            "name": self.text, "shape": self.shape, "data": self.floats, "layer": self.text, "type": self.text,
        }  # fmt: skip
        values, nulls = self.struct(value, path, fields)
        values["data"] = self._shaped(values, nulls, path, "weights")
        return WeightTensor(**values, nulls=nulls)

    def _shaped(self, values: dict[str, Any], nulls: frozenset[str], path: str, section: str) -> FloatArray:
        name, shape = values["name"], values["shape"]
        data: FloatArray = self.arrays(section, name) if self.arrays else values["data"]
        whose = f"{path} ({name!r}, layer {values['layer']!r})" if values.get("layer") else f"{path} ({name!r})"
        if any(d < 0 for d in shape) or data.size != elements(shape):
            raise self.error(f"{whose}.data", f"shape {shape} needs {elements(shape)} numbers, got {data.size}")
        return data.reshape(shape) if data.size else data.reshape(shape or (0,))

    def training_state(self, value: Any, path: str) -> TrainingState:
        fields: dict[str, Decode] = {
            "epoch": self.integer, "step": self.integer, "learning_rate": self.float32, "best_loss": self.float32,
            "best_accuracy": self.float32, "total_steps": self.integer,
        }  # fmt: skip
        return TrainingState(**self.struct(value, path, fields)[0])

    def optimizer_state(self, value: Any, path: str) -> OptimizerState:
        fields: dict[str, Decode] = {
            "type": self.text,
            "parameters": lambda v, p: self.mapping(v, p, self.anything),
            "state_data": lambda v, p: self.items(v, p, self.optimizer_tensor),
        }
        values, nulls = self.struct(value, path, fields)
        return OptimizerState(**values, nulls=nulls)

    def optimizer_tensor(self, value: Any, path: str) -> OptimizerTensor:
        fields: dict[str, Decode] = {
            "name": self.text, "shape": self.shape, "data": self.floats, "state_type": self.text,
        }  # fmt: skip
        values, nulls = self.struct(value, path, fields)
        values["data"] = self._shaped(values, nulls, path, "optimizer_state")
        return OptimizerTensor(**values, nulls=nulls)

    def metadata(self, value: Any, path: str) -> CheckpointMetadata:
        fields: dict[str, Decode] = {
            "version": self.text,
            "framework": self.text,
            "created_at": self.time,
            "description": self.text,
            "tags": lambda v, p: self.items(v, p, self.text),
        }
        return CheckpointMetadata(**self.struct(value, path, fields)[0])

    def time(self, value: Any, path: str) -> str:
        if value is None:
            return ZERO_TIME
        try:
            return go_time(self.text(value, path))
        except ValueError as e:
            raise self.error(path, str(e)) from e


def _kind(value: Any) -> str:
    if isinstance(value, Number):
        return f"the number {value[:40]}"
    if isinstance(value, Object | bool):
        return "an object" if isinstance(value, Object) else str(value).lower()
    return {str: "a text", list: "an array", Numbers: "an array of numbers"}.get(type(value), "null")


_TIME = re.compile(r"(\d{4})-(\d\d)-(\d\d)T(\d\d?):(\d\d):(\d\d)(?:[.,](\d+))?(?:Z|([+-])(\d\d):(\d\d))", re.ASCII)


def go_time(text: str) -> str:
    """An RFC 3339 time as Go prints it again: nanoseconds at most, without trailing zeros, Z for UTC.

    Raises: CheckpointError for what Go's time.Time refuses.
    """
    if not (m := _TIME.fullmatch(text)):
        raise CheckpointError(f"{text!r} is no RFC 3339 time such as 2026-01-31T12:00:00Z")
    year, month, day, hour, minute, second = (int(m[i]) for i in range(1, 7))
    leap = year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)
    days = (31, 29 if leap else 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
    offset = (int(m[9]), int(m[10])) if m[8] else (0, 0)
    if not (1 <= month <= 12 and 1 <= day <= days[month - 1] and hour < 24 and minute < 60 and second < 60):
        raise CheckpointError(f"{text!r} is no date and time of the calendar")
    if offset[0] > 23 or offset[1] > 59:
        raise CheckpointError(f"{text!r} has no offset that a clock can have")
    fraction = (m[7] or "")[:9].rstrip("0")
    zone = f"{m[8]}{offset[0]:02}:{offset[1]:02}" if any(offset) else "Z"
    stamp = f"{m[1]}-{m[2]}-{m[3]}T{hour:02}:{m[5]}:{m[6]}"
    return f"{stamp}.{fraction}{zone}" if fraction else stamp + zone


def add_missing_statistics(c: Checkpoint) -> None:
    """What go-metal's loader adds for every BatchNorm without stored statistics: those of the layer, else 0 and 1.

    They are appended to the weights and put into the layer, so that a file read and written again has them in both.
    Source: go-metal checkpoints/checkpoint.go, ensureBatchNormStatistics.
    """
    # for a name that stands twice go-metal takes the later layer
    batch_norms = {s.name: i for i, s in enumerate(c.model_spec.layers) if s.type == BatchNorm.code}
    known = {w.layer for w in c.weights if w.type in STATISTICS}
    layers = list(c.model_spec.layers)
    for name, i in batch_norms.items():
        if name in known:
            continue
        count = layers[i].parameters.get("num_features")
        features = int(count) if isinstance(count, int | float) and not isinstance(count, bool) else 0
        if features <= 0:
            c.notes.append(f"layer {name!r}: num_features is missing, so running statistics could not be added")
            continue
        stored = layers[i].running_statistics
        added = {}
        for key, value in zip(STATISTICS, (0.0, 1.0), strict=True):
            given = stored.get(key)
            fits = given is not None and given.size == features
            added[key] = given if fits and given is not None else np.full(features, value, np.float32)
            c.weights.append(WeightTensor(f"{name}.{key}", (features,), added[key], name, key))
            if given is not None and not fits:
                c.notes.append(f"layer {name!r}: ignored {key} of length {given.size}; {features} needed")
        source = "taken from its running_statistics" if stored else "not in the file; set to mean 0, variance 1"
        c.notes.append(f"layer {name!r}: running statistics {source}")
        layers[i] = replace(layers[i], running_statistics={**stored, **added})
    c.model_spec = replace(c.model_spec, layers=tuple(layers))

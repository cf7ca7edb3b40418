"""From decoded JSON to a Checkpoint: Go's decoding rules field by field, then the checks that Go does not make.

Source: go-metal checkpoints/checkpoint.go (structs and their JSON tags, ensureBatchNormStatistics).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from .._types import FloatArray, Shape
from ..errors import CheckpointError, shown
from ..layers import BatchNorm, LayerSpec, LayerType, ModelSpec
from ..layers.base import STATISTICS
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
from .go_json import Number, Numbers, Object
from .go_time import go_time
from .values import ARRAY_MARK, EXTRAS_KEY, MAX_RANK


def from_value(value: Any, where: str, arrays: Callable[[str, str], FloatArray] | None = None) -> Checkpoint:
    """The checkpoint a decoded JSON object describes.

    Args:
        arrays: gives a tensor's numbers by section and name, where they are stored outside of the JSON.
    Raises: CheckpointError naming file, JSON path and reason.
    """
    return _Reader(where, arrays).checkpoint(value)


Decode = Callable[[Any, str], Any]

MAX_FEATURES = 2**20  # channels of a file for which missing statistics are made up
STRUCTS = ("training_state", "metadata")  # what Go holds by value: null leaves it as it is


def _fold(key: str) -> str:
    """Go's folding: letter by letter (so that a sharp s does not match ss)."""
    return "".join(f if len(f := c.casefold()) == 1 else c for c in key)


def _nulls(fields: Mapping[str, Decode], found: Mapping[str, Any]) -> Iterator[str]:
    """The fields that are null or absent, and the null items of lists and maps: Go writes those as null again."""
    for name in fields:
        value = found.get(name)
        if value is None:
            yield name
        elif isinstance(value, Object):
            yield from (f"{name}.{k}" for k, v in value if v is None)
        elif isinstance(value, list):
            yield from (f"{name}[{i}]" for i, v in enumerate(value) if v is None)


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
        own: set[str] = set()  # fields whose objects are copies already
        for key, item in value:
            name = key if key in fields else folded.get(_fold(key))
            if name is None:
                self.notes.append(f"{path}: ignored the unknown key {key!r}")
            elif isinstance(item, Object) and isinstance(found.get(name), Object):
                merged = found[name] if name in own else Object(found[name])
                own.add(name)
                merged.extend(item)  # Go merges the second object into the first
                found[name] = merged
            elif (
                item is not None
                or name not in found
                or (name not in STRUCTS and isinstance(found[name], list | Numbers))
            ):
                found[name] = item
        values = {name: read(found.get(name), f"{path}.{name}") for name, read in fields.items()}
        return values, frozenset(_nulls(fields, found)) | {"read"}

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
        dims = tuple(self.items(value, path, self.integer))
        if len(dims) > MAX_RANK:
            raise self.error(path, f"{len(dims)} dimensions; at most {MAX_RANK} are read")
        if math.prod(abs(d) or 1 for d in dims) >= 2**61:  # of four bytes each; numpy counts them though one is 0
            raise self.error(path, f"the dimensions {dims} are impossible")
        return dims

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
        return {k: read(v, f"{path}.{k}" if k.isprintable() else f"{path}.{k!r:.60}") for k, v in value}

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

    def extra(self, value: Any, path: str) -> Any:
        """A value among the extras: as ``anything``, with arrays."""
        if isinstance(value, Object) and any(k == ARRAY_MARK for k, _ in value):
            fields: dict[str, Decode] = {ARRAY_MARK: self.shape, "data": lambda v, p: v, "tensor": self.text}
            values, _ = self.struct(value, path, fields)
            outside = self.arrays is not None and values["tensor"]
            data = self.arrays("", values["tensor"]) if self.arrays and outside else self.floats(values["data"], path)
            shape = values[ARRAY_MARK]
            if any(d < 0 for d in shape) or data.size != math.prod(shape):
                raise self.error(path, f"shape {shown(shape)} does not fit {data.size} numbers")
            return data.reshape(shape)
        if isinstance(value, Object):
            return self.mapping(value, path, self.extra)
        if isinstance(value, Number) and value.is_integer and value != "-0" and len(value) < 400:
            return int(value)  # exactly, however large
        return self.items(value, path, self.extra) if isinstance(value, list) else self.anything(value, path)

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
            EXTRAS_KEY: lambda v, p: self.mapping(v, p, self.extra),
        }
        values, nulls = self.struct(value, "$", fields)
        extras = values.pop(EXTRAS_KEY)
        if values["model_spec"] is None:
            raise self.error("$.model_spec", "missing; without the architecture the weights have no meaning")
        if extras and not (isinstance(v := extras.pop("version", None), int) and 1 <= v <= EXTRAS_VERSION):
            raise self.error(
                f"$.{EXTRAS_KEY}.version",
                f"this gometal_mlx reads up to {EXTRAS_VERSION}, the file has {shown(v, 40)}; install a newer one",
            )
        if not isinstance(extras.get("info", {}), dict):
            raise self.error(f"$.{EXTRAS_KEY}.info", "a map of names is needed")
        checkpoint = Checkpoint(**values, extras=extras, nulls=nulls, notes=self.notes)
        self._report_duplicates(checkpoint)
        add_missing_statistics(checkpoint)
        return checkpoint

    def _report_duplicates(self, c: Checkpoint) -> None:
        for what, names in (("layer", [s.name for s in c.model_spec.layers]), ("weight", [w.name for w in c.weights])):
            for name, count in sorted(Counter(names).items()):
                if count > 1:
                    self.notes.append(f"{what} name {name!r} stands {count} times; matched by position")
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
            raise self.error(f"{whose}.data", f"shape {shown(shape)} needs {elements(shape)} numbers, got {data.size}")
        return data.reshape(shape if data.size else shape or (0,))

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


def add_missing_statistics(c: Checkpoint) -> None:
    """What go-metal's loader adds for every BatchNorm without stored statistics: those of the layer, else 0 and 1.

    They are appended to the weights and put into the layer, so that a file read and written again has them in both.
    Source: go-metal checkpoints/checkpoint.go, ensureBatchNormStatistics.
    """
    # for a name that stands twice go-metal takes the later layer
    batch_norms = {s.name: i for i, s in enumerate(c.model_spec.layers) if s.type == BatchNorm.code}
    known = {w.layer for w in c.weights if w.type in STATISTICS}
    layers, left = list(c.model_spec.layers), MAX_FEATURES
    for name, i in batch_norms.items():
        if name in known:
            continue
        count = layers[i].parameters.get("num_features")
        features = int(count) if isinstance(count, int | float) and not isinstance(count, bool) else 0
        if features > 0:
            left -= features
        if features <= 0 or left < 0:
            told = f"num_features is missing or unusable ({shown(count, 40)}), so running statistics could not be added"
            c.notes.append(f"layer {name!r}: {told}")
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

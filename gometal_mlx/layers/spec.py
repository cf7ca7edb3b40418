"""ModelSpec and LayerSpec: a model as go-metal's JSON describes it, and its way to typed layers and back."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from .._types import FloatArray, Shape, floats, is_int
from ..errors import ShapeError, SpecError, shown
from .base import LAYERS, Layer
from .registry import LayerType, type_name

MAX_ELEMENTS = 2**40  # a model of more parameters than this is a damaged or hostile file, not a model
MAX_LAYERS = 2000
MAX_ROW = 2**28  # numbers that one row may become between two layers: 1 GB
MAX_NAME_BYTES = 64  # go-metal's engine cuts longer names off
# "step" and "learning_rate" are keys of every MLX optimizer's state tree, beside the layers' own
RESERVED_NAMES = ("step", "learning_rate")


@dataclass(frozen=True)
class LayerSpec:
    """One layer as data: the mirror of go-metal's JSON object of the same name.

    Args:
        type: LayerType code.
        name: unique in the model; also the prefix of the weights' names.
        parameters: go-metal's map; ints, bools and float32 (float where a file said so).
        input_shape, output_shape, parameter_shapes, parameter_count: filled by ``ModelBuilder.compile``.
        running_statistics: ``running_mean`` and ``running_var`` of a BatchNorm, where the file has them here.
        nulls: names of the fields that a file holds as null (kept so that it can be written back unchanged).
    """

    type: int
    name: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    input_shape: Shape = ()
    output_shape: Shape = ()
    parameter_shapes: tuple[Shape, ...] = ()
    parameter_count: int = 0
    running_statistics: Mapping[str, FloatArray] = field(default_factory=dict, compare=False)
    nulls: frozenset[str] = field(default=frozenset(), compare=False, repr=False)

    def __post_init__(self) -> None:
        if self.type in LAYERS:
            object.__setattr__(self, "type", LayerType(self.type))

    @property
    def type_name(self) -> str:
        """go-metal's name of the type; ``Unknown`` for codes it does not know."""
        return type_name(self.type)

    def layer(self, notes: list[str] | None = None) -> Layer:
        """The typed layer this describes.

        Args:
            notes: where to report repairs; None refuses whatever would need one.
        Raises: SpecError for an unknown type or parameters that do not fit it.
        """
        if self.type not in LAYERS:
            known = ", ".join(f"{c} {k.__name__}" for c, k in sorted(LAYERS.items()))
            raise SpecError(f"layer {self.name!r}: type {self.type} is no LayerType; known: {known}")
        return LAYERS[self.type].from_parameters(self.name, self.parameters, notes)


@dataclass(frozen=True)
class ModelSpec:
    """A model as data: layers in order, with their shapes. Made by ``ModelBuilder.compile`` or read from a file.

    Shapes include the batch as their first number; a Model takes any batch size all the same.
    """

    layers: tuple[LayerSpec, ...]
    total_parameters: int = 0
    parameter_shapes: tuple[Shape, ...] = ()
    input_shape: Shape = ()
    output_shape: Shape = ()
    compiled: bool = False
    nulls: frozenset[str] = field(default=frozenset(), compare=False, repr=False)

    @classmethod
    def from_layers(cls, layers: Sequence[Layer], input_shape: Iterable[int]) -> ModelSpec:
        """The compiled spec of a stack of layers.

        Raises: SpecError for an empty stack or a name that cannot be used; ShapeError where a layer does not fit its
            input; both name the layer and its position.
        """
        shape = check_input_shape(input_shape)
        if not layers:
            raise SpecError("model: it has no layers; add at least one before compiling")
        names: set[str] = set()
        specs: list[LayerSpec] = []
        for i, given in enumerate(layers):
            try:
                check_name(given.name, names)
                layer = given.resolve(shape)
                output = layer.output_shape(shape)
                shapes = tuple(p.shape for p in layer.params(shape).values() if p.trainable)
            except (SpecError, ShapeError) as e:
                raise type(e)(f"layer {i + 1} of {len(layers)}: {e}") from e
            if (row := max(math.prod(shape[1:]), math.prod(output[1:]))) > MAX_ROW:
                told = f"{given.name!r} would have {row} numbers a row, more than {MAX_ROW}; a size is wrong"
                raise ShapeError(f"layer {i + 1} of {len(layers)}: {told}")
            if (count := sum(math.prod(s) for s in shapes)) > MAX_ELEMENTS:
                raise SpecError(
                    f"layer {i + 1} of {len(layers)}: {given.name!r} would have {count} parameters; a size is wrong"
                )
            names.add(given.name)
            specs.append(LayerSpec(layer.code, layer.name, layer.parameters(shape), shape, output, shapes, count))
            shape = output
        all_shapes = tuple(s for spec in specs for s in spec.parameter_shapes)
        nulls = frozenset() if all_shapes else frozenset({"parameter_shapes"})  # as Go's nil slice
        total = sum(spec.parameter_count for spec in specs)
        return cls(tuple(specs), total, all_shapes, specs[0].input_shape, shape, compiled=True, nulls=nulls)

    def typed_layers(self) -> tuple[Layer, ...]:
        """The layers with everything inferred filled in; raises as ``from_layers`` does."""
        return tuple(s.layer() for s in self.layers)

    @property
    def last_layer(self) -> LayerSpec:
        """The last layer that makes other numbers in evaluation; Flatten and Dropout behind it do not."""
        return next((s for s in reversed(self.layers) if not s.layer().keeps_numbers), self.layers[-1])

    def rows_apart(self, *, training: bool) -> bool:
        """Whether each row of the output depends on the same row of the input alone."""
        return all(s.layer().rows_apart(s.input_shape, training=training) for s in self.layers)

    def numbers_per_row(self) -> int:
        """How many numbers a processor writes down to compute a row of the output, the input's included."""
        return math.prod(self.input_shape[1:]) + sum(s.layer().numbers_per_row(s.input_shape) for s in self.layers)

    def batch(self, inputs: npt.ArrayLike) -> FloatArray:
        """The inputs as a float32 batch; ShapeError unless they are ``(rows >= 1, *input_shape[1:])``."""
        try:
            x = floats(inputs)
        except (TypeError, ValueError) as e:  # text, rows of different lengths
            needed = "x".join(map(str, self.input_shape[1:]))
            raise ShapeError(f"inputs must be numbers, {needed} in each row; got {shown(inputs)}: {e}") from e
        if x.ndim != len(self.input_shape) or not len(x) or x.shape[1:] != self.input_shape[1:]:
            needed = ", ".join(map(str, self.input_shape[1:]))
            raise ShapeError(f"inputs must be (rows, {needed}) with at least one row, got {x.shape}")
        return x

    def summary(self) -> str:
        """go-metal's text: header, then four or five lines a layer (source: layers/layer.go, Summary)."""
        if not self.compiled:
            return "Model not compiled"
        lines = [
            "Model Summary:",
            f"Input Shape: {_go(self.input_shape)}",
            f"Output Shape: {_go(self.output_shape)}",
            f"Total Parameters: {self.total_parameters}",
            f"Layers: {len(self.layers)}",
            "",
        ]
        for i, spec in enumerate(self.layers, 1):
            lines += [f"Layer {i}: {spec.name} ({spec.type_name})", f"  Input:  {_go(spec.input_shape)}"]
            lines += [f"  Output: {_go(spec.output_shape)}", f"  Params: {spec.parameter_count}"]
            if spec.parameters:
                lines.append(f"  Config: {_go(spec.parameters)}")
            lines.append("")
        return "\n".join(lines) + "\n"

    def __repr__(self) -> str:
        head = f"ModelSpec({list(self.input_shape)} -> {list(self.output_shape)}, {self.total_parameters:,} parameters"
        rows = [f"  ({s.name}): {s.type_name} -> {list(s.output_shape)}, {s.parameter_count:,}" for s in self.layers]
        return "\n".join([f"{head}, {len(self.layers)} layers)", *rows])

    def _repr_html_(self) -> str:
        cells = [
            (str(i), s.name, s.type_name, str(list(s.output_shape)), f"{s.parameter_count:,}", _go(s.parameters)[4:-1])
            for i, s in enumerate(self.layers, 1)
        ]
        head = "".join(f"<th>{h}</th>" for h in ("", "name", "layer", "output", "parameters", "settings"))
        body = "".join("<tr>" + "".join(f"<td>{html.escape(c)}</td>" for c in row) + "</tr>" for row in cells)
        foot = f"{list(self.input_shape)} &rarr; {list(self.output_shape)}, {self.total_parameters:,} parameters"
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table><p>{foot}</p>"


def check_input_shape(shape: Iterable[int]) -> Shape:
    """The shape as a tuple of plain ints; raises SpecError unless every dimension is at least 1."""
    dims = tuple(shape) if isinstance(shape, Iterable) and not isinstance(shape, str) else shape
    if not isinstance(dims, tuple) or not dims or not all(is_int(d) and d >= 1 for d in dims):
        raise SpecError(f"model: input_shape (batch, ...) needs dimensions of at least 1, got {dims!r}")
    return tuple(int(d) for d in dims)


def check_name(name: str, taken: Iterable[str] = ()) -> None:
    """Raise SpecError for a layer name that MLX's trees, a file or go-metal could not hold."""
    if problem := _name_problem(name, taken):
        raise SpecError(f"layer name {name!r}: {problem}; choose another")


def _name_problem(name: str, taken: Iterable[str]) -> str | None:
    if not isinstance(name, str) or not name:
        return "it must be a text that is not empty"
    if name in taken:
        return "it is used twice"
    if "." in name or _is_number(name):
        return "MLX splits parameter names at '.' and takes numbers for list positions"
    if name.startswith("_"):
        return "MLX hides parameters whose name begins with '_'"
    if name in RESERVED_NAMES:
        return "MLX optimizers keep their own state under that name"
    if not name.isprintable():
        return "it has characters that cannot be printed"
    if len(name.encode("utf-8", "replace")) > MAX_NAME_BYTES:
        return f"go-metal cuts names off at {MAX_NAME_BYTES} bytes"
    return None


def _is_number(name: str) -> bool:
    try:
        int(name)  # what MLX's tree_unflatten tries
    except ValueError:
        return False
    return True


def usable_name(name: str, taken: Iterable[str]) -> str:
    """The name itself where it can be used, else the nearest one that can."""
    clean = "".join(c if c.isprintable() and c != "." else "_" for c in str(name)).lstrip("_") or "layer"
    clean = clean.encode("utf-8", "replace")[: MAX_NAME_BYTES - 6].decode("utf-8", "ignore")
    if _is_number(clean) or clean in RESERVED_NAMES:
        clean = f"layer_{clean}"
    tries = (clean if n == 1 else f"{clean}_{n}" for n in range(1, 10**5))
    return name if not _name_problem(name, taken) else next(t for t in tries if not _name_problem(t, taken))


def normalise(spec: ModelSpec, notes: list[str]) -> ModelSpec:
    """A spec that can be run, from one that a file holds; every repair is reported in ``notes``.

    Raises: SpecError or ShapeError for what cannot be repaired.
    """
    shape = spec.input_shape
    if shape and shape[0] < 1:
        notes.append(f"input_shape {shape}: read the batch {shape[0]} as 1 (any batch size works)")
        shape = (1, *shape[1:])
    if len(spec.layers) > MAX_LAYERS:
        raise SpecError(f"model: {len(spec.layers)} layers; at most {MAX_LAYERS} are run")
    layers: list[Layer] = []
    names: set[str] = set()
    for s in spec.layers:
        layer = s.layer(notes)
        if (name := usable_name(s.name, names)) != s.name:
            notes.append(f"layer {s.name!r}: renamed to {name!r}, because {_name_problem(s.name, names)}")
            layer = replace(layer, name=name)
        names.add(name)
        layers.append(layer)
    result = ModelSpec.from_layers(layers, shape)
    for old, new in zip(spec.layers, result.layers, strict=True):
        for key, value in LAYERS[new.type].stated(old.parameters).items():
            if value != new.parameters[key]:
                found = f"{key} = {shown(value) if isinstance(value, str) else _go(value)}"
                notes.append(
                    f"layer {new.name!r}: ignored {found}, its input {new.input_shape} gives {new.parameters[key]}"
                )
        if old.output_shape and old.output_shape[1:] != new.output_shape[1:]:
            notes.append(
                f"layer {new.name!r}: ignored output_shape {old.output_shape}, its input gives {new.output_shape}"
            )
    return result


def describe_difference(a: ModelSpec, b: ModelSpec) -> list[str]:
    """What differs between two architectures, one line each; empty if weights of one fit the other in meaning."""
    lines = [] if a.input_shape[1:] == b.input_shape[1:] else [f"input {a.input_shape[1:]} against {b.input_shape[1:]}"]
    if len(a.layers) != len(b.layers):
        lines.append(f"{len(a.layers)} layers against {len(b.layers)}")
    for i, (x, y) in enumerate(zip(a.layers, b.layers, strict=False), 1):
        if x.type != y.type:
            lines.append(f"layer {i}: {x.type_name} {x.name!r} against {y.type_name} {y.name!r}")
            continue
        keys = sorted(set(x.parameters) | set(y.parameters))
        changed = [k for k in keys if x.parameters.get(k) != y.parameters.get(k)]
        if changed:
            told = ", ".join(f"{k} {_go(x.parameters.get(k))} against {_go(y.parameters.get(k))}" for k in changed)
            lines.append(f"layer {i} ({x.type_name} {x.name!r}): {told}")
    return lines


def _go(value: Any) -> str:
    """The value in Go's %v style: ``[2 3]``, ``map[a:1 b:true]``, floats as %g prints a float32."""
    if isinstance(value, Mapping):
        return "map[" + " ".join(f"{k}:{_go(v)}" for k, v in sorted(value.items())) + "]"
    if isinstance(value, list | tuple):
        return "[" + " ".join(_go(v) for v in value) + "]"
    if isinstance(value, bool | np.bool_):
        return "true" if value else "false"
    if isinstance(value, float | np.floating):
        scientific = np.format_float_scientific(value, unique=True, trim="-", exp_digits=2)
        if -5 < int(scientific.partition("e")[2]) < 6:
            return np.format_float_positional(value, unique=True, trim="-")
        return scientific
    return "<nil>" if value is None else str(value)

"""What a layer is: one frozen dataclass whose fields are go-metal's JSON ``parameters``.

A layer file holds the parameters, shape rule, weights and initialisation, the forward pass and both ONNX directions;
nothing else in the package lists layers, except ``registry.py``; ``builder.py`` has two methods for each.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, Self

import mlx.core as mx
import numpy as np

from .._types import FloatArray, Params, Shape, f32, is_number
from ..errors import SpecError, shown, suggest

OUR_CODES = 100  # of layers, from here on: go-metal does not know them
LAYERS: dict[int, type[Layer]] = {}  # LayerType code -> class; filled by Layer.__init_subclass__

Init = Callable[[mx.array | None], mx.array]  # from a random key (None: MLX's global generator) to the first value
FLATTEN_OPS = ("Flatten", "Reshape", "Squeeze")  # ONNX operators that may make (N, everything else)
STATISTICS = ("running_mean", "running_var")  # kinds that are stored but neither trained nor counted


@dataclass(frozen=True)
class Param:
    """One array of a layer: its shape in go-metal's layout, its JSON ``type`` (kind) and how it starts."""

    shape: Shape
    kind: str
    init: Init

    @property
    def trainable(self) -> bool:
        return self.kind not in STATISTICS


def he_normal(shape: Shape, fan_in: int) -> Init:
    """Normal(0, sqrt(2 / fan_in)) (He et al. 2015). Source: go-metal engine/model_engine.go."""
    return lambda key: mx.random.normal(shape, scale=math.sqrt(2.0 / fan_in), key=key)


def constant(shape: Shape, value: float) -> Init:
    """Every element ``value``; uses no random numbers."""
    return lambda _: mx.full(shape, value, dtype=mx.float32)


class GraphWriter(Protocol):
    """What a layer sees of the ONNX graph it writes itself into."""

    opset: int
    keep_dropout: bool  # write Dropout nodes although they do nothing in inference
    gemm: bool  # write an affine map as Gemm, not as MatMul and Add

    def node(self, op: str, *inputs: str, **attributes: Any) -> str:
        """Append a node named after the layer and return the name of its output."""

    def weight(self, param: str, shape: Shape | None = None) -> str:
        """The initializer ``<layer>.<param>``, from the model's weights; reshaped if a shape is given."""

    def scalar(self, name: str, value: float) -> str:
        """An initializer ``<layer>.<name>`` of rank 0."""

    def constant(self, param: str, value: FloatArray) -> str:
        """An initializer ``<layer>.<param>`` that is not among the weights."""

    def shape(self) -> Shape:
        """The layer's input shape (NCHW)."""


class Match(Protocol):
    """A run of ONNX nodes that fits one of a layer's ``onnx_patterns``."""

    name: str
    opset: int
    from_gometal: bool

    @property
    def input_shape(self) -> Shape:
        """What comes in, NCHW."""

    @property
    def ops(self) -> tuple[str, ...]:
        """The nodes' operators, as the pattern names them."""

    def attr(self, node: int, name: str, default: Any) -> Any:
        """The attribute's value; whatever no layer reads must have its default, or the import is refused."""

    def axis(self, node: int, axis: int) -> int:
        """Which axis of ``input_shape`` the file's axis is; the file may have turned its data, to NHWC."""

    def only(self, node: int, name: str, value: float) -> None:
        """Refuse the attribute unless it is (or holds only) this value, its default; one message names all of them."""

    def problem(self, node: int, reason: str) -> None:
        """Refuse the match once the layer has read the rest of it."""

    def consts(self, node: int) -> list[FloatArray]:
        """The node's constant inputs, in order."""

    def const(self, node: int, position: int) -> FloatArray | None:
        """The node's input at a position as it is in the file; None if it is left out; refused if it is no constant."""

    def ints(self, node: int) -> list[int] | None:
        """The node's constant list of whole numbers (a shape, axes), if it has one."""

    def data_first(self, node: int) -> bool:
        """Whether the node's first input is the data tensor (and not a constant)."""

    def flattens(self, node: int) -> bool:
        """Whether a Flatten, Reshape or Squeeze makes ``(N, everything else)`` of the match's input."""

    def note(self, text: str) -> None:
        """Report a repair."""

    def refuse(self, node: int, reason: str) -> Exception:
        """The error that names the node, for ``raise``."""


@dataclass(frozen=True, kw_only=True)
class Layer:
    """Base of all layers; a subclass is registered by its ``code`` when its file is imported."""

    code: ClassVar[int]  # LayerType in go-metal's JSON
    aliases: ClassVar[Mapping[str, str]] = {}  # other spellings of a parameter found in files -> field
    constants: ClassVar[Mapping[str, bool]] = {}  # JSON keys that go-metal writes but that choose nothing here
    derived_keys: ClassVar[
        tuple[str, ...]
    ] = ()  # JSON keys computed from the input shape (``aliases`` may name them, too)
    onnx_patterns: ClassVar[tuple[tuple[str, ...], ...]] = ()
    few_digits: ClassVar[bool] = False  # computed through a Sigmoid or the like: small numbers are 1e-7 off
    keeps_numbers: ClassVar[bool] = False  # in evaluation its output is its input, in whatever shape
    any_layout: ClassVar[bool] = False  # reads ONNX nodes whatever the order of the axes (see Match.consts)
    go_metal_limit: ClassVar[str] = ""  # what go-metal itself cannot do with a model that has this layer

    name: str

    def __init_subclass__(cls) -> None:
        if "code" not in cls.__dict__:
            return
        if (other := LAYERS.get(cls.code)) is not None and other.__qualname__ != cls.__qualname__:
            raise SpecError(f"layer {cls.__name__}: code {cls.code} belongs to {other.__name__}; choose another")
        LAYERS[cls.code] = cls
        if cls.code >= OUR_CODES:
            cls.go_metal_limit = "go-metal does not know this layer"

    def __post_init__(self) -> None:
        for field in fields(type(self)):
            object.__setattr__(self, field.name, self._coerce(field, getattr(self, field.name)))
        self.check()

    def _coerce(self, field: dataclasses.Field[Any], value: Any) -> Any:
        kind = str(field.type)
        if kind == "bool" and isinstance(value, bool | np.bool_):
            return bool(value)
        real = is_number(value)
        if real and kind == "int" and abs(int(value)) < 2**31 and int(value) == value:
            return int(value)
        if real and kind == "float":
            return f32(value)  # go-metal's precision; ONNX and safetensors give the same number back
        article = "an" if kind == "int" else "a"
        raise self.error(f"{field.name} must be {article} {kind}, got {shown(value, 60)}")

    def error(self, text: str) -> SpecError:
        """A SpecError that names this layer."""
        return SpecError(f"{type(self).__name__} {self.name!r}: {text}")

    def check(self) -> None:
        """Raise SpecError for values that no input shape can make sense of."""

    def resolve(self, x: Shape) -> Self:
        """This layer with what it infers from its input shape filled in."""
        return self

    def output_shape(self, x: Shape) -> Shape:
        """The shape rule, NCHW; raises ShapeError for an input that does not fit."""
        return x

    def rows_apart(self, x: Shape, *, training: bool) -> bool:
        """Whether each row of the output depends on the same row of the input alone."""
        return True

    def numbers_per_row(self, x: Shape) -> int:
        """How many numbers a processor writes down to compute a row of the output."""
        return math.prod(self.output_shape(x)[1:])

    def operations_per_row(self, x: Shape) -> int:
        """How many multiplications (or comparisons, additions) a row of the output takes, about."""
        return math.prod(self.output_shape(x)[1:])

    def params(self, x: Shape) -> dict[str, Param]:
        """The layer's arrays by name, in go-metal's order (statistics last)."""
        return {}

    def derived(self, x: Shape) -> dict[str, int]:
        """The values of ``derived_keys`` for that input shape."""
        return {}

    def prepares(self, x: Shape) -> bool:
        """Whether ``prepared`` has something to do for that input shape."""
        return False

    def prepared(self, weight: mx.array, x: Shape) -> dict[str, mx.array]:
        """The layer's ``weight`` as its evaluation on a CPU wants it: arrays that ``forward`` finds in p, by name."""
        raise NotImplementedError  # a layer that prepares overrides it

    def forward(self, p: Params, x: mx.array, *, training: bool, key: mx.array | None) -> mx.array:
        """The layer's value, channels last. ``p`` holds its arrays; statistics may be replaced in it."""
        raise NotImplementedError  # every registered layer overrides it; the contract test checks

    def to_onnx(self, g: GraphWriter, x: str) -> str:
        """Write the layer into a graph; returns the name of its output."""
        raise NotImplementedError  # as above

    @classmethod
    def from_onnx(cls, m: Match) -> tuple[Self, dict[str, FloatArray]] | None:
        """The layer and its weights for matched nodes, or None where another layer should try."""
        raise NotImplementedError  # as above

    def parameters(self, x: Shape | None = None) -> dict[str, Any]:
        """go-metal's ``parameters`` map: ints, bools and float32 as its builder writes them."""
        values = {f.name: getattr(self, f.name) for f in fields(type(self))}
        typed = {k: np.float32(v) if isinstance(v, float) else v for k, v in values.items()}
        return {**typed, **self.constants, **(self.derived(x) if x is not None else {})}

    @classmethod
    def stated(cls, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """What a ``parameters`` map says of the layer's input, under the names of ``derived_keys``."""
        named = {cls.aliases.get(k, k): v for k, v in parameters.items()}
        return {k: named[k] for k in cls.derived_keys if k in named}

    @classmethod
    def from_parameters(cls, name: str, parameters: Mapping[str, Any], notes: list[str] | None = None) -> Self:
        """The layer a ``parameters`` map describes.

        Args:
            notes: where to report what had to be repaired; None refuses unknown keys instead.
        Raises: SpecError for a missing, unknown or ill-typed value.
        """
        where = f"{cls.__name__} {name!r}"
        names = [f.name for f in fields(cls)]
        values: dict[str, Any] = {}
        for key, value in parameters.items():
            field = cls.aliases.get(key, key)
            if field in names and (key == field or field not in parameters):
                values[field] = value
                if notes is not None and key != field:
                    notes.append(f"{where}: read {key!r} as {field!r}")
            elif notes is None and key not in cls.constants and field not in (*cls.derived_keys, *names):
                raise SpecError(f"{where}: unknown parameter {key!r}{suggest(key, names)}")
            elif notes is not None and key not in cls.constants and field not in (*cls.derived_keys, *names):
                notes.append(f"{where}: ignored the unknown parameter {key!r}")
        missing = [f.name for f in fields(cls) if f.default is dataclasses.MISSING and f.name not in values]
        if missing:
            raise SpecError(f"{where}: missing parameter {missing[0]!r}; it has no default")
        return cls(name=name, **values)


class Activation(Layer):
    """A layer without weights that keeps its input's shape; written as one ONNX node of its own name."""

    any_layout: ClassVar[bool] = True


def fields(layer: type[Layer]) -> list[dataclasses.Field[Any]]:
    """The dataclass fields that are JSON parameters (all but the name)."""
    return [f for f in dataclasses.fields(layer) if f.name != "name"]

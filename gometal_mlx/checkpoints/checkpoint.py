"""Checkpoint and its parts: the data that every format stores. No file is touched here."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from enum import IntEnum
from types import MappingProxyType
from typing import Any

import mlx.core as mx
import numpy as np

from .._types import FloatArray, Shape, is_int, is_number, view
from ..errors import CheckpointError, SpecError, printable, shown
from ..layers import LayerSpec, Model, ModelSpec
from ..layers.base import STATISTICS
from .go_time import go_time
from .values import MAX_RANK, check_extras, check_finite, is_text

ZERO_TIME = "0001-01-01T00:00:00Z"  # Go's zero time; every file of go-metal's CheckpointManager carries it
EXTRAS_VERSION = 1


class CheckpointFormat(IntEnum):
    """The file formats; the first two numbers are go-metal's."""

    JSON = 0
    ONNX = 1
    SAFETENSORS = 2

    @classmethod
    def of(cls, value: CheckpointFormat | str | int) -> CheckpointFormat:
        """The member for a name, in any case, or number; CheckpointError for anything else."""
        found = cls.__members__.get(value.upper()) if isinstance(value, str) else value
        if not is_int(found) or found not in list(cls):
            raise CheckpointError(f"checkpoint format {value!r} is unknown; use one of {', '.join(cls.__members__)}")
        return cls(found)

    def __str__(self) -> str:
        return self.name


@dataclass
class WeightTensor:
    """One stored array.

    Args:
        name: ``<layer>.<param>``.
        shape: in go-metal's layout (Dense ``[in, out]``, Conv2D OIHW).
        data: float32 array of that shape.
        layer: name of the layer it belongs to.
        type: ``weight``, ``bias``, ``gamma``, ``beta``, ``running_mean`` or ``running_var``.
        nulls: names of the fields that a file holds as null.
    """

    name: str
    shape: Shape
    data: FloatArray
    layer: str
    type: str
    nulls: frozenset[str] = field(default=frozenset(), compare=False, repr=False)


@dataclass
class TrainingState:
    """Where a training run stands; go-metal's six numbers. ``best_loss`` is 1e9 where none is known."""

    epoch: int = 0
    step: int = 0
    learning_rate: float = 0.0
    best_loss: float = 0.0
    best_accuracy: float = 0.0
    total_steps: int = 0


@dataclass
class OptimizerTensor:
    """One array of optimizer state, flat: ``<state_type>_<parameter index>``, shape ``[elements]``."""

    name: str
    shape: Shape
    data: FloatArray
    state_type: str
    nulls: frozenset[str] = field(default=frozenset(), compare=False, repr=False)


@dataclass
class OptimizerState:
    """An optimizer's name, hyper-parameters (with ``step_count``) and arrays, as go-metal saves them."""

    type: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    state_data: list[OptimizerTensor] = field(default_factory=list)
    nulls: frozenset[str] = field(default=frozenset(), compare=False, repr=False)


@dataclass
class CheckpointMetadata:
    """Who wrote the file, when (RFC 3339), and what the author says about it."""

    version: str = "1.0.0"
    framework: str = "gometal_mlx"
    created_at: str = ""
    description: str = ""
    tags: list[str] = field(default_factory=list)

    @classmethod
    def now(cls, description: str = "", tags: Iterable[str] = ()) -> CheckpointMetadata:
        """Metadata stamped with the present time, UTC; CheckpointError for tags that are a single text."""
        if isinstance(tags, str):
            raise CheckpointError(f"metadata.tags: a list of texts is needed, got {shown(tags)}")
        stamp = go_time(datetime.now(UTC).isoformat(timespec="microseconds"))
        return cls(created_at=stamp, description=description, tags=list(tags))


@dataclass
class Checkpoint:
    """Everything a file holds: architecture, weights, training and optimizer state, metadata.

    Args:
        model_spec: the architecture; None only in a weights-only file of another tool.
        extras: what go-metal has no place for (JSON values): stored under one key that go-metal ignores.
        notes: repairs and oddities met while reading; never stored.
    """

    model_spec: ModelSpec
    weights: list[WeightTensor] = field(default_factory=list)
    training_state: TrainingState = field(default_factory=TrainingState)
    optimizer_state: OptimizerState | None = None
    metadata: CheckpointMetadata = field(default_factory=CheckpointMetadata.now)
    extras: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list, compare=False)
    nulls: frozenset[str] = field(default=frozenset(), compare=False, repr=False)

    def tensors(self) -> Iterator[tuple[str, WeightTensor | OptimizerTensor]]:
        """Every array with a readable place, weights first."""
        for w in self.weights:
            yield f"weight {w.name!r}", w
        for t in self.optimizer_state.state_data if self.optimizer_state else ():
            yield f"optimizer state {t.name!r}", t

    @property
    def info(self) -> Mapping[str, Any]:
        """What the author says about the model, such as ``class_names`` and ``preprocessing``: names and JSON values.

        Every format keeps it; in ONNX each name is an entry of ``metadata_props``.
        """
        return MappingProxyType(self.extras.get("info", {}))

    @info.setter
    def info(self, values: Mapping[str, Any]) -> None:
        check_extras({"info": values})
        self.extras["info"] = dict(values)

    def validate(self) -> None:
        """Check what every format needs before anything is written.

        Raises: CheckpointError naming the tensor: not float32, data that is not its shape, NaN or infinity; SpecError
            for a missing architecture.
        """
        if not isinstance(self.model_spec, ModelSpec):
            raise SpecError(
                "checkpoint: a model_spec is needed to save it; build one with ModelBuilder or read it from a file"
            )
        given = [(where, t) for where, t in self.tensors()]
        kinds = [(f"{where}: type", t.type if isinstance(t, WeightTensor) else t.state_type) for where, t in given]
        kinds += [(f"{where}: layer", t.layer) for where, t in given if isinstance(t, WeightTensor)]
        kinds += [("optimizer_state.type", self.optimizer_state.type)] if self.optimizer_state else []
        for where, text in kinds:
            if not isinstance(text, str) or not is_text(text):
                raise CheckpointError(f"{where}: a text is needed, got {shown(text)}")
        for where, t in given:
            if not isinstance(t.data, np.ndarray) or t.data.dtype != np.float32:
                kind = getattr(t.data, "dtype", type(t.data).__name__)
                raise CheckpointError(f"{where}: data must be a float32 array, got {kind}")
            if not isinstance(t.name, str) or not is_text(t.name) or len(t.shape) > MAX_RANK:
                told = f"a name of text and a shape of at most {MAX_RANK} dimensions needed"
                raise CheckpointError(f"{where}: {told}, got {shown(t.name)}, {tuple(t.shape)}")
            if t.data.size != elements(t.shape) and not (t.data.size == 0 and "data" in t.nulls):
                raise CheckpointError(
                    f"{where}: shape {tuple(t.shape)} needs {elements(t.shape)} numbers, data has {t.data.size}"
                )
            check_finite(t.data, where)
        check_extras(self.extras)
        _check_state(self.training_state)
        _check_texts(self.metadata)

    def __repr__(self) -> str:
        state = self.training_state
        optimizer = printable(self.optimizer_state.type) if self.optimizer_state else "no optimizer state"
        count = sum(w.data.size for w in self.weights)
        weights = f"{len(self.weights)} weights, {count:,} numbers"
        return f"Checkpoint({weights}, {optimizer}, epoch {state.epoch}, step {state.step})"


def _check_state(state: TrainingState) -> None:
    for name in ("epoch", "step", "total_steps"):
        value = getattr(state, name)
        if not is_int(value) or not -(2**63) <= value < 2**63:
            raise CheckpointError(f"training_state.{name}: an int of 64 bits is needed, got {shown(value)}")
    for name in ("learning_rate", "best_loss", "best_accuracy"):
        value = getattr(state, name)
        if not is_number(value):
            raise CheckpointError(f"training_state.{name}: a finite float32 is needed, got {shown(value)}")


def _check_texts(metadata: CheckpointMetadata) -> None:
    if not isinstance(metadata.tags, list | tuple):
        raise CheckpointError(f"metadata.tags: a list of texts is needed, got {shown(metadata.tags)}")
    texts = {n: getattr(metadata, n) for n in ("version", "framework", "created_at", "description")}
    for name, value in [*texts.items(), *((f"tags[{i}]", tag) for i, tag in enumerate(metadata.tags))]:
        if not isinstance(value, str) or not is_text(value):
            raise CheckpointError(f"metadata.{name}: a text is needed, got {shown(value)}")


def elements(shape: Sequence[int]) -> int:
    """How many numbers a stored shape needs (an empty shape: none, as go-metal has no scalars)."""
    return math.prod(shape) if len(shape) else 0


def extract_weights(model: Model, *, copy: bool = True) -> list[WeightTensor]:
    """The model's arrays as WeightTensors: learned ones in go-metal's order, then the running statistics.

    Args:
        copy: False gives read-only views, which stay as they are whatever becomes of the model.
    """
    mx.eval(model.state)
    slots = [(layer.name, name, param.kind) for layer, name, param in model.slots()]
    views = [view(model[layer][name]) for layer, name, _ in slots]
    arrays = [a.copy() for a in views] if copy else views
    return [
        WeightTensor(f"{layer}.{name}", a.shape, a, layer, kind)
        for (layer, name, kind), a in zip(slots, arrays, strict=True)
    ]


def with_statistics(spec: ModelSpec, weights: Iterable[WeightTensor], *, add: bool = True) -> ModelSpec:
    """The spec with the weights' running statistics in its layers, too: go-metal runs a model with those alone.

    Args:
        add: False brings up to date those that a layer has already, and gives it no others.
    """
    found: dict[str, dict[str, FloatArray]] = {}
    for w in weights:
        if w.type in STATISTICS:
            found.setdefault(w.layer, {})[w.type] = w.data
    if not found:
        return spec

    def statistics(s: LayerSpec) -> dict[str, FloatArray]:
        new = found.get(s.name, {})
        return {**s.running_statistics, **(new if add else {k: v for k, v in new.items() if k in s.running_statistics})}

    return replace(spec, layers=tuple(replace(s, running_statistics=statistics(s)) for s in spec.layers))


def load_weights(model: Model, weights: Iterable[WeightTensor]) -> list[str]:
    """Put weights into a model, all or none; returns notes on what was matched by position or filled in.

    Raises: CheckpointError naming the layer and field that does not fit.
    """
    notes: list[str] = []
    model.assign(list(weights), None, notes)
    return notes

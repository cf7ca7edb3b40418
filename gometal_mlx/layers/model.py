"""Model: a ModelSpec as a running mlx.nn.Module, and the mapping of named weights onto it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Protocol, Self

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from .._forked import check_process
from .._types import FloatArray, Params, Shape, floats, is_int
from ..errors import CheckpointError, ShapeError, SpecError, shown
from ._layout import to_internal, to_public
from .base import STATISTICS, Layer, Param
from .registry import Softmax
from .spec import ModelSpec, normalise

NOTHING: Mapping[str, Params] = MappingProxyType({})


class NamedWeight(Protocol):
    """A stored array: what a Model needs of ``checkpoints.WeightTensor``."""

    name: str
    shape: Shape
    data: FloatArray
    layer: str
    type: str


class StoredModel(Protocol):
    """What a Model needs of ``checkpoints.Checkpoint``."""

    model_spec: ModelSpec
    weights: list[Any]
    notes: list[str]


class _LayerArrays(nn.Module):
    """The arrays of one layer; its statistics stay frozen."""

    def unfreeze(self, *args: Any, **kwargs: Any) -> Self:
        super().unfreeze(*args, **kwargs)
        self.freeze(keys=[k for k in STATISTICS if k in self], recurse=False)
        return self


class Model(nn.Module):
    """The network that a ModelSpec describes; parameters are named ``<layer>.<param>`` in go-metal's layouts.

    Call it with ``(N, features)`` or ``(N, C, H, W)`` float32 arrays of any batch size; it returns the last layer's
    output in the same convention. ``train()`` and ``eval()`` switch Dropout and BatchNorm.

    Args:
        spec: compiled by ModelBuilder (or read from a file and normalised).
        seed: fixes the initial weights; None draws them from MLX's global generator (``mx.random.seed``).
    Raises: SpecError for a spec that is not compiled or cannot run.
    """

    def __init__(self, spec: ModelSpec, seed: int | None = None) -> None:
        super().__init__()
        check_process()
        if not isinstance(spec, ModelSpec):
            told = f"a compiled ModelSpec is needed, got a {type(spec).__name__}"
            raise SpecError(f"Model: {told}; a ModelBuilder makes one by compile()")
        if not spec.compiled:
            raise SpecError("Model: the spec is not compiled; call ModelBuilder.compile() first")
        if seed is not None and not (is_int(seed) and seed >= 0):
            raise SpecError(f"Model: seed must be an int of at least 0, or None, got {seed!r}")
        self.spec = spec
        layers = spec.typed_layers()
        # set past nn.Module, which would take a tuple for parameters
        object.__setattr__(self, "layers", layers)
        arrays = [layer.params(s.input_shape) for layer, s in zip(layers, spec.layers, strict=True)]
        count = sum(map(len, arrays))
        keys = iter([None] * count if seed is None else mx.random.split(mx.random.key(int(seed)), max(count, 1)))
        for layer, params in zip(layers, arrays, strict=True):
            if params:
                self[layer.name] = child = _LayerArrays()
                for name, param in params.items():
                    child[name] = param.init(next(keys))
        self._freeze_statistics()

    @classmethod
    def from_checkpoint(cls, checkpoint: StoredModel) -> Self:
        """The model a checkpoint holds, with its weights; repairs are added to ``checkpoint.notes``.

        Raises: SpecError, ShapeError, CheckpointError for what does not fit together.
        """
        if not hasattr(checkpoint, "model_spec"):
            raise CheckpointError(f"Model: a Checkpoint is needed, got {shown(checkpoint)}; gm.load reads one")
        if checkpoint.model_spec is None:
            raise CheckpointError(
                "checkpoint: it has no model_spec, only weights; load_weights(model, weights) fits them to a model"
            )
        notes: list[str] = []
        model = cls(normalise(checkpoint.model_spec, notes), seed=0)
        model.assign(checkpoint.weights, checkpoint.model_spec, notes)
        model.eval()
        checkpoint.notes += [n for n in notes if n not in checkpoint.notes]
        return model

    def unfreeze(self, *args: Any, **kwargs: Any) -> Self:
        """As nn.Module.unfreeze, but running statistics never become trainable."""
        super().unfreeze(*args, **kwargs)
        self._freeze_statistics()
        return self

    def _freeze_statistics(self) -> None:
        for layer in self.layers:
            if layer.name in self:
                self[layer.name].freeze(keys=[k for k in STATISTICS if k in self[layer.name]], recurse=False)

    def __call__(
        self, x: mx.array, key: mx.array | None = None, dtype: mx.Dtype | None = None,
        prepared: Mapping[str, Params] = NOTHING,
    ) -> mx.array:  # fmt: skip
        """The output for a batch, NCHW in and out.

        Args:
            key: random key for Dropout in training; None draws from MLX's global generator.
            dtype: float16 or bfloat16 computes in that precision from the float32 weights; statistics stay float32.
            prepared: in evaluation, what layers have made of their weights; see ``Prepared``.
        Raises: ShapeError for a batch that does not fit the spec's input shape.
        """
        return self._run(x, self.layers, key, dtype, prepared)

    def logits(
        self, x: mx.array, key: mx.array | None = None, dtype: mx.Dtype | None = None,
        prepared: Mapping[str, Params] = NOTHING,
    ) -> mx.array:  # fmt: skip
        """The output before a trailing Softmax over the classes; the plain output of a model without one."""
        softmax = self.spec.last_layer.name if self.ends_in_softmax else None
        return self._run(x, [layer for layer in self.layers if layer.name != softmax], key, dtype, prepared)

    @property
    def ends_in_softmax(self) -> bool:
        """Whether the last layer is a Softmax over the classes (the output's last axis).

        Flatten and Dropout may follow it where the classes are all that there is of a row: ``(N, C, 1, 1)``.
        """
        last = self.spec.last_layer
        layer, shape = last.layer(), last.input_shape
        if not isinstance(layer, Softmax):
            return False
        axis = layer.axis % len(shape)
        return (
            axis == len(shape) - 1 if last == self.spec.layers[-1] else axis > 0 and shape[axis] == math.prod(shape[1:])
        )

    def _run(
        self, x: mx.array, layers: Sequence[Layer], key: mx.array | None, dtype: mx.Dtype | None,
        prepared: Mapping[str, Params],
    ) -> mx.array:  # fmt: skip
        if not isinstance(x, mx.array):
            x = mx.array(floats(x))
        if tuple(x.shape[1:]) != self.spec.input_shape[1:] or x.ndim != len(self.spec.input_shape):
            raise ShapeError(
                f"Model: input must be (batch, {str(self.spec.input_shape[1:])[1:-1]}), got {tuple(x.shape)}"
            )
        x = to_internal(x)
        keys = [None] * len(layers) if key is None else mx.random.split(key, max(len(layers), 1))
        for layer, k in zip(layers, keys, strict=True):
            p = self.get(layer.name, {})
            if layer.name in prepared:
                p = {**p, **prepared[layer.name]}
            if dtype is None:
                x = layer.forward(p, x, training=self.training, key=k)
                continue
            low = {n: a if n in STATISTICS else a.astype(dtype) for n, a in p.items()}
            x = layer.forward(low, x.astype(dtype), training=self.training, key=k)
            p |= {n: low[n] for n in STATISTICS if n in low}
        return to_public(x)

    def slots(self) -> list[tuple[Layer, str, Param]]:
        """Every array as (layer, name, Param): learned ones in go-metal's order, then the running statistics."""
        pairs = zip(self.layers, self.spec.layers, strict=True)
        found = [(layer, n, p) for layer, s in pairs for n, p in layer.params(s.input_shape).items()]
        return [f for f in found if f[2].trainable] + [f for f in found if not f[2].trainable]

    def assign(self, weights: Iterable[NamedWeight], stored: ModelSpec | None, notes: list[str]) -> None:
        """Put stored weights in place: all of them, or none.

        Names decide where they are complete, else the order does (as in go-metal). Statistics may come as weights or
        from the stored spec's ``running_statistics``; where both are missing they are 0 and 1.

        Raises: CheckpointError naming the layer and field that is missing, superfluous, or has another shape.
        """
        given = list(weights)
        slots = self.slots()
        learned = [s for s in slots if s[2].trainable]
        chosen = _match_learned(learned, [w for w in given if w.type not in STATISTICS], notes)
        stored_names = [s.name for s in stored.layers] if stored else [layer.name for layer in self.layers]
        original = dict(zip((layer.name for layer in self.layers), stored_names, strict=True))
        by_name = {(w.layer, w.type): w.data for w in given if w.type in STATISTICS}
        by_name |= {(w.layer, n): w.data for w in given for n in STATISTICS if w.name == f"{w.layer}.{n}"}
        in_spec = {(s.name, k): v for s in (stored.layers if stored else ()) for k, v in s.running_statistics.items()}
        for layer, name, param in slots:
            if param.trainable:
                continue
            where = (original[layer.name], name)
            value = by_name.get(where, in_spec.get(where))
            if value is None:
                notes.append(f"{layer.name}.{name}: not in the file; set to {'0' if name == 'running_mean' else '1'}")
                value = np.asarray(param.init(None))
            chosen[f"{layer.name}.{name}"] = value
        for layer, name, param in slots:
            value = chosen[f"{layer.name}.{name}"]
            if tuple(value.shape) != param.shape:
                raise CheckpointError(
                    f"{layer.name}.{name}: the model needs shape {param.shape}, the weights have {tuple(value.shape)}"
                )
            if not np.isfinite(value).all():
                raise CheckpointError(f"{layer.name}.{name}: NaN or infinity in the weights; train or save them again")
        for layer, name, _ in slots:
            value = np.ascontiguousarray(chosen[f"{layer.name}.{name}"], np.float32)
            self[layer.name][name] = mx.array(value)  # in C order, or MLX would add in another order


def _match_learned(
    slots: list[tuple[Layer, str, Param]], weights: list[NamedWeight], notes: list[str]
) -> dict[str, FloatArray]:
    names = [f"{layer.name}.{name}" for layer, name, _ in slots]
    found = [w.name for w in weights]
    if len(set(found)) == len(found) and set(found) == set(names):
        return {w.name: w.data for w in weights}
    if len(found) != len(names):
        odd = [f"{n} is missing" for n in names if n not in found] + [
            f"{n} is not in the model" for n in found if n not in names
        ]
        reason = f" ({odd[0]})" if odd else ""
        raise CheckpointError(f"weights: the model needs {len(names)} arrays, got {len(found)}{reason}")
    notes.append(
        f"weights: matched by position, because the names do not fit the layers ({found[0]!r} is used as {names[0]!r})"
    )
    return dict(zip(names, (w.data for w in weights), strict=True))

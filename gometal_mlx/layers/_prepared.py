"""Weights laid out for evaluation on a CPU, once for many calls.

Weights stand in go-metal's layouts; what is computed with them may want others. In training they change with every
step. In evaluation they do not, and to move their axes for every call takes a tenth of a row's time through a CNN.
"""

from __future__ import annotations

import copy
import threading
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from ._device import on_cpu
from .base import Layer
from .model import Model


class Prepared:
    """What the layers of a model make of their ``weight`` for evaluation; made anew when a weight has changed.

    Attributes:
        arrays: by the layer's name; for ``Model.__call__``, and an input of functions that are compiled with it.
        lock: for one thread at a time. While MLX traces a function, the model has placeholders instead of weights.
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        self.lock = threading.RLock()
        self.arrays: dict[str, dict[str, mx.array]] = {}  # the same dict for ever, to which compiled functions hold on
        self._made_of: dict[str, npt.NDArray[Any]] = {}  # views of the weights
        shapes = (s.input_shape for s in model.spec.layers)
        self._layers = [(layer, x) for layer, x in zip(model.layers, shapes, strict=True) if layer.prepares(x)]

    def __bool__(self) -> bool:
        """Whether there is a layer that makes something."""
        return bool(self._layers)

    def refresh(self) -> bool:
        """Bring ``arrays`` up to date; whether something had changed."""
        weights = {layer.name: self.model[layer.name]["weight"] for layer, _ in self._layers}
        if not on_cpu() or any(w.dtype != mx.float32 for w in weights.values()):  # numpy has no bfloat16 to look at
            return self.forget()
        made: dict[str, dict[str, mx.array]] = {}
        made_of: dict[str, npt.NDArray[Any]] = {}
        for layer, x in self._layers:
            weight = weights[layer.name]
            if not self._is_made_of(layer, weight):
                # A copied array object has the same memory. As long as it is there, an assignment to some of the
                # weight's numbers gives the weight other memory.
                made_of[layer.name] = np.array(copy.copy(weight), copy=False)
                made[layer.name] = {name: mx.contiguous(a) for name, a in layer.prepared(weight, x).items()}
        mx.eval(made)  # before another thread can see them
        self.arrays.update(made)
        self._made_of.update(made_of)  # last: if Ctrl-C comes before, they are made again
        return bool(made)

    def _is_made_of(self, layer: Layer, weight: mx.array) -> bool:
        found = self._made_of.get(layer.name)
        return found is not None and np.may_share_memory(found, np.array(weight, copy=False))

    def forget(self) -> bool:
        """Let go of the arrays, for the weights are about to change; whether there were some."""
        found = bool(self.arrays)
        self.arrays.clear()
        self._made_of.clear()
        return found

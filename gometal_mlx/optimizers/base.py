"""What an optimizer is: an mlx.optimizers.Optimizer with an update rule and a saved form in go-metal's names.

An optimizer file holds its hyper-parameters, its update rule and the names of its state; it knows no file, trainer or
schedule. The learning rate is an array in its state, so that a compiled step follows every change.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, Protocol

import mlx.core as mx
import mlx.optimizers as optim
import numpy as np

from .._types import FloatArray, Params, Shape, f32, is_number, view
from ..errors import CheckpointError, SpecError, shown

OPTIMIZERS: dict[str, type[Optimizer]] = {}  # json_type -> class; filled by Optimizer.__init_subclass__

Schedule = Callable[[mx.array], mx.array]
Slots = Sequence[tuple[str, str, Shape]]  # (layer, param, shape) of every learned array; a state's index counts in it

TINY = float(np.finfo(np.float32).tiny)  # the least number that is not taken for 0
# what a hyper-parameter of that name may be, wherever it occurs
_RANGES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "learning_rate": ("greater than 0 and no denormal number", lambda v: v >= TINY),
    "beta1": ("from 0 up to, not including, 1", lambda v: 0 <= v < 1),
    "beta2": ("from 0 up to, not including, 1", lambda v: 0 <= v < 1),
    "alpha": ("from 0 up to, not including, 1", lambda v: 0 <= v < 1),
    "rho": ("between 0 and 1", lambda v: 0 < v < 1),
    "momentum": ("from 0 to 1", lambda v: 0 <= v <= 1),
    "epsilon": ("at least 1e-30", lambda v: v >= 1e-30),  # less is 0 when multiplied, and 0 / 0 no number
    "weight_decay": ("at least 0", lambda v: v >= 0),
    "history_size": ("a whole number of at least 1", lambda v: v >= 1 and v == int(v)),
    "max_line_search": ("a whole number of at least 1", lambda v: v >= 1 and v == int(v)),
    "c1": ("between 0 and 1", lambda v: 0 < v < 1),
    "c2": ("between 0 and 1", lambda v: 0 < v < 1),
    "initial_step": ("greater than 0", lambda v: v > 0),
}


class StateTensor(Protocol):
    """A stored state array: what is needed of ``checkpoints.OptimizerTensor``."""

    name: str
    data: FloatArray
    state_type: str


class Optimizer(optim.Optimizer):
    """Base of all optimizers; a subclass is registered by its ``json_type`` when its file is imported.

    Args:
        learning_rate: a number, or an MLX schedule (a function of the step).
        hyper: the subclass's hyper-parameters, which become attributes.
    Raises: SpecError for a value out of range.
    """

    code: ClassVar[int]  # go-metal's OptimizerType; our own ones are above its range
    json_type: ClassVar[str]  # go-metal's optimizer_state.type
    uses_learning_rate: ClassVar[bool] = True
    needs_closure: ClassVar[bool] = False  # steps by ``minimise`` instead of ``update``
    in_go_metal: ClassVar[bool] = True  # its state has a place in go-metal's files
    state: dict[str, Any]  # of mlx.optimizers.Optimizer: "step", "learning_rate", and the slots by layer and parameter
    config_names: ClassVar[
        Mapping[str, tuple[str, ...]]
    ] = {}  # hyper-parameter -> TrainerConfig fields, first given wins

    def __init_subclass__(cls) -> None:
        if "json_type" in cls.__dict__:
            OPTIMIZERS[cls.json_type] = cls

    def __init__(self, learning_rate: float | Schedule | None, **hyper: float | bool) -> None:
        super().__init__()
        self.homes: Mapping[Shape, mx.Stream] = {}  # by a parameter's shape; others are updated in the default stream
        self.hyper_names = tuple(hyper)
        for name, value in hyper.items():
            setattr(self, name, self._checked(name, value))
        if self.uses_learning_rate:
            schedule = learning_rate if callable(learning_rate) else None
            self._maybe_schedule("learning_rate", schedule or self._checked("learning_rate", learning_rate))

    def _checked(self, name: str, value: Any) -> Any:
        """The hyper-parameter as the annotated type, in float32's precision; SpecError if out of range."""
        annotated = (vars(c).get("__annotations__", {}) for c in type(self).__mro__)
        kind = next((names[name] for names in annotated if name in names), "float")
        if kind == "bool":
            if not isinstance(value, bool | np.bool_):
                raise SpecError(f"{self.json_type}: {name} must be True or False, got {shown(value)}")
            return bool(value)
        text, allowed = _RANGES[name]
        number = (int(value) if kind == "int" and value == int(value) else f32(value)) if is_number(value) else None
        if number is None or not allowed(number) or (kind == "int" and not isinstance(number, int)):
            raise SpecError(f"{self.json_type}: {name} must be {text}, got {shown(value, 60)}")
        return number

    def slots(self) -> tuple[str, ...]:
        """The state arrays kept for each parameter, by go-metal's ``state_type``, in file order."""
        raise NotImplementedError  # every registered optimizer overrides it

    def rule(self, w: mx.array, g: mx.array, s: Params, step: mx.array, lr: mx.array) -> mx.array:
        """The new value of a parameter; replaces the arrays in its state ``s``. ``step`` counts from 1."""
        raise NotImplementedError  # as above

    def init_single(self, parameter: mx.array, state: Params) -> None:
        for slot in self.slots():
            state[slot] = mx.zeros_like(parameter)

    def apply_single(self, gradient: mx.array, parameter: mx.array, state: Params) -> mx.array:
        lr: mx.array = self.state["learning_rate"] if self.uses_learning_rate else mx.array(0.0)
        with mx.stream(self.home(parameter)):
            # the rate is float32; weights stay what they are
            return self.rule(parameter, gradient, state, self.step.astype(mx.float32), lr).astype(parameter.dtype)

    def home(self, parameter: mx.array) -> mx.Stream:
        """The stream in which a parameter is updated."""
        return self.homes.get(parameter.shape, mx.default_stream(mx.default_device()))

    @property
    def rate(self) -> float:
        """The learning rate as a number; 0 for an optimizer that uses none, where setting it does nothing."""
        return f32(float(self.state["learning_rate"].item())) if self.uses_learning_rate else 0.0

    @rate.setter
    def rate(self, value: float) -> None:
        if self.uses_learning_rate:
            self.state["learning_rate"] = mx.array(self._checked("learning_rate", value))

    # ------------------------------------------------------------------------------------------------- saved form

    def saved_parameters(self) -> dict[str, Any]:
        """go-metal's ``parameters`` map: float32 hyper-parameters, learning rate and step count."""
        values = {n: getattr(self, n) for n in self.hyper_names}
        saved = {n: v if isinstance(v, bool) else np.float32(v) for n, v in values.items()}
        if self.uses_learning_rate:
            saved["learning_rate"] = np.float32(self.rate)
        return {**saved, "step_count": int(self.step.item())}

    def saved_tensors(self, slots: Slots) -> list[tuple[str, str, FloatArray]]:
        """(name, state_type, flat read-only view) of every state array, grouped by state type as go-metal does."""
        return [
            (f"{kind}_{i}", kind, self._saved(kind, layer, param, shape))
            for kind in self.slots()
            for i, (layer, param, shape) in enumerate(slots)
        ]

    def _saved(self, kind: str, layer: str, param: str, shape: Shape) -> FloatArray:
        state = self.state.get(layer, {}).get(param)  # a frozen parameter has none; go-metal wants zeros there
        return np.zeros(math.prod(shape), np.float32) if state is None else view(state[kind]).reshape(-1)

    def restore(self, parameters: Mapping[str, Any], tensors: Iterable[StateTensor], slots: Slots) -> bool:
        """Take over a saved state, all of it or (with an error) nothing.

        Args:
            parameters: hyper-parameters present replace this optimizer's own.
            slots: the learned arrays, as in ``saved_tensors``.
        Returns: False if the state is fresh (all zero at step 0, as in every file that go-metal's trainer writes).
        Raises: CheckpointError naming the tensor or parameter that is missing, superfluous or does not fit.
        """
        step = parameters.get("step_count", 0)
        if isinstance(step, bool) or not isinstance(step, int | float) or not 0 <= step < 2**63 or step != int(step):
            raise CheckpointError(f"optimizer_state.parameters.step_count: a count is needed, got {shown(step)}")
        given = {k: getattr(self, k) for k in self.hyper_names}
        given |= {k: v for k, v in parameters.items() if k in (*self.hyper_names, "learning_rate")}
        if not self.uses_learning_rate or given.get("learning_rate") == 0:
            given.pop("learning_rate", None)  # 0: go-metal's zero value, not a rate
        try:
            fresh = type(self)(**given)
        except SpecError as e:
            raise CheckpointError(f"optimizer_state.parameters: {e}") from e
        found = fresh._sorted_out(tensors, slots)
        for i, (layer, param, shape) in enumerate(slots):
            arrays = {kind: mx.array(found[kind, i].reshape(shape)) for kind in fresh.slots()}
            fresh.state.setdefault(layer, {})[param] = arrays
        for name in self.hyper_names:
            setattr(self, name, getattr(fresh, name))
        rate = "learning_rate" if "learning_rate" in given else ""
        self.state = {**fresh.state, **{k: v for k, v in self.state.items() if k == "learning_rate" and not rate}}
        self.state["step"] = mx.array(int(step), mx.uint64)
        self._initialized = True
        return bool(step) or any(d.any() for d in found.values())

    def saved_extras(self) -> dict[str, Any]:
        """The state of an optimizer that go-metal's files have no place for; JSON values and float32 arrays."""
        return {}

    def restore_extras(self, saved: Mapping[str, Any], size: int) -> None:
        """The inverse of ``saved_extras``, all or nothing.

        Args:
            size: how many numbers are trained.
        Raises: CheckpointError for damaged state.
        """

    def snapshot(self) -> Any:
        """What ``state`` does not hold, as it is now; later steps do not change it."""
        return None

    def put_back(self, snapshot: Any) -> None:
        """Be again as a ``snapshot`` says."""

    def minimise(self, evaluate: Callable[[Any], tuple[mx.array, Any]], parameters: Any) -> Any:
        """One step of an optimizer that ``needs_closure``; the new parameters."""
        raise SpecError(f"{self.json_type}: takes gradients, not a closure; use update()")

    def _sorted_out(self, tensors: Iterable[StateTensor], slots: Slots) -> dict[tuple[str, int], FloatArray]:
        """The saved arrays by state type and index, complete and of the right sizes."""
        kinds, sizes = self.slots(), [math.prod(shape) for _, _, shape in slots]
        found: dict[tuple[str, int], FloatArray] = {}
        for t in tensors:
            where, index = f"optimizer_state.state_data {t.name!r}", t.name.rpartition("_")[2]
            if t.state_type not in kinds:
                kept = ", ".join(kinds) or "nothing"
                raise CheckpointError(
                    f"{where}: state_type {t.state_type!r} is not kept by {self.json_type} (it keeps {kept})"
                )
            if not index.isdecimal() or int(index) >= len(slots):
                raise CheckpointError(f"{where}: the name must end in _0 to _{len(slots) - 1}, one for each parameter")
            if (key := (t.state_type, int(index))) in found:
                raise CheckpointError(f"{where}: stands twice")
            if not np.isfinite(t.data).all():
                raise CheckpointError(f"{where}: NaN or infinity is in it")
            if t.data.size != sizes[key[1]]:
                raise CheckpointError(f"{where}: the parameter has {sizes[key[1]]} numbers, the state {t.data.size}")
            found[key] = t.data
        missing = [f"{kind}_{i}" for kind in kinds for i in range(len(slots)) if (kind, i) not in found]
        if missing:
            raise CheckpointError(f"optimizer_state.state_data: {missing[0]!r} is missing ({len(missing)} in all)")
        return found


def optimizer_class(code: int) -> type[Optimizer]:
    """The optimizer with an OptimizerType code; SpecError for one that no optimizer has."""
    kind = next((c for c in OPTIMIZERS.values() if c.code == code), None)
    if kind is None:
        raise SpecError(
            f"optimizer type {code} is unknown; known: {', '.join(f'{c.code} {n}' for n, c in OPTIMIZERS.items())}"
        )
    return kind


def make_optimizer(code: int, settings: Mapping[str, Any]) -> Optimizer:
    """The optimizer with an OptimizerType code, from settings under go-metal's TrainerConfig names.

    Raises: SpecError for a value out of range.
    """
    kind = optimizer_class(code)
    chosen: dict[str, Any] = {}
    for name in inspect.signature(kind).parameters:
        sources = (s for s in kind.config_names.get(name, (name,)) if settings.get(s) is not None)
        if (source := next(sources, None)) is not None:
            chosen[name] = settings[source]
    return kind(**chosen)

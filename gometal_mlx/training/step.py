"""The training step: forward, backward, clipping, update and running totals in one compiled function."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any, TypeVar

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from mlx.utils import tree_flatten, tree_map, tree_unflatten

from .._compile import evaluated, tell_if_there_is_no_compiler
from .._forked import check_process
from .._lanes import Lanes, begin, side_by_side, spread
from .._leaving import remember_thread
from .._types import FloatArray, Params, number, view
from ..errors import SpecError, TrainingError
from ..layers import Model
from ..layers._prepared import Prepared
from ..optimizers import Optimizer
from .config import TrainerConfig
from .losses import Loss
from .pieces import InPieces, lane_count, lane_rows, shares

T = TypeVar("T")
Part = tuple[mx.array, mx.array, Any]  # of some rows of a batch: share of the mean loss, correct rows, gradients
Result = tuple[mx.array, mx.array]  # mean loss and correct rows of a batch
State = tuple[list[dict[str, Any]], Any, int]  # arrays of model, optimizer and step; optimizer's rest; waiting batches


@dataclass(frozen=True)
class Carried:
    """What a step hands to the next one beside weights and optimizer state; a checkpoint keeps it.

    Args:
        key: two words of the random key of the next step.
        totals: sums over the epoch so far: loss * rows, correct rows, rows.
        scaling: loss scale, and steps since it changed (mixed precision only).
        accumulated: gradient sums by parameter name, of batches that still wait for their update.
        waiting: how many batches those are, and how much their rows weigh: 1 each, unless classes have weights.
    """

    key: tuple[int, int]
    totals: tuple[float, ...] = (0.0, 0.0, 0.0)
    scaling: tuple[float, ...] = (1.0, 0.0)
    accumulated: Mapping[str, FloatArray] | None = None
    waiting: tuple[int, float] = (0, 0)


class TrainingStep:
    """Runs one batch after the other on a model and an optimizer.

    The random key is an input and output of the compiled function; a key that were not would give the same Dropout
    mask for ever. The arrays of the last state with a finite loss are kept, so that a loss that is not finite leaves a
    state that can be used.

    Args:
        model, loss, optimizer: the optimizer's state must be initialised.
        config: clipping, accumulation, precision and class weights.
        carried: where an earlier step left off.
    Attributes:
        forward: the model's output in evaluation mode, before a trailing softmax.
        predict: what the loss says the outputs mean (probabilities or values), in evaluation mode.
    """

    def __init__(self, model: Model, loss: Loss, optimizer: Optimizer, config: TrainerConfig, carried: Carried) -> None:
        self._modules = model.modules()
        self._model, self._loss, self._optimizer, self._config = model, loss, optimizer, config
        self._state: dict[str, Any] = {"key": mx.array(carried.key, mx.uint32), "totals": mx.array(carried.totals)}
        self._state["scaling"] = mx.array(carried.scaling)
        if config.accumulation_steps > 1:
            zeros = tree_map(mx.zeros_like, model.trainable_parameters())
            stored = tree_unflatten([(k, mx.array(v)) for k, v in (carried.accumulated or {}).items()])
            self._state["accumulated"] = stored or zeros
            self._state["weight"] = mx.array(float(carried.waiting[1]))
        tell_if_there_is_no_compiler()
        self._tried: set[tuple[object, ...]] = set()  # kinds of steps for which there are kernels
        self._waiting = carried.waiting[0]
        self._good: State | None = None
        self._dtype = getattr(mx, config.precision) if config.use_mixed_precision else None
        self._frozen = self._frozen_now()
        self._everything = [model.state, optimizer.state, self._state]
        self._lane_rows = lane_rows(model.spec)
        self._gradient = nn.value_and_grad(model, self._judge)
        self._lane_part = mx.compile(self._part, inputs=[model.state, self._state])
        self._update = self._on_parts(self._updated)
        self._collect = self._on_parts(self._accumulate)
        self._apply = self._compiled(self._apply_accumulated)
        self._closure = self._on_parts(lambda _, __, parts: self._sum(parts))
        self._prepared = Prepared(model)
        self.forward = InPieces(self._evaluation_forward, self._prepared)
        self.predict = InPieces(lambda *given: loss.predictions(self._evaluation_forward(*given)), self._prepared)
        mx.eval(self._everything)  # another thread, which may be the first to compute, could not

    def check_frozen(self) -> None:
        """Raise SpecError if other weights are frozen than when this was made."""
        if self._frozen != self._frozen_now():
            told = "other weights are frozen than when the trainer was made; make a new one, whose TrainerConfig says"
            raise SpecError(f"ModelTrainer: {told} frozen_layers, and restore() this one's checkpoint")

    def _frozen_now(self) -> list[int]:
        """How many arrays of each layer; quicker than their names, which do not change by themselves."""
        return [len(module._no_grad) for module in self._modules]

    def _compiled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        compiled: Callable[..., Any] = mx.compile(function, inputs=self._everything, outputs=self._everything)
        return compiled

    def _on_parts(self, finish: Callable[[int, mx.array, list[Part]], T]) -> Callable[..., T]:
        """``finish`` after the backward pass of a batch: in one compiled function; for several lanes, in one more.

        It is told how many rows there are, and what they weigh.
        """

        def on_one(x: mx.array, y: mx.array, key: mx.array | None) -> T:
            part = self._part(x, y, self._next_key() if key is None else key)
            return finish(x.shape[0], self._weight(y), [part])

        together = self._compiled(on_one)
        afterwards = self._compiled(finish)

        def run(x: mx.array, y: mx.array, lanes: Lanes, key: mx.array | None = None) -> T:
            if len(lanes) == 1:
                found: T = together(x, y, key)
            else:
                weight = self._weight(y)
                parts = self._dealt_out(x, y, self._next_key() if key is None else key, weight, lanes)
                found = afterwards(x.shape[0], weight, parts)
            return found

        return run

    # ------------------------------------------------------------------------------- what the compiled functions do

    def _next_key(self) -> mx.array:
        self._state["key"], key = mx.random.split(self._state["key"])
        return key

    def _judge(
        self, x: mx.array, y: mx.array, key: mx.array, weight: mx.array | None
    ) -> tuple[mx.array, mx.array, mx.array]:
        run = self._model.logits if self._loss.uses_logits else self._model
        outputs = run(x, key, self._dtype)
        mean = self._loss.mean(outputs, y, self._config.class_weights, weight)
        correct = self._loss.correct(outputs, y)
        return (
            mean * self._state["scaling"][0] if self._config.scales_loss else mean,
            mean,
            mx.array(0) if correct is None else correct,
        )

    def _part(self, x: mx.array, y: mx.array, key: mx.array, weight: mx.array | None = None) -> Part:
        """Forward and backward pass of a batch, or of some rows of one whose ``weight`` is given."""
        weights = self._model.trainable_parameters()
        with mode(self._model, training=True):
            (_, mean, correct), gradients = self._gradient(x, y, key, weight)
        self._model.update(weights)  # nn.value_and_grad leaves what it traced with
        return mean, correct, gradients

    def _weight(self, y: mx.array) -> mx.array:
        return self._loss.weight(y, self._config.class_weights)

    def _dealt_out(self, x: mx.array, y: mx.array, key: mx.array, weight: mx.array, lanes: Lanes) -> list[Part]:
        """The batch's rows in equal shares, one a lane.

        Each is a compiled function of its own, for the reason that ``spread`` gives.
        """
        parts = []
        keys = mx.random.split(key, len(lanes))
        for lane, rows, own in zip(lanes, shares(x.shape[0], len(lanes)), keys, strict=True):
            with mx.stream(lane):
                parts.append(self._lane_part(x[rows], y[rows], own, weight))
        return parts

    def _sum(self, parts: list[Part]) -> Part:
        means, correct, gradients = zip(*parts, strict=True)

        def total(*shares: mx.array) -> mx.array:
            with mx.stream(self._optimizer.home(shares[0])):
                return reduce(add, shares)

        return reduce(add, means), reduce(add, correct), tree_map(total, *gradients)

    def _finish(self, rows: int, parts: list[Part]) -> Part:
        """Loss, correct rows and gradients of the whole batch, which the running totals take in."""
        mean, correct, gradients = self._sum(parts)
        count = mx.array(float(rows))
        self._state["totals"] = self._state["totals"] + mx.stack([mean * count, correct.astype(mx.float32), count])
        return mean, correct, gradients

    def _updated(self, rows: int, _: mx.array, parts: list[Part]) -> Result:
        loss, correct, gradients = self._finish(rows, parts)
        self._descend(gradients)
        return loss, correct

    def _accumulate(self, rows: int, weight: mx.array, parts: list[Part]) -> Result:
        loss, correct, gradients = self._finish(rows, parts)
        self._state["accumulated"] = tree_map(lambda a, g: a + g * weight, self._state["accumulated"], gradients)
        self._state["weight"] = self._state["weight"] + weight
        return loss, correct

    def _apply_accumulated(self) -> None:
        weight = self._state["weight"]
        self._descend(tree_map(lambda a: a / weight, self._state["accumulated"]))
        self._state["accumulated"] = tree_map(mx.zeros_like, self._state["accumulated"])
        self._state["weight"] = mx.array(0.0)

    def _descend(self, gradients: Any) -> None:
        """Unscale, clip, update; where a scaled gradient overflowed nothing is updated and the scale is lowered."""
        config, optimizer, model = self._config, self._optimizer, self._model
        scaled = config.scales_loss
        if scaled:
            gradients = tree_map(lambda g: g / self._state["scaling"][0], gradients)
            sizes = [mx.sum(mx.abs(g)) for _, g in tree_flatten(gradients)]
            fine = mx.isfinite(mx.sum(mx.stack(sizes)))  # before infinity is clipped
        if config.gradient_clip_value is not None:
            limit = config.gradient_clip_value
            gradients = tree_map(lambda g: mx.clip(g, -limit, limit), gradients)
        if config.gradient_clip_norm is not None:
            gradients, _ = optim.clip_grad_norm(gradients, config.gradient_clip_norm)
        if not scaled:
            optimizer.update(model, gradients)
            return
        before = tree_map(lambda a: a, [model.trainable_parameters(), optimizer.state])
        optimizer.update(model, gradients)
        after = tree_map(
            lambda new, old: mx.where(fine, new, old), [model.trainable_parameters(), optimizer.state], before
        )
        model.update(after[0])
        _put(optimizer.state, after[1])
        scale, good = self._state["scaling"][0], self._state["scaling"][1] + 1
        grown = good >= config.loss_scale_growth_interval
        factor = mx.where(fine, mx.where(grown, config.loss_scale_growth_factor, 1.0), config.loss_scale_backoff_factor)
        self._state["scaling"] = mx.stack([scale * factor, mx.where(fine & ~grown, good, 0.0)])

    def _evaluation_forward(self, x: mx.array, prepared: Mapping[str, Params]) -> mx.array:
        run = self._model.logits if self._loss.uses_logits else self._model
        with mode(self._model, training=False):
            return run(x, prepared=prepared)

    # ------------------------------------------------------------------------------------------------- from outside

    def __call__(self, x: mx.array, y: mx.array, *, last: bool = False) -> Result:
        """Mean loss and correct rows of the batch, before the update.

        Args:
            last: the epoch's last batch, after which nothing may wait for an update.
        Raises: TrainingError if the loss is NaN or infinite (unless the configuration allows it); everything is then as
            it was when the loss was last finite.
        """
        check_process()
        remember_thread()
        with self._prepared.lock:
            return self._locked(x, y, last=last)

    def _locked(self, x: mx.array, y: mx.array, *, last: bool) -> Result:
        self.check_frozen()
        self._prepared.forget()
        applies = last or self._waiting + 1 >= self._config.accumulation_steps
        kind = (x.shape, y.shape, y.dtype, applies)
        keep = self._config.stop_on_nan or kind not in self._tried
        before = self._snapshot() if keep else None
        if before is None:
            return self._advance(x, y, applies=applies)
        loss, correct = evaluated(
            lambda: self._advance(x, y, applies=applies), lambda: self._put_back(*before), new=kind not in self._tried
        )
        self._tried.add(kind)
        if self._config.stop_on_nan:
            if not np.isfinite(found := number(loss)):
                self._go_back(found, before, x)
            self._good = before  # the state that this finite loss was computed from
        return loss, correct

    def _advance(self, x: mx.array, y: mx.array, *, applies: bool) -> Result:
        with side_by_side(lane_count(x.shape[0], self._lane_rows)) as lanes:
            several = len(lanes) > 1
            weights = tree_flatten(self._model.trainable_parameters()) if several else []
            self._optimizer.homes = spread((w for _, w in weights), lanes)
            if self._optimizer.needs_closure:
                loss, correct = self._minimise(x, y, lanes)
            elif self._config.accumulation_steps == 1:
                loss, correct = self._update(x, y, lanes)
            else:
                loss, correct = self._collect(x, y, lanes)
                self._waiting += 1
                if applies:
                    self._apply()
                    self._waiting = 0
            if several:
                # The largest arrays are updated as soon as their gradients are there, often those of a dense layer
                # behind convolutions. In one evaluation MLX leaves all updates to the end.
                largest = next(iter(self._optimizer.homes), None)
                begin([a for _, a in tree_flatten(self._everything) if a.shape == largest])
                mx.eval(self._everything, loss, correct)
            else:
                begin(self._everything, loss, correct)
        return loss, correct

    def _go_back(self, loss: float, before: State, x: mx.array) -> None:
        """Put the last good state back and raise."""
        bad_input = not bool(mx.all(mx.isfinite(x)))
        rate = self._optimizer.rate
        self._put_back(*(before if bad_input or self._good is None else self._good))
        self._optimizer.rate = rate
        if bad_input:
            raise TrainingError(f"the loss is {loss}, because the inputs hold NaN or infinity; nothing was changed")
        advice = "lower the learning rate, set gradient_clip_norm, or scale the inputs"
        told = f"the loss is {loss}; the trainer is back where it last was finite; {advice}"
        raise TrainingError(told, 1 if self._good is None else 2)

    def _snapshot(self) -> State:
        return [_copied(tree) for tree in self._everything], self._optimizer.snapshot(), self._waiting

    def _put_back(self, trees: list[dict[str, Any]], rest: Any, waiting: int) -> None:
        for tree, old in zip(self._everything, trees, strict=True):
            _put(tree, old)
        self._optimizer.put_back(rest)
        self._waiting = waiting

    def _minimise(self, x: mx.array, y: mx.array, lanes: Lanes) -> Result:
        """A step of an optimizer that looks at the loss several times: same mask, and statistics moved once."""
        model = self._model
        key = self._next_key()
        seen: list[tuple[mx.array, mx.array]] = []
        statistics = moved = [a for _, a in tree_flatten(_statistics(model))]

        def evaluate(parameters: Any) -> tuple[mx.array, Any]:
            nonlocal moved
            _put_statistics(model, statistics)
            model.update(parameters)
            mean, correct, gradients = self._closure(x, y, lanes, key)
            if not seen:
                moved = [a for _, a in tree_flatten(_statistics(model))]
            seen.append((mean, correct))
            return mean, gradients

        model.update(self._optimizer.minimise(evaluate, model.trainable_parameters()))
        _put_statistics(model, moved)
        loss, correct = seen[0]
        rows = float(x.shape[0])
        self._state["totals"] = self._state["totals"] + mx.array([number(loss) * rows, number(correct), rows])
        return loss, correct

    @property
    def totals(self) -> list[float]:
        """loss * rows, correct rows, rows: summed since the last reset."""
        return [float(v) for v in np.asarray(self._state["totals"])]

    def reset_totals(self) -> None:
        """Begin a new epoch."""
        self._state["totals"] = mx.zeros(3)

    @property
    def loss_scale(self) -> float:
        """The present scale of the loss (1 unless float16 is used)."""
        return number(self._state["scaling"][0])

    def carried(self) -> Carried:
        """What the next step needs, as plain numbers."""
        first, second = (int(word) for word in np.asarray(self._state["key"]))
        accumulated = None
        if self._waiting:
            accumulated = {k: view(v) for k, v in tree_flatten(self._state["accumulated"])}
        weight = number(self._state["weight"]) if self._waiting else 0
        scaling = tuple(float(v) for v in np.asarray(self._state["scaling"]))
        return Carried((first, second), tuple(self.totals), scaling, accumulated, (self._waiting, weight))


def _copied(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The same arrays in dicts of their own; quicker than ``tree_flatten``, which makes a name for each."""
    return {k: _copied(v) if isinstance(v, dict) else v for k, v in tree.items()}


def _put(tree: Any, values: Any) -> None:
    """Put arrays into the existing dicts of a tree, which compiled functions hold on to."""
    for key, value in values.items():
        if isinstance(value, dict):
            _put(tree[key], value)
        else:
            tree[key] = value


def _statistics(model: Model) -> dict[str, Any]:
    found: dict[str, dict[str, mx.array]] = {}
    for layer, name, param in model.slots():
        if not param.trainable:
            found.setdefault(layer.name, {})[name] = model[layer.name][name]
    return found


def _put_statistics(model: Model, arrays: list[mx.array]) -> None:
    names = [name for name, _ in tree_flatten(_statistics(model))]
    if names:
        _put(model, tree_unflatten(list(zip(names, arrays, strict=True))))


@contextlib.contextmanager
def mode(model: Model, *, training: bool) -> Iterator[None]:
    """The model in training or evaluation mode, and afterwards in the mode it was in."""
    before = model.training
    model.train(training)
    try:
        yield
    finally:
        model.train(before)

"""DataLoader: batches in an order that depends on nothing but seed and epoch."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any, Self

import numpy as np

from .._types import is_int
from ..errors import SpecError, shown
from .dataset import Array, Dataset


class DataLoader:
    """Serves a dataset in batches; each pass over it is one epoch with its own order.

    The order of epoch ``e`` is a permutation drawn from ``(seed, e)`` alone, so that a position is just two numbers and
    an interrupted epoch goes on with exactly the rows it had left.

    Args:
        dataset: an ArrayDataset or anything with ``len()`` and ``rows(indices)``.
        batch_size: rows in a batch, at least 1; the last one holds what is left.
        shuffle: a new order each epoch; default False.
        seed: of the order; None draws one.
        drop_last: leave a last partial batch out; default False.
    Raises: SpecError for a batch size below 1, or if drop_last would leave no batch.
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int = 32,
        shuffle: bool = False,
        seed: int | None = None,
        drop_last: bool = False,
    ) -> None:
        if not callable(getattr(dataset, "rows", None)):
            told = f"a dataset with rows(indices) is needed, got a {type(dataset).__name__}"
            raise SpecError(f"DataLoader: {told}; ArrayDataset(x, y) makes one")
        if not is_int(batch_size) or batch_size < 1:
            raise SpecError(f"DataLoader: batch_size must be an int of at least 1, got {batch_size!r}")
        if drop_last and len(dataset) < batch_size:
            raise SpecError(f"DataLoader: drop_last leaves no batch of {batch_size} from {len(dataset)} rows")
        if seed is not None and not (is_int(seed) and seed >= 0):
            raise SpecError(f"DataLoader: seed must be an int of at least 0, or None, got {seed!r}")
        self.dataset, self.batch_size = dataset, int(batch_size)
        self.shuffle, self.drop_last = shuffle, drop_last
        self.seed = int(np.random.SeedSequence().generate_state(1)[0]) if seed is None else int(seed)
        self.epoch = 0
        self.batch = 0  # the next batch of this epoch

    def __len__(self) -> int:
        rows = len(self.dataset)
        return rows // self.batch_size if self.drop_last else -(-rows // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Array, Array]]:
        """The epoch's batches, from the present position to the end; then the next epoch begins."""
        rows = len(self.dataset)
        order = np.random.default_rng([self.seed, self.epoch]).permutation(rows) if self.shuffle else np.arange(rows)
        while self.batch < len(self):
            start = self.batch * self.batch_size
            batch = self.dataset.rows(order[start : start + self.batch_size])
            self.batch += 1  # a batch that was handed out is not served again after a restart; one that failed is
            yield batch
        self.epoch, self.batch = self.epoch + 1, 0

    def from_start(self) -> Self:
        """A loader at the first batch of this epoch; this one stays where it is."""
        other = copy.copy(self)
        other.batch = 0
        return other

    def state_dict(self) -> dict[str, Any]:
        """The position, and what must be the same for it to mean anything."""
        return {
            "epoch": self.epoch, "batch": self.batch, "seed": self.seed, "shuffle": self.shuffle,
            "batch_size": self.batch_size, "drop_last": self.drop_last, "rows": len(self.dataset),
        }  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to a saved position, with the saved seed.

        Raises: SpecError if the data or its batches differ from those of the saved position.
        """
        if not isinstance(state, Mapping):
            raise SpecError(f"DataLoader: a state_dict is needed, got {shown(state)}")
        own = self.state_dict()
        for key in ("shuffle", "batch_size", "drop_last", "rows"):
            if key not in state or state[key] != own[key]:
                raise SpecError(f"DataLoader: {key} is {own[key]}, but the saved position needs {state.get(key)}")
        epoch, batch, seed = (state.get(k) for k in ("epoch", "batch", "seed"))
        if not all(is_int(v) and v >= 0 for v in (epoch, batch, seed)) or batch > len(self):  # type: ignore[operator]
            raise SpecError(f"DataLoader: epoch {epoch}, batch {batch}, seed {seed} is no position")
        self.epoch, self.batch, self.seed = epoch, batch, seed  # type: ignore[assignment]

"""What a run recorded: one row of numbers an epoch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

from .._types import is_int


class History:
    """One record for each epoch trained: ``epoch``, ``loss``, ``accuracy``, ``val_loss``, ``learning_rate``, ...

    ``history["loss"]`` is the column, ``history[-1]`` the last epoch's record, a slice some of them. Records hold only
    what the run itself determines, so that a resumed run has the same; what depends on the machine (``elapsed_s``) is
    kept beside them.
    """

    def __init__(self, records: list[dict[str, Any]] | None = None) -> None:
        self.records = [dict(r) for r in records or []]
        self.measured: list[dict[str, float]] = [{} for _ in self.records]

    def append(self, record: Mapping[str, Any], **measured: float) -> None:
        """Add an epoch."""
        self.records.append(dict(record))
        self.measured.append(measured)

    @property
    def columns(self) -> list[str]:
        """Names of everything recorded, in order of appearance."""
        return list(dict.fromkeys(name for r in self for name in r))

    def __getitem__(self, key: str | int | slice) -> Any:
        if isinstance(key, slice):
            return [*self][key]
        if is_int(key):
            return {**self.records[key], **self.measured[key]}
        if key not in self.columns:
            raise KeyError(f"{key!r} was not recorded; recorded: {', '.join(self.columns) or 'nothing yet'}")
        return [r.get(key) for r in self]

    def __len__(self) -> int:
        return len(self.records)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter({**r, **m} for r, m in zip(self.records, self.measured, strict=True))

    def __repr__(self) -> str:
        if not self.records:
            return "History(no epochs)"
        last = ", ".join(f"{k} {_short(v)}" for k, v in self[-1].items() if k != "epoch")
        return f"History({len(self)} epochs, last: {last})"

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{escape(c)}</th>" for c in self.columns)
        cells = [[r.get(c) for c in self.columns] for r in self]
        rows = "".join("<tr>" + "".join(f"<td>{escape(_short(c))}</td>" for c in row) + "</tr>" for row in cells)
        return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)

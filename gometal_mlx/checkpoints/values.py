"""What a file can hold: finite float32 numbers, and among the extras JSON values and float32 arrays."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from .._types import FloatArray
from ..errors import CheckpointError, shown

ARRAY_MARK = "float32"  # key of an array among the extras: its shape
EXTRAS_KEY = "gometal_mlx"  # the one top-level key that go-metal does not know, and so ignores
LARGEST_INT = 2**1000  # readers refuse numbers of more digits; a random generator's state has 128 bits
MAX_RANK = 32  # dimensions of an array; numpy takes 64, go-metal's engine 4
MAX_DEPTH = 100  # of maps and lists among the extras


def plain(value: Any) -> Any:
    """A number or array as JSON and people want it: numpy's as Python's, float32 by its shortest decimal."""
    if isinstance(value, np.floating):
        return float(str(value))
    return value.tolist() if isinstance(value, np.generic | np.ndarray) else value


def check_finite(data: FloatArray, where: str) -> None:
    """Raise CheckpointError with the position of the first NaN or infinity."""
    # one pass without a temporary: the largest magnitude is NaN or infinite if anything is
    if data.size and not np.isfinite(max(abs(float(data.max())), abs(float(data.min())))):
        at = int(np.argmin(np.isfinite(data.reshape(-1))))
        raise CheckpointError(f"{where}: element {at} is {data.reshape(-1)[at]}; NaN and infinity cannot be stored")


def extra_arrays(value: Any, name: str = EXTRAS_KEY) -> Iterator[tuple[str, FloatArray]]:
    """Every array among the extras, under the name that files keep it by."""
    if isinstance(value, np.ndarray):
        yield name, value
    elif isinstance(value, Mapping):
        for k, v in value.items():
            yield from extra_arrays(v, f"{name}/{k}")
    elif isinstance(value, list | tuple):
        for i, v in enumerate(value):
            yield from extra_arrays(v, f"{name}/{i}")


def check_extras(value: Any, name: str = EXTRAS_KEY, depth: int = 0) -> None:
    """Raise CheckpointError naming what among the extras no file could hold: not JSON values and float32 arrays."""
    if depth > MAX_DEPTH:
        raise CheckpointError(f"{name[:80]}: more than {MAX_DEPTH} levels deep, or within itself")
    if depth == 0 and not isinstance(value.get("info", {}), Mapping):
        raise CheckpointError(f"{name}/info: a map of names is needed, got {shown(value['info'], 60)}")
    if isinstance(value, Mapping):
        for k, v in value.items():
            if not isinstance(k, str) or not is_text(k):
                raise CheckpointError(f"{name}: the key {shown(k, 60)} is no text; JSON needs one")
            if k == ARRAY_MARK:
                raise CheckpointError(f"{name}: the key {k!r} marks an array in the file; choose another")
            check_extras(v, f"{name}/{k}", depth + 1)
    elif isinstance(value, list | tuple):
        for i, v in enumerate(value):
            check_extras(v, f"{name}/{i}", depth + 1)
    else:
        _check_extra(value, name)


def _check_extra(value: Any, name: str) -> None:
    if isinstance(value, np.ndarray):
        if value.dtype != np.float32 or not value.dtype.isnative:
            raise CheckpointError(f"{name}: an array of {value.dtype}; convert it to float32, or to a list")
        if value.ndim > MAX_RANK:
            raise CheckpointError(f"{name}: an array of {value.ndim} dimensions; at most {MAX_RANK} can be stored")
        check_finite(value, name)
    elif isinstance(value, int) and abs(value) >= LARGEST_INT:
        raise CheckpointError(f"{name}: an int of {value.bit_length()} bits; at most {LARGEST_INT.bit_length() - 1}")
    elif isinstance(value, str):
        if not is_text(value):
            raise CheckpointError(f"{name}: {shown(value, 60)} is no text that UTF-8 can hold")
    elif not isinstance(value, bool | int | float | np.bool_ | np.integer | np.floating | None):
        raise CheckpointError(f"{name}: a JSON value or a float32 array is needed, got {type(value).__name__}")


def is_text(value: str) -> bool:
    """Whether UTF-8 can hold it: half a surrogate pair it cannot."""
    return not any("\ud800" <= c <= "\udfff" for c in value)

"""Names for the few types that cross package borders, and how MLX's numbers become Python's and numpy's."""

import copy
from collections.abc import MutableMapping
from decimal import Decimal
from numbers import Real
from typing import Any, TypeGuard

import mlx.core as mx
import numpy as np
import numpy.typing as npt

FLOAT32_LIMIT = 2.0**128 - 2.0**103  # from here on numbers round to infinity

REAL = (Real, Decimal, np.bool_)  # among objects; numpy's integers and floats are Real
Shape = tuple[int, ...]
Params = MutableMapping[str, mx.array]
FloatArray = npt.NDArray[np.float32]


def is_int(value: object) -> TypeGuard[int]:
    """Whether the value is an int, Python's or numpy's, and no bool."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def is_number(value: object) -> TypeGuard[float]:
    """Whether the value is a real number, Python's or numpy's, that is finite as a float32, and no bool."""
    return (is_int(value) or isinstance(value, float | np.floating)) and fits_float32(value)


def fits_float32(value: Any) -> bool:
    """Whether a real number is finite as a float32."""
    return bool(-FLOAT32_LIMIT < (value if isinstance(value, int) else float(value)) < FLOAT32_LIMIT)


def f32(value: float | np.number[Any]) -> float:
    """The shortest decimal that stands for the value's float32: 0.1, not 0.10000000149.

    Every number that files keep as float32 passes through here once, so that what was typed, stored and read again is
    the same number. The value must fit (``fits_float32``).
    """
    return float(str(np.float32(value)))


def floats(values: npt.ArrayLike) -> FloatArray:
    """The values as float32, without a copy where they are.

    Raises: TypeError for text, dates and complex numbers, of which numpy would make numbers in silence; TypeError and
        ValueError for what it cannot convert.
    """
    if type(values) is np.ndarray and values.dtype == np.float32 and values.flags.c_contiguous:
        return values if min(values.strides, default=0) >= 0 else values.copy()  # of an axis of 1 it may be anything
    if isinstance(values, mx.array) and values.dtype == mx.bfloat16:
        values = values.astype(mx.float32)  # numpy has no bfloat16
    found = np.asarray(values)
    if found.dtype.kind in "USMmc" or found.dtype.names:
        raise TypeError(f"{found.dtype} is no real number")
    if found.dtype.kind == "O":
        odd = next((v for v in found.flat if not isinstance(v, REAL)), 0.0)
        if not isinstance(odd, REAL):
            raise TypeError(f"{type(odd).__name__} is no real number")
    try:
        found = found.astype(np.float32, copy=False)
    except OverflowError as e:
        raise ValueError(str(e)) from e
    return found if all(s >= 0 for s in found.strides) else found.copy()  # MLX takes no array that runs backwards


def view(array: mx.array) -> FloatArray:
    """An MLX array's own numbers as read-only float32; another type is converted. It waits for them.

    Nobody changes them: MLX's arrays are values, and a step of training makes new ones. The view has an array object of
    its own, for ``a += 1`` gives the object that it is called on other memory.
    """
    found = np.array(copy.copy(array), np.float32, copy=None)
    found.flags.writeable = False
    return found


def number(value: mx.array) -> float:
    """A scalar array as a float; waits for it."""
    return float(value.item())  # type: ignore[arg-type]  # item() may be complex in general

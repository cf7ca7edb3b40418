"""Go's encoding/json in Python: the same bytes out, the same values in, at the speed of compiled code.

Values going out: dict (keys in the given order), list, str, bool, None, int, float (printed as Go's float64),
numpy.float32 (as Go's float32) and float32 arrays. Values coming in: Object, list, str, bool, None, Number, Numbers.
Long arrays of numbers never become Python objects: orjson prints them, simdjson parses them.
"""

from __future__ import annotations

import codecs
import json
import math
import re
import secrets
from collections.abc import Callable
from contextlib import suppress
from decimal import Decimal
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import orjson
import simdjson

from .._types import FloatArray
from ..errors import CheckpointError

Write = Callable[[bytes], object]

PRINT_CHUNK = 1 << 14  # numbers printed at a time: their text stays in the processor's cache
BLOCK = 1 << 20  # bytes read and parsed at a time
LONG_ARRAY = 256  # bytes from which an array of numbers is worth a parser of its own
KEPT_TEXT = 1 << 16  # bytes up to which a long array's text is kept, in case it is no tensor
MAX_DEPTH = 128  # levels of nesting; a checkpoint has about ten, and what a user adds up to values.MAX_DEPTH
MAX_STRUCTURE = 1 << 26  # bytes of everything but long arrays; a checkpoint has a few thousand

# ---------------------------------------------------------------------------------------------------------- printing

_ESCAPES = {**{i: f"\\u{i:04x}" for i in range(32)}, 8: "\\b", 9: "\\t", 10: "\\n", 12: "\\f", 13: "\\r"}
_ESCAPES |= {ord(c): f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"} | {ord('"'): '\\"', ord("\\"): "\\\\"}
_ESCAPES |= dict.fromkeys(range(55296, 57344), "\\ufffd")  # what Go prints for text that is not UTF-8

_EXPONENT = re.compile(rb"(-?)(\d)(?:\.(\d+))?e\+?(\d+)")
ORJSON_EXPONENT_FROM = 1e13  # orjson changes to exponents about there, Go at 1e21


def float_text(value: float | np.floating[Any]) -> str:
    """The number as Go prints it: shortest digits for its own precision (numpy.float32 or else float64).

    Raises: CheckpointError for NaN and infinity.
    """
    number = value if isinstance(value, np.floating) else np.float64(value)
    if not np.isfinite(number):
        raise CheckpointError(f"{value} has no JSON form; NaN and infinity cannot be stored")
    size = abs(number)
    if size and (size < type(number)(1e-6) or size >= type(number)(1e21)):
        return np.format_float_scientific(number, unique=True, trim="-", exp_digits=1)
    return np.format_float_positional(number, unique=True, trim="-")


def string_text(value: str) -> str:
    """The text in quotes, escaped as Go escapes it (HTML characters included)."""
    return f'"{value.translate(_ESCAPES)}"'


def floats_text(a: FloatArray, indent: int) -> bytes:
    """The finite numbers of a flat float32 array as Go prints them in an array so far indented: one a line."""
    nested: Any = a
    depth = min(indent, 8)
    for _ in range(depth):  # orjson indents by depth, in the same way
        nested = [nested]
    text = orjson.dumps(nested, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_INDENT_2)
    text = text[(depth + 1) * (depth + 4) : -(depth + 1) * (depth + 2)]
    if (a == np.trunc(a)).any():
        text = (text + b",").replace(b".0,", b",")[:-1]
    if max(a.max(), -a.min()) >= ORJSON_EXPONENT_FROM:
        text = _EXPONENT.sub(_positional, text)
    return text if depth == indent else text.replace(b"\n", b"\n" + b"  " * (indent - depth))


def _positional(m: re.Match[bytes]) -> bytes:
    sign, digit, rest, exponent = m[1], m[2], m[3] or b"", int(m[4])
    if exponent >= 21:
        return sign + digit + (b"." + rest if rest else b"") + b"e+" + str(exponent).encode()
    return sign + digit + rest + b"0" * (exponent - len(rest))


def encode(value: Any, write: Write, indent: int = 0) -> None:
    """Write the value with Go's two-space indentation, piece by piece.

    Raises: CheckpointError for NaN, infinity and types JSON has no form for.
    """
    if isinstance(value, np.ndarray):
        _encode_array(value, write, indent)
    elif isinstance(value, dict) and value:
        start = b"{\n"
        for key, item in value.items():
            write(start + b"  " * (indent + 1) + string_text(key).encode() + b": ")
            encode(item, write, indent + 1)
            start = b",\n"
        write(b"\n" + b"  " * indent + b"}")
    elif isinstance(value, list | tuple) and value:
        start = b"[\n"
        for item in value:
            write(start + b"  " * (indent + 1))
            encode(item, write, indent + 1)
            start = b",\n"
        write(b"\n" + b"  " * indent + b"]")
    else:
        write(_scalar(value).encode())


def _scalar(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool | np.bool_):
        return "true" if value else "false"
    if isinstance(value, int | np.integer):
        return str(int(value))
    if isinstance(value, float | np.floating):
        return float_text(value)
    if isinstance(value, str):
        return string_text(value)
    if isinstance(value, dict | list | tuple):
        return "{}" if isinstance(value, dict) else "[]"
    raise CheckpointError(f"{type(value).__name__} has no JSON form; use texts, numbers, booleans, lists and maps")


def _encode_array(a: FloatArray, write: Write, indent: int) -> None:
    if a.dtype != np.float32:
        raise CheckpointError(f"an array of {a.dtype} has no JSON form here; convert it to float32")
    flat = np.ascontiguousarray(a).reshape(-1)
    if not flat.size:
        write(b"[]")
        return
    pad = b"\n" + b"  " * (indent + 1)
    start = b"[" + pad
    for i in range(0, flat.size, PRINT_CHUNK):
        chunk = flat[i : i + PRINT_CHUNK]
        if not np.isfinite(max(abs(float(chunk.max())), abs(float(chunk.min())))):
            raise CheckpointError("NaN and infinity cannot be stored")
        write(start)
        write(floats_text(chunk, indent))
        start = b"," + pad
    write(b"\n" + b"  " * indent + b"]")


# ----------------------------------------------------------------------------------------------------------- reading


class Object(list[tuple[str, Any]]):
    """A JSON object as its pairs, duplicates included: what they mean depends on the field (Go's rules)."""


class Number(str):
    """A JSON number as its literal, because Go's reading depends on the type of the field."""

    __slots__ = ()

    @property
    def is_integer(self) -> bool:
        return not any(c in ".eE" for c in self)

    def float32(self) -> np.float32:
        """Rounded once, to float32, as Go does; OverflowError if it does not fit."""
        return _round_once(self, float(self))

    def float64(self) -> float:
        """As a float64; OverflowError if it does not fit."""
        if not math.isfinite(value := float(self)):
            raise OverflowError(self)
        return value


class Numbers:
    """A long flat array of scalars, parsed as float32 while the file is read (null as 0)."""

    def __init__(self) -> None:
        self._parts: list[FloatArray] = []
        self._count = 0
        self._text: bytes | None = b""
        self._error: Exception | None = None

    def feed(self, chunk: bytes, *, last: bool) -> None:
        """Take the next elements; ValueError if the chunk is no list of scalars."""
        if not (last and not self._count and not chunk.strip()):  # [ ] is an empty array, [1, ] is broken
            part, error = _parse_floats(chunk, self._count)
            self._error = self._error or error
            self._parts.append(part)
            self._count += part.size
        if self._text is not None:
            keep = len(self._text) + len(chunk) < KEPT_TEXT
            self._text = self._text + chunk + (b"" if last else b",") if keep else None

    def float32(self) -> FloatArray:
        """All elements, rounded once to float32 as Go does.

        Raises: OverflowError or ValueError with the index of an element that does not fit or is no number.
        """
        if self._error:
            raise self._error
        return np.concatenate(self._parts) if self._parts else np.zeros(0, np.float32)

    def items(self) -> list[Any]:
        """The elements one by one, as ``decode`` gives them; OverflowError for an absurdly long list."""
        if self._text is None:
            raise OverflowError(f"{self._count} elements")
        items: list[Any] = _load(b"[" + self._text + b"]")[0]
        return items


_LONG_INTEGER = re.compile(rb"(\d{19})(?=[,\s]|\Z)")  # simdjson takes integers up to 2**64


def _parse_floats(chunk: bytes, offset: int) -> tuple[FloatArray, Exception | None]:
    wide = _doubles(chunk)
    if wide is None:
        wide = _doubles(_LONG_INTEGER.sub(rb"\1.0", chunk))
    if wide is None or not wide.size:
        return _parse_slowly(chunk, offset)
    with np.errstate(over="ignore", under="ignore"):
        narrow = wide.astype(np.float32)
    if (middle := _middles(wide)).size:
        literals = chunk.split(b",")
        with suppress(OverflowError):  # it stays infinite
            narrow[middle] = [Number(literals[i].strip().decode()).float32() for i in middle]
    if not np.isfinite(max(narrow.max(), -narrow.min())):
        return _parse_slowly(chunk, offset)  # which knows the first that does not fit
    if b"-0" in chunk and (wide == 0).any():
        narrow[_negative_zeros(chunk)] = -0.0
    return narrow, None


def _negative_zeros(chunk: bytes) -> npt.NDArray[np.intp]:
    """Indices of the elements ``-0``, which simdjson reads as the integer 0."""
    text = np.frombuffer(b" %b," % chunk, np.uint8)
    at = np.flatnonzero((text[1:-2] == ord("-")) & (text[2:-1] == ord("0"))) + 1
    at = at[np.isin(text[at - 1], list(b",\n\t\r ")) & np.isin(text[at + 2], list(b",\n\t\r "))]
    return np.searchsorted(np.flatnonzero(text == ord(",")), at)


def _doubles(chunk: bytes) -> npt.NDArray[np.float64] | None:
    """The elements as float64, each rounded once; None unless they are numbers that simdjson takes."""
    try:
        array: Any = simdjson.Parser().parse(b"[" + chunk + b"]")
        return np.frombuffer(array.as_buffer(of_type="d"), np.float64)
    except (ValueError, TypeError, RuntimeError, OverflowError):
        return None


def _middles(wide: npt.NDArray[np.float64]) -> npt.NDArray[np.intp]:
    """Indices of what lies exactly half-way between two neighbouring float32.

    Only there does rounding twice (to float64, then to float32) differ from rounding once. The last 29 bits are then
    1000...; below the normal float32, whose neighbours are 2**-149 apart, it is an odd multiple of half of that.
    """
    found = (wide.view(np.uint64) & np.uint64(0x1FFFFFFF)) == np.uint64(0x10000000)
    small = np.flatnonzero((np.abs(wide) < 2.0**-126) & (wide != 0))
    if small.size:
        found[small] = np.fmod(np.abs(wide[small]) * 2.0**150, 2.0) == 1.0
    return np.flatnonzero(found)


def _parse_slowly(chunk: bytes, offset: int) -> tuple[FloatArray, Exception | None]:
    items, end = _load(b"[" + chunk + b"]")
    if (
        end != len(chunk) + 2
        or not items
        or any(isinstance(i, list | str) and not isinstance(i, Number) for i in items)
    ):
        raise ValueError("no list of scalars")
    out, error = np.zeros(len(items), np.float32), None
    for i, item in enumerate(items):
        try:
            if item is not None:
                out[i] = item.float32() if isinstance(item, Number) else _no_number(item)
        except (OverflowError, ValueError) as e:
            error = error or type(e)(offset + i)
    return out, error


def _no_number(item: Any) -> Any:
    raise ValueError(item)


def _round_once(literal: str, wide: float) -> np.float32:
    with np.errstate(over="ignore", under="ignore"):
        narrow = np.float32(wide)
    if math.isfinite(wide) and _between(wide, narrow):
        low, high = sorted((narrow, np.nextafter(narrow, np.float32(np.copysign(np.inf, wide - float(narrow))))))
        exact, middle = Decimal(literal), Decimal(wide)
        if exact != middle:  # on the middle itself both ways round to even
            narrow = high if exact > middle else low
    if not np.isfinite(narrow):
        raise OverflowError(literal)
    return narrow


def _between(wide: float, narrow: np.float32) -> bool:
    """Whether a float64 lies exactly half-way between two neighbouring float32."""
    if not np.isfinite(narrow):
        return abs(wide) == 3.4028235677973366e38  # half-way between the largest float32 and 2**128
    away = wide - float(narrow)
    with np.errstate(over="ignore", under="ignore"):
        other = float(np.nextafter(narrow, np.float32(math.copysign(math.inf, away)))) if away else float(narrow)
    return away != 0 and math.isfinite(other) and abs(other - wide) == abs(away)


def _go_invalid_utf8(e: UnicodeError) -> tuple[str, int]:
    if not isinstance(e, UnicodeDecodeError):
        raise e
    return "\ufffd" * (e.end - e.start), e.end  # one for each byte, as Go


codecs.register_error("gometal_mlx.go", _go_invalid_utf8)


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")


_decoder = json.JSONDecoder(
    object_pairs_hook=Object, parse_int=Number, parse_float=Number, parse_constant=_refuse_constant
)


def _load(data: bytes) -> tuple[Any, int]:
    return _load_text(data.decode("utf-8", "gometal_mlx.go"))


def _load_text(text: str) -> tuple[Any, int]:
    """The first JSON value and where it ends; ValueError for broken syntax."""
    return _decoder.raw_decode(text, len(text) - len(text.lstrip(" \t\r\n")))


def decode(open_file: Callable[[], BinaryIO], where: str) -> tuple[Any, bool]:
    """The first JSON value of a file, and whether anything but white space follows it.

    Memory: the arrays themselves, one block, and the few kilobytes between the arrays.

    Raises: CheckpointError naming the file and the byte where the syntax breaks.
    """
    irregular: set[int] = set()  # where arrays begin that start like numbers and hold something else
    while True:
        splitter = _Splitter(where, irregular)
        with open_file() as file:
            splitter.run(file.read)
        if splitter.irregular_at is None:
            return splitter.value()
        irregular.add(splitter.irregular_at)
        if len(irregular) > 8:
            raise CheckpointError(f"{where}: too many arrays that mix numbers with other things to be a checkpoint")


class _Splitter:
    """Separates the long arrays from the rest of a JSON text while it is read, a marker standing in for each."""

    _TOKEN = re.compile(rb'["\[]')
    _STRING = re.compile(rb'"(?:[^"\\]|\\.)*+"', re.DOTALL)
    _START = re.compile(rb"\[[\s\d.,eE+\-nul]{%d}" % LONG_ARRAY)
    _KEY = re.compile(rb'"data"\s{0,64}:\s{0,64}\Z', re.IGNORECASE)  # tensors' numbers, the only ones worth it

    def __init__(self, where: str, irregular: set[int]) -> None:
        self._where, self._irregular = where, irregular
        self._marker = f"\x7f{secrets.token_hex(8)}:"  # nobody can know it beforehand
        self._pieces: list[bytes] = []
        self._size = 0
        self._arrays: list[Numbers] = []
        self._spans: list[tuple[int, int]] = []
        self._window, self._offset, self._at, self._eof = b"", 0, 0, False
        self.irregular_at: int | None = None

    def run(self, read: Callable[[int], bytes]) -> None:
        self._read, scan = read, 0  # what lies between self._at and scan is known to belong to the structure
        while True:
            token = self._TOKEN.search(self._window, scan)
            start = token.start() if token else len(self._window)
            if token and token[0] == b'"':
                if string := self._STRING.match(self._window, start):
                    scan = string.end()
                    continue
            elif token and (len(self._window) - start > LONG_ARRAY or self._eof):
                scan = start + 1
                if self._is_tensor(start):
                    self._emit(start)
                    if not self._array():
                        return
                    scan = self._at
                continue
            self._emit(start)
            if not self._more():
                self._emit(len(self._window))
                return
            scan = 0

    def _is_tensor(self, start: int) -> bool:
        if self._offset + start in self._irregular or not self._START.match(self._window, start):
            return False
        before = self._window[max(self._at, start - 140) : start]
        return bool(self._KEY.search(before if len(before) == 140 else b"".join(self._pieces[-2:])[-140:] + before))

    def _emit(self, end: int) -> None:
        self._pieces.append(self._window[self._at : end])
        self._size += end - self._at
        self._at = end
        if self._size > MAX_STRUCTURE:
            raise CheckpointError(
                f"{self._where}: more than {MAX_STRUCTURE >> 20} MB outside of number arrays; this is no checkpoint"
            )

    def _more(self) -> bool:
        rest = self._window[self._at :]
        if len(rest) > MAX_STRUCTURE:
            raise CheckpointError(
                f"{self._where}: one value of more than {MAX_STRUCTURE >> 20} MB; this is no checkpoint"
            )
        block = self._read(max(BLOCK, len(rest)))
        self._offset += self._at
        self._window, self._at = rest + block, 0
        self._eof = not block
        return bool(block)

    def _array(self) -> bool:
        """Take the array whose bracket is next; False if it turns out not to be a flat array."""
        begin, numbers = self._offset + self._at, Numbers()
        self._at += 1
        closed = False
        while not closed:
            end = self._cut()
            if end < 0:
                if self._more():
                    continue
                end = len(self._window)  # the array does not end; the parser of the structure will say so
            closed = end == len(self._window) or self._window[end] == 0x5D
            try:
                numbers.feed(self._window[self._at : end], last=closed)
            except (ValueError, RecursionError):
                self.irregular_at = begin
                return False
            self._at = min(end + 1, len(self._window))
        self._pieces.append(f'"{self._marker}{len(self._arrays)}"'.encode())
        self._arrays.append(numbers)
        self._spans.append((begin, self._offset + self._at))
        return True

    def _cut(self) -> int:
        """Where the array's next piece ends, at a comma or the closing bracket; -1 if that is not in the window."""
        close = self._window.find(b"]", self._at)
        if 0 <= close <= self._at + 2 * BLOCK:
            return close
        comma = self._window.rfind(b",", self._at, self._at + BLOCK)
        if comma < 0:
            comma = self._window.find(b",", self._at, close if close >= 0 else len(self._window))
        return close if comma < 0 else comma

    def value(self) -> tuple[Any, bool]:
        skeleton = b"".join(self._pieces)
        if not skeleton.strip():
            raise CheckpointError(f"{self._where}: the file is empty; a JSON object is needed")
        if skeleton.startswith(codecs.BOM_UTF8):
            raise CheckpointError(
                f"{self._where}: begins with a byte order mark, which Go refuses; remove the first three bytes"
            )
        text = skeleton.decode("utf-8", "gometal_mlx.go")
        try:
            value, end = _load_text(text)
            value = self._unmark(value)
        except json.JSONDecodeError as e:
            at = self._origin(len(text[: e.pos].encode("utf-8", "surrogatepass")))
            raise CheckpointError(
                f"{self._where}: broken JSON at byte {at}: {e.msg}; the file is damaged or truncated"
            ) from e
        except ValueError as e:
            raise CheckpointError(f"{self._where}: broken JSON: {e}; the file is damaged") from e
        except RecursionError as e:
            raise CheckpointError(f"{self._where}: nested too deeply to be a checkpoint") from e
        return value, bool(text[end:].strip())

    def _origin(self, at: int) -> int:
        """The byte in the file for a byte of the text in which markers stand for the long arrays."""
        for i, (a, b) in enumerate(self._spans):
            if at <= a:
                break
            at += (b - a) - len(f'"{self._marker}{i}"')
        return at

    def _unmark(self, value: Any, depth: int = 0) -> Any:
        if depth > MAX_DEPTH:
            raise RecursionError
        if isinstance(value, str) and not isinstance(value, Number):
            if value.startswith(self._marker):
                return self._arrays[int(value[len(self._marker) :])]
            # a lone \ud800 escape, which Go reads as U+FFFD
            return re.sub("[\ud800-\udfff]", "\ufffd", value)
        if isinstance(value, Object):
            return Object((self._unmark(k), self._unmark(v, depth + 1)) for k, v in value)
        if isinstance(value, list):
            return [self._unmark(v, depth + 1) for v in value]
        return value

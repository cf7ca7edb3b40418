"""Go's encoding/json: the text of every number and string, and the reading rules one by one."""

import io
import json
from decimal import Context, Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import reference_json as go
from checkpoint_samples import GOLDEN, as_bytes, bounded, one_line, read, read_data, read_fields
from hypothesis import given
from hypothesis import strategies as st

from gometal_mlx.checkpoints import go_json
from gometal_mlx.checkpoints.go_json import Number, Numbers, Object
from gometal_mlx.errors import CheckpointError

LINES = [line.split() for line in (GOLDEN / "float32_text.txt").read_text().splitlines()]
PADDING = 300  # elements "0" that make an array longer than LONG_ARRAY bytes, so that it takes the fast path


def from_bits(bits: int) -> np.float32:
    return np.uint32(bits).view(np.float32)


def encode(value: Any) -> str:
    parts: list[bytes] = []
    go_json.encode(value, parts.append)
    return b"".join(parts).decode()


def decode(data: bytes | str) -> Any:
    content = data.encode() if isinstance(data, str) else data
    return go_json.decode(lambda: io.BytesIO(content), "f.json")


def plain(value: Any) -> Any:
    """Decoded values as Python's own json module would give them, numbers as their literals."""
    if isinstance(value, Numbers):
        return [plain(v) for v in value.items()]
    if isinstance(value, Object):
        return {k: plain(v) for k, v in value}
    if isinstance(value, list):
        return [plain(v) for v in value]
    return ("number", str(value)) if isinstance(value, Number) else value


def expected(text: str) -> Any:
    return json.loads(text, parse_int=lambda s: ("number", s), parse_float=lambda s: ("number", s))


# ---------------------------------------------------------------------------------------------------------- printing


def test_go_printed_numbers_are_printed_alike_one_by_one() -> None:
    assert [go_json.float_text(from_bits(int(bits, 16))) for bits, _ in LINES] == [text for _, text in LINES]


def test_go_printed_numbers_are_printed_alike_in_an_array() -> None:
    a = np.array([int(bits, 16) for bits, _ in LINES], np.uint32).view(np.float32)
    assert go_json.floats_text(a, 0).decode().split(",\n  ") == [text for _, text in LINES]
    assert go_json.floats_text(a[:1], 5).decode() == LINES[0][1]


def test_go_printed_numbers_are_read_back_to_the_bit() -> None:
    a = read_data([text for _, text in LINES], ",\n          ")
    assert a.view(np.uint32).tolist() == [int(bits, 16) for bits, _ in LINES]


FLOAT32_VECTORS = [
    (0.0, "0"), (-0.0, "-0"), (1, "1"), (-1, "-1"), (100, "100"), (0.1, "0.1"), (1 / 3, "0.33333334"),
    (1e-5, "0.00001"), (1e-6, "0.000001"), (2e-6, "0.000002"), (9.99999e-7, "9.99999e-7"), (1e-7, "1e-7"),
    (1.5e-9, "1.5e-9"), (1.2345678e-12, "1.2345678e-12"), (2.0**-149, "1e-45"), (16777216, "16777216"),
    (123456789, "123456790"), (1e10, "10000000000"), (1e20, "100000000000000000000"), (1e21, "1e+21"),
    (3.4028234663852886e38, "3.4028235e+38"), (1e13, "10000000000000"),
    (float(go.nearest_float32("7.038531e-26")), "7.038531e-26"),
    (9.9999995e20, "999999950000000000000"), (1e12, "1000000000000"), (1.5e13, "15000000000000"),
]  # fmt: skip


@pytest.mark.parametrize(("value", "text"), FLOAT32_VECTORS, ids=[t for _, t in FLOAT32_VECTORS])
def test_float32_texts_of_the_reference(value: float, text: str) -> None:
    assert go_json.float_text(np.float32(value)) == text
    assert go_json.floats_text(np.array([value, 0.5], np.float32), 1).decode() == f"{text},\n    0.5"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (float(np.float32(0.1)), "0.10000000149011612"), (1e-100, "1e-100"), (1e21, "1e+21"),
        (123456789012345680000.0, "123456789012345680000"), (1.0, "1"), (-0.0, "-0"), (5e-324, "5e-324"),
        (1e-6, "0.000001"), (np.nextafter(1e-6, 0), "9.999999999999997e-7"),
    ],
)  # fmt: skip
def test_float64_texts_of_the_reference(value: float, text: str) -> None:
    assert encode(value) == text
    assert encode(np.float64(value)) == text


def test_string_of_the_reference() -> None:
    assert go_json.string_text('a<b>&\u2028\x01\n"\\/é') == '"a\\u003cb\\u003e\\u0026\\u2028\\u0001\\n\\"\\\\/é"'


@bounded(60)
@given(st.text(st.characters(exclude_categories=()), max_size=30))
def test_any_string_is_escaped_as_go_does(text: str) -> None:
    assert go_json.string_text(text) == go.string(text)


def test_every_character_is_escaped_as_go_does() -> None:
    everything = "".join(map(chr, [*range(0x3000), *range(0xD7F0, 0xE010), *range(0xFFF0, 0x10010), 0x1F642, 0x10FFFF]))
    assert go_json.string_text(everything) == go.string(everything)


FLOAT32S = st.integers(0, 2**32 - 1).map(from_bits).filter(np.isfinite) | st.floats(width=32, allow_nan=False).filter(
    np.isfinite
).map(np.float32)
NUMBERS = st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False) | FLOAT32S
SCALARS = st.none() | st.booleans() | NUMBERS | st.text(st.characters(exclude_categories=()), max_size=8)
ARRAYS = st.lists(FLOAT32S, max_size=20).map(lambda v: np.array(v, np.float32))
TREES = st.recursive(
    SCALARS | ARRAYS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=12,
)


@bounded(200)
@given(st.lists(FLOAT32S, min_size=1, max_size=200))
def test_any_float32_is_printed_as_go_does(values: list[np.float32]) -> None:
    text = go_json.floats_text(np.array(values, np.float32), 0).decode()
    assert text.split(",\n  ") == [go.number(v) for v in values]
    assert go_json.float_text(values[0]) == go.number(values[0])


def test_floats_near_every_power_of_ten_are_printed_as_go_does() -> None:
    near = [np.float32(float(f"1e{e}")) for e in range(-45, 39)]
    for step in (np.inf, -np.inf):
        near += [np.nextafter(x, np.float32(step)) for x in near]
    a = np.array(near, np.float32)
    assert go_json.floats_text(a, 0).decode().split(",\n  ") == [go.number(x) for x in a]


@bounded(200)
@given(TREES)
def test_any_tree_is_printed_as_go_does(tree: Any) -> None:
    assert encode(tree) == go.value(tree)


@pytest.mark.parametrize("extra", [-1, 0, 1, 2])
def test_arrays_printed_in_pieces_have_no_seam(extra: int) -> None:
    a = np.arange(2 * go_json.PRINT_CHUNK + extra, dtype=np.float32) - 1.5
    assert encode({"a": [a]}) == go.value({"a": [a]})


@pytest.mark.parametrize("depth", [0, 1, 3, 7, 8, 9, 20, 300])
def test_arrays_are_indented_at_any_depth(depth: int) -> None:
    tree: Any = np.array([0.5, 1, -1e20, 3], np.float32)
    for i in range(depth):
        tree = [tree] if i % 2 else {"k": tree}
    assert encode(tree) == go.value(tree)


@pytest.mark.parametrize("empty", [[], {}, (), np.zeros(0, np.float32), np.zeros((3, 0), np.float32)])
def test_empty_is_printed_without_a_line_break(empty: Any) -> None:
    assert encode({"k": empty}) == f'{{\n  "k": {"{}" if isinstance(empty, dict) else "[]"}\n}}'


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", [float, np.float32, lambda v: np.array([1, v], np.float32)])
def test_nan_and_infinity_are_not_printed(bad: float, kind: Any) -> None:
    with pytest.raises(CheckpointError, match="cannot be stored"):
        encode({"k": kind(bad)})


@pytest.mark.parametrize("bad", [1j, b"x", {1, 2}, object(), np.zeros(2), np.zeros(2, np.int32)])
def test_what_json_cannot_hold_is_refused(bad: Any) -> None:
    with pytest.raises(CheckpointError, match="has no JSON form"):
        encode([bad])


# ----------------------------------------------------------------------------------------------- reading: the syntax


@pytest.mark.parametrize("data", [b"", b" \n\t"])
def test_an_empty_file_is_refused(data: bytes) -> None:
    with pytest.raises(CheckpointError, match="empty"):
        decode(data)


def test_a_byte_order_mark_is_refused() -> None:
    with pytest.raises(CheckpointError, match="byte order mark"):
        decode(b"\xef\xbb\xbf{}")


@pytest.mark.parametrize("rest", [b"x", b"{}", b"\n\n0", b"\x00", b'"', b"[" + b"1," * 500])
def test_trailing_bytes_are_noticed_and_ignored(rest: bytes) -> None:
    assert decode(b'{"a": 1}' + rest) == (Object([("a", "1")]), True)


@pytest.mark.parametrize("space", [b"", b"\n", b" \t\r\n"])
def test_trailing_white_space_is_nothing(space: bytes) -> None:
    assert decode(space + b'{"a": 1}' + space) == (Object([("a", "1")]), False)


@pytest.mark.parametrize(
    "token",
    ["NaN", "Infinity", "-Infinity", "nan", "inf", "1e", ".5", "5.", "+1", "01", "0x1", "--1", "1_0", "True", "nil"],
)
@pytest.mark.parametrize("padding", [0, PADDING])
def test_what_is_no_json_number_is_refused(token: str, padding: int) -> None:
    for elements in ([token] + ["0"] * padding, ["0"] * padding + [token], ["0"] * padding + [token, "1"]):
        with pytest.raises(CheckpointError) as e:
            read_data(elements)
        one_line(e.value, "f.json")


@pytest.mark.parametrize(
    "array", ["[,", "[1,]", "[1,,2]", "[1 2]", "[,1]", "[1", "[1,", "[1}", "[1:2]", "[1\x0b]", "[-]"]
)
@pytest.mark.parametrize("padding", [0, PADDING])
def test_broken_arrays_are_refused(array: str, padding: int) -> None:
    zeros = "0, " * padding
    for text in (array.replace("[", "[" + zeros, 1), "[" + zeros + array + "]" if padding else array):
        with pytest.raises(CheckpointError) as e:
            read('{"model_spec": {}, "x": ' + text)
        one_line(e.value, "f.json")


@pytest.mark.parametrize("key", ["[" + "1," * PADDING + "1]", "[1]", "1", "null", "{}"])
def test_only_strings_are_keys(key: str) -> None:
    with pytest.raises(CheckpointError) as e:
        decode("{" + key + ": 5}")
    one_line(e.value, "f.json")


def test_the_byte_where_the_syntax_breaks_is_told_even_behind_long_arrays() -> None:
    text = '{"a": [' + ", ".join(["0"] * PADDING) + '], "é": [' + ", ".join(["1"] * PADDING) + "], oops}"
    with pytest.raises(CheckpointError) as e:
        decode(text)
    one_line(e.value, f"at byte {text.encode().index(b'oops')}")


@pytest.mark.parametrize("depth", [200, 400, 500, 990, 1100, 100_000])
@pytest.mark.parametrize(("open_", "close"), [("[", "]"), ('{"x":', "}")], ids=["arrays", "objects"])
@pytest.mark.parametrize("where", ['"unknown"', '"gometal_mlx"', '"weights"'])
def test_a_depth_bomb_is_an_error_or_harmless(depth: int, open_: str, close: str, where: str) -> None:
    bomb = open_ * depth + "1" + close * depth
    try:
        read_fields(f"{where}: {bomb}")
    except CheckpointError as e:
        one_line(e, "f.json")
    else:
        assert depth < 1000


@pytest.mark.parametrize("closed", [True, False])
def test_a_depth_bomb_inside_a_long_array_is_an_error(closed: bool) -> None:
    with pytest.raises(CheckpointError) as e:
        read_fields('"x": [' + "1," * PADDING + "[" * 50_000 + "]" * (50_000 * closed))
    one_line(e.value, "f.json")


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b"\xff", "\ufffd"), (b"\xe2\x82", "\ufffd\ufffd"), (b"\xed\xa0\x80", "\ufffd" * 3),
        (b"a\xc3(b", "a\ufffd(b"), (b"\xf0\x9f\x99\x82", "🙂"), (b"\\ud83d\\ude42", "🙂"), (b"\\ud800", "\ufffd"),
        (b"\\udc00\\ud800", "\ufffd\ufffd"), (b"\\ud800\\ud83d\\ude42", "\ufffd🙂"), (b"\\u0000\\/\\b", "\x00/\b"),
        (b"\x7f", "\x7f"), (b"\\ud800x", "\ufffdx"), (b"\\ud800\\n", "\ufffd\n"),
    ],
)  # fmt: skip
def test_strings_are_read_as_go_does(raw: bytes, text: str) -> None:
    assert decode(b'["' + raw + b'"]')[0] == [text]
    assert decode(b'{"' + raw + b'": 1}')[0] == [(text, "1")]


@pytest.mark.parametrize("raw", [b"\x00", b"\n", b"\x1f", b"\\x", b"\\u12g4", b"\\u12", b"\\", b"\\'"])
def test_broken_strings_are_refused(raw: bytes) -> None:
    with pytest.raises(CheckpointError):
        decode(b'["' + raw + b'"]')


# --------------------------------------------------------------------------------------------- reading: long arrays

WORDS = st.sampled_from(["1", "-0", "0.5", "1e3", "-1E-7", "null", "12345678901234567890123", "3.14159274"])
LONG_NUMBERS = st.tuples(st.lists(WORDS, min_size=1, max_size=40), st.integers(1, 20)).map(lambda p: p[0] * p[1])
SPACES = st.sampled_from(["", " ", "\n    "])
TRICKY = ["[1,2,3", "]", "\\", '"', '\\"', "[" + "1," * 200, "[" + "1," * 200 + "1]", "\\" * 7, "\\" * 8 + '"', "é🙂"]
STRING_TEXTS = st.lists(st.sampled_from(TRICKY) | st.text(max_size=5), max_size=6).map("".join)
JSON_TEXTS = st.recursive(
    st.tuples(STRING_TEXTS, st.booleans()).map(lambda p: json.dumps(p[0], ensure_ascii=p[1]))
    | st.tuples(LONG_NUMBERS, SPACES).map(lambda p: "[" + p[1] + ("," + p[1]).join(p[0]) + p[1] + "]")
    | st.sampled_from(["true", "[]", "{}", "[ ]", "-1.5e7"]),
    lambda inner: (
        st.tuples(st.lists(inner, max_size=4), SPACES).map(lambda p: "[" + ("," + p[1]).join(p[0]) + "]")
        | st.dictionaries(STRING_TEXTS, inner, max_size=4).map(
            lambda d: "{" + ",".join(f"{json.dumps(k)}:{v}" for k, v in d.items()) + "}"
        )
    ),
    max_leaves=5,
)


@bounded(250)
@given(JSON_TEXTS, st.sampled_from([64, 257, 300, 511, 4096, go_json.BLOCK]))
def test_any_json_is_read_whatever_the_block_borders(text: str, block: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(go_json, "BLOCK", block)
        value, trailing = decode(text)
    assert (plain(value), trailing) == (expected(text), False)


def test_white_space_longer_than_a_block_inside_an_array(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(go_json, "BLOCK", 300)
    text = "[" + "1," * PADDING + " " * 1000 + "2," + " " * 1000 + "3]"
    assert plain(decode(text)[0]) == expected(text)


@pytest.mark.parametrize("shift", range(20))
def test_strings_with_runs_of_backslashes_cross_block_borders(shift: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(go_json, "BLOCK", 300)
    strings = [n * "\\" + '"[1,2,3' for n in range(40)]
    text = " " * shift + json.dumps({"s": strings, "data": [1, 2] * PADDING})
    value, _ = decode(text)
    assert value[0] == ("s", strings)
    assert value[1][1].float32().tolist() == [1, 2] * PADDING


def test_a_string_that_looks_like_a_long_array_stays_a_string() -> None:
    text = "[" + ",".join(map(str, range(1000))) + "]"
    assert decode(json.dumps({"k": text, text: 1}))[0] == [("k", text), (text, "1")]


@pytest.mark.parametrize("extra", [-3, 0, 1, 7])
def test_arrays_larger_than_a_block(extra: int) -> None:
    count = go_json.BLOCK // 4 + extra
    a = (np.arange(count) % 9973 / 64 - 50).astype(np.float32)
    text = b'{"data": [' + b",\n".join(repr(float(v)).encode() for v in a) + b'], "b": "c"}'
    assert len(text) > 2 * go_json.BLOCK
    (_, numbers), last = decode(text)[0]
    assert numbers.float32().tobytes() == a.tobytes()
    assert last == ("b", "c")


@pytest.mark.parametrize("position", [0, 255, 256, 257, 1000, 2000])
@pytest.mark.parametrize("odd", ['"x"', "[1]", "{}", "true", "[[2], 3]", '{"k": [1, 2]}', '"[1,2"'])
def test_arrays_that_mix_numbers_with_other_things(position: int, odd: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(go_json, "BLOCK", 700)
    elements = ["1"] * position + [odd] + ["2"] * 400
    text = '{"data": [' + ", ".join(elements) + '], "DATA" : [' + "5, " * PADDING + "5]}"
    value = plain(decode(text)[0])
    assert value == expected(text)


def test_long_arrays_in_unknown_keys_are_ignored() -> None:
    huge = "1e999, " * PADDING + "1"
    c = read_fields(f'"what": [{huge}], "weights": [{{"name": "w", "shape": [1], "data": [3], "more": [{huge}]}}]')
    assert c.weights[0].data.tolist() == [3]
    assert {"$.weights[0]: ignored the unknown key 'more'", "$: ignored the unknown key 'what'"} <= set(c.notes)


def test_null_elements_are_zero_and_white_space_does_not_matter() -> None:
    for padding in ([], ["0"] * PADDING):
        a = read_data(["1", "null", *padding, "null", "-2"], " \r\n\t, ")
        assert a.tolist() == [1, 0, *[0] * len(padding), 0, -2]


@pytest.mark.parametrize("bad", ["true", "false", '"1"', "[1]", "{}"])
@pytest.mark.parametrize("padding", [0, PADDING])
def test_elements_that_are_no_numbers_are_refused(bad: str, padding: int) -> None:
    with pytest.raises(CheckpointError) as e:
        read_data(["0"] * padding + [bad])
    one_line(e.value, "f.json", f"$.weights[0].data[{padding}]", "a number is needed")


# ------------------------------------------------------------------------------------------------ reading: numbers


def exact_text(value: Fraction) -> str:
    """The decimal of a fraction whose denominator is a power of two, all digits."""
    digits = Context(prec=2000)
    return format(digits.divide(Decimal(value.numerator), Decimal(value.denominator)), "f")


def ties() -> list[str]:
    """Literals exactly between two float32, and one digit beside: rounding to float64 first gets these wrong."""
    found = []
    for bits in (0, 1, 2, 0x7FFFFF, 0x800000, 0x800001, 0x3F800000, 0x3F800001, 0x3F7FFFFF, 0x4B000001, 0x7F7FFFFE):
        low, high = Fraction(float(from_bits(bits))), Fraction(float(from_bits(bits + 1)))
        middle = exact_text((low + high) / 2)
        point = "" if "." in middle else "."
        above = middle + point + "0" * 40 + "1"
        below = exact_text((low + high) / 2 - Fraction(1, 2**300))
        found += [middle, above, below]
    return found + ["-" + t for t in found]


TIES = [
    *ties(), "1.00000017881393432617187499", "1.00000017881393432617187500", "1.00000017881393432617187501",
    "1.000000059604644775390625", "1.0000000596046447753906250000001", "1.0000000596046447753906249999999",
    "340282356779733661637539395458142568447", "3.40282356779733661637539395458142568447999e38", "16777217",
    "16777219", "9007199791611905", "36028797018963969", "1152921573326323713", "18446744073709551616",
    "18446744073709551617", "36893488147419103233", "18446745172886683648", "18446745172886683649",
    "340282346638528859811704183484516925440", "7.038531e-26", "-7.038531e-26", "0.7038531e-25", "8.41e21",
    "9.5367431640625e-07", "5e-324", "1e-400", "-1e-400", "7.006492321624085e-46", "7.0064923216240853e-46",
    "7.0064923216240854e-46", "7.0064923216240862e-46", "1.1754943508222874e-38", "1.17549429e-38", "0e999999999",
    "-0", "-0.0", "-0e5", "0.000", "1E+2", "100e-2",
]  # fmt: skip


@pytest.mark.parametrize("padding", [0, PADDING], ids=["short", "long"])
def test_numbers_are_rounded_once(padding: int) -> None:
    for literal in TIES:
        a = read_data([literal] + ["0.5"] * padding)
        want = go.nearest_float32(literal)
        assert a[:1].tobytes() == np.array([want]).tobytes(), f"{literal[:60]}: {a[0]!r}, not {want!r}"


@pytest.mark.parametrize("odd", [t for t in TIES if len(t) < 40])
def test_odd_numbers_cost_the_others_nothing(odd: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """L-BFGS's state has -0, and one of them made a megabyte of others take a second."""
    elements = ["0.5"] * PADDING
    for at in (0, 7, PADDING // 2, PADDING - 1):
        elements[at] = odd

    def fail(chunk: bytes, offset: int) -> None:
        raise AssertionError(f"{len(chunk)} bytes read one by one")

    monkeypatch.setattr(go_json, "_parse_slowly", fail)
    want = np.array([go.nearest_float32(t) for t in elements], np.float32)
    for separator in (",", ",\n          ", " ,\t", "\r\n,"):
        assert read_data(elements, separator).tobytes() == want.tobytes()


def test_many_ties_in_one_array() -> None:
    a = read_data(TIES)
    assert a.tobytes() == np.array([go.nearest_float32(t) for t in TIES], np.float32).tobytes()


@bounded(200)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 0x7F7FFFFE), st.sampled_from(["", "1", "0001", "e0", "0"]), st.sampled_from(["", "-"])
        ),
        min_size=1,
        max_size=8,
    ),
    st.sampled_from([0, PADDING]),
)
def test_any_tie_is_rounded_once(cases: list[tuple[int, str, str]], padding: int) -> None:
    literals = []
    for bits, tail, sign in cases:
        middle = exact_text((Fraction(float(from_bits(bits))) + Fraction(float(from_bits(bits + 1)))) / 2)
        dot = "." if "." not in middle and tail[:1].isdigit() else ""
        literals.append(sign + middle + dot + tail)
    a = read_data(literals + ["1"] * padding)[: len(literals)]
    assert a.tobytes() == np.array([go.nearest_float32(t) for t in literals], np.float32).tobytes()


@bounded(200)
@given(
    st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=20), st.sampled_from([0, PADDING])
)
def test_any_float64_literal_is_rounded_as_go_does_or_overflows(values: list[float], padding: int) -> None:
    literals = [repr(v) for v in values]
    try:
        want = np.array([go.nearest_float32(t) for t in literals], np.float32)
    except OverflowError:
        with pytest.raises(CheckpointError, match="does not fit a float32"):
            read_data(literals + ["1"] * padding)
    else:
        assert read_data(literals + ["1"] * padding)[: len(literals)].tobytes() == want.tobytes()


def test_a_long_literal_is_rounded_once_too() -> None:
    tie = "1.000000059604644775390625"  # between 1 and the next float32; to even: 1
    for zeros in (10, 900, 1100, 5000):
        assert read_data([tie + "0" * zeros])[0] == 1
        assert read_data([tie + "0" * zeros + "1"])[0] == np.nextafter(np.float32(1), np.float32(2))


OVERFLOWS = [
    "3.4028236e38",
    "340282356779733661637539395458142568448",
    "-3.4028236e38",
    "1e39",
    "1e400",
    "9" * 400,
    "-" + "9" * 5000,
]


@pytest.mark.parametrize("literal", OVERFLOWS, ids=[t[:12] for t in OVERFLOWS])
@pytest.mark.parametrize("padding", [0, PADDING])
def test_overflow_names_the_element(literal: str, padding: int) -> None:
    with pytest.raises(CheckpointError) as e:
        read_data(["0"] * padding + [literal])
    one_line(e.value, f"f.json: $.weights[0].data[{padding}]: ", "does not fit a float32")


@pytest.mark.parametrize("padding", [0, PADDING])
def test_negative_zero_is_kept_wherever_it_stands(padding: int) -> None:
    for elements in (["-0"] + ["0"] * padding, ["0"] * padding + ["-0"], ["1"] * padding + ["-0", "5"]):
        a = read_data(elements, ",")
        assert np.signbit(a).tolist() == [t == "-0" for t in elements]


def test_float64_values_that_overflow_are_refused_in_maps() -> None:
    with pytest.raises(CheckpointError) as e:
        read_fields('"optimizer_state": {"parameters": {"lr": 1e400}}')
    one_line(e.value, "$.optimizer_state.parameters.lr", "does not fit a float64")


# -------------------------------------------------------------------------------------------- reading: Go's fields


@pytest.mark.parametrize("key", ["epoch", "EPOCH", "Epoch", "ePoCh"])
def test_keys_match_without_case(key: str) -> None:
    assert read_fields(f'"TRAINING_STATE": {{"{key}": 5}}').training_state.epoch == 5


@pytest.mark.parametrize(
    ("key", "matches"),
    [("\u017ftep", True), ("\u017fTEP", True), ("step ", False), ("ßtep", False), ("stёp", False), ("", False)],
)
def test_keys_match_by_simple_folding(key: str, matches: bool) -> None:
    c = read_fields(f'"training_state": {{"{key}": 5}}')
    assert c.training_state.step == (5 if matches else 0)
    assert [n for n in c.notes if "unknown key" in n] == (
        [] if matches else [f"$.training_state: ignored the unknown key {key!r}"]
    )


@pytest.mark.parametrize(
    ("key", "matches"),
    [("be\u017ft_lo\u017f\u017f", True), ("best_lo\u00df", False), ("best_lo\u1e9e", False), ("best_loSS", True)],
)
def test_a_sharp_s_is_not_two(key: str, matches: bool) -> None:
    assert read_fields(f'"training_state": {{"{key}": 0.5}}').training_state.best_loss == (0.5 if matches else 0)


def test_the_kelvin_sign_matches_k() -> None:
    assert read_fields('"metadata": {"framewor\u212a": "x"}').metadata.framework == "x"


def test_duplicate_scalars_last_wins_whatever_the_case() -> None:
    c = read_fields('"training_state": {"epoch": 1, "EPOCH": 2, "step": 3, "Step": null}')
    assert (c.training_state.epoch, c.training_state.step) == (2, 3)  # null leaves what was there


def test_duplicate_structs_merge() -> None:
    c = read_fields('"training_state": {"epoch": 1, "step": 1}, "training_state": {"step": 2, "total_steps": 9}')
    assert (c.training_state.epoch, c.training_state.step, c.training_state.total_steps) == (1, 2, 9)


def test_a_null_after_a_struct_leaves_it_alone() -> None:
    c = read_fields('"training_state": {"epoch": 5}, "training_state": null')
    assert c.training_state.epoch == 5


@pytest.mark.parametrize(
    ("second", "want"), [("null", None), ('null, "optimizer_state": {"type": "b"}', "b"), ("{}", "a")]
)
def test_a_null_after_a_pointer_clears_it(second: str, want: str | None) -> None:
    c = read_fields(f'"optimizer_state": {{"type": "a"}}, "optimizer_state": {second}')
    assert (c.optimizer_state and c.optimizer_state.type) == want


def test_duplicate_maps_merge_and_their_values_last_win() -> None:
    c = read_fields(
        '"optimizer_state": {"parameters": {"a": 1, "b": 2, "a": {"x": 1}}, "parameters": {"b": 4, "c": 5}}'
    )
    assert c.optimizer_state.parameters == {"a": {"x": 1}, "b": 4, "c": 5}


def test_a_null_after_a_map_or_array_clears_it() -> None:
    c = read_fields('"optimizer_state": {"parameters": {"a": 1}, "parameters": null}, "weights": [{}], "weights": null')
    assert (c.optimizer_state.parameters, c.weights) == ({}, [])


def test_duplicate_arrays_last_wins() -> None:
    assert read_fields('"metadata": {"tags": ["a", "b"], "tags": ["c"]}').metadata.tags == ["c"]


INTEGERS = [
    ("0", 0),
    ("-0", 0),
    ("-1", -1),
    ("9223372036854775807", 2**63 - 1),
    ("-9223372036854775808", -(2**63)),
    ("null", 0),
]


@pytest.mark.parametrize(("literal", "value"), INTEGERS)
def test_integers_are_read(literal: str, value: int) -> None:
    assert read_fields(f'"training_state": {{"epoch": {literal}}}').training_state.epoch == value


NO_INTEGERS = [
    "1.0",
    "1e2",
    "1E2",
    "-0.0",
    '"1"',
    "true",
    "[]",
    "{}",
    "9223372036854775808",
    "-9223372036854775809",
    "1" + "0" * 5000,
]


@pytest.mark.parametrize("literal", NO_INTEGERS, ids=[t[:20] for t in NO_INTEGERS])
@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ('"training_state": {"epoch": %s}', "$.training_state.epoch"),
        ('"weights": [{"shape": [1, %s]}]', "$.weights[0].shape[1]"),
        ('"weights": [{"shape": [' + "1, " * PADDING + '%s, 1]}]', f"$.weights[0].shape[{PADDING}]"),
        ('"model_spec": {"layers": [{"type": %s}]}', "$.model_spec.layers[0].type"),
        ('"model_spec": {"parameter_shapes": [[], [2, %s]]}', "$.model_spec.parameter_shapes[1][1]"),
    ],
    ids=["number", "shape", "long shape", "type", "shapes"],
)  # fmt: skip
def test_integer_fields_refuse_everything_else(fields: str, path: str, literal: str) -> None:
    with pytest.raises(CheckpointError) as e:
        read_fields(fields % literal)
    one_line(e.value, f"f.json: {path}: ", "integer")


@pytest.mark.parametrize("literal", ["1", '"x"', "[]", "{}"])
def test_boolean_fields_refuse_everything_else(literal: str) -> None:
    with pytest.raises(CheckpointError) as e:
        read_fields(f'"model_spec": {{"compiled": {literal}}}')
    one_line(e.value, "f.json: $.model_spec.compiled: true or false is needed")


@pytest.mark.parametrize("literal", ["1", "true", "[]", "{}", "[" + "1," * PADDING + "1]"])
def test_text_fields_refuse_everything_else(literal: str) -> None:
    with pytest.raises(CheckpointError) as e:
        read_fields(f'"metadata": {{"version": {literal}}}')
    one_line(e.value, "f.json: $.metadata.version: a text is needed")


def test_numbers_in_maps_are_float64_and_the_rest_stays() -> None:
    text = '{"i": 16, "f": 0.1, "s": "x", "b": true, "n": null, "a": [1, 2.5], "o": {"z": -0, "h": 1e20}}'
    parameters = read_fields(f'"optimizer_state": {{"parameters": {text}}}').optimizer_state.parameters
    assert parameters == {**json.loads(text), "o": {"z": 0, "h": 1e20}}
    assert encode(parameters["o"]["z"]) == "-0"


@pytest.mark.parametrize("top", ["null", "1", '"x"', "[]", "true", "[" + "1," * PADDING + "1]"])
def test_the_top_level_must_be_an_object(top: str) -> None:
    with pytest.raises(CheckpointError) as e:
        read(top)
    one_line(e.value, "f.json: $: a checkpoint is a JSON object")


@pytest.mark.parametrize(
    "text", ["{}", '{"model_spec": null}', '{"weights": []}', '{"model_spec": {}, "MODEL_SPEC": null}']
)
def test_a_missing_architecture_is_told(text: str) -> None:
    with pytest.raises(CheckpointError) as e:
        read(text)
    one_line(e.value, "f.json: $.model_spec: missing")


# ------------------------------------------------------------------------------------------------------- damage


@pytest.mark.parametrize("name", ["layer_relu", "floats_awkward"])
def test_a_file_cut_off_anywhere_is_an_error(name: str) -> None:
    data = (GOLDEN / "json" / f"{name}.json").read_bytes().rstrip()
    for n in range(len(data)):
        with pytest.raises(CheckpointError) as e:
            read(data[:n])
        one_line(e.value, "f.json")


@bounded(400)
@given(
    st.sampled_from(["layer_batchnorm_affine", "opt_nil_maps", "floats_awkward", "bn_stats_in_spec_only"]),
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=3),
)
def test_flipped_bytes_are_an_error_or_another_checkpoint(name: str, flips: list[tuple[float, int]]) -> None:
    data = bytearray((GOLDEN / "json" / f"{name}.json").read_bytes())
    for where, byte in flips:
        data[int(where * len(data))] = byte
    try:
        c = read(bytes(data))
    except CheckpointError as e:
        one_line(e, "f.json")
    else:
        c.metadata.framework = c.metadata.framework or "x"  # an unsigned file would be stamped with the time
        assert as_bytes(read(as_bytes(c))) == as_bytes(c)


@bounded(300)
@given(st.binary(max_size=200) | st.text('{}[]",:0123456789.eE+-nultrfas\\ ', max_size=400).map(str.encode))
def test_garbage_is_an_error_or_a_value(data: bytes) -> None:
    try:
        decode(data)
    except CheckpointError as e:
        one_line(e, "f.json")
    else:
        assert data.strip()

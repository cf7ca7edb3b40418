"""Damage for checkpoints: JSON trees that keep duplicate keys and number literals, changed at random."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Iterator
from typing import Any


class Pairs(list[Any]):
    """An object as ``[key, value]`` lists, duplicates included."""


class Literal(str):
    """A number as it stands in the text."""

    __slots__ = ()


Tree = Any  # Pairs, list, Literal, str, bool or None
Place = tuple[Any, Any]  # a list and the position in it

INTEGERS = (
    0, 1, -1, 2, 3, 7, 255, 256, 257, 10**6, 2**24 + 1, 2**31 - 1, 2**31, 2**32, 2**33, 2**40, 2**40 + 1, 2**53 + 1,
    2**62, 2**63 - 1, 2**63, 2**64, -(2**31), -(2**63), -(2**63) - 1, 10**18, 10**30, 10**400,
)  # fmt: skip
LITERALS = (
    *map(str, INTEGERS), "-0", "0.0", "-0.0", "0.5", "1.5", "1e0", "1E+2", "1e-5", "1e39", "-1e39", "3.5e38",
    "1e-46", "1e-400", "1e308", "1e309", "-1e999", "7.038531e-26", "3.4028235677973366e38",
    "1.00000017881393421514957253748434595763683319091796875", "00", "01", "1.", ".5", "+1", "-", "1e", "NaN",
    "Infinity", "-Infinity", "0x10", "1_000",
)  # fmt: skip
TEXTS = (
    "", "a", ".", "..", "_x", "3", "step", "learning_rate", "running_mean", "running_var", "weight", "bias",
    "gamma", "beta", "layers", "state", "training", "spec", "children", "items", "keys", "get", "pop",
    "__class__", "__init__", "é", "ß", "\u2028", "\n", "\0", "\ud800", "🙂", "x" * 65, "x" * 300, "a.b", "version",
    "float32", "tensor", "data", "2026-01-31T12:00:00Z", "2026-13-01T00:00:00Z",
    "9999-12-31T23:59:59.999999999+23:59", "0001-01-01T00:00:00Z", "nan", "inf", "1e9", "\x7f", "\ufeff",
)  # fmt: skip
_WORDS = """
    model_spec weights training_state optimizer_state metadata gometal_mlx layers type name parameters
    input_shape output_shape parameter_shapes parameter_count running_statistics total_parameters compiled shape
    data layer state_data state_type version created_at tags description epoch best_loss output_size use_bias
    input_size kernel_size stride padding pool_size output_channels num_features eps epsilon momentum affine
    rate axis alpha negative_slope out_channels in_channels training track_running_stats running_mean
    running_var float32 tensor framework
"""
KEYS = _WORDS.split()


def parse(data: bytes) -> Tree:
    """The tree of a JSON text; ValueError (or RecursionError) where it is broken."""
    return json.loads(
        data, object_pairs_hook=lambda p: Pairs(list(x) for x in p), parse_int=Literal, parse_float=Literal,
        parse_constant=Literal,
    )  # fmt: skip


def text(tree: Tree, gap: str = " ") -> str:
    """The tree as JSON, with ``gap`` between things."""
    out: list[str] = []
    todo: list[Any] = [(tree,)]
    while todo:  # no recursion: a mutation nests deeply
        item = todo.pop()
        if isinstance(item, str):
            out.append(item)
            continue
        value = item[0]
        if isinstance(value, list):
            object_ = isinstance(value, Pairs)
            parts: list[Any] = ["{" if object_ else "["]
            for i, x in enumerate(value):
                parts += ["," + gap] if i else []
                parts += [json.dumps(x[0]) + ":" + gap, (x[1],)] if object_ else [(x,)]
            todo += reversed([*parts, "}" if object_ else "]"])
        else:
            out.append(str(value) if isinstance(value, Literal) else json.dumps(value, ensure_ascii=len(gap) != 1))
    return "".join(out)


def places(tree: Tree) -> list[Place]:
    """Every value of the tree, by the list that holds it and its position there."""
    found: list[Place] = []
    todo = [tree]
    while todo:
        node = todo.pop()
        if not isinstance(node, list):
            continue
        for i, x in enumerate(node):
            holder, at = (x, 1) if isinstance(node, Pairs) else (node, i)
            found.append((holder, at))
            todo.append(holder[at])
    return found


def objects(tree: Tree, *keys: str) -> Iterator[dict[str, list[Any]]]:
    """The objects that have all those keys: key to ``[key, value]``."""
    for node in [tree, *(holder[at] for holder, at in places(tree))]:
        if isinstance(node, Pairs) and set(keys) <= {k for k, _ in node}:
            yield {p[0]: p for p in node}


# ---------------------------------------------------------------------------------------------------------- mutations


def _scalar(r: random.Random) -> Tree:
    kind = r.randrange(8)
    if kind < 4:
        return Literal(r.choice(LITERALS))
    if kind == 4:
        return r.choice(TEXTS)
    return r.choice((None, True, False, [], Pairs(), [None], [[]], Pairs([["a", None]]), Literal(r.randrange(-3, 12))))


def _replace(r: random.Random, tree: Tree, donor: Tree) -> None:
    holder, at = r.choice(places(tree))
    holder[at] = _scalar(r)


def _number(r: random.Random, tree: Tree, donor: Tree) -> None:
    holder, at = r.choice([p for p in places(tree) if isinstance(p[0][p[1]], Literal)])
    holder[at] = Literal(r.choice(LITERALS) if r.random() < 0.6 else r.randrange(-2, 40))


def _graft(r: random.Random, tree: Tree, donor: Tree) -> None:
    (holder, at), (other, where) = r.choice(places(tree)), r.choice(places(donor))
    holder[at] = json_copy(other[where])


def _drop(r: random.Random, tree: Tree, donor: Tree) -> None:
    node = r.choice(_lists(tree))
    del node[r.randrange(len(node))]


def _double(r: random.Random, tree: Tree, donor: Tree) -> None:
    node = r.choice(_lists(tree))
    node.insert(r.randrange(len(node) + 1), json_copy(r.choice(node)))


def _swap(r: random.Random, tree: Tree, donor: Tree) -> None:
    node = r.choice(_lists(tree))
    i, j = r.randrange(len(node)), r.randrange(len(node))
    node[i], node[j] = node[j], node[i]


def _repeat(r: random.Random, tree: Tree, donor: Tree) -> None:
    node = r.choice(_lists(tree))
    node[:] = (node * r.choice((2, 3, 20, 200)))[:600] if not isinstance(node, Pairs) else [*node, *json_copy(node)]


def _key(r: random.Random, tree: Tree, donor: Tree) -> None:
    pair = r.choice([p for node in _lists(tree) if isinstance(node, Pairs) for p in node])
    old = pair[0]
    folded = old.upper(), old.title(), old.replace("s", "\u017f"), old.replace("k", "\u212a"), old + "\0", " " + old
    pair[0] = r.choice((r.choice(KEYS), r.choice(KEYS), r.choice(TEXTS), r.choice(folded)))


def _insert(r: random.Random, tree: Tree, donor: Tree) -> None:
    node = r.choice([n for n in _lists(tree) if isinstance(n, Pairs)])
    node.insert(r.randrange(len(node) + 1), [r.choice(KEYS), _scalar(r)])


def _nest(r: random.Random, tree: Tree, donor: Tree) -> None:
    holder, at = r.choice(places(tree))
    node, brackets = holder[at], r.random() < 0.5
    for _ in range(r.choice((1, 2, 5, 50, 150, 240, 330, 490, 900, 1100))):
        node = [node] if brackets else Pairs([["a", node]])
    holder[at] = node


def _resize(r: random.Random, tree: Tree, donor: Tree) -> None:
    """A tensor of another shape, with as many numbers as that needs."""
    shape_key = r.choice(("shape", "shape", "float32"))  # tensors, and arrays among the extras
    tensor = r.choice(list(objects(tree, shape_key, "data")))
    shape = [r.choice((0, 1, 1, 2, 3, 4, 5, 9, -1, 2**62)) for _ in range(r.randrange(0, 6))]
    count = abs(math.prod(shape)) if shape else r.randrange(2)
    if count < 4000:
        tensor[shape_key][1] = [Literal(d) for d in shape]
        tensor["data"][1] = [Literal(r.choice(("0.5", "-1", "1e-3", "0", "-0"))) for _ in range(count)]


def _size(r: random.Random, tree: Tree, donor: Tree) -> None:
    """A number of the architecture: small enough to build, or absurd."""
    spec = r.choice([o["model_spec"] for o in objects(tree, "model_spec")])
    numbers = [p for p in places([spec[1]]) if isinstance(p[0][p[1]], Literal)]
    holder, at = r.choice(numbers)
    holder[at] = Literal(r.choice(INTEGERS) if r.random() < 0.5 else r.randrange(-2, 12))


def _layer(r: random.Random, tree: Tree, donor: Tree) -> None:
    """A layer from another file, or of another type."""
    layers = [o["layers"][1] for o in objects(tree, "layers") if isinstance(o["layers"][1], list)]
    theirs = [o["layers"][1] for o in objects(donor, "layers") if isinstance(o["layers"][1], list)]
    mine = r.choice(layers)
    if r.random() < 0.5:
        mine.insert(r.randrange(len(mine) + 1), json_copy(r.choice(r.choice(theirs))))
    else:
        next(p for p in r.choice(mine) if p[0] == "type")[1] = Literal(r.randrange(-1, 14))


MUTATIONS: tuple[Callable[[random.Random, Tree, Tree], None], ...] = (
    _replace, _number, _graft, _drop, _double, _swap, _repeat, _key, _insert, _nest, _resize, _size, _size, _layer,
)  # fmt: skip


def json_copy(tree: Tree) -> Tree:
    """A deep copy that keeps the types (copy.deepcopy recurses in Python and is slow)."""
    if isinstance(tree, Pairs):
        return Pairs([k, json_copy(v)] for k, v in tree)
    return [json_copy(x) for x in tree] if isinstance(tree, list) else tree


def _lists(tree: Tree) -> list[Any]:
    return [n for n in [tree, *(holder[at] for holder, at in places(tree))] if isinstance(n, list) and n]


def mutate(data: bytes, donor: bytes, r: random.Random) -> bytes | None:
    """The text after one to four changes of its structure; None if it has none (broken JSON)."""
    try:
        tree, other = parse(data), parse(donor)
        for _ in range(r.choice((1, 1, 1, 1, 2, 3))):
            try:
                r.choice(MUTATIONS)(r, tree, other)
            except (IndexError, StopIteration, TypeError, ValueError):  # nothing of the kind is left to change
                continue
        return text(tree, r.choice(("", "", " ", "\n  "))).encode("utf-8", "surrogatepass")
    except (ValueError, RecursionError):
        return None


def smaller(data: bytes, still: Callable[[bytes], bool]) -> bytes:
    """The text with the least structure found for which ``still`` holds."""
    try:
        tree = parse(data)
        return _smaller_tree(tree, still) if still(text(tree, "").encode("utf-8", "surrogatepass")) else data
    except (ValueError, RecursionError):
        return data


def _smaller_tree(tree: Tree, still: Callable[[bytes], bool]) -> bytes:
    def holds() -> bool:
        return still(text(tree, "").encode("utf-8", "surrogatepass"))

    progress = True
    while progress:
        progress = False
        for node in _lists(tree):
            size = len(node)
            while size:
                at = 0
                while at < len(node):
                    kept = node[at : at + size]
                    del node[at : at + size]
                    if holds():
                        progress = True
                    else:
                        node[at:at] = kept
                        at += size
                size //= 2
    return text(tree, "").encode("utf-8", "surrogatepass")

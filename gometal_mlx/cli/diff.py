"""``gometal diff``: what two checkpoints, of any formats, do not have in common."""

from __future__ import annotations

import argparse
import json
from typing import Any

from ..checkpoints.difference import difference
from .source import add_read_external, read
from .table import say, table

ROWS = 20  # of one part; --json has them all
VALUE_LENGTH = 60


def add_parser(subparsers: Any) -> None:
    """Declare the subcommand."""
    p = subparsers.add_parser("diff", help="compare two files of any formats; exit 0 if equal, 1 if not")
    p.add_argument("a", metavar="A", help="a file")
    p.add_argument("b", metavar="B", help="the file to compare it with")
    p.add_argument("--json", action="store_true", help="print one JSON object for machines")
    add_read_external(p)
    p.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print what differs as text or JSON; differing metadata alone is no difference."""
    a, b = read(args, args.a, args.b)
    found = {**difference(a, b), "notes": {"A": a.notes, "B": b.notes}}
    say(json.dumps(found, indent=2) if args.json else _text(args.a, args.b, found))
    return 0 if found["equal"] else 1


def _text(a: str, b: str, d: dict[str, Any]) -> str:
    parts = [f"A: {a}", f"B: {b}"]
    parts += ["", "Architecture", *(f"  {line}" for line in d["architecture"])] if d["architecture"] else []
    parts += _tensors("Weights", d["weights"])
    parts += _optimizer(d["optimizer"])
    parts += _values("Training state", d["training_state"])
    parts += _values("What only gometal_mlx keeps", d["extras"])
    parts += _values("Metadata (does not count)", d["metadata"])
    notes = [f"  {side}: {note}" for side, lines in d["notes"].items() for note in lines]
    parts += ["", "Notes", *notes] if notes else []
    same = "equal; architecture, weights, optimizer and training state are the same"
    return "\n".join([*parts, "", same if d["equal"] else "different"])


def _optimizer(o: dict[str, Any]) -> list[str]:
    types = ["", "Optimizer", f"  {_told(o['type'][0])} against {_told(o['type'][1])}"] if o["type"] else []
    return [*types, *_values("Optimizer parameters", o["parameters"]), *_tensors("Optimizer state", o["tensors"])]


def _tensors(title: str, tensors: list[dict[str, Any]]) -> list[str]:
    changed = [t for t in tensors if not t["equal"]]
    if not changed:
        return []
    rows = [
        (t["name"], _shape(t), _number(t["largest_absolute_difference"]), _number(t["largest_relative_difference"]))
        for t in changed[:ROWS]
    ]
    header = ("name", "shape", "largest difference", "relative to A")
    head = f"{title}: {len(changed)} of {len(tensors)} differ"
    return ["", head, table(rows, header, indent="  "), *_more(len(changed))]


def _shape(t: dict[str, Any]) -> str:
    a, b = t["shape"]
    if t["only_in"]:
        return f"{a or b}, only in {t['only_in']}"
    return str(a) if a == b else f"{a} against {b}"


def _values(title: str, values: dict[str, list[Any]]) -> list[str]:
    if not values:
        return []
    rows = [(name, _told(a), _told(b)) for name, (a, b) in list(values.items())[:ROWS]]
    return ["", title, table(rows, ("name", "A", "B"), indent="  "), *_more(len(values))]


def _more(count: int) -> list[str]:
    return [f"  and {count - ROWS} more; --json shows all"] if count > ROWS else []


def _told(value: Any) -> str:
    plain = isinstance(value, str) and value.isprintable()
    text: str = "none" if value is None else value if plain else json.dumps(value)
    return text if len(text) <= VALUE_LENGTH else f"{text[: VALUE_LENGTH - 3]}..."


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"

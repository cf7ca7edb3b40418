"""Text tables, as every subcommand prints them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ..errors import printable


def table(rows: Iterable[Sequence[object]], header: Sequence[str] = (), *, indent: str = "") -> str:
    """Aligned columns: numbers (and what looks like them) to the right, texts to the left."""
    cells = [[str(c) for c in row] for row in rows]
    lines = [list(header), *cells] if header else cells
    widths = [
        max((len(line[i]) for line in lines if i < len(line)), default=0)
        for i in range(max(map(len, lines), default=0))
    ]
    right = [
        bool(cells) and all(row[i][:1].isdigit() or row[i][:1] in "-" for row in cells if i < len(row))
        for i in range(len(widths))
    ]

    def text(line: Sequence[str]) -> str:
        return (
            indent
            + "  ".join(c.rjust(widths[i]) if right[i] else c.ljust(widths[i]) for i, c in enumerate(line)).rstrip()
        )

    rule = [indent + "  ".join("-" * w for w in widths)] if header else []
    return "\n".join([text(header), *rule, *map(text, cells)] if header else [text(c) for c in cells])


def say(text: str) -> None:
    """Print what may come from a file."""
    print(printable(text, but="\n"))


def size_text(size_bytes: float) -> str:
    """A size in B, KB, MB or GB (powers of 1000)."""
    for unit in ("B", "KB", "MB"):
        if size_bytes < 1000:
            return f"{size_bytes:.0f} {unit}" if unit == "B" else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1000
    return f"{size_bytes:.2f} GB"

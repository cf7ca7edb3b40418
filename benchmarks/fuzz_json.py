"""Damaged JSON checkpoints, for as long as you like: only GoMetalError may come out, in bounded time and memory.

    python benchmarks/fuzz_json.py --seconds 1200 --out /tmp/fuzz           # keep going; findings go to the folder
    python benchmarks/fuzz_json.py --minimise FILE                          # the smallest text with the same failure

What is tried on every text: read it; read it in small blocks, which must give the same; build the model; write it and
read that again, which must give the same. How it goes on, and what it keeps: fuzzing.py.
"""

from __future__ import annotations

import importlib
import io
import sys
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from fuzz_mutations import mutate, smaller
from fuzzing import ROOT, Disagreement, Subject, difference, main, readable

COMPARED_ONE_IN = 4  # texts that are also read in small blocks and written again
LONGEST_COMPARED = 1 << 20  # characters that a text was written as
SMALL_BLOCK = 700  # bytes; larger than any element a mutation makes
LONGEST_MESSAGE = 2000  # characters


class Target:
    """Reads a text in every way; anything but a GoMetalError is raised."""

    def __init__(self) -> None:
        self.go_json: Any = importlib.import_module("gometal_mlx.checkpoints.go_json")
        self.json_format: Any = importlib.import_module("gometal_mlx.checkpoints.json_format")
        self.model: Any = importlib.import_module("gometal_mlx.layers").Model
        self.error: type[Exception] = importlib.import_module("gometal_mlx.errors").GoMetalError
        self.counts: Counter[str] = Counter()

    def __call__(self, data: bytes) -> None:
        checkpoint, told = self.read(data)
        thorough = zlib.crc32(data) % COMPARED_ONE_IN == 0
        if thorough:
            self.compare(data, told)
        if checkpoint is None:
            return
        self.counts["read as checkpoints"] += 1
        if thorough:
            self.again(checkpoint)
        try:
            self.model.from_checkpoint(checkpoint)
            self.counts["became models"] += 1
        except self.error as e:
            readable(e, LONGEST_MESSAGE)

    def read(self, data: bytes) -> tuple[Any, str]:
        """The checkpoint (None if it is refused) and what it writes, or the error."""
        try:
            value, _ = self.go_json.decode(lambda: io.BytesIO(data), "f.json")
            checkpoint = self.json_format.from_value(value, "f.json")
        except self.error as e:
            readable(e, LONGEST_MESSAGE)
            return None, "refused"
        checkpoint.metadata.framework = checkpoint.metadata.framework or "unsigned"  # else the present time is written
        return checkpoint, self.written(checkpoint)

    def written(self, checkpoint: Any) -> str:
        """The text that the checkpoint is saved as, or what prevents it."""
        out = io.BytesIO()
        try:
            checkpoint.validate()
            self.json_format.write(self.json_format.to_tree(checkpoint), out)
        except self.error as e:
            readable(e, LONGEST_MESSAGE)
            return f"not saved: {e}"
        return out.getvalue().decode()

    def compare(self, data: bytes, told: str) -> None:
        """Read in small blocks, short arrays taken for long ones; not what made up statistics have made long."""
        if len(told) > LONGEST_COMPARED:
            return
        block, long, start = self.go_json.BLOCK, self.go_json.LONG_ARRAY, self.go_json._Splitter._START
        try:
            self.go_json.BLOCK, self.go_json.LONG_ARRAY = SMALL_BLOCK, 8
            self.go_json._Splitter._START = self.go_json.re.compile(start.pattern.replace(b"{%d}" % long, b"{8}"))
            other = self.read(data)[1]
        finally:
            self.go_json.BLOCK, self.go_json.LONG_ARRAY, self.go_json._Splitter._START = block, long, start
        if told != other:
            raise Disagreement(f"small blocks read: {difference(told, other)}")

    def again(self, checkpoint: Any) -> None:
        """What is written must be read as the same."""
        first = self.written(checkpoint)
        if first.startswith("not saved") or len(first) > LONGEST_COMPARED:
            return
        second = self.read(first.encode())[1]
        if first != second:
            raise Disagreement(f"written again: {difference(first, second)}")


EXTRAS = b"""{"model_spec": {"layers": [{"type": 2, "name": "r", "parameters": {}}], "input_shape": [1, 2]},
"metadata": {"framework": "gometal_mlx", "created_at": "2026-01-31T12:00:00Z"}, "gometal_mlx": {"version": 1,
"config": {"seed": 0}, "rng": [1, 4294967295], "history": [{"epoch": 1, "loss": 0.5}],
"best_loss": 0.25,
"accumulated": {"waiting": [1, 2], "gradients": {"fc.weight": {"float32": [2, 3], "data": [1, 2, 3, 4, 5, 6]}}}}}"""


def seeds() -> list[bytes]:
    """go-metal's own small files, and one with what only gometal_mlx writes."""
    paths = sorted((ROOT / "tests" / "golden").glob("*/*.json"))
    return [EXTRAS, *(p.read_bytes() for p in paths if p.stat().st_size < 12_000 and p.parent.name != "resaved")]


SUBJECT = Subject(
    script=Path(__file__),
    target=Target,
    seeds=seeds,
    mutate=mutate,
    smaller=smaller,
    packages=("gometal_mlx.checkpoints", "gometal_mlx.layers"),
    suffix=".json",
    alphabet=b'0123456789-+.eE"\\{}[],: \n\x00\xff\xc3nutf',
)

if __name__ == "__main__":
    main(SUBJECT, __doc__, "out/fuzz")

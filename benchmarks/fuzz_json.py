"""Damaged JSON checkpoints, for as long as you like: only GoMetalError may come out, in bounded time and memory.

    python benchmarks/fuzz_json.py --seconds 1200 --out /tmp/fuzz           # keep going; findings go to the folder
    python benchmarks/fuzz_json.py --minimise FILE                          # the smallest text with the same failure

Guided by coverage where atheris is installed (``pip install atheris``), else by chance alone. A supervisor restarts the
worker when it dies, so that a crash is a finding like any other. What is tried on every text: read it; read it in small
blocks, which must give the same; build the model; write it and read that again, which must give the same.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import importlib.util
import io
import json
import mmap
import os
import random
import resource
import signal
import subprocess
import sys
import time
import traceback
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from fuzz_mutations import mutate, smaller

ROOT = Path(__file__).parents[1]
MAX_BYTES = 1 << 14  # of a text
MEMORY_LIMIT = 4 << 30  # of the worker's address space
MEMORY_BUDGET = 256 << 20  # of one text, above what was used before
SECONDS_BUDGET = 5.0  # for one text
COMPARED_ONE_IN = 4  # texts that are also read in small blocks and written again
SMALL_BLOCK = 700  # bytes; larger than any element a mutation makes
BASELINE_TEXTS = 200  # texts before memory is watched: imports and caches fill up


class Disagreement(Exception):
    """Two ways of reading or writing that must give the same gave different things."""


class Target:
    """Reads a text in every way; anything but a GoMetalError is raised."""

    def __init__(self) -> None:
        self.go_json: Any = importlib.import_module("gometal_mlx.checkpoints.go_json")
        self.json_format: Any = importlib.import_module("gometal_mlx.checkpoints.json_format")
        self.model: Any = importlib.import_module("gometal_mlx.layers").Model
        self.error: type[Exception] = importlib.import_module("gometal_mlx.errors").GoMetalError
        self.loaded = self.built = 0

    def __call__(self, data: bytes) -> None:
        checkpoint, told = self.read(data)
        thorough = zlib.crc32(data) % COMPARED_ONE_IN == 0
        if thorough:
            self.compare(data, told)
        if checkpoint is None:
            return
        self.loaded += 1
        if thorough:
            self.again(checkpoint)
        try:
            self.model.from_checkpoint(checkpoint)
            self.built += 1
        except self.error as e:
            self.check_message(e)

    def read(self, data: bytes) -> tuple[Any, str]:
        """The checkpoint (None if it is refused) and what it writes, or the error."""
        try:
            value, _ = self.go_json.decode(lambda: io.BytesIO(data), "f.json")
            checkpoint = self.json_format.from_value(value, "f.json")
        except self.error as e:
            self.check_message(e)
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
            self.check_message(e)
            return f"not saved: {e}"
        return out.getvalue().decode()

    def compare(self, data: bytes, told: str) -> None:
        """Read in small blocks, with short arrays taken for long ones."""
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
        if first.startswith("not saved"):
            return
        second = self.read(first.encode())[1]
        if first != second:
            raise Disagreement(f"written again: {difference(first, second)}")

    def check_message(self, e: Exception) -> None:
        """One line, of readable length."""
        if len(str(e).splitlines()) != 1 or len(str(e)) > 2000:
            raise Disagreement(f"long message: {len(str(e))} characters, {len(str(e).splitlines())} lines") from e


def difference(a: str, b: str) -> str:
    """Where two texts part."""
    at = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    return f"{a[max(at - 20, 0) : at + 30]!r} against {b[max(at - 20, 0) : at + 30]!r}"


def signature(e: BaseException) -> str:
    """What makes two failures the same one: type and the innermost places in the package."""
    cause = e.__cause__ if isinstance(e, Disagreement) and e.__cause__ else e
    frames = [f for f in traceback.extract_tb(cause.__traceback__) if "gometal_mlx" in f.filename]
    where = [f"{Path(f.filename).name}:{f.lineno} {f.name}" for f in frames[-1:]]
    if isinstance(e, RecursionError):
        where = [
            "deep",
            *{f.name for f in frames[-6:]} & {"_load", "_unmark", "anything", "mapping", "extra", "encode"},
        ][:2]
    if isinstance(e, Disagreement):
        where.insert(0, str(e).split(":")[0].rstrip("0123456789 "))
    return f"{type(e).__name__} {' '.join(where)}"


def failure(target: Target, data: bytes) -> BaseException | None:
    """What comes out that should not."""
    try:
        target(data)
    except Exception as e:
        return e
    return None


EXTRAS = b"""{"model_spec": {"layers": [{"type": 2, "name": "r", "parameters": {}}], "input_shape": [1, 2]},
"metadata": {"framework": "gometal_mlx", "created_at": "2026-01-31T12:00:00Z"}, "gometal_mlx": {"version": 1,
"config": {"seed": 0}, "rng": [1, 4294967295], "history": [{"epoch": 1, "loss": 0.5}],
"best_loss": 0.25,
"accumulated": {"waiting": [1, 2], "gradients": {"fc.weight": {"float32": [2, 3], "data": [1, 2, 3, 4, 5, 6]}}}}}"""


def seeds() -> list[bytes]:
    """go-metal's own small files, and one with what only gometal_mlx writes."""
    paths = sorted((ROOT / "tests" / "golden").glob("*/*.json"))
    return [EXTRAS, *(p.read_bytes() for p in paths if p.stat().st_size < 12_000 and p.parent.name != "resaved")]


# --------------------------------------------------------------------------------------------------------- the worker


class Worker:
    """Tries texts and notes findings, one file each, in a folder."""

    def __init__(self, out: Path) -> None:
        self.out, self.count, self.known = out, 0, set[str]()
        self.started, self.said, self.slowest, self.largest = time.monotonic(), 0.0, 0.0, 0
        with (out / "current").open("w+b") as file:
            file.truncate(MAX_BYTES + 8)
            self.current = mmap.mmap(file.fileno(), MAX_BYTES + 8)
        self.target = Target()
        self.note_known()
        warnings.simplefilter("error")

    def note_known(self) -> None:
        """What earlier workers found need not be found again."""
        self.known |= {p.read_text().splitlines()[0] for p in self.out.glob("finding-*.txt")}

    def one(self, data: bytes) -> None:
        """Try one text."""
        data = data[:MAX_BYTES]
        self.current[:8] = len(data).to_bytes(8, "little")
        self.current[8 : 8 + len(data)] = data
        before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
        e = failure(self.target, data)
        took = time.perf_counter() - start
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10
        self.count += 1
        if e is not None:
            self.finding(data, signature(e), "".join(traceback.format_exception(e))[-6000:])
        if took > SECONDS_BUDGET:
            self.finding(data, "slow", f"{took:.1f} s")
        if grown > MEMORY_BUDGET and self.count > BASELINE_TEXTS:
            self.finding(data, "memory", f"{grown >> 20} MB")
        if self.count > BASELINE_TEXTS and took > max(self.slowest, 0.5):
            (self.out / f"slowest-{os.getpid()}.json").write_bytes(data)
        if self.count > BASELINE_TEXTS:
            self.slowest, self.largest = max(self.slowest, took), max(self.largest, grown)
        if (now := time.monotonic()) - self.said > 2:
            self.said = now
            stats = {"executions": self.count, "seconds": now - self.started, "slowest_s": round(self.slowest, 3)}
            stats |= {"largest_growth_mb": self.largest >> 20, "loaded": self.target.loaded, "built": self.target.built}
            (self.out / f"stats-{os.getpid()}.json").write_text(json.dumps(stats))

    def finding(self, data: bytes, name: str, details: str) -> None:
        """Keep the first text for each signature."""
        if name in self.known:
            return
        self.known.add(name)
        path = self.out / f"finding-{hashlib.sha1(name.encode()).hexdigest()[:10]}"
        path.with_suffix(".json").write_bytes(data)
        path.with_suffix(".txt").write_text(f"{name}\n{details}\n")


def work(out: Path, seconds: int, seed: int) -> None:
    """Run in a process of its own until the time is over or it dies."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, MEMORY_LIMIT))
    start = seeds()
    if importlib.util.find_spec("atheris") is None:
        worker, r = Worker(out), random.Random(seed)
        pool, end = list(start), time.monotonic() + seconds
        while time.monotonic() < end:
            data = by_chance(r.choice(pool), r, pool)
            worker.one(data)
            if len(pool) < 5000 and len(data) < 20_000 and r.random() < 0.05:
                pool.append(data)
        return
    atheris: Any = importlib.import_module("atheris")
    with atheris.instrument_imports(include=["gometal_mlx.checkpoints", "gometal_mlx.layers"]):
        worker = Worker(out)
    corpus = out / "corpus"
    corpus.mkdir(exist_ok=True)
    for i, data in enumerate(start):
        (corpus / f"seed-{i}").write_bytes(data)

    def change(data: bytes, max_size: int, number: int) -> bytes:
        r = random.Random(number)
        base = r.choice(start) if r.random() < 0.4 else data  # most of the corpus is damaged beyond reading
        if r.random() < 0.8 and (changed := mutate(base, r.choice(start), r)) is not None:
            return changed[:max_size]
        return bytes(atheris.Mutate(data, max_size))

    options = [
        f"-max_total_time={seconds}",
        f"-max_len={MAX_BYTES}",
        f"-seed={seed}",
        "-timeout=60",
        "-rss_limit_mb=3500",
    ]
    options += ["-print_final_stats=1", f"-artifact_prefix={out}/atheris-", str(corpus)]
    atheris.Setup([sys.argv[0], *options], worker.one, custom_mutator=change)
    atheris.Fuzz()


def by_chance(data: bytes, r: random.Random, pool: list[bytes]) -> bytes:
    """A change of structure or of bytes."""
    if r.random() < 0.7 and (changed := mutate(data, r.choice(pool), r)) is not None:
        return changed
    changed_bytes = bytearray(data)
    for _ in range(r.randrange(1, 6)):
        at = r.randrange(len(changed_bytes) + 1)
        kind = r.randrange(3)
        if kind == 0:
            changed_bytes[at : at + r.choice((1, 1, 8, 100))] = b""
        else:
            changed_bytes[at : at + kind - 1] = bytes([r.choice(b'0123456789-+.eE"\\{}[],: \n\x00\xff\xc3nutf')])
    return bytes(changed_bytes)


# ----------------------------------------------------------------------------------------------------- the supervisor


def supervise(out: Path, seconds: int, seed: int) -> None:
    """Start workers until the time is over; a worker's death is a finding."""
    out.mkdir(parents=True, exist_ok=True)
    end, deaths = time.monotonic() + seconds, 0
    while (left := int(end - time.monotonic())) > 5 and deaths < 50:
        command = [sys.executable, __file__, "--worker", "--out", str(out), "--seconds", str(min(left, 300))]
        with (out / "worker.log").open("ab") as log:
            process = subprocess.Popen([*command, "--seed", str(seed)], stdout=log, stderr=log)
            try:
                code = process.wait(left + 120)
            except subprocess.TimeoutExpired:
                process.kill()
                code = process.wait()
        if code:
            deaths += 1
            current = (out / "current").read_bytes()
            name = signal.Signals(-code).name if code < 0 else f"exit {code}"
            path = out / f"finding-death-{deaths}"
            path.with_suffix(".json").write_bytes(current[8 : 8 + int.from_bytes(current[:8], "little")])
            path.with_suffix(".txt").write_text(f"death {name}\n")
        seed += 1
    print(summary(out))


def summary(out: Path) -> str:
    """Executions and findings of all workers so far."""
    stats = [json.loads(p.read_text()) for p in out.glob("stats-*.json")]
    seconds, total = sum(s["seconds"] for s in stats), sum(s["executions"] for s in stats)
    loaded, built = sum(s["loaded"] for s in stats), sum(s["built"] for s in stats)
    lines = [f"{total:,} executions in {seconds:.0f} s ({total / max(seconds, 1):.0f} a second)"]
    lines.append(f"{loaded:,} texts were read as checkpoints, {built:,} of them became models; all others were refused")
    lines.append(f"slowest text {max((s['slowest_s'] for s in stats), default=0)} s")
    lines.append(f"largest growth of memory by one text {max((s['largest_growth_mb'] for s in stats), default=0)} MB")
    found = [(p.with_suffix(".json").name, p.read_text().splitlines()[0]) for p in sorted(out.glob("finding-*.txt"))]
    return "\n".join([*lines, *(f"{file}: {name}" for file, name in found)])


def minimise(path: Path) -> bytes:
    """The smallest text that fails as the file does."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, MEMORY_LIMIT))
    warnings.simplefilter("error")
    target = Target()
    found = failure(target, path.read_bytes())
    if found is None:
        raise SystemExit(f"{path}: nothing is wrong with it")
    name = signature(found)
    holds: Callable[[bytes], bool] = lambda data: (e := failure(target, data)) is not None and signature(e) == name  # noqa: E731
    return smaller(path.read_bytes(), holds)


def main() -> None:
    """The command line."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--seconds", type=int, default=60)
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--out", type=Path, default=Path("out/fuzz"), help="folder for findings, corpus and statistics")
    p.add_argument("--minimise", type=Path, help="a finding to make smaller")
    p.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args = p.parse_args()
    if args.minimise:
        sys.stdout.buffer.write(minimise(args.minimise) + b"\n")
    elif args.worker:
        work(args.out, args.seconds, args.seed)
    else:
        supervise(args.out, args.seconds, args.seed)


if __name__ == "__main__":
    main()

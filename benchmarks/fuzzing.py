"""What the fuzzers share: the supervisor, workers that keep what they find, statistics, and making a finding smaller.

A fuzzer is a ``Subject``; ``main`` gives it a command line. Guided by coverage where atheris is installed
(``pip install atheris``), else by chance alone. A worker that dies is a finding like any other, and another takes over.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import importlib.util
import json
import mmap
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # the package of this folder, whatever is installed

MAX_BYTES = 1 << 14  # of an input
MEMORY_BUDGET = 256 << 20  # of one input, above what was used before
SECONDS_BUDGET = 5.0  # for one input
BASELINE_INPUTS = 200  # inputs before memory is watched: imports and caches fill up
MEMORY_FOLDER = Path("/dev/shm")  # spares the disk, where there is one

Still = Callable[[bytes], bool]  # whether an input fails as the one does that is made smaller


class Disagreement(Exception):
    """Two things that must be the same are not; what stands before the colon tells such failures apart."""


class Target(Protocol):
    """Tries an input in every way; raises anything that should not come out."""

    counts: Counter[str]

    def __call__(self, data: bytes) -> None: ...


@dataclass(frozen=True)
class Subject:
    """What a fuzzer fuzzes.

    Args:
        script: its program, which the supervisor starts as a worker.
        target: made in the worker, so that what it imports is instrumented.
        seeds: inputs to begin with; called after ``target``.
        mutate: an input after changes of its structure, with a donor's parts; None if it has no structure.
        smaller: an input after removing what can be spared of its structure.
        packages: followed by the coverage.
        suffix: of the files that hold findings.
        alphabet: what a byte changed by chance becomes.
        memory_limit: of the worker's address space.
    """

    script: Path
    target: Callable[[], Target]
    seeds: Callable[[], list[bytes]]
    mutate: Callable[[bytes, bytes, random.Random], bytes | None]
    smaller: Callable[[bytes, Still], bytes]
    packages: tuple[str, ...]
    suffix: str
    alphabet: bytes = bytes(range(256))
    memory_limit: int = 4 << 30


def readable(e: Exception, longest: int) -> None:
    """A message must be one line of bounded length."""
    text = str(e)
    if len(text.splitlines()) != 1:
        raise Disagreement(f"message of several lines: {len(text.splitlines())}") from e
    if len(text) > longest:
        raise Disagreement(f"long message: {len(text)} characters") from e


def difference(a: str, b: str) -> str:
    """Where two texts part."""
    at = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    return f"{a[max(at - 20, 0) : at + 30]!r} against {b[max(at - 20, 0) : at + 30]!r}"


def signature(e: BaseException) -> str:
    """What makes two failures the same one: type and the innermost place in the package."""
    cause: BaseException = e
    while isinstance(e, Disagreement) and cause.__cause__ not in (None, cause):  # ``raise e from e`` is its own cause
        cause = cause.__cause__
    frames = [f for f in traceback.extract_tb(cause.__traceback__) if "gometal_mlx" in f.filename]
    where = [f"{Path(f.filename).name}:{f.lineno} {f.name}" for f in frames[-1:]]
    if isinstance(e, RecursionError):
        where = ["deep", *(name for name, _ in Counter(f.name for f in frames).most_common(1))]
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


def by_chance(subject: Subject, data: bytes, donor: bytes, r: random.Random) -> bytes:
    """The input after changes of its bytes, or the beginning of one and the end of another."""
    if r.random() < 0.2:
        return data[: r.randrange(len(data) + 1)] + donor[r.randrange(len(donor) + 1) :]
    changed = bytearray(data)
    for _ in range(r.randrange(1, 6)):
        at = r.randrange(len(changed) + 1)
        kind = r.randrange(3)
        if kind == 0:
            changed[at : at + r.choice((1, 1, 8, 100))] = b""
        else:
            changed[at : at + kind - 1] = bytes([r.choice(subject.alphabet)])
    return bytes(changed)


# --------------------------------------------------------------------------------------------------------- the worker


class Worker:
    """Tries inputs and notes findings, one file each, in a folder."""

    def __init__(self, subject: Subject, out: Path) -> None:
        self.subject, self.out, self.count, self.known = subject, out, 0, set[str]()
        self.started, self.said, self.slowest, self.largest = time.monotonic(), 0.0, 0.0, 0
        with (out / "current").open("w+b") as file:
            file.truncate(MAX_BYTES + 8)
            self.current = mmap.mmap(file.fileno(), MAX_BYTES + 8)
        self.target = subject.target()
        self.note_known()
        warnings.simplefilter("error")

    def note_known(self) -> None:
        """What earlier workers found need not be found again."""
        self.known |= {p.read_text().splitlines()[0] for p in self.out.glob("finding-*.txt")}

    def one(self, data: bytes) -> None:
        """Try one input."""
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
        if grown > MEMORY_BUDGET and self.count > BASELINE_INPUTS:
            self.finding(data, "memory", f"{grown >> 20} MB")
        if self.count > BASELINE_INPUTS and took > max(self.slowest, 0.5):
            (self.out / f"slowest-{os.getpid()}{self.subject.suffix}").write_bytes(data)
        if self.count > BASELINE_INPUTS:
            self.slowest, self.largest = max(self.slowest, took), max(self.largest, grown)
        if (now := time.monotonic()) - self.said > 2:
            self.said = now
            stats = {"executions": self.count, "seconds": now - self.started, "slowest_s": round(self.slowest, 3)}
            stats |= {"largest_growth_mb": self.largest >> 20, "counts": self.target.counts}
            (self.out / f"stats-{os.getpid()}.json").write_text(json.dumps(stats))

    def finding(self, data: bytes, name: str, details: str) -> None:
        """Keep the first input for each signature."""
        if name in self.known:
            return
        self.known.add(name)
        path = self.out / f"finding-{hashlib.sha1(name.encode()).hexdigest()[:10]}"
        path.with_suffix(self.subject.suffix).write_bytes(data)
        path.with_suffix(".txt").write_text(f"{name}\n{details}\n", errors="backslashreplace")


def work(subject: Subject, out: Path, seconds: int, seed: int) -> None:
    """Run in a process of its own until the time is over or it dies."""
    resource.setrlimit(resource.RLIMIT_AS, (subject.memory_limit, subject.memory_limit))
    if importlib.util.find_spec("atheris") is None:
        worker, r = Worker(subject, out), random.Random(seed)
        pool, end = subject.seeds(), time.monotonic() + seconds
        while time.monotonic() < end:
            data, donor = r.choice(pool), r.choice(pool)
            changed = subject.mutate(data, donor, r) if r.random() < 0.7 else None
            data = by_chance(subject, data, donor, r) if changed is None else changed
            worker.one(data)
            if len(pool) < 5000 and len(data) < 20_000 and r.random() < 0.05:
                pool.append(data)
        return
    atheris: Any = importlib.import_module("atheris")
    with atheris.instrument_imports(include=list(subject.packages)):
        worker = Worker(subject, out)
    start, corpus = subject.seeds(), out / "corpus"
    corpus.mkdir(exist_ok=True)
    for i, data in enumerate(start):
        (corpus / f"seed-{i}").write_bytes(data)

    def change(data: bytes, max_size: int, number: int) -> bytes:
        r = random.Random(number)
        base = r.choice(start) if r.random() < 0.4 else data  # most of the corpus is damaged beyond reading
        if r.random() < 0.8 and (changed := subject.mutate(base, r.choice(start), r)) is not None:
            return changed[:max_size]
        if r.random() < 0.3:
            return by_chance(subject, base, r.choice(start), r)[:max_size]
        return bytes(atheris.Mutate(data, max_size))

    options = [
        f"-max_total_time={seconds}",
        f"-max_len={MAX_BYTES}",
        f"-seed={seed}",
        "-timeout=60",
        f"-rss_limit_mb={(subject.memory_limit >> 20) - 600}",
    ]
    options += ["-print_final_stats=1", f"-artifact_prefix={out}/atheris-", str(corpus)]
    atheris.Setup([sys.argv[0], *options], worker.one, custom_mutator=change)
    atheris.Fuzz()


# ----------------------------------------------------------------------------------------------------- the supervisor


def supervise(subject: Subject, out: Path, seconds: int, seed: int) -> None:
    """Start workers until the time is over; a worker's death is a finding."""
    out.mkdir(parents=True, exist_ok=True)
    end, deaths = time.monotonic() + seconds, 0
    with tempfile.TemporaryDirectory(dir=MEMORY_FOLDER if MEMORY_FOLDER.is_dir() else None) as folder:
        while (left := int(end - time.monotonic())) > 5 and deaths < 50:
            command = [sys.executable, str(subject.script), "--worker", "--out", str(out)]
            command += ["--seconds", str(min(left, 300)), "--seed", str(seed)]
            with (out / "worker.log").open("ab") as log:
                process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "TMPDIR": folder})
                try:
                    code = process.wait(left + 120)
                except subprocess.TimeoutExpired:
                    process.kill()
                    code = process.wait()
            if code:
                deaths += 1
                current = (out / "current").read_bytes() if (out / "current").exists() else b""
                if not any(current):
                    raise SystemExit(f"the worker dies before it has tried anything: {out / 'worker.log'}")
                name = signal.Signals(-code).name if code < 0 else f"exit {code}"
                path = out / f"finding-death-{deaths}"
                path.with_suffix(subject.suffix).write_bytes(current[8 : 8 + int.from_bytes(current[:8], "little")])
                path.with_suffix(".txt").write_text(f"death {name}\n")
            seed += 1
    print(summary(out, subject.suffix))


def summary(out: Path, suffix: str) -> str:
    """Executions and findings of all workers so far."""
    stats = [json.loads(p.read_text()) for p in out.glob("stats-*.json")]
    seconds, total = sum(s["seconds"] for s in stats), sum(s["executions"] for s in stats)
    counts = sum((Counter(s["counts"]) for s in stats), Counter[str]())
    lines = [f"{total:,} executions in {seconds:.0f} s ({total / max(seconds, 1):.0f} a second)"]
    lines += [f"{n:,} ({n / max(total, 1):.1%}) {what}" for what, n in counts.most_common()]
    lines.append(f"slowest input {max((s['slowest_s'] for s in stats), default=0)} s")
    lines.append(f"largest growth of memory by one input {max((s['largest_growth_mb'] for s in stats), default=0)} MB")
    found = [(p.with_suffix(suffix).name, p.read_text().splitlines()[0]) for p in sorted(out.glob("finding-*.txt"))]
    return "\n".join([*lines, *(f"{file}: {name}" for file, name in found)])


# -------------------------------------------------------------------------------------------------- the command line


def minimise(subject: Subject, path: Path) -> bytes:
    """The smallest input found that fails as the file does: less structure first, then fewer bytes.

    Long for large inputs: every candidate is run.
    """
    resource.setrlimit(resource.RLIMIT_AS, (subject.memory_limit, subject.memory_limit))
    target, data = subject.target(), path.read_bytes()
    warnings.simplefilter("error")
    found = failure(target, data)
    if found is None:
        raise SystemExit(f"{path}: nothing is wrong with it")
    name = signature(found)

    def still(candidate: bytes) -> bool:
        return (e := failure(target, candidate)) is not None and signature(e) == name

    data = subject.smaller(data, still)
    size = max(len(data) // 2, 1)
    while size:
        at = 0
        while at < len(data):
            candidate = data[:at] + data[at + size :]
            if still(candidate):
                data = candidate
            else:
                at += size
        size //= 2
    return data


def main(subject: Subject, description: str, out: str) -> None:
    """The command line."""
    p = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--seconds", type=int, default=60)
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--out", type=Path, default=Path(out), help="folder for findings, corpus and statistics")
    p.add_argument("--minimise", type=Path, help="a finding to make smaller")
    p.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args = p.parse_args()
    if args.minimise:
        sys.stdout.buffer.write(minimise(subject, args.minimise))
    elif args.worker:
        work(subject, args.out, args.seconds, args.seed)
    else:
        supervise(subject, args.out, args.seconds, args.seed)

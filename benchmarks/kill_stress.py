"""Kill a process that trains and saves all the time, again and again, and look at what is on disk.

    python benchmarks/kill_stress.py --kills 200        # exit code 1 if a promise is broken

Each of four runs (JSON and safetensors, written in the training thread and in one of its own) saves after every step
and keeps three files and the best one, which is replaced every epoch. SIGKILL comes at a random moment. Then the folder
is examined, and the run is resumed from it. At the end each run is finished and compared with an undisturbed one.
The second half takes the disk away instead: full, read-only, a file that cannot be replaced or deleted.
Some of that needs root; what could not be done is printed as such.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import random
import resource
import select
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

RUNS = [(kind, thread) for kind in ("JSON", "SAFETENSORS") for thread in (False, True)]
PATTERN = "checkpoint_epoch_%d_step_%d"
WINDOW = 0.6  # seconds of training within which SIGKILL comes
EARLY = 0.1  # share of the kills that come while the process starts
ENDLESS = 10**6
START = 60.0  # seconds after which a process that does not train is given up

# ------------------------------------------------------------------------------------------------- the one to be killed


def data() -> tuple[Any, Any]:
    import numpy as np

    rng = np.random.default_rng(0)
    return rng.standard_normal((32, 1, 8, 8)).astype(np.float32), rng.integers(0, 3, 32)


def new_trainer() -> Any:
    """A small CNN with everything that a careless resume would lose: BatchNorm, Dropout, Adam, a schedule."""
    from gometal_mlx import ModelBuilder
    from gometal_mlx.training import ExponentialLRScheduler, ModelTrainer, TrainerConfig

    builder = ModelBuilder((8, 1, 8, 8)).add_conv2d(4, 3, 2, 1, name="conv").add_batch_norm(name="norm")
    builder.add_relu().add_dropout(0.2).add_dense(32, name="hidden").add_relu().add_dense(3, name="out")
    settings = TrainerConfig(batch_size=8, seed=1, learning_rate=0.01, scheduler=ExponentialLRScheduler(0.9999))
    return ModelTrainer(builder.compile(), settings)


def without_compiling() -> None:
    """A cold compile would take longer than most of these processes live."""
    import gometal_mlx  # noqa: F401, I001 (before mlx)
    import mlx.core as mx

    mx.disable_compile()
    os.environ["MLX_DISABLE_COMPILE"] = "1"  # no warning where there is no g++


def begun(folder: Path) -> bool:
    """Whether an earlier process has put a file in place."""
    return any("checkpoint" in p.name and not p.name.startswith(".") for p in folder.glob("*"))


def digest(trainer: Any) -> str:
    """Of everything the trainer's future depends on."""
    checkpoint = trainer.checkpoint()
    sha = hashlib.sha256()
    for tensor in (*checkpoint.weights, *checkpoint.optimizer_state.state_data):
        sha.update(tensor.data.tobytes())
    history = [{k: float(v) for k, v in sorted(r.items())} for r in trainer.history.records]
    counts = [trainer.epoch, trainer.step, trainer.learning_rate, list(checkpoint.extras["rng"])]
    sha.update(json.dumps([history, counts]).encode())
    return sha.hexdigest()


def train(folder: Path, kind: str, thread: bool, epochs: int, pipe: int) -> None:
    """Go on with what is in the folder, and report through the pipe: t = trained, s = durably saved, with the step."""
    from gometal_mlx.training import Callback, CheckpointConfig, CheckpointManager, ModelTrainer

    without_compiling()

    def report(text: str) -> None:
        os.write(pipe, f"{text}\n".encode())

    class Trained(Callback):
        def on_step_end(self, event: Any) -> None:
            report(f"t {event.trainer.step}")

    class Reporting(CheckpointManager):
        def _write(self, checkpoint: Any, path: Path, *rest: Any) -> None:
            super()._write(checkpoint, path, *rest)
            report(f"s {checkpoint.training_state.step}")

    trainer = ModelTrainer.resume(folder) if begun(folder) else new_trainer()
    config = CheckpointConfig(
        folder, save_frequency=0, every_steps=1, max_checkpoints=3, monitor="learning_rate", mode="min", format=kind,
        async_save=thread, filename_pattern=PATTERN,
    )  # fmt: skip
    with Reporting(trainer, config) as manager:
        report("ready")
        trainer.fit(data(), epochs, callbacks=[Trained()], checkpoints=manager)
    report(f"done {digest(trainer)}")


def undisturbed(epochs: int, pipe: int) -> None:
    """The same run without files and without kills."""
    without_compiling()
    trainer = new_trainer()
    trainer.fit(data(), epochs)
    os.write(pipe, f"done {digest(trainer)}\n".encode())


# -------------------------------------------------------------------------------------------------- the one that kills


@dataclass
class Tally:
    """What happened in one run."""

    name: str
    kills: int = 0
    writing: int = 0  # kills that came while something was being written
    unlisted: int = 0  # kills between a file's appearance and the manifest's
    deleted: int = 0  # kills between a file's deletion and the manifest's
    step: int = 0  # the last one reported as saved
    lost: int = 0  # most steps that were trained and had to be done again
    files: int = 0  # files looked at
    same: bool | None = None  # whether the finished run equals the undisturbed one
    violations: list[str] = field(default_factory=list)


class Child:
    """A process of this file with a pipe to talk through."""

    def __init__(self, *arguments: object) -> None:
        self._read, write = os.pipe()
        command = [sys.executable, "-W", "error", __file__, "--child", *map(str, arguments), str(write)]
        self.process = subprocess.Popen(command, pass_fds=[write], stderr=subprocess.PIPE, text=True)
        os.close(write)
        self._text = b""

    def wait_for(self, word: str, limit: float) -> bool:
        """Read until a line begins with the word; False at the limit or at the end of the pipe."""
        end = time.monotonic() + limit
        while not any(line.startswith(word) for line in self.lines()):
            readable, _, _ = select.select([self._read], [], [], max(end - time.monotonic(), 0))
            block = os.read(self._read, 1 << 16) if readable else b""
            if not block:
                return False
            self._text += block
        return True

    def lines(self) -> list[str]:
        return self._text.decode().split("\n")[:-1]  # the last piece is empty or cut off

    def kill(self) -> tuple[int, str]:
        """SIGKILL; the exit code (-9 if it was still alive) and what it wrote to stderr."""
        self.process.kill()
        error = self.process.communicate()[1]
        while block := os.read(self._read, 1 << 16):
            self._text += block
        os.close(self._read)
        return self.process.returncode, error

    def last(self, letter: str) -> int:
        return max((int(line.split()[1]) for line in self.lines() if line.startswith(f"{letter} ")), default=0)

    def result(self) -> str:
        """Let it finish; the digest it reports, or what went wrong."""
        finished = self.wait_for("done", 300)
        if finished:
            self.process.wait(30)
        code, error = self.kill()
        return self.lines()[-1].removeprefix("done ") if finished and code == 0 else f"exit code {code}: {error[-400:]}"


def examine(folder: Path, tally: Tally) -> int:
    """Check all that is promised of a folder, at whatever moment its writer was killed; the newest step in it."""
    from gometal_mlx import load
    from gometal_mlx.checkpoints.folder import MANIFEST, CheckpointFolder
    from gometal_mlx.errors import GoMetalError

    hidden = [p.name for p in folder.glob(".*") if p.name != ".lock"]
    tally.writing += bool(hidden)
    if len(hidden) > 2:
        tally.violations.append(f"temporary files pile up: {hidden}")
    names = {p.name for p in folder.iterdir() if not p.name.startswith(".")} - {MANIFEST}
    for name in names:
        tally.files += 1
        try:
            load(folder / name)
        except GoMetalError as e:
            tally.violations.append(f"unreadable file under a final name: {e}")
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        found = CheckpointFolder(folder, PATTERN)
    tally.violations += [f"manifest: {w.message}" for w in told]
    for entry in found.entries:
        if entry.name not in names:
            tally.deleted += 1
            continue
        try:
            found.check(entry)
        except GoMetalError as e:
            tally.violations.append(str(e))
    if (folder / MANIFEST).exists():
        tally.unlisted += bool(names - {e.name for e in found.entries})
    newest = max((e.step for e in found.entries if e.name in names), default=0)
    if newest < tally.step:
        tally.violations.append(f"step {tally.step} was reported as saved, the newest file has step {newest}")
    return newest


def kill_once(folder: Path, tally: Tally, kind: str, thread: bool, rng: random.Random) -> None:
    child = Child("train", folder, kind, int(thread), ENDLESS)
    if rng.random() < EARLY:
        child.wait_for("ready", rng.uniform(0, 0.6))
    elif child.wait_for("ready", START):
        child.wait_for("done", rng.uniform(0, WINDOW))
    code, error = child.kill()
    tally.kills += 1
    if code != -9:
        tally.violations.append(f"the process ended by itself, exit code {code}: {error[-400:]}")
    if error.strip() and code == -9:
        tally.violations.append(f"the process complained: {error[-400:]}")
    tally.step = max(tally.step, child.last("s"))
    tally.lost = max(tally.lost, child.last("t") - (examine(folder, tally) if folder.exists() else 0))


def kill_run(kind: str, thread: bool, kills: int, seed: int) -> Tally:
    """One run: killed, resumed, ..., finished, compared."""
    tally = Tally(f"{kind}, {'async' if thread else 'sync'}")
    rng = random.Random(f"{seed} {tally.name}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "checkpoints"
        for _ in range(kills):
            kill_once(folder, tally, kind, thread, rng)
            if len(tally.violations) > 20:
                return tally
        epochs = tally.step // 4 + 2  # four batches an epoch
        ended, whole = (
            Child(*a, *b) for a, b in ((("train", folder, kind, int(thread)), (epochs,)), (("undisturbed",), (epochs,)))
        )
        results = ended.result(), whole.result()
        tally.same = results[0] == results[1] and len(results[0]) == 64
        if not tally.same:
            tally.violations.append(f"finished run {results[0]} against undisturbed run {results[1]}")
    limit = 2 if thread else 1  # the file being written, and in a thread the step done meanwhile
    if tally.lost > limit:
        tally.violations.append(f"{tally.lost} steps lost at once, at most {limit} expected")
    return tally


def run_kills(kills: int, seed: int = 0) -> list[Tally]:
    """The kills shared out among the four runs."""
    shares = [kills // len(RUNS) + (i < kills % len(RUNS)) for i in range(len(RUNS))]
    return [kill_run(kind, thread, n, seed) for (kind, thread), n in zip(RUNS, shares, strict=True) if n]


# --------------------------------------------------------------------------------------------------------- faults


def work(folder: Path, kind: str, thread: bool, policy: str, epochs: int, limit: int) -> None:
    """Train with a file every epoch; print what was warned of, the epochs done and the error as JSON."""
    from gometal_mlx.errors import GoMetalError
    from gometal_mlx.training import CheckpointConfig, CheckpointManager, ModelTrainer

    without_compiling()
    trainer = ModelTrainer.resume(folder) if begun(folder) else new_trainer()
    config = CheckpointConfig(
        folder, save_frequency=1, save_best=False, format=kind, async_save=thread, on_error=policy,
        max_checkpoints=0 if limit >= 0 else 2, filename_pattern=PATTERN,
    )  # fmt: skip
    if limit > 0:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    error = ""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            with CheckpointManager(trainer, config) as manager:
                trainer.fit(data(), epochs, checkpoints=manager)
        except GoMetalError as e:
            error = str(e)
    print(json.dumps({"epoch": trainer.epoch, "warnings": [str(w.message) for w in told], "error": error}))


@dataclass
class Fault:
    """Something that keeps files from being written.

    Args:
        name: for the table.
        text: what the message must contain.
        place: the folder's context: where it lies.
        begin: brings the fault about, after two files were saved; may return how to undo it.
        limit: largest file the process may write, in bytes; -1: keep two files, so that old ones are deleted.
        user: run as an unprivileged user.
        raises: with on_error="raise" the run ends; False where the new file itself is fine.
    """

    name: str
    text: str
    place: Callable[[], contextlib.AbstractContextManager[Path]]
    begin: Callable[[Path], Callable[[], object] | None]
    limit: int = 0
    user: bool = False
    raises: bool = True


def run_tool(*command: object) -> None:
    subprocess.run([str(c) for c in command], check=True, capture_output=True)


@contextlib.contextmanager
def anywhere() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


@contextlib.contextmanager
def tiny_disk() -> Iterator[Path]:
    """300 KB of memory as a disk; needs root."""
    with tempfile.TemporaryDirectory() as name:
        run_tool("mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", name)
        try:
            yield Path(name)
        finally:
            run_tool("umount", name)


def read_only_disk(folder: Path) -> Callable[[], object]:
    run_tool("mount", "-o", "remount,ro", folder.parent)
    return lambda: run_tool("mount", "-o", "remount,rw", folder.parent)


def read_only_folder(folder: Path) -> Callable[[], object]:
    (folder / ".lock").chmod(0o666)
    folder.chmod(0o555)
    return lambda: folder.chmod(0o755)


def folders_under_final_names(folder: Path) -> None:
    for epoch in range(3, 40):
        for suffix in ("json", "safetensors"):
            (folder / f"{PATTERN % (epoch, 4 * epoch)}.{suffix}").mkdir()


def undeletable_files(folder: Path) -> Callable[[], object]:
    old = list(folder.glob("checkpoint_*"))
    run_tool("chattr", "+i", *old)
    return lambda: run_tool("chattr", "-i", *old)


FAULTS = [
    Fault("largest file size reached", "File too large", anywhere, lambda _: None, limit=2000),
    Fault("a folder under the file's name", "Is a directory", anywhere, folders_under_final_names),
    Fault("read-only folder", "Permission denied", anywhere, read_only_folder, user=True),
    Fault("disk full (tmpfs of 300 KB)", "No space left", tiny_disk, lambda _: None),
    Fault("read-only disk", "Read-only file system", tiny_disk, read_only_disk),
    Fault(
        "old files cannot be deleted", "not permitted", anywhere, undeletable_files, limit=-1, raises=False
    ),
]  # fmt: skip


def command_for(user: bool) -> list[str]:
    """The command that runs a child; where root is given up, as the user nobody."""
    if not user or os.getuid():
        return [sys.executable]
    return ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", sys.executable]


def attempt(fault: Fault, folder: Path, kind: str, thread: bool, policy: str, epochs: int) -> dict[str, Any]:
    arguments = [folder, kind, int(thread), policy, epochs, fault.limit]
    command = [*command_for(fault.user), __file__, "--child", "work", *map(str, arguments)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
    if done.returncode:
        return {"epoch": -1, "warnings": [], "error": f"exit code {done.returncode}: {done.stderr[-300:]}"}
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def suffer(fault: Fault, kind: str, thread: bool) -> list[str]:
    """Bring a fault about and check what is promised; the broken promises."""
    healthy = Fault("", "", anywhere, lambda _: None)
    with fault.place() as place:
        folder = place / "checkpoints"
        first = attempt(healthy, folder, kind, thread, "raise", 1 if fault.place is tiny_disk else 2)
        if first["error"]:
            return [f"not even the first file: {first['error']}"]
        before = {p.name: p.read_bytes() for p in folder.glob("checkpoint_*")}
        undo = fault.begin(folder)
        try:
            patient = attempt(fault, folder, kind, thread, "warn", 24)
            strict = attempt(fault, folder, kind, thread, "raise", 24)
        finally:
            if undo:
                undo()
        return judge_messages(fault, str(folder), patient, strict) + judge_files(folder, before)


def judge_messages(fault: Fault, folder: str, patient: dict[str, Any], strict: dict[str, Any]) -> list[str]:
    wrong: list[str] = []
    if patient["epoch"] != 24:
        wrong.append(f"on_error='warn': training ended at epoch {patient['epoch']}: {patient['error']}")
    if not any(fault.text in w and folder in w for w in patient["warnings"]):
        wrong.append(f"no clear warning; told were {patient['warnings'][:2]}")
    if fault.raises and (fault.text not in strict["error"] or folder not in strict["error"]):
        wrong.append(f"on_error='raise': no clear error: {strict['error'] or 'none at all'}")
    return wrong


def judge_files(folder: Path, before: dict[str, bytes]) -> list[str]:
    from gometal_mlx import load
    from gometal_mlx.checkpoints.folder import CheckpointFolder
    from gometal_mlx.errors import GoMetalError

    wrong: list[str] = []
    for name, content in before.items():
        if not (folder / name).is_file() or (folder / name).read_bytes() != content:
            wrong.append(f"{name}: not what it was")
    found = CheckpointFolder(folder, PATTERN)
    if not {e.name for e in found.entries} >= set(before):
        wrong.append("the manifest has lost older files")
    for entry in found.entries:
        try:
            found.check(entry)
            load(folder / entry.name)
        except GoMetalError as e:
            wrong.append(str(e))
    if left := [p.name for p in folder.glob(".*") if p.name != ".lock"]:
        wrong.append(f"temporary files left: {left}")
    return wrong


def can_do(fault: Fault) -> str:
    """Empty, or why a fault cannot be brought about here."""
    try:
        if fault.place is tiny_disk:
            if os.getuid():
                return "needs root (mount)"
            with tiny_disk():
                pass
        if fault.begin is undeletable_files:
            if os.getuid() or not shutil.which("chattr"):
                return "needs root and chattr"
            with tempfile.NamedTemporaryFile() as file:
                run_tool("chattr", "+i", file.name)
                run_tool("chattr", "-i", file.name)
        if fault.user:
            run_tool(*command_for(True), "-c", "import gometal_mlx")
    except (subprocess.CalledProcessError, FileNotFoundError) as e:
        return f"not possible here: {(getattr(e, 'stderr', b'') or str(e).encode()).decode().strip()[-80:]}"
    return ""


def run_faults() -> list[tuple[str, str, list[str]]]:
    """(fault, run or reason for leaving it out, broken promises)."""
    rows: list[tuple[str, str, list[str]]] = []
    for fault in FAULTS:
        if why := can_do(fault):
            rows.append((fault.name, f"LEFT OUT: {why}", []))
            continue
        for kind, thread in RUNS:
            rows.append((fault.name, f"{kind}, {'async' if thread else 'sync'}", suffer(fault, kind, thread)))
    return rows


# ------------------------------------------------------------------------------------------------------------- results


def report(tallies: list[Tally], faults: list[tuple[str, str, list[str]]]) -> str:
    """The results as Markdown."""
    lines = [
        "| killed while saving | kills | while writing | file not yet listed | deleted file still listed "
        "| files checked | steps saved | most steps lost | finished run equals undisturbed one | violations |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---|---:|",
    ]
    for t in tallies:
        counts = (t.kills, t.writing, t.unlisted, t.deleted, t.files, t.step, t.lost)
        same = {True: "bit for bit", False: "NO", None: "not reached"}[t.same]
        lines.append(f"| {t.name} | {' | '.join(map(str, counts))} | {same} | {len(t.violations)} |")
    if faults:
        lines += ["", "| what is wrong with the disk | run | result |", "|---|---|---|"]
    lines += [f"| {name} | {run} | {f'{len(w)} VIOLATIONS' if w else '' if 'LEFT' in run else 'as promised'} |"
              for name, run, w in faults]  # fmt: skip
    broken = [f"{t.name}: {v}" for t in tallies for v in t.violations]
    broken += [f"{name}, {run}: {v}" for name, run, w in faults for v in w]
    return "\n".join([*lines, "", *(broken or ["No violations."])])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200, help="in all, shared out among four runs (default 200)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default 0)")
    parser.add_argument("--no-faults", action="store_true", help="leave out full and read-only disks")
    arguments = parser.parse_args()
    start = time.monotonic()
    tallies = run_kills(arguments.kills, arguments.seed)
    faults = [] if arguments.no_faults else run_faults()
    print(report(tallies, faults))
    print(f"{sum(t.kills for t in tallies)} kills in {time.monotonic() - start:.0f} s")
    return int(any(t.violations for t in tallies) or any(w for _, _, w in faults))


def main_of_child(task: str, *rest: str) -> None:
    if task == "undisturbed":
        undisturbed(int(rest[0]), int(rest[1]))
    elif task == "train":
        train(Path(rest[0]), rest[1], rest[2] == "1", int(rest[3]), int(rest[4]))
    else:
        work(Path(rest[0]), rest[1], rest[2] == "1", rest[3], int(rest[4]), int(rest[5]))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        main_of_child(*sys.argv[2:])
    else:
        sys.exit(main())

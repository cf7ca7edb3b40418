"""A folder of checkpoints: what is in it (a manifest with checksums), what may be deleted, and who may write.

Only files that the manifest names are ever deleted, and what a killed writer left half written under a hidden name.
A folder whose manifest is gone or damaged is read anew.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, GoMetalError, shown
from .atomic import replacing
from .checkpoint import Checkpoint
from .checksum import CHECKSUM, checksum
from .formats import FORMATS, load

MANIFEST = "manifest.json"
DEFAULT_PATTERN = "checkpoint_epoch_%d_step_%d"  # go-metal's
LOCK = ".lock"
MANIFEST_VERSION = 2  # 1 had SHA-256
ANY = "*"  # for reading: the pattern by which every checkpoint counts
STEMS = {"best": "best_checkpoint", "rescue": "rescue_checkpoint"}  # what names begin with that follow no pattern
KINDS = ("periodic", *STEMS)
_LEFTOVER = re.compile(r"\.+(.+?)(?:\.new|(?:\.new)?\.[0-9a-f]{12}\.tmp)")


@dataclass(frozen=True)
class Entry:
    """One file the manifest knows.

    Args:
        name: file name inside the folder.
        kind: ``periodic``, ``best`` or ``rescue`` (saved because the run was ended).
        epoch, step: finished when it was saved.
        checksum, size: of the file's bytes.
        metric: the monitored value, where one was known.
    """

    name: str
    kind: str
    epoch: int
    step: int
    checksum: str
    size: int
    metric: float | None = None


class CheckpointFolder:
    """Reads and writes the manifest of a folder.

    Args:
        path: the folder; made when the first file is written.
        pattern: printf pattern of the periodic files' names (epoch, step), by which a lost manifest is rebuilt; ``ANY``
            to read a folder whose pattern is not known.
    """

    def __init__(self, path: str | os.PathLike[str], pattern: str) -> None:
        self.path = Path(path).absolute()  # whatever the working folder becomes
        self.pattern = pattern
        self._unlock: weakref.finalize[..., CheckpointFolder] | None = (
            None  # closes the lock file, at the latest at exit
        )
        self.unread: list[str] = []  # what was wrong with a manifest, and with files that should have been in it
        self.entries: list[Entry] = []
        self._seen: list[int] = []  # when the folder and its manifest were changed last
        self.refresh()

    # ------------------------------------------------------------------------------------------------------ writing

    def open(self) -> None:
        """Make the folder and take its lock (held until ``close``); what is in it is read again.

        What a writer that was killed left under hidden names is removed.

        Raises: CheckpointError if it cannot be made or another manager writes there.
        """
        if self._unlock is not None:
            return
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = os.open(self.path / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as e:
            raise CheckpointError(f"{self.path}: cannot be used as a folder for checkpoints: {e.strerror or e}") from e
        import fcntl  # POSIX; MLX runs nowhere else

        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as e:
            os.close(lock)
            told = "another CheckpointManager writes there; close it or choose another folder"
            raise CheckpointError(f"{self.path}: {told}") from e
        self._unlock = weakref.finalize(self, os.close, lock)
        self.entries = self._read()
        for path in self._listed():
            left = _LEFTOVER.fullmatch(path.name)
            if left and (left[1] == MANIFEST or self._kind(left[1])):
                with contextlib.suppress(OSError):
                    path.unlink()

    def close(self) -> None:
        """Give the lock back."""
        if self._unlock is not None:
            self._unlock()
            self._unlock = None

    def staged(self, name: str) -> Path:
        """Where a file of that name is to be written: under a hidden name if the manifest has one to be replaced."""
        return self.path / (f".{name}.new" if any(e.name == name for e in self.entries) else name)

    def add(self, entry: Entry, written: Path) -> None:
        """Put a file that is already durable into the manifest, in place of an older one of that name.

        Args:
            written: where the file is. If that is not yet its place, the manifest names the old and the new one until
                it is; whenever the process is killed, the one that is there has its checksum.
        """
        if written.name != entry.name:
            self._write([*self.entries, entry])
            with replacing(self.path / entry.name) as temporary:
                written.replace(temporary)
        entries = [*(e for e in self.entries if e.name != entry.name), entry]
        self._write(entries)
        self.entries = entries

    def retain(self, kept: Callable[[list[Entry]], list[Entry]]) -> None:
        """Delete the files that are not among the kept ones; one that is gone already is no error.

        One that cannot be deleted stays in the manifest, with a warning; the next call tries again.
        """
        keep, stuck = kept(self.entries), []
        for entry in self.entries:
            if entry not in keep:
                try:
                    (self.path / entry.name).unlink(missing_ok=True)
                except OSError as e:
                    stuck.append(entry)
                    warnings.warn(f"{self.path / entry.name}: cannot be deleted: {e.strerror or e}", stacklevel=2)
        if len(keep) + len(stuck) < len(self.entries):
            entries = [e for e in self.entries if e in keep or e in stuck]
            self._write(entries)
            self.entries = entries

    def _write(self, entries: list[Entry]) -> None:
        text = json.dumps({"version": MANIFEST_VERSION, "files": [asdict(e) for e in entries]}, indent=1)
        with replacing(self.path / MANIFEST) as temporary:
            temporary.write_text(text + "\n")

    # ------------------------------------------------------------------------------------------------------ reading

    def refresh(self) -> None:
        """Read again what is there, if that has changed; whoever holds the lock knows."""
        if self._unlock is not None or not os.path.isdir(self.path):
            return
        seen = [os.stat(p).st_mtime_ns for p in (self.path, self.path / MANIFEST) if os.path.exists(p)]
        if seen != self._seen:
            self.entries, self._seen = self._read(), seen

    def newest_first(self) -> list[Entry]:
        """All entries, the latest training step first; of the same step the one written last.

        Last come those that a rescue has undone: written before it, of later steps. A diverged trainer goes back.
        """
        rescued = next(((e.epoch, e.step, i) for i, e in enumerate(self.entries) if e.kind == "rescue"), None)

        def key(place: tuple[int, Entry]) -> tuple[bool, int, int, int]:
            i, e = place
            undone = rescued is not None and i < rescued[2] and (e.epoch, e.step) > rescued[:2]
            return not undone, e.epoch, e.step, i

        return [e for _, e in sorted(enumerate(self.entries), key=key, reverse=True)]

    def load_newest(self, entries: Iterable[Entry]) -> tuple[Path, Checkpoint]:
        """The first of the files that is whole; every broken one before it is named in a warning.

        Raises: CheckpointError if none is.
        """
        broken = []
        for entry in entries:
            try:
                self.check(entry)
                return self.path / entry.name, load(self.path / entry.name)
            except GoMetalError as e:
                broken.append(str(e))
                warnings.warn(f"{e}; trying an older one", stacklevel=3)
        told = f"none of {len(broken)} files is whole" if broken else "no checkpoint in it"
        raise CheckpointError(f"{self.path}: {told}")

    def check(self, entry: Entry) -> None:
        """Raise CheckpointError unless the file is there with the size and checksum of the manifest."""
        path = self.path / entry.name
        try:
            size, found = path.stat().st_size, None
            if size == entry.size:
                found = checksum(path, entry.checksum.partition(":")[0])
        except OSError as e:
            raise CheckpointError(f"{path}: cannot be read: {e.strerror or e}") from e
        if found != entry.checksum:
            told = (
                f"{size} bytes instead of {entry.size}" if found is None else "its checksum differs from the manifest's"
            )
            raise CheckpointError(f"{path}: damaged: {told}")

    def _read(self) -> list[Entry]:
        path = self.path / MANIFEST
        self.unread = []
        try:
            return self._settled(list(_entries(json.loads(path.read_text()))))
        except FileNotFoundError:
            return self._rebuilt()
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as e:
            warnings.warn(f"{path}: unusable ({e}); the folder is read instead", stacklevel=4)
            self.unread.append(f"{path}: unusable ({e})")
            return self._rebuilt()

    def _settled(self, entries: list[Entry]) -> list[Entry]:
        """Of two entries for one name, left by a writer that was killed, the one whose file is there."""
        last = {e.name: e for e in entries}
        for entry in entries:
            if entry is not last[entry.name]:
                with contextlib.suppress(CheckpointError):
                    self.check(entry)
                    last[entry.name] = entry
        return [e for e in entries if e is last[e.name]]

    def _listed(self) -> list[Path]:
        try:
            return sorted(self.path.iterdir())
        except OSError as e:
            raise CheckpointError(f"{self.path}: cannot be read: {e.strerror or e}") from e

    def _rebuilt(self) -> list[Entry]:
        """Entries for the files that have a manager's names and load; everything else is somebody else's."""
        found = []
        for path in self._listed():
            if (kind := self._kind(path.name)) is None:
                continue
            try:
                checkpoint = load(path)
                state, metric = checkpoint.training_state, checkpoint.extras.get("monitored")
                metric = float(metric) if isinstance(metric, int | float) else None
                entry = Entry(path.name, kind, state.epoch, state.step, checksum(path), path.stat().st_size, metric)
            except (GoMetalError, OSError) as e:
                if kind != "periodic" or len(re.findall(r"\d+", path.name)) > 1:  # else it may be somebody else's
                    self.unread.append(str(e))
                continue
            found.append(entry)
        return sorted(found, key=lambda e: (e.epoch, e.step))

    def _kind(self, name: str) -> str | None:
        if name == MANIFEST:
            return None
        stem = next((name.removesuffix(s) for f in FORMATS.values() for s in f.suffixes if name.endswith(s)), None)
        if stem is None:
            return None
        if re.fullmatch(re.escape(self.pattern).replace("%d", r"\d+"), stem):
            return "periodic"
        known = next((k for k, start in STEMS.items() if stem.startswith(start)), None)
        return known or ("periodic" if self.pattern == ANY and not stem.startswith(".") else None)


def _is_a_float(value: Any) -> bool:
    return isinstance(value, int | float) and -sys.float_info.max <= value <= sys.float_info.max


def _known(checksum: Any) -> bool:
    return isinstance(checksum, str) and checksum.partition(":")[0] in (CHECKSUM, "sha256")


def _entries(value: Any) -> Iterator[Entry]:
    if not isinstance(value, dict) or not {"version", "files"} <= set(value):
        raise ValueError("no manifest of a CheckpointManager")
    if value["version"] > MANIFEST_VERSION:
        raise ValueError(f"written by a newer gometal_mlx, version {value['version']}")
    for item in value["files"]:
        if value["version"] == 1:
            item["checksum"] = f"sha256:{item.pop('sha256')}"
        entry = Entry(**item)
        plain = entry.name == Path(entry.name).name and entry.name not in ("", ".", "..", MANIFEST, LOCK)
        plain = plain and not re.search("[\0-\x1f\x7f\ud800-\udfff]", entry.name)
        counts = all(isinstance(v, int) and v >= 0 for v in (entry.epoch, entry.step, entry.size))
        counts = counts and (entry.metric is None or _is_a_float(entry.metric))
        if not plain or not counts or entry.kind not in KINDS or not _known(entry.checksum):
            raise ValueError(f"{shown(item, 100)} is no entry")
        yield entry

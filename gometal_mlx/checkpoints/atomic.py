"""Files that appear whole or not at all: temporary file in the same folder, flushed to disk, renamed."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import xxhash

from ..errors import CheckpointError

CHECKSUM = "xxh3_128"  # memory's speed, ten times that of SHA-256: a save in the background must not cost a processor
_CHUNK = 1 << 20


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path``; on success it is flushed to disk and renamed to ``path``, else removed.

    Raises: CheckpointError naming the path where the system refuses (no folder, no permission, disk full).
    """
    path = Path(os.path.realpath(path))  # a link stays a link; its target is replaced
    temporary = path.with_name(f".{path.name.encode()[:100].decode(errors='ignore')}.{secrets.token_hex(6)}.tmp")
    try:
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    except OSError as e:
        raise CheckpointError(
            f"{path}: cannot be written: {e.strerror or e}; the folder must exist and be writable"
        ) from e
    try:
        yield temporary
        if path.exists():
            temporary.chmod(path.stat().st_mode & 0o777)
        _flush(temporary)
        temporary.replace(path)
        with contextlib.suppress(OSError):  # some file systems cannot flush a folder; the rename itself has happened
            _flush(path.parent)
    except OSError as e:
        raise CheckpointError(f"{path}: cannot be written: {e.strerror or e}; the file is as it was") from e
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


class ChecksummedFile(io.RawIOBase):
    """An unbuffered file for writing that computes the checksum of what passes through."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb", buffering=0)
        self._hash = xxhash.xxh3_128()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        """Write all of it; the system takes at most 2 GB at a time."""
        rest = memoryview(data)
        self._hash.update(rest)
        while rest:
            rest = rest[self._file.write(rest) :]
        return len(data)

    def close(self) -> None:
        self._file.close()
        super().close()

    @property
    def checksum(self) -> str:
        """Of what was written so far, in the form of ``checksum``."""
        return f"{CHECKSUM}:{self._hash.hexdigest()}"


def checksum(path: Path, kind: str = CHECKSUM) -> str:
    """``xxh3_128:`` and the XXH3 hash of a file's bytes, in hexadecimal; it finds damage, not malice.

    Args:
        kind: ``sha256`` for files that a manifest of version 1 names.
    """
    digest = hashlib.sha256() if kind == "sha256" else xxhash.xxh3_128()
    with path.open("rb", buffering=0) as file:
        while block := file.read(_CHUNK):
            digest.update(block)
    return f"{kind}:{digest.hexdigest()}"


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

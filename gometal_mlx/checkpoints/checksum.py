"""The checksum by which a damaged file is known; it finds damage, not malice."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import xxhash

CHECKSUM = "xxh3_128"  # memory's speed, ten times that of SHA-256: a save in the background must not cost a processor
_CHUNK = 1 << 20


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

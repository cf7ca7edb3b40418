"""Files that appear whole or not at all: temporary file in the same folder, flushed to disk, renamed."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import sys
from collections.abc import Iterator
from pathlib import Path

from ..errors import CheckpointError


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path``; on success it is flushed to disk and renamed to ``path``, else removed.

    Raises: CheckpointError naming the path where the system refuses (no folder, no permission, disk full).
    """
    path = Path(os.path.realpath(path))  # a link stays a link; its target is replaced
    if os.path.lexists(path) and not path.is_file():
        raise CheckpointError(f"{path}: cannot be written: it is a folder or device, and would be replaced by a file")
    temporary = path.with_name(f".{os.fsencode(path.name)[:100].decode(errors='ignore')}.{secrets.token_hex(6)}.tmp")
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


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        if sys.platform == "darwin":  # where fsync leaves it to the drive when, and in what order, to write
            with contextlib.suppress(OSError):  # a file system without it
                fcntl.fcntl(handle, fcntl.F_FULLFSYNC)
                return
        os.fsync(handle)
    finally:
        os.close(handle)

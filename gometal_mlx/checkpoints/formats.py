"""Which module reads and writes which file: one row a format."""

from __future__ import annotations

import importlib
import inspect
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ..errors import CheckpointError, shown
from .checkpoint import Checkpoint, CheckpointFormat

NO_OPTIONS: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True)
class Format:
    """A file format.

    Args:
        module: with its ``save`` and ``load``; imported when used.
        suffixes: of its files.
        export: it is made by running the model, and holds what inference needs; no training goes on from it.
    """

    module: str
    suffixes: tuple[str, ...]
    export: bool = False

    def save(self, checkpoint: Checkpoint, path: Path, options: Mapping[str, Any] = NO_OPTIONS) -> Any:
        """Write a file; CheckpointError for an option that the format does not have."""
        if not isinstance(checkpoint, Checkpoint):
            told = f"a Checkpoint is needed, got a {type(checkpoint).__name__}"
            raise CheckpointError(f"{path}: {told}; trainer.checkpoint() makes one, and trainer.save(path) saves it")
        return self._call("save", options, path, checkpoint, path)

    def load(self, path: Path, options: Mapping[str, Any] = NO_OPTIONS) -> Checkpoint:
        """Read a file; CheckpointError for an option that the format does not have."""
        checkpoint: Checkpoint = self._call("load", options, path, path)
        return checkpoint

    def _call(self, name: str, options: Mapping[str, Any], path: Path, *arguments: Any) -> Any:
        function = getattr(importlib.import_module(f".{self.module}", __package__), name)
        parameters = inspect.signature(function).parameters.values()
        known = [p.name for p in parameters if p.kind == p.KEYWORD_ONLY]
        odd = [option for option in options if option not in known]
        if odd and not any(p.kind == p.VAR_KEYWORD for p in parameters):  # else it says itself what it knows
            raise CheckpointError(f"{path}: {name} has no option {odd[0]!r} for this format; it has {', '.join(known)}")
        return function(*arguments, **options)


FORMATS = {
    CheckpointFormat.JSON: Format("json_format", (".json", ".json.gz")),
    CheckpointFormat.ONNX: Format("onnx", (".onnx",), export=True),
    CheckpointFormat.SAFETENSORS: Format("safetensors_format", (".safetensors",)),
}


def format_of(path: str | os.PathLike[str]) -> CheckpointFormat:
    """The format a file name's suffix stands for; CheckpointError for any other suffix."""
    if not isinstance(path, str | os.PathLike):
        raise CheckpointError(f"a file's path is needed, got {shown(path)}")
    name = Path(path).name.lower()
    for kind, row in FORMATS.items():
        if name.endswith(row.suffixes):
            return kind
    known = ", ".join(s for row in FORMATS.values() for s in row.suffixes)
    raise CheckpointError(f"{path}: unknown suffix; the name must end in one of {known}")


def is_export(path: str | os.PathLike[str]) -> bool:
    """Whether the name is that of a file which no training can go on from."""
    exports = tuple(s for row in FORMATS.values() if row.export for s in row.suffixes)
    return Path(path).name.lower().endswith(exports)


def refuse_export(path: str | os.PathLike[str]) -> None:
    """Raise CheckpointError for such a file."""
    if is_export(path):
        others = " or ".join(row.suffixes[0] for row in FORMATS.values() if not row.export)
        told = "is an export without optimizer or random state"
        raise CheckpointError(f"{path}: an {format_of(path)} file {told}; resume from {others}")


def save(checkpoint: Checkpoint, path: str | os.PathLike[str], **options: Any) -> Any:
    """Write a checkpoint in the format that the suffix names; the file appears whole or not at all.

    Args:
        checkpoint: what to write; nothing in it is changed, but an ONNX export adds to its notes what it had to repair.
        path: ends in .json, .json.gz, .safetensors or .onnx.
        options: of the format, such as ``extras=False`` (JSON, safetensors) or ``opset=17`` (ONNX).
    Raises: CheckpointError naming file, layer and field; the file on disk is then as it was.
    """
    return FORMATS[format_of(path)].save(checkpoint, Path(path), options)


def load(path: str | os.PathLike[str], **options: Any) -> Checkpoint:
    """Read a checkpoint in any of the formats; ``notes`` tells what had to be repaired.

    Raises: CheckpointError naming file, layer and field; UnsupportedError for an ONNX graph with no exact equivalent.
    """
    try:
        kind = format_of(path)
    except CheckpointError as e:
        if isinstance(path, str | os.PathLike) and os.path.isdir(path):
            told = "a folder; ModelTrainer.resume takes the newest file in it, gometal verify looks at all"
            raise CheckpointError(f"{path}: {told}") from e
        if isinstance(path, str | os.PathLike) and not os.path.exists(path):
            raise CheckpointError(f"{e}; and there is no such file") from e
        raise
    return CheckpointSaver(kind).load_checkpoint(path, **options)


class CheckpointSaver:
    """Saves and loads one format, whatever the file is called.

    Source: go-metal checkpoints/checkpoint.go, NewCheckpointSaver.
    """

    def __init__(self, format: CheckpointFormat | str = CheckpointFormat.JSON) -> None:
        self.format = CheckpointFormat.of(format)

    def save_checkpoint(self, checkpoint: Checkpoint, path: str | os.PathLike[str], **options: Any) -> Any:
        """Write a checkpoint; see ``save``."""
        return FORMATS[self.format].save(checkpoint, Path(path), options)

    def load_checkpoint(self, path: str | os.PathLike[str], **options: Any) -> Checkpoint:
        """Read a checkpoint; see ``load``."""
        check_file(path, self.format)
        return FORMATS[self.format].load(Path(path), options)


def check_file(path: str | os.PathLike[str], kind: CheckpointFormat) -> None:
    """Raise CheckpointError unless it is a file, not empty, that does not begin as another format's do."""
    file = Path(path)
    try:
        plain = stat.S_ISREG(file.stat().st_mode)
        head = b""
        if plain:
            with file.open("rb") as f:
                head = f.read(16)
    except FileNotFoundError as e:
        raise CheckpointError(f"{path}: no such file") from e
    except (OSError, ValueError) as e:  # a name that no file can have
        raise CheckpointError(f"{path!s}: cannot be read: {getattr(e, 'strerror', None) or e}") from e
    if not plain:
        raise CheckpointError(f"{path}: a file is needed, this is a folder or device")
    if not head:
        raise CheckpointError(f"{path}: the file is empty (0 bytes), as an interrupted writer leaves it")
    found = sniff(head)
    if found is not None and found != kind:
        raise CheckpointError(f"{path}: expected {kind}, but the content looks like {found}; rename the file")


def sniff(head: bytes) -> CheckpointFormat | None:
    """The format that a file's first bytes certainly belong to; None if they fit several or none."""
    if head.startswith(b"\x1f\x8b") or head.lstrip()[:1] == b"{":
        return CheckpointFormat.JSON
    if len(head) > 8 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 2**32:
        return CheckpointFormat.SAFETENSORS
    if re.match(rb"\x08[\x03-\x1f][\x12\x1a\x22\x28\x32\x3a\x42]", head):  # ir_version, and the field behind it
        return CheckpointFormat.ONNX
    return None

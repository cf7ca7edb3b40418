"""Checkpoints as safetensors: arrays under their own names, everything else as JSON in ``__metadata__``.

Weights are ``<layer>.<param>``, optimizer state is ``optimizer_state.<state>_<index>``; ``__metadata__.gometal_mlx``
holds go-metal's JSON without the numbers. Any safetensors reader can open the file; this is the fast form for resuming.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from safetensors import SafetensorError, safe_open

from .._types import FloatArray
from ..errors import CheckpointError, naming
from . import json_format, json_reader
from .atomic import replacing
from .checkpoint import Checkpoint
from .checksum import CHECKSUM, ChecksummedFile
from .go_json import decode
from .values import check_finite, extra_arrays

METADATA_KEY, CHECKSUM_KEY = "gometal_mlx", "gometal_mlx_checksum"
OPTIMIZER_PREFIX = "optimizer_state."
MAX_HEADER = 100_000_000  # bytes; readers refuse longer ones


def save(checkpoint: Checkpoint, path: Path, *, extras: bool = True) -> str:
    """Write the file whole or not at all.

    Args:
        extras: False leaves out what only gometal_mlx reads.
    Returns: the file's checksum.
    Raises: CheckpointError naming file and field; the file on disk is then as it was.
    """
    with naming(path, "not saved: "):
        checkpoint.validate()
        tensors = _tensors(checkpoint, extras=extras)
        text = io.BytesIO()
        json_format.write(json_format.to_tree(checkpoint, extras=extras, data=False), text)
        described = text.getvalue().decode()
        with replacing(path) as temporary, ChecksummedFile(temporary) as file:
            _write(tensors, {METADATA_KEY: described, CHECKSUM_KEY: _checksum(described, tensors)}, file)
            return file.checksum


def _write(tensors: dict[str, FloatArray], metadata: dict[str, str], file: ChecksummedFile) -> None:
    """The bytes of ``safetensors.numpy.save``: length of the header, header, numbers in the order of the names.

    The library's ``save_file`` writes to a temporary file of its own, which outlives a killed process and that only the
    owner may read.
    """
    header: dict[str, Any] = {"__metadata__": metadata}
    at = 0
    for name in sorted(tensors):
        begin, at = at, at + tensors[name].nbytes
        header[name] = {"dtype": "F32", "shape": tensors[name].shape, "data_offsets": (begin, at)}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_HEADER:
        raise CheckpointError(f"{len(text)} bytes without the arrays, safetensors allows {MAX_HEADER}; use .json")
    file.write(len(text).to_bytes(8, "little") + text)
    for name in sorted(tensors):
        file.write(_bytes(tensors[name]))


def _bytes(array: FloatArray) -> memoryview:
    return array.reshape(-1).view(np.uint8).data


def _checksum(description: str, tensors: Mapping[str, FloatArray]) -> str:
    """Of the description, and of each tensor's name, type, shape and numbers, in the order of the names."""
    digest = xxhash.xxh3_128(description.encode())
    for name in sorted(tensors):
        a = tensors[name]
        digest.update(json.dumps([name, str(a.dtype), a.shape]).encode())
        digest.update(_bytes(np.ascontiguousarray(a)))
    return f"{CHECKSUM}:{digest.hexdigest()}"


def _tensors(c: Checkpoint, *, extras: bool) -> dict[str, FloatArray]:
    named = [(w.name, w.data) for w in c.weights]
    named += [(OPTIMIZER_PREFIX + t.name, t.data) for t in (c.optimizer_state.state_data if c.optimizer_state else [])]
    named += list(extra_arrays(c.extras)) if extras else []
    tensors: dict[str, FloatArray] = {}
    for name, data in named:
        if name == "__metadata__":
            raise CheckpointError("tensor '__metadata__': safetensors keeps that name for itself; rename the layer")
        if name in tensors:
            raise CheckpointError(f"tensor {name!r} stands twice; safetensors needs unique names, JSON does not")
        tensors[name] = np.ascontiguousarray(data)
    return tensors


def load(path: Path, *, tolerant: bool = False) -> Checkpoint:
    """Read a file written by ``save``.

    Args:
        tolerant: also read damaged numbers, NaN and infinity, to look at them.
    Raises: CheckpointError naming file and tensor: damaged, not float32, NaN, missing or without an architecture.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            tensors: dict[str, Any] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no iterator)
    except (SafetensorError, OSError, ValueError, TypeError, AttributeError) as e:
        raise CheckpointError(f"{path}: no readable safetensors file: {e}") from e
    if METADATA_KEY not in metadata:
        raise CheckpointError(
            f"{path}: holds {len(tensors)} tensors but no architecture (__metadata__.{METADATA_KEY}); "
            "build the Model and use model.load_weights(path)"
        )
    used: set[str] = set()

    def arrays(section: str, name: str) -> FloatArray:
        key = OPTIMIZER_PREFIX + name if section == "optimizer_state" else name
        if key not in tensors:
            raise CheckpointError(f"{path}: tensor {key!r} is missing; the file is damaged")
        if tensors[key].dtype != np.float32:
            raise CheckpointError(f"{path}: tensor {key!r} is {tensors[key].dtype}; float32 needed")
        if not tolerant:
            check_finite(tensors[key], f"{path}: tensor {key!r}")
        used.add(key)
        data: FloatArray = tensors[key]
        return data

    value, _ = decode(lambda: io.BytesIO(metadata[METADATA_KEY].encode()), f"{path}: __metadata__")
    checkpoint = json_reader.from_value(value, f"{path}: __metadata__", arrays)
    stored = metadata.get(CHECKSUM_KEY, "")
    if stored and not stored.startswith(f"{CHECKSUM}:"):
        checkpoint.notes.append(f"its checksum is of an unknown kind ({stored[:20]}) and was not checked")
    elif stored and stored != _checksum(metadata[METADATA_KEY], {n: tensors[n] for n in used}):
        told = f"damaged, or changed by another tool: its content does not have the {CHECKSUM_KEY} of its metadata"
        if not tolerant:
            raise CheckpointError(f"{path}: {told}")
        checkpoint.notes.append(told)
    checkpoint.notes += [
        f"ignored the tensor {name!r}, which no layer or optimizer owns" for name in sorted(set(tensors) - used)
    ]
    return checkpoint

"""go-metal's JSON checkpoint: which keys, in which order, of which Go types.

Writing gives the bytes of Go's encoder for the same content; reading follows Go's decoder, then checks what Go leaves
unchecked.
Source: go-metal checkpoints/checkpoint.go (structs and their JSON tags, ensureBatchNormStatistics).
"""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..errors import CheckpointError, naming
from ..layers import LayerSpec, ModelSpec
from .atomic import replacing
from .checkpoint import (
    EXTRAS_VERSION,
    ZERO_TIME,
    Checkpoint,
    CheckpointMetadata,
    OptimizerTensor,
    WeightTensor,
    with_statistics,
)
from .checksum import ChecksummedFile
from .go_json import decode, encode
from .go_time import go_time
from .json_reader import from_value
from .values import ARRAY_MARK, EXTRAS_KEY

_BUFFER = 1 << 20
UNPACKED, UNPACKED_RATIO = 2**30, 100  # how large a gzip file may become: bytes, and times its size

# ----------------------------------------------------------------------------------------------------------- writing


def save(checkpoint: Checkpoint, path: Path, *, extras: bool = True) -> str:
    """Write the file whole or not at all; ``.gz`` compresses it.

    Args:
        extras: False leaves out the key that only gometal_mlx reads.
    Returns: the file's checksum.
    Raises: CheckpointError naming file and field; the file on disk is then as it was.
    """
    with naming(path, "not saved: "):
        checkpoint.validate()
        tree = to_tree(checkpoint, extras=extras)
        with replacing(path) as temporary, ChecksummedFile(temporary) as raw:
            with io.BufferedWriter(raw, _BUFFER) as buffered:
                if path.suffix.lower() == ".gz":
                    with gzip.GzipFile(fileobj=buffered, mode="wb", compresslevel=6, mtime=0, filename="") as file:
                        write(tree, file)
                else:
                    write(tree, buffered)
            return raw.checksum


def write(tree: dict[str, Any], file: Any) -> None:
    """The tree as Go's encoder prints it, with the final newline."""
    encode(tree, file.write)
    file.write(b"\n")


def to_tree(c: Checkpoint, *, extras: bool = True, data: bool = True) -> dict[str, Any]:
    """The checkpoint as the JSON object go-metal writes.

    Args:
        data: False leaves the arrays' numbers out (safetensors and ONNX hold them elsewhere).
    """
    tree: dict[str, Any] = {
        "model_spec": _spec_tree(with_statistics(c.model_spec, c.weights, add=False)),
        "weights": [_weight_tree(w, data) for w in c.weights] or _empty(c, "weights", default=None),
        "training_state": {
            "epoch": int(c.training_state.epoch),
            "step": int(c.training_state.step),
            "learning_rate": np.float32(c.training_state.learning_rate),
            "best_loss": np.float32(c.training_state.best_loss),
            "best_accuracy": np.float32(c.training_state.best_accuracy),
            "total_steps": int(c.training_state.total_steps),
        },
    }
    if (o := c.optimizer_state) is not None:
        tree["optimizer_state"] = {
            "type": o.type,
            "parameters": _sorted_map(o.parameters) or _empty(o, "parameters", default={}),
            "state_data": [_tensor_tree(t, data) for t in o.state_data] or _empty(o, "state_data", default=[]),
        }
    tree["metadata"] = _metadata_tree(c.metadata)
    if extras and c.extras:
        kept = {k: v for k, v in c.extras.items() if k != "version"}
        tree[EXTRAS_KEY] = {"version": EXTRAS_VERSION, **_extra_tree(kept, EXTRAS_KEY, data)}
    return tree


def _extra_tree(value: Any, name: str, data: bool) -> Any:
    """An extra as JSON; an array becomes its shape with its numbers, or with the name under which they are kept."""
    if isinstance(value, np.ndarray):
        return {ARRAY_MARK: list(value.shape), **({"data": value} if data else {"tensor": name})}
    if isinstance(value, Mapping):
        return {k: _extra_tree(v, f"{name}/{k}", data) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_extra_tree(v, f"{name}/{i}", data) for i, v in enumerate(value)]
    return value


def _empty(owner: Any, name: str, default: Any) -> Any:
    """What stands for an empty list or map: null where the file had null, else what go-metal's own code produces."""
    if name in owner.nulls:
        return None
    return {} if name == "parameters" else [] if "read" in owner.nulls else default


def _spec_tree(s: ModelSpec) -> dict[str, Any]:
    return {
        "layers": [_layer_tree(x) for x in s.layers] or _empty(s, "layers", default=[]),
        "total_parameters": s.total_parameters,
        "parameter_shapes": _lists(s) or _empty(s, "parameter_shapes", default=[]),
        "input_shape": list(s.input_shape) or _empty(s, "input_shape", default=[]),
        "output_shape": list(s.output_shape) or _empty(s, "output_shape", default=[]),
        "compiled": s.compiled,
    }


def _layer_tree(s: LayerSpec) -> dict[str, Any]:
    tree: dict[str, Any] = {
        "type": int(s.type),
        "name": s.name,
        "parameters": _sorted_map(s.parameters) or _empty(s, "parameters", default={}),
        "input_shape": list(s.input_shape),
        "output_shape": list(s.output_shape),
        "parameter_shapes": _lists(s),
        "parameter_count": s.parameter_count,
        "running_statistics": _sorted_map(
            {
                k: None if f"running_statistics.{k}" in s.nulls and not v.size else v
                for k, v in s.running_statistics.items()
            }
        ),
    }
    return {k: v for k, v in tree.items() if v or k in ("type", "name", "parameters")}


def _weight_tree(w: WeightTensor, data: bool) -> dict[str, Any]:
    tree = {
        "name": w.name,
        "shape": list(w.shape) or _empty(w, "shape", default=[]),
        "data": w.data if w.data.size else _empty(w, "data", default=[]),
        "layer": w.layer,
        "type": w.type,
    }
    return tree if data else {k: v for k, v in tree.items() if k != "data"}


def _tensor_tree(t: OptimizerTensor, data: bool) -> dict[str, Any]:
    tree = {
        "name": t.name,
        "shape": list(t.shape) or _empty(t, "shape", default=[]),
        "data": t.data if t.data.size else _empty(t, "data", default=[]),
        "state_type": t.state_type,
    }
    return tree if data else {k: v for k, v in tree.items() if k != "data"}


def _metadata_tree(m: CheckpointMetadata) -> dict[str, Any]:
    if not m.framework:  # go-metal's saver fills an unsigned checkpoint in; its framework name says so
        m = replace(CheckpointMetadata.now(m.description, m.tags), framework="go-metal")
    tree = {
        "version": m.version,
        "framework": m.framework,
        "created_at": go_time(m.created_at) if m.created_at else ZERO_TIME,
        "description": m.description,
        "tags": list(m.tags),
    }
    return {k: v for k, v in tree.items() if v or k not in ("description", "tags")}


def _sorted_map(m: Mapping[str, Any]) -> dict[str, Any]:
    """Go prints maps by key, bytewise."""
    keys = sorted(m, key=lambda k: k.encode("utf-8", "surrogatepass"))
    return {k: _sorted_map(m[k]) if isinstance(m[k], dict) else m[k] for k in keys}


def _lists(s: LayerSpec | ModelSpec) -> list[list[int] | None]:
    nulls = s.nulls
    return [None if not x and f"parameter_shapes[{i}]" in nulls else list(x) for i, x in enumerate(s.parameter_shapes)]


# ----------------------------------------------------------------------------------------------------------- reading


def load(path: Path, *, tolerant: bool = False) -> Checkpoint:
    """Read a file (``.gz`` or not); repairs and oddities are in the checkpoint's ``notes``.

    Args:
        tolerant: as for the other formats; JSON has no checksum and no NaN.
    Raises: CheckpointError naming file, JSON path and reason.
    """
    try:
        value, trailing = decode(lambda: open_plain(path), str(path))
    except (OSError, EOFError, zlib.error) as e:
        raise CheckpointError(f"{path}: cannot be read: {getattr(e, 'strerror', None) or e}") from e
    checkpoint = from_value(value, str(path))
    if trailing:
        checkpoint.notes.append("ignored what follows the JSON object")
    return checkpoint


def open_plain(path: Path) -> BinaryIO:
    """The file, decompressed if it is gzip (by its first bytes, whatever its name)."""
    file = path.open("rb")
    if file.peek(2)[:2] != b"\x1f\x8b":
        return file
    file.close()
    return _Unpacked(path)  # type: ignore[return-value]


class _Unpacked(gzip.GzipFile):
    """A gzip file's content; CheckpointError where there is more of it than any checkpoint has."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "rb")
        self._left = UNPACKED + UNPACKED_RATIO * path.stat().st_size

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(size)
        self._left -= len(data)
        if self._left < 0:
            told = f"unpacks to more than a GB and {UNPACKED_RATIO} times its size"
            raise CheckpointError(f"{self.name}: {told}; unpack it with gunzip to have it read all the same")
        return data

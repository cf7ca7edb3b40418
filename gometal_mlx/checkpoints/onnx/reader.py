"""An ONNX file as a checkpoint: what our exporter stored in it, or what the walk through its graph finds."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError

from ..._types import FloatArray
from ...errors import CheckpointError, GoMetalError, ShapeError, SpecError, UnsupportedError, naming
from ...layers import Model, ModelSpec
from .. import json_reader
from ..checkpoint import Checkpoint, CheckpointFormat, CheckpointMetadata, TrainingState, with_statistics
from ..formats import check_file
from ..go_json import decode
from ..values import ARRAY_MARK, check_extras, check_finite
from .graph import Graph, array_of, check_texts, take_in
from .verify import TOLERANCE, VerifyReport, check_proto, compare
from .walk import Walk
from .writer import METADATA_KEY, OPTIONS_KEY, ExportOptions, build, texts

GOMETAL = "go-metal"
FLOAT16_TOLERANCE = 1e-2  # eleven bits of mantissa, summed up in it


def load(path: Path, *, check: bool = True, external_data: bool = False, tolerant: bool = False) -> Checkpoint:
    """Read an ONNX file into a trainable checkpoint.

    Args:
        check: run the original in onnxruntime and compare it with the imported model.
        external_data: also read tensors from other files of the same folder.
        tolerant: also read NaN and infinity, to look at them; no model takes them, so nothing is compared.
    Raises: CheckpointError for a damaged file; UnsupportedError naming each node that has no exact equivalent.
    """
    with _naming(path):
        proto, source = _parsed(path, external_data=external_data)
        checkpoint, ends = _read(proto, str(path), finite=not tolerant)
        if proto.producer_name == GOMETAL:
            checkpoint.notes.append("not compared with onnxruntime: go-metal's ONNX files are not valid there")
        elif check and not tolerant:
            _compared(checkpoint, source, path, TOLERANCE, ends)
    return checkpoint


def verify_file(path: Path, *, tolerance: float = TOLERANCE, external_data: bool = False) -> VerifyReport:
    """Check an ONNX file: import into MLX, checker, onnxruntime against MLX.

    Args:
        tolerance: allowed difference, relative to the largest output; at least 0.01 where the file computes in float16.
        external_data: also read tensors from other files of the same folder.
    Raises: CheckpointError, UnsupportedError naming what is wrong.
    """
    check_file(path, CheckpointFormat.ONNX)
    with _naming(path):
        proto, source = _parsed(path, external_data=external_data)
        checkpoint, ends = _read(proto, str(path), finite=True)
        check_proto(source, str(path))
        return _compared(checkpoint, source, path, tolerance, ends)


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    try:
        with naming(path):
            yield
    except (SpecError, ShapeError) as e:  # of a layer made for a node
        raise UnsupportedError(str(e)) from e


def _parsed(path: Path, *, external_data: bool) -> tuple[onnx.ModelProto, bytes | Path]:
    """The graph with its tensors in it, and what onnxruntime is to load."""
    try:
        data = path.read_bytes()
    except OSError as e:
        raise CheckpointError(f"cannot be read: {e.strerror or e}") from e
    try:
        proto = onnx.ModelProto.FromString(data)
    except (DecodeError, ValueError, RecursionError) as e:
        raise CheckpointError(f"no ONNX file, or a damaged one: {e}") from e
    if not proto.graph.node:
        raise CheckpointError("no graph in it; no ONNX file, or a damaged one")
    check_texts(proto)
    if external_data:
        take_in(proto, path.parent)
    return proto, path if external_data else data


def _compared(
    checkpoint: Checkpoint, source: bytes | Path, path: Path, tolerance: float, ends: Mapping[str, Any]
) -> VerifyReport:
    model = Model.from_checkpoint(replace(checkpoint, notes=[]))
    least = ends.get("tolerance", tolerance)
    report = compare(source, model, where=str(path), **{**ends, "tolerance": max(tolerance, least)})
    report.raise_if_different(f"{path}: imported model")
    return report


def _read(proto: onnx.ModelProto, where: str, *, finite: bool) -> tuple[Checkpoint, dict[str, Any]]:
    """The checkpoint, and how its graph's ends differ from the model's (arguments of ``compare``)."""
    checkpoint, ends = _described(proto, where, finite=finite)
    checkpoint.model_spec = with_statistics(checkpoint.model_spec, checkpoint.weights)
    return checkpoint, ends


def _described(proto: onnx.ModelProto, where: str, *, finite: bool) -> tuple[Checkpoint, dict[str, Any]]:
    if (stored := _stored(proto, where, finite=finite)) is not None and (spec := _exported(proto, stored)) is not None:
        kept = replace(stored, model_spec=spec)
        if {p.key: p.value for p in proto.metadata_props if p.key in stored.info} != texts(stored.info):
            kept.info = _info(proto)
            kept.notes.append("its metadata_props were changed by another tool; info holds what they say now")
        return kept, {}
    graph = Graph.read(proto)
    notes = graph.notes
    walk = Walk(graph, proto.producer_name == GOMETAL, notes)
    spec, weights = walk.run()
    for w in weights if finite else ():
        check_finite(w.data, f"weight {w.name!r}")
    found = Checkpoint(spec, weights, TrainingState(learning_rate=0.001, best_loss=1e9), notes=notes)
    if stored is None:
        producer = " ".join(filter(None, (proto.producer_name, proto.producer_version))) or "unknown"
        found.metadata = CheckpointMetadata.now(f"Imported from ONNX (producer: {producer})")
        if info := _info(proto):
            found.info = info
    else:
        notes.append("the graph is not what this version exports for the stored description; the graph decides")
        found.training_state, found.metadata, found.extras = stored.training_state, stored.metadata, stored.extras
    ends = {"channels_last": walk.channels_last, "output": graph.output_name}
    if graph.element_type == onnx.TensorProto.FLOAT16:
        ends["tolerance"] = FLOAT16_TOLERANCE
        notes.append("the file computes in float16; the model has float32 weights of the same values")
    return found, ends


def _stored(proto: onnx.ModelProto, where: str, *, finite: bool) -> Checkpoint | None:
    """What our exporter stored beside the graph; its tensors are the graph's initializers of the same names."""
    text = next((p.value for p in proto.metadata_props if p.key == METADATA_KEY), None)
    if text is None:
        return None
    tensors = {t.name: t for t in proto.graph.initializer}

    def arrays(section: str, name: str) -> FloatArray:
        if name not in tensors:
            raise CheckpointError(f"{section} {name!r} of the description is missing in the graph")
        array = array_of(tensors[name])
        if finite:
            check_finite(array, f"weight {name!r}")
        return array

    value, _ = decode(lambda: io.BytesIO(text.encode()), f"{where}: metadata")
    return json_reader.from_value(value, f"{where}: metadata", arrays)


def _info(proto: onnx.ModelProto) -> dict[str, Any]:
    """What the file's author says about the model: lists and maps from JSON, all else as text."""
    found: dict[str, Any] = {}
    for p in proto.metadata_props:
        if p.key in (METADATA_KEY, OPTIONS_KEY, ARRAY_MARK):  # the last would be taken for an array
            continue
        found[p.key] = p.value
        if p.value[:1] in ("[", "{"):
            try:
                found[p.key] = json.loads(p.value, parse_constant=_no_number)
                check_extras({"info": found})  # not too deep
            except (ValueError, RecursionError):
                found[p.key] = p.value  # a Python literal, as some write
    return found


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no JSON")


def _exported(proto: onnx.ModelProto, stored: Checkpoint) -> ModelSpec | None:
    """The architecture, if the file is, to the byte, what we write for the stored checkpoint: nobody edited it."""
    try:
        model = Model.from_checkpoint(replace(stored, notes=[]))
        stated: dict[str, Any] = next((json.loads(p.value) for p in proto.metadata_props if p.key == OPTIONS_KEY), {})
        export = build(model, stored, ExportOptions(**stated))
    except (GoMetalError, ValueError, TypeError, RecursionError):
        return None
    same = list(proto.opset_import) == list(export.proto.opset_import) and export.same_graph(proto.graph)
    return model.spec if same else None

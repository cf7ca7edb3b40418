"""A checkpoint as an ONNX inference graph: walks the layers and names none of them."""

from __future__ import annotations

import glob
import hashlib
import io
import json
import mmap
import os
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from ..._types import FloatArray, Shape
from ..._version import __version__
from ...errors import CheckpointError, UnsupportedError, naming, suggest
from ...layers import Layer, Model, ModelSpec, Softmax
from ...layers.spec import usable_name
from .. import json_format
from ..atomic import replacing
from ..checkpoint import Checkpoint, WeightTensor, extract_weights
from ..checksum import ChecksummedFile
from ..values import check_finite, extra_arrays, plain
from .verify import TOLERANCE, VerifyReport, check_proto, compare
from .wire import Export, data

PRODUCER = "gometal_mlx"  # never go-metal's own name, which tells readers that MatMul weights are transposed
LOSSES_OF_LOGITS = ("CrossEntropy", "SparseCrossEntropy")  # of which a Softmax makes probabilities
METADATA_KEY, OPTIONS_KEY = "gometal_mlx", "gometal_mlx_export"
OPSET, IR_VERSION = 17, 8
OLDEST_OPSET = 13
NEWEST_OPSET: int = max(v for domain, v in helper.OP_SET_ID_VERSION_MAP if domain == "ai.onnx")  # that is released
MAX_PROTO_BYTES = 2**31 - 2**24  # protobuf's own limit, with room for the rest


@dataclass(frozen=True)
class ExportOptions:
    """How a graph is written; kept in the file, so that it can be told from an edited one.

    Args:
        opset: ONNX operator set, from 13 on.
        float16_weights: store the weights in half the space; they are cast back to float32 before use.
        keep_dropout: keep Dropout nodes (the identity in inference) for those who train the graph further.
        gemm: write Dense layers as Gemm; False writes MatMul and Add.
        input_name, output_name: of the graph's two ends.
    """

    opset: int = OPSET
    float16_weights: bool = False
    keep_dropout: bool = False
    gemm: bool = True
    input_name: str = "input"
    output_name: str = "output"


DEFAULT_OPTIONS = ExportOptions()


def save(
    checkpoint: Checkpoint,
    path: Path,
    *,
    softmax: bool = False,
    external_data: bool = False,
    verify: bool = True,
    tolerance: float = TOLERANCE,
    **options: Any,
) -> VerifyReport | None:
    """Export the model; only a file that onnxruntime runs with the model's own results is put in place.

    Args:
        softmax: end in a Softmax over the classes, if the model does not already.
        external_data: put the weights into a file beside it (always done above protobuf's 2 GB).
        verify: check the graph and compare onnxruntime with MLX; None is returned without it.
        tolerance: largest allowed difference, relative to the largest output.
        options: see ExportOptions.
    Raises: CheckpointError naming file and reason; the file on disk is then as it was.
    """
    with naming(path, "not saved: "):
        checkpoint.validate()
        model = Model.from_checkpoint(checkpoint)
        if softmax and not model.ends_in_softmax:
            _check_classes(checkpoint)
            model = ending_in(Softmax, model)
        chosen = _options(options)
        if chosen.float16_weights:
            _round_to_float16(model)
        export = build(model, checkpoint, chosen)
        write = write_external if external_data or export.nbytes > MAX_PROTO_BYTES else write_single
        replaced = _weights_of(Path(os.path.realpath(path)))  # of a link the target is replaced
        report = write(export, path, model if verify else None, tolerance)
    _remove_unused(replaced)
    return report


def _check_classes(checkpoint: Checkpoint) -> None:
    """Refuse a Softmax on outputs that were trained as anything but logits of classes."""
    config = checkpoint.extras.get("config")
    name = config.get("loss_function") if isinstance(config, Mapping) else None
    if name is not None and name not in LOSSES_OF_LOGITS:
        raise UnsupportedError(f"a Softmax makes no probabilities of what was trained with {name}; leave softmax away")


def _options(given: Mapping[str, Any]) -> ExportOptions:
    usual = asdict(DEFAULT_OPTIONS)
    for name, value in given.items():
        if name not in usual:
            raise CheckpointError(f"export option {name!r} is unknown{suggest(name, [*usual])}")
        if type(value) is not type(usual[name]):
            raise CheckpointError(f"export option {name!r}: {type(usual[name]).__name__} needed, got {value!r:.60}")
    return ExportOptions(**given)


def write_single(export: Export, path: Path, model: Model | None, tolerance: float) -> VerifyReport | None:
    """Put a graph into one file, after comparing it with the model (if one is given)."""
    with replacing(path) as temporary:
        with ChecksummedFile(temporary) as file:
            for chunk in export.chunks():
                file.write(chunk)
        return _proven(temporary, path, model, tolerance)


def write_external(export: Export, path: Path, model: Model | None, tolerance: float) -> VerifyReport | None:
    """Put a graph into one file and its weights into another, named by their content.

    The weights are durable before the graph that names them appears, so that an interruption leaves the old pair.
    """
    path = Path(os.path.realpath(path))  # of a link the target is replaced, and the weights belong beside that
    content = hashlib.sha256()
    for array in export.arrays:
        content.update(data(array))
    name = f"{path.name}.{content.hexdigest()[:12]}.data"
    try:
        folder = tempfile.TemporaryDirectory(prefix=f".{path.name[:50]}.", dir=path.parent)
    except OSError as e:
        raise CheckpointError(f"{path}: cannot be written: {e.strerror or e}; the folder must be writable") from e
    with folder:
        trial, weights = Path(folder.name) / path.name, Path(folder.name) / name
        with replacing(weights) as temporary, ChecksummedFile(temporary) as file:
            for array in export.arrays:
                file.write(data(array))
        try:
            trial.write_bytes(b"".join(export.external_chunks(name)))
        except OSError as e:
            raise CheckpointError(f"{path}: cannot be written: {e.strerror or e}; the file is as it was") from e
        report = _proven(trial, path, model, tolerance)
        weights.replace(path.parent / name)
        with replacing(path) as temporary:
            trial.replace(temporary)
    return report


def _weights_of(path: Path) -> list[Path]:
    """The files of weights, named as ``write_external`` names them, that a graph to be replaced has beside it."""
    beside = path.parent.glob(f"{glob.escape(path.name)}.{'[0-9a-f]' * 12}.data")
    return [file for file in beside if _mentions(path, file.name)]


def _remove_unused(weights: Iterable[Path]) -> None:
    """Remove those that no graph in their folder names: not the new one, and none that the old one was copied to."""
    for file in weights:
        if not any(_mentions(graph, file.name) for graph in file.parent.glob("*.onnx")):
            file.unlink(missing_ok=True)


def _mentions(path: Path, name: str) -> bool:
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return data.find(name.encode()) >= 0
    except (OSError, ValueError):  # it is not there, empty, or no file
        return False


def _proven(trial: Path, path: Path, model: Model | None, tolerance: float) -> VerifyReport | None:
    """The comparison of a written file with the model, if there is one; CheckpointError if they differ."""
    if model is None:
        return None
    check_proto(trial, str(path))
    report = compare(trial, model, tolerance=tolerance, where=str(path))
    report.raise_if_different(str(path))
    return report


def ending_in(kind: type[Layer], model: Model) -> Model:
    """The model with one more layer, which has no weights."""
    taken = [layer.name for layer in model.layers]
    layers = [*model.layers, kind(name=usable_name(kind.__name__.lower(), taken))]
    extended = Model(ModelSpec.from_layers(layers, model.spec.input_shape), seed=0)
    extended.assign(extract_weights(model, copy=False), None, [])
    return extended


def _round_to_float16(model: Model) -> None:
    rounded = []
    for w in extract_weights(model, copy=False):
        with np.errstate(over="ignore"):
            data = w.data.astype(np.float16).astype(np.float32)
        check_finite(data, f"weight {w.name!r} as float16")
        rounded.append(replace(w, data=data))
    model.assign(rounded, None, [])


def build(model: Model, checkpoint: Checkpoint, options: ExportOptions = DEFAULT_OPTIONS) -> Export:
    """The graph of a model in evaluation mode, with a symbolic batch; the checkpoint gives the metadata.

    Raises: UnsupportedError for an opset out of range, CheckpointError for names that are taken.
    """
    if not OLDEST_OPSET <= options.opset <= NEWEST_OPSET:
        raise UnsupportedError(f"opset {options.opset}: this version writes {OLDEST_OPSET} to {NEWEST_OPSET}")
    spec, weights = model.spec, extract_weights(model, copy=False)
    opset = helper.make_opsetid("", options.opset)
    version = max(IR_VERSION, helper.find_min_ir_version_for([opset]))
    proto = onnx.ModelProto(
        ir_version=version, opset_import=[opset], producer_name=PRODUCER, producer_version=__version__
    )
    proto.graph.name = "gometal_mlx"
    for ends, name, shape in (
        (proto.graph.input, options.input_name, spec.input_shape),
        (proto.graph.output, options.output_name, spec.output_shape),
    ):
        ends.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *shape[1:]]))
    export = Export(proto)
    graph = _Graph(export, options, {w.name: w.data for w in weights}, [layer.name for layer in model.layers])
    tensor = options.input_name
    for layer, layer_spec in zip(model.layers, spec.layers, strict=True):
        tensor = graph.layer(layer, layer_spec.input_shape, tensor)
    graph.finish(tensor)
    if taken := {METADATA_KEY, OPTIONS_KEY} & checkpoint.info.keys():
        raise CheckpointError(f"info: the name {min(taken)!r} is taken in ONNX files; choose another")
    described = {METADATA_KEY: _description(checkpoint, spec, weights), OPTIONS_KEY: _stated(options)}
    helper.set_model_props(proto, texts(checkpoint.info) | described)
    return export


def _stated(options: ExportOptions) -> str:
    """The options that are not the default, as JSON; opset always."""
    values, usual = asdict(options), asdict(DEFAULT_OPTIONS)
    return json.dumps({k: v for k, v in values.items() if k == "opset" or v != usual[k]}, sort_keys=True)


def texts(info: Mapping[str, Any]) -> dict[str, str]:
    """What the author says about the model, for readers of any ONNX file: texts as they are, other values as JSON."""
    return {k: v if isinstance(v, str) else json.dumps(_as_read(v), ensure_ascii=False) for k, v in info.items()}


def _as_read(value: Any) -> Any:
    """The value as it is when go-metal's JSON has been read, which has lists for arrays and 1 for 1.0."""
    if isinstance(value, Mapping):
        return {str(k): _as_read(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_as_read(v) for v in value]
    if isinstance(value, float):
        return int(value) if value.is_integer() and abs(value) < 1e21 else value
    found = plain(value)
    return found if found is value else _as_read(found)


def _description(checkpoint: Checkpoint, spec: ModelSpec, weights: list[WeightTensor]) -> str:
    """go-metal's JSON without the numbers; arrays of optimizer and training stay behind: the file is for inference."""
    extras = {k: v for k, v in checkpoint.extras.items() if k == "info" or not any(extra_arrays(v))}
    extras |= {"info": _as_read(checkpoint.info)} if checkpoint.info else {}
    kept = replace(checkpoint, model_spec=spec, weights=weights, optimizer_state=None, extras=extras, notes=[])
    text = io.BytesIO()
    json_format.write(json_format.to_tree(kept, data=False), text)
    return text.getvalue().decode()


class _Graph:
    """The graph so far; what a layer sees of it is the GraphWriter protocol."""

    def __init__(
        self, export: Export, options: ExportOptions, weights: Mapping[str, FloatArray], layer_names: list[str]
    ) -> None:
        self.opset, self.keep_dropout, self.gemm = options.opset, options.keep_dropout, options.gemm
        self._export, self._graph, self._weights = export, export.proto.graph, weights
        self._options, self._float16 = options, options.float16_weights
        tensors = {*weights, *(f"{n}_output" for n in layer_names)}
        for name in (options.input_name, options.output_name):
            if not name or name in tensors:
                told = "is the name of another tensor of the graph" if name else "must not be empty"
                raise CheckpointError(f"export: the input or output name {name!r} {told}; choose another")
            tensors.add(name)
        self._taken = {*layer_names, *tensors}
        self._layer = ""
        self._shape: Shape = ()

    def layer(self, layer: Layer, shape: Shape, tensor: str) -> str:
        """Let the layer write itself; its last node gets its name, and ``<layer>_output`` as result."""
        first, self._layer, self._shape = len(self._graph.node), layer.name, shape
        result = layer.to_onnx(self, tensor)
        if len(self._graph.node) > first:
            last = self._graph.node[-1]
            last.name, last.output[0], result = layer.name, f"{layer.name}_output", f"{layer.name}_output"
        return result

    def finish(self, tensor: str) -> None:
        """Give the last tensor its name."""
        name = self._options.output_name
        if not self._graph.node:
            self._graph.node.append(helper.make_node("Identity", [tensor], [name], name="identity"))
        self._graph.node[-1].output[0] = name

    def shape(self) -> Shape:
        return self._shape

    def node(self, op: str, *inputs: str, **attributes: Any) -> str:
        name = self._unique(f"{self._layer}_{op.lower()}")
        self._graph.node.append(helper.make_node(op, list(inputs), [f"{name}_output"], name=name, **attributes))
        return f"{name}_output"

    def _unique(self, name: str) -> str:
        found = name
        n = 1
        while found in self._taken or f"{found}_output" in self._taken:
            n += 1
            found = f"{name}_{n}"
        self._taken |= {found, f"{found}_output"}
        return found

    def scalar(self, name: str, value: float) -> str:
        return self._initializer(name, np.array(value, "<f4"))

    def weight(self, param: str, shape: Shape | None = None) -> str:
        name = f"{self._layer}.{param}"
        if name not in self._weights:
            raise CheckpointError(f"{name}: the layer writes a weight it does not have")
        data = self._weights[name]
        return self.constant(param, data if shape is None else data.reshape(shape))

    def constant(self, param: str, value: FloatArray) -> str:
        if not self._float16:
            return self._initializer(param, np.ascontiguousarray(value, "<f4"))
        with np.errstate(over="ignore"):  # save has refused what is too large; a reader only compares
            half = np.ascontiguousarray(value, "<f2")
        return self.node("Cast", self._initializer(param, half), to=TensorProto.FLOAT)

    def _initializer(self, param: str, value: np.ndarray[Any, Any]) -> str:
        name = f"{self._layer}.{param}"
        if name in (self._options.input_name, self._options.output_name):
            raise CheckpointError(f"export: the name {name!r} is that of a constant of the graph; choose another")
        self._export.add(name, value, value.shape)
        return name

"""Checkpoints, readers and comparisons that the tests of this folder share."""

import io
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import settings

from gometal_mlx.checkpoints import (
    Checkpoint,
    CheckpointMetadata,
    OptimizerState,
    OptimizerTensor,
    TrainingState,
    WeightTensor,
    extract_weights,
    go_json,
    json_format,
)
from gometal_mlx.layers import Model, ModelBuilder, ModelSpec

GOLDEN = Path(__file__).parents[1] / "golden"
GOLDEN_JSON = sorted((GOLDEN / "json").glob("*.json"), key=lambda p: p.name)
GOLDEN_TRAINER = sorted((GOLDEN / "trainer").glob("*.json"), key=lambda p: p.name)
GOLDEN_ONNX = sorted((GOLDEN / "onnx").glob("*.onnx"), key=lambda p: p.name)
SUFFIXES = (".json", ".json.gz", ".safetensors", ".onnx")
FULL_SUFFIXES = (".json", ".json.gz", ".safetensors")  # ONNX is for inference and leaves the optimizer's arrays out


def bounded(examples: int) -> settings:
    """The same examples on every machine, and no time limit for one of them (the first imports and compiles)."""
    return settings(max_examples=examples, deadline=None, derandomize=True, database=None)


def stem(path: Path) -> str:
    """Test ids."""
    return path.stem


def dense_spec() -> ModelSpec:
    return ModelBuilder((2, 3)).add_dense(4, True, "fc1").add_relu("relu").add_dense(2, False, "fc2").compile()


def cnn_spec() -> ModelSpec:
    """Every layer type once."""
    builder = ModelBuilder((2, 3, 8, 8)).add_conv2d(4, 3, 1, 1, True, "conv").add_batch_norm(name="bn")
    builder.add_leaky_relu(1 / 3, "leaky").add_max_pool2d(2, name="pool").add_conv2d(5, 3, 2, 1, False, "conv2")
    builder.add_batch_norm(affine=False, name="plain").add_relu("relu").add_elu(0.5, "elu").add_dropout(0.3, "drop")
    builder.add_dense(6, True, "fc").add_swish("swish").add_tanh("tanh").add_sigmoid("sigmoid")
    return builder.add_dense(3, False, "out").add_softmax(-1, "softmax").compile()


def weights_of(spec: ModelSpec, seed: int = 0) -> list[WeightTensor]:
    """The weights of a new model, with statistics that are neither 0 nor 1."""
    weights = extract_weights(Model(spec, seed=seed))
    rng = np.random.default_rng(seed)
    for w in weights:
        if w.type in ("running_mean", "running_var"):
            w.data = rng.uniform(0.5, 2, w.shape).astype(np.float32)
    return weights


def small_checkpoint() -> Checkpoint:
    metadata = CheckpointMetadata(created_at="2026-01-31T12:00:00Z")
    return Checkpoint(dense_spec(), weights_of(dense_spec()), metadata=metadata)


def full_checkpoint() -> Checkpoint:
    """Something in every field."""
    spec = cnn_spec()
    rng = np.random.default_rng(1)
    learned = [w for w in weights_of(spec) if not w.type.startswith("running")]
    state = [
        OptimizerTensor(f"{kind}_{i}", (w.data.size,), rng.standard_normal(w.data.size).astype(np.float32), kind)
        for kind in ("momentum", "variance")
        for i, w in enumerate(learned)
    ]
    state[0].data[:4] = [-0.0, 1e-45, 1e21, 3.4028235e38]
    hyper = {"learning_rate": np.float32(0.0625), "beta1": 0.9, "step_count": 7, "nested": {"b": [1], "a": ""}}
    return Checkpoint(
        spec,
        weights_of(spec),
        TrainingState(3, 70, 0.0625, 0.25, 0.875, 210),
        OptimizerState("Adam", hyper, state),
        CheckpointMetadata("2.0", "gometal_mlx", "2026-01-31T12:00:00.123456789Z", "a <b> & \u2028 é 🙂", ["x", ""]),
        {"rng": [1, 4294967295], "best": 0.1, "none": None, "yes": True, "history": [{"loss": 0.5}], "empty": {}},
    )


def as_bytes(checkpoint: Checkpoint, **options: Any) -> bytes:
    """The JSON file's content."""
    out = io.BytesIO()
    json_format.write(json_format.to_tree(checkpoint, **options), out)
    return out.getvalue()


def read(data: bytes | str) -> Checkpoint:
    """A checkpoint from a JSON file's content; ``f.json`` stands in its errors."""
    content = data.encode() if isinstance(data, str) else data
    value, _ = go_json.decode(lambda: io.BytesIO(content), "f.json")
    return json_format.from_value(value, "f.json")


def read_fields(fields: str) -> Checkpoint:
    """A checkpoint from top-level JSON fields beside an empty architecture."""
    return read('{"model_spec": {}, ' + fields + "}")


def read_data(elements: list[str], separator: str = ", ") -> np.ndarray:
    """The array that a weight's ``data`` of these literals gives."""
    data = separator.join(elements)
    return read_fields(f'"weights": [{{"name": "w", "shape": [{len(elements)}], "data": [{data}]}}]').weights[0].data


def assert_same_arrays(a: Checkpoint, b: Checkpoint) -> None:
    """Names, shapes and every bit of the weights."""
    assert [(w.name, tuple(w.shape), w.layer, w.type) for w in a.weights] == [
        (w.name, tuple(w.shape), w.layer, w.type) for w in b.weights
    ]
    assert [w.data.tobytes() for w in a.weights] == [w.data.tobytes() for w in b.weights]
    assert all(w.data.dtype == np.float32 and w.data.shape == tuple(w.shape) for w in b.weights)


def assert_same(a: Checkpoint, b: Checkpoint) -> None:
    """Everything a file can hold, the arrays bit for bit."""
    assert_same_arrays(a, b)
    assert a.model_spec == b.model_spec
    assert a.training_state == b.training_state
    assert a.metadata == b.metadata
    assert a.extras == b.extras
    assert (a.optimizer_state is None) == (b.optimizer_state is None)
    if a.optimizer_state and b.optimizer_state:
        assert (a.optimizer_state.type, a.optimizer_state.parameters) == (
            b.optimizer_state.type, b.optimizer_state.parameters,
        )  # fmt: skip
        for x, y in zip(a.optimizer_state.state_data, b.optimizer_state.state_data, strict=True):
            assert (x.name, tuple(x.shape), x.state_type) == (y.name, tuple(y.shape), y.state_type)
            assert x.data.tobytes() == y.data.tobytes()


def one_line(error: BaseException, *parts: str) -> str:
    """The message, after checking that it is one readable line that names all the parts."""
    text = str(error)
    assert "\n" not in text
    assert len(text) < 600
    for part in parts:
        assert part in text, f"{part!r} is missing in: {text}"
    return text


def files(folder: Path) -> dict[str, bytes]:
    """What a folder holds, hidden files included."""
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}

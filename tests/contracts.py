"""What every layer must do. A ``tests/layers/test_<layer>.py`` lists CASES; LayerContract checks each of them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import mlx.core as mx
import numpy as np
import onnx
import onnxruntime
import pytest
from mlx.utils import tree_flatten, tree_map

import gometal_mlx as gm
from gometal_mlx.checkpoints import extract_weights
from gometal_mlx.layers import Layer, Model, ModelSpec
from gometal_mlx.layers._prepared import Prepared
from gometal_mlx.layers.base import LAYERS, fields

SUFFIXES = (".json", ".safetensors", ".onnx")
# float32 has 24 bits (6e-8); sums of up to about 100 products, added in another order, lose one digit and a half
VALUE_TOLERANCE = 3e-6
# as above, through two passes; relative to the sum of magnitudes, because the sum itself may cancel
GRADIENT_TOLERANCE = 1e-5
# docs/differences.md: float32 sums in another order, over several layers
ONNX_TOLERANCE = 1e-5
# a fused kernel may round a product and a sum once instead of twice
COMPILE_TOLERANCE = 1e-6

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Case:
    """One layer, an input shape (NCHW) and the layer's value by its formula.

    Args:
        reference: ``(layer, weights, x, training) -> y``, float64, NCHW; written from the formula alone.
        modes: the values of ``training`` for which the output depends on nothing random.
    """

    layer: Layer
    input_shape: tuple[int, ...]
    reference: Callable[[Any, Arrays, np.ndarray, bool], np.ndarray]
    modes: tuple[bool, ...] = (False, True)

    def __str__(self) -> str:
        kind = type(self.layer)
        changed = [(f.name, v) for f in fields(kind) if (v := getattr(self.layer, f.name)) != f.default]
        return "-".join(["x".join(map(str, self.input_shape)), *(f"{k}={v}" for k, v in changed)])

    @property
    def spec(self) -> ModelSpec:
        return ModelSpec.from_layers([self.layer], self.input_shape)

    @property
    def resolved(self) -> Layer:
        return self.layer.resolve(self.input_shape)

    def model(self, training: bool = False) -> Model:
        """The layer as a model with random weights (fresh models would have zero biases and gammas of 1)."""
        model = Model(self.spec)
        randomise(model)
        return model.train(training)

    def batch(self, size: int) -> np.ndarray:
        return random_batch(self.spec, size)

    def value(self, model: Model, x: np.ndarray, training: bool) -> np.ndarray:
        return self.reference(self.resolved, weights_of(model, self.layer.name), x.astype(np.float64), training)


class LayerContract:
    """Subclass it as ``TestX`` and give it ``cases``."""

    cases: ClassVar[list[Case]]

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        wanted = set(metafunc.fixturenames)
        if {"case", "training"} <= wanted:
            rows = [(c, t) for c in self.cases for t in c.modes]
            ids = [f"{c}-{'train' if t else 'eval'}" for c, t in rows]
            metafunc.parametrize(("case", "training"), rows, ids=ids)
        elif "case" in wanted:
            metafunc.parametrize("case", self.cases, ids=str)

    @staticmethod
    def imported(layer: Layer) -> Layer:
        """The layer that reading its ONNX nodes alone gives."""
        return layer

    @pytest.mark.parametrize("size", [1, 5])
    def test_shape_rule_is_the_shape(self, case: Case, size: int) -> None:
        y = case.model()(mx.array(case.batch(size)))
        assert y.shape == (size, *case.spec.output_shape[1:])
        assert y.dtype == mx.float32

    def test_parameter_shapes_and_count_are_those_of_the_arrays(self, case: Case) -> None:
        model, spec = case.model(), case.spec
        trained = dict(tree_flatten(model.trainable_parameters()))
        shapes = tuple(trained[f"{layer}.{name}"].shape for layer, name in names_of(model, trainable=True))
        assert len(trained) == len(shapes)
        assert spec.layers[0].parameter_shapes == spec.parameter_shapes == shapes
        assert spec.layers[0].parameter_count == spec.total_parameters == sum(v.size for v in trained.values())

    def test_value(self, case: Case, training: bool) -> None:
        model, x = case.model(training), case.batch(3)
        expected = case.value(model, x, training)  # first: a training call moves running statistics
        np.testing.assert_allclose(
            np.array(model(mx.array(x))), expected, rtol=0, atol=VALUE_TOLERANCE * np.abs(expected).max()
        )

    def test_value_of_prepared_weights(self, case: Case) -> None:
        """A layer that lays its weight out for evaluation computes the same with it."""
        model, x = case.model(), case.batch(3)
        prepared = Prepared(model)
        with mx.stream(mx.cpu):
            assert prepared.refresh() == bool(prepared.arrays) == case.resolved.prepares(case.spec.input_shape)
            found = np.array(model(mx.array(x), prepared=prepared.arrays))
        expected = case.value(model, x, False)
        np.testing.assert_allclose(found, expected, rtol=0, atol=VALUE_TOLERANCE * np.abs(expected).max())

    def test_rows_apart_is_what_is_computed(self, case: Case, training: bool) -> None:
        """A batch is dealt out to lanes, or predicted in pieces, where the layer says so."""
        x = mx.array(case.batch(4))
        whole = np.array(case.model(training)(x))
        model = case.model(training)
        alone = np.concatenate([np.array(model(x[i : i + 1])) for i in range(4)])
        same = np.allclose(whole, alone, rtol=0, atol=10 * VALUE_TOLERANCE * np.abs(whole).max())
        assert same == case.resolved.rows_apart(case.spec.input_shape, training=training)

    def test_gradient(self, case: Case, training: bool) -> None:
        """Against central differences of the float64 reference, along random directions through weights and input."""
        model, x = case.model(training), case.batch(3)
        rng = np.random.default_rng(2)
        weights = weights_of(model, case.layer.name)
        learned = [name for _, name in names_of(model, trainable=True)]
        at = {**{n: weights[n] for n in learned}, "x": x.astype(np.float64)}
        mask = rng.standard_normal((3, *case.spec.output_shape[1:]))

        def reference_loss(values: Arrays) -> float:
            given = {**weights, **{n: values[n] for n in learned}}
            return float((case.reference(case.resolved, given, values["x"], training) * mask).sum())

        def loss(values: dict[str, mx.array]) -> mx.array:
            p = {n: values.get(n, mx.array(w.astype(np.float32))) for n, w in weights.items()}
            internal = mx.moveaxis(values["x"], 1, -1) if x.ndim > 2 else values["x"]
            y = case.resolved.forward(p, internal, training=training, key=None)
            return ((mx.moveaxis(y, -1, 1) if y.ndim > 2 else y) * mx.array(mask.astype(np.float32))).sum()

        gradient = mx.grad(loss)({n: mx.array(v.astype(np.float32)) for n, v in at.items()})
        for _ in range(3):
            v = {n: rng.standard_normal(a.shape) for n, a in at.items()}
            h = 1e-6  # error h^2 from curvature, 1e-16 / h from rounding: both far below float32
            up, down = ({n: at[n] + sign * v[n] for n in at} for sign in (h, -h))
            expected = (reference_loss(up) - reference_loss(down)) / (2 * h)
            products = [np.array(gradient[n], np.float64) * v[n] for n in at]
            scale = sum(np.abs(p).sum() for p in products)
            assert sum(p.sum() for p in products) == pytest.approx(expected, rel=0, abs=GRADIENT_TOLERANCE * scale)

    def test_compiled_is_eager(self, case: Case, training: bool, compiled: None) -> None:
        eager, fused, x = case.model(training), case.model(training), mx.array(case.batch(3))
        forward = mx.compile(lambda x: fused(x), inputs=fused.state, outputs=fused.state)
        expected = np.array(eager(x))
        scale = np.abs(expected).max()
        np.testing.assert_allclose(np.array(forward(x)), expected, rtol=0, atol=COMPILE_TOLERANCE * scale)
        for (name, a), (_, b) in zip(*(tree_flatten(m.parameters()) for m in (eager, fused)), strict=True):
            np.testing.assert_allclose(np.array(b), np.array(a), rtol=COMPILE_TOLERANCE, err_msg=name)

    def test_spec_gives_the_layer_back(self, case: Case) -> None:
        spec = case.spec.layers[0]
        assert LAYERS[spec.type].from_parameters(spec.name, spec.parameters) == case.resolved
        assert spec.layer() == case.resolved
        assert case.spec.typed_layers() == (case.resolved,)

    @pytest.mark.parametrize("suffix", SUFFIXES)
    def test_file_keeps_spec_and_weights(self, case: Case, suffix: str, tmp_path: Path) -> None:
        assert_file_keeps_everything(case.model(), tmp_path / f"model{suffix}")

    def test_onnxruntime_agrees(self, case: Case, tmp_path: Path) -> None:
        assert_onnxruntime_agrees(case.model(), tmp_path / "model.onnx")

    def test_onnx_nodes_alone_give_the_layer_back(self, case: Case, tmp_path: Path) -> None:
        model, path = case.model(), tmp_path / "model.onnx"
        save(model, path)
        strip_description(path)
        loaded = gm.load(path)
        assert loaded.model_spec.typed_layers() == (self.imported(case.resolved),)
        found = {w.name: bits(w.data) for w in loaded.weights}
        for w in extract_weights(model):
            assert found[w.name] == bits(w.data), w.name


def randomise(model: Model, seed: int = 0) -> None:
    """Random values everywhere, and two that text and arithmetic easily lose: -0 and the smallest subnormal number."""
    rng = np.random.default_rng(seed)
    for layer, name, param in model.slots():
        if name == "running_var":
            value = rng.uniform(0.5, 2.0, param.shape).astype(np.float32)
        else:
            fan_in = max(1, np.prod(param.shape[1:], dtype=int) if len(param.shape) == 4 else param.shape[0])
            scale = fan_in**-0.5 if len(param.shape) > 1 else 1.0  # outputs of about 1, however deep the stack
            value = (scale * rng.standard_normal(param.shape)).astype(np.float32)
            if name != "weight" or value.size > 20:  # few enough zeros to leave every channel a weight
                value.reshape(-1)[:2] = np.array([-0.0, 2.0**-149], np.float32)[: value.size]
        model[layer.name][name] = mx.array(value)
    mx.eval(model.parameters())


def random_batch(spec: ModelSpec, size: int, seed: int = 1) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (1.5 * rng.standard_normal((size, *spec.input_shape[1:]))).astype(np.float32)


def names_of(model: Model, trainable: bool) -> list[tuple[str, str]]:
    return [(layer.name, name) for layer, name, p in model.slots() if p.trainable == trainable]


def weights_of(model: Model, layer: str) -> dict[str, np.ndarray]:
    """A layer's arrays, statistics included, in float64."""
    return {n: np.array(a, np.float64) for n, a in model.get(layer, {}).items()}


def bits(array: Any) -> tuple[tuple[int, ...], bytes]:
    """Shape and bytes: -0 differs from 0, and NaN equals itself."""
    array = np.asarray(array)
    assert array.dtype == np.float32
    return array.shape, array.tobytes()


def tree_bits(tree: Any) -> dict[str, tuple[tuple[int, ...], bytes]]:
    """A parameter tree for comparison with ``==`` (``all(tree_flatten(t))`` is always true: its items are pairs)."""
    return dict(tree_flatten(tree_map(bits, tree), is_leaf=lambda leaf: isinstance(leaf, tuple)))


def save(model: Model, path: Path, **options: Any) -> Any:
    return gm.save(gm.Checkpoint(model.spec, extract_weights(model)), path, **options)


def strip_description(path: Path) -> None:
    """Leave only the graph of an ONNX file, as another tool would have written it."""
    proto = onnx.load(path)
    del proto.metadata_props[:]
    onnx.save(proto, path)


def assert_file_keeps_everything(model: Model, path: Path) -> None:
    """Through a file: the same spec, the same bits, nothing to repair."""
    before = {w.name: bits(w.data) for w in extract_weights(model)}
    save(model, path)
    loaded = gm.load(path)
    assert loaded.model_spec == model.spec
    assert {w.name: bits(w.data) for w in loaded.weights} == before
    assert {w.name: bits(w.data) for w in extract_weights(Model.from_checkpoint(loaded))} == before
    assert loaded.notes == []


def assert_onnxruntime_agrees(model: Model, path: Path) -> None:
    """The export passes its own checks, and onnxruntime gives MLX's values at other batch sizes than the spec's."""
    assert save(model, path).ok
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    model.eval()
    for size in (1, 7):
        x = random_batch(model.spec, size, seed=size)
        (theirs,) = session.run(None, {"input": x})
        ours = np.array(model(mx.array(x)))
        np.testing.assert_allclose(theirs, ours, rtol=0, atol=ONNX_TOLERANCE * np.abs(ours).max())

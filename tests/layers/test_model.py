"""Model: an nn.Module that keeps its promises, and whole stacks of layers through files and onnxruntime."""

from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
import pytest
from contracts import SUFFIXES, assert_file_keeps_everything, assert_onnxruntime_agrees, bits, randomise, tree_bits
from mlx.utils import tree_flatten, tree_unflatten

from gometal_mlx.checkpoints import WeightTensor, extract_weights, load_weights
from gometal_mlx.errors import CheckpointError, ShapeError, SpecError
from gometal_mlx.layers import Layer, LayerType, Model, ModelBuilder, ModelSpec
from gometal_mlx.layers.base import LAYERS

TRAINED = {"c.weight", "c.bias", "b.weight", "b.bias", "d.weight", "d.bias"}
STATISTICS = {"b.running_mean", "b.running_var"}


def small() -> ModelSpec:
    b = ModelBuilder((4, 2, 6, 6)).add_conv2d(3, 3, name="c").add_batch_norm(name="b").add_relu("r")
    return b.add_dense(2, name="d").compile()


def names(tree: object) -> set[str]:
    return {name for name, _ in tree_flatten(tree)}


# --------------------------------------------------------------------------------------------------------- the module


def test_parameters_have_go_metals_names_and_layouts() -> None:
    model = Model(small())
    assert isinstance(model, nn.Module)
    assert names(model.parameters()) == TRAINED | STATISTICS
    shapes = {name: a.shape for name, a in tree_flatten(model.parameters())}
    assert shapes["c.weight"] == (3, 2, 3, 3)
    assert shapes["d.weight"] == (48, 2)
    assert all(a.dtype == mx.float32 for _, a in tree_flatten(model.parameters()))


def test_names_survive_flattening() -> None:
    """tree_unflatten splits names at '.' and makes lists of numbers; allowed names must come through."""
    b = ModelBuilder((1, 3))
    for name in ("1a", "a b", "a/b", "a-1", "\u00b2", "layers", "train", "spec", "state", "get", "update", "items"):
        b.add_dense(3, name=name)
    model = Model(b.compile())
    assert tree_bits(tree_unflatten(tree_flatten(model.parameters()))) == tree_bits(model.parameters())
    model.update(tree_unflatten(tree_flatten(model.parameters())))
    assert model(mx.ones((2, 3))).shape == (2, 3)


def test_statistics_are_never_trainable() -> None:
    model = Model(small())
    assert names(model.trainable_parameters()) == TRAINED
    assert names(model.unfreeze().trainable_parameters()) == TRAINED
    assert names(model.freeze().trainable_parameters()) == set()
    assert names(model.unfreeze().trainable_parameters()) == TRAINED
    model.unfreeze(keys=["running_mean", "running_var"])
    assert names(model.trainable_parameters()) == TRAINED
    model.train().eval().train()
    assert names(model.trainable_parameters()) == TRAINED


def test_statistics_are_not_trainable_after_unfreezing_their_layer() -> None:
    model = Model(small())
    model["b"].freeze()
    assert names(model.trainable_parameters()) == TRAINED - {"b.weight", "b.bias"}
    model["b"].unfreeze()
    assert names(model.trainable_parameters()) == TRAINED


def test_a_layer_can_be_frozen_for_fine_tuning() -> None:
    model = Model(small())
    model["c"].freeze()
    assert names(model.trainable_parameters()) == TRAINED - {"c.weight", "c.bias"}
    _, gradients = nn.value_and_grad(model, lambda x: model(x).sum())(mx.ones((4, 2, 6, 6)))
    assert names(gradients) == TRAINED - {"c.weight", "c.bias"}


def test_wants_a_compiled_spec() -> None:
    with pytest.raises(SpecError, match=r"^Model: the spec is not compiled; call ModelBuilder\.compile\(\) first$"):
        Model(replace(small(), compiled=False))


@pytest.mark.parametrize("shape", [(4, 3, 6, 6), (4, 6, 6, 2), (2, 6, 6), (4, 72), (1, 4, 2, 6, 6), (4, 2, 6, 7), ()])
def test_refuses_another_input_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match=r"^Model: input must be \(batch, 2, 6, 6\), got \([^\n]*\)$"):
        Model(small())(mx.zeros(shape))


@pytest.mark.parametrize("size", [0, 1, 3, 4, 33])
@pytest.mark.parametrize("shape", [(4, 6), (4, 2, 3), (4, 2, 3, 5)])
def test_takes_any_batch_size(size: int, shape: tuple[int, ...]) -> None:
    model = Model(ModelBuilder(shape).add_relu().add_dense(2).compile())
    y = model(mx.zeros((size, *shape[1:])))
    mx.eval(y)
    assert y.shape == (size, 2)


@pytest.mark.parametrize("shape", [(4,), (4, 3), (4, 3, 2), (4, 3, 2, 5), (4, 3, 2, 5, 2)])
def test_layers_without_weights_take_any_rank(shape: tuple[int, ...], tmp_path: Path) -> None:
    x = mx.random.normal(shape)
    model = Model(ModelBuilder(shape).add_tanh().add_relu().compile())
    # the CPU has its own tanh, right to the last digit but one
    np.testing.assert_allclose(np.array(model(x)), np.array(mx.maximum(mx.tanh(x), 0)), rtol=4e-7)
    assert_onnxruntime_agrees(model, tmp_path / "m.onnx")
    assert_file_keeps_everything(model, tmp_path / "m2.onnx")


def test_a_number_is_no_batch() -> None:
    with pytest.raises(ShapeError, match=r"^Model: input must be \(batch, \), got \(\)$"):
        Model(ModelBuilder((4,)).add_relu().compile())(mx.array(1.0))


def test_logits_stop_before_the_softmax() -> None:
    spec = ModelBuilder((2, 3)).add_dense(4, name="d").add_softmax().compile()
    model, x = Model(spec), mx.random.normal((2, 3))
    assert model.ends_in_softmax
    np.testing.assert_array_equal(np.array(mx.softmax(model.logits(x), axis=-1, precise=True)), np.array(model(x)))
    plain = Model(ModelBuilder((2, 3)).add_softmax().add_dense(4).compile())
    assert not plain.ends_in_softmax
    assert bits(plain.logits(x)) == bits(plain(x))
    over_the_batch = Model(ModelBuilder((2, 3)).add_softmax(0).compile())
    assert not over_the_batch.ends_in_softmax


# ----------------------------------------------------------------------------------------------------- initial values


def test_seed_fixes_the_initial_weights() -> None:
    first = tree_bits(Model(small(), seed=3).parameters())
    mx.random.seed(99)
    assert tree_bits(Model(small(), seed=3).parameters()) == first
    assert tree_bits(Model(small(), seed=4).parameters()) != first


def test_seed_leaves_the_global_generator_alone() -> None:
    mx.random.seed(7)
    expected = bits(mx.random.normal((3,)))
    mx.random.seed(7)
    mx.eval(Model(small(), seed=3).parameters())
    assert bits(mx.random.normal((3,))) == expected


def test_without_a_seed_follows_the_global_generator() -> None:
    mx.random.seed(7)
    first, second = (tree_bits(Model(small()).parameters()) for _ in range(2))
    mx.random.seed(7)
    assert tree_bits(Model(small()).parameters()) == first
    assert first != second


def test_layers_of_one_shape_start_differently() -> None:
    model = Model(ModelBuilder((1, 8)).add_dense(8, name="a").add_dense(8, name="b").compile(), seed=0)
    assert bits(model["a"]["weight"]) != bits(model["b"]["weight"])


@pytest.mark.parametrize(
    ("spec", "fan_in"),
    [
        (ModelBuilder((1, 300)).add_dense(400, name="x").compile(), 300),
        (ModelBuilder((1, 5, 6, 10)).add_dense(400, name="x").compile(), 300),
        (ModelBuilder((1, 32, 9, 9)).add_conv2d(96, 5, name="x").compile(), 800),
    ],
)
def test_weights_start_he_normal(spec: ModelSpec, fan_in: int) -> None:
    w = np.array(Model(spec, seed=0)["x"]["weight"], np.float64).reshape(-1)
    sigma = (2 / fan_in) ** 0.5
    n = w.size  # at least 76800; each bound is five standard deviations of its estimate
    assert w.std() == pytest.approx(sigma, rel=5 / (2 * n) ** 0.5)
    assert w.mean() == pytest.approx(0, abs=5 * sigma / n**0.5)
    beyond = 0.0455  # share of a normal distribution outside two sigma; a uniform one has none
    assert (np.abs(w) > 2 * sigma).mean() == pytest.approx(beyond, abs=5 * (beyond / n) ** 0.5)


def test_biases_start_at_zero() -> None:
    model = Model(small(), seed=0)
    assert not np.array(model["c"]["bias"]).any()
    assert not np.array(model["d"]["bias"]).any()


# ----------------------------------------------------------------------------------------------------------- training


def test_trains_with_mlx_optimizers() -> None:
    model, optimizer = Model(small(), seed=0).train(), optim.Adam(learning_rate=0.01)
    x = mx.random.normal((16, 2, 6, 6), key=mx.random.key(0))
    y = (x.mean((1, 2, 3)) > 0).astype(mx.int32)

    def loss(x: mx.array, y: mx.array) -> mx.array:
        return nn.losses.cross_entropy(model(x), y, reduction="mean")

    step = nn.value_and_grad(model, loss)
    before, losses = tree_bits(model.parameters()), []
    for _ in range(15):
        value, gradients = step(x, y)
        assert names(gradients) == TRAINED
        optimizer.update(model, gradients)
        mx.eval(model.state, optimizer.state)
        losses.append(value.item())
    assert losses[-1] < 0.5 * losses[0]
    after = tree_bits(model.parameters())
    assert {n for n in after if after[n] != before[n]} == TRAINED | STATISTICS  # statistics moved, too
    assert all(np.isfinite(np.array(a)).all() for _, a in tree_flatten(model.parameters()))


def test_evaluation_changes_nothing() -> None:
    model = Model(small(), seed=0).eval()
    before = tree_bits(model.parameters())
    x = mx.random.normal((4, 2, 6, 6))
    first = bits(model(x))
    assert bits(model(x)) == first
    assert tree_bits(model.parameters()) == before


def test_key_fixes_a_training_pass() -> None:
    model = Model(ModelBuilder((4, 50)).add_dropout().add_dense(5).add_dropout().compile(), seed=0).train()
    x = mx.ones((4, 50))
    assert bits(model(x, mx.random.key(1))) == bits(model(x, mx.random.key(1)))
    assert bits(model(x, mx.random.key(1))) != bits(model(x, mx.random.key(2)))


# ---------------------------------------------------------------------------------------------------- stored weights


def stored(seed: int = 5) -> list[WeightTensor]:
    model = Model(small())
    randomise(model, seed)
    return extract_weights(model)


def test_weights_come_in_go_metals_order() -> None:
    found = [(w.name, w.type) for w in stored()]
    assert found == [
        ("c.weight", "weight"), ("c.bias", "bias"), ("b.weight", "gamma"), ("b.bias", "beta"),
        ("d.weight", "weight"), ("d.bias", "bias"),
        ("b.running_mean", "running_mean"), ("b.running_var", "running_var"),
    ]  # fmt: skip


def test_assign_takes_weights_in_any_order() -> None:
    model, weights = Model(small()), stored()
    assert load_weights(model, reversed(weights)) == []
    assert {w.name: bits(w.data) for w in extract_weights(model)} == {w.name: bits(w.data) for w in weights}


def test_extracted_weights_are_copies() -> None:
    model = Model(small(), seed=0)
    weights = extract_weights(model)
    weights[0].data[...] = 7
    assert 7 not in np.array(model["c"]["weight"])


def spoiled(position: int, data: np.ndarray) -> list[WeightTensor]:
    weights = stored()
    weights[position] = replace(weights[position], shape=data.shape, data=data.astype(np.float32))
    return weights


@pytest.mark.parametrize(
    ("weights", "told"),
    [
        (spoiled(5, np.zeros(3)), r"d\.bias: the model needs shape \(2,\), the weights have \(3,\)"),
        (spoiled(4, np.zeros((2, 48))), r"d\.weight: the model needs shape \(48, 2\), the weights have \(2, 48\)"),
        (spoiled(7, np.zeros(4)), r"b\.running_var: the model needs shape \(3,\), the weights have \(4,\)"),
        (spoiled(7, np.array([1, 2, np.nan])), r"b\.running_var: NaN or infinity in the weights; train or save them"),
        (spoiled(5, np.array([1, np.inf])), r"d\.bias: NaN or infinity in the weights"),
        (stored()[:5] + stored()[6:], r"weights: the model needs 6 arrays, got 5 \(d\.bias is missing\)"),
        (
            [*stored(), replace(stored()[0], name="z.weight", layer="z")],
            r"weights: the model needs 6 arrays, got 7 \(z\.weight is not in the model\)",
        ),
        ([], r"weights: the model needs 6 arrays, got 0 \(c\.weight is missing\)"),
    ],
)
def test_assign_is_all_or_nothing(weights: list[WeightTensor], told: str) -> None:
    model = Model(small(), seed=1)
    before = tree_bits(model.parameters())
    with pytest.raises(CheckpointError, match=f"^{told}[^\n]*$"):
        model.assign(weights, None, [])
    assert tree_bits(model.parameters()) == before


def test_foreign_names_are_matched_by_position_with_a_note() -> None:
    model, weights = Model(small()), stored()
    foreign = [replace(w, name=f"other.{i}") if i < 6 else w for i, w in enumerate(weights)]
    notes = load_weights(model, foreign)
    assert notes == [
        "weights: matched by position, because the names do not fit the layers ('other.0' is used as 'c.weight')"
    ]
    assert [bits(w.data) for w in extract_weights(model)] == [bits(w.data) for w in weights]


def test_weights_of_the_wrong_order_are_refused_by_their_shapes() -> None:
    foreign = [replace(w, name=f"other.{i}") for i, w in enumerate(reversed(stored()[:6]))]
    with pytest.raises(CheckpointError, match=r"^c\.weight: the model needs shape \(3, 2, 3, 3\), the weights have"):
        load_weights(Model(small()), [*foreign, *stored()[6:]])


def test_missing_statistics_are_0_and_1_with_a_note() -> None:
    model = Model(small())
    randomise(model)
    assert load_weights(model, stored()[:6]) == [
        "b.running_mean: not in the file; set to 0",
        "b.running_var: not in the file; set to 1",
    ]
    assert model["b"]["running_mean"].tolist() == [0, 0, 0]
    assert model["b"]["running_var"].tolist() == [1, 1, 1]


def test_statistics_may_come_from_the_spec() -> None:
    given = {"running_mean": np.array([1, 2, 3], np.float32), "running_var": np.array([4, 5, 6], np.float32)}
    spec = small()
    layers = tuple(replace(s, running_statistics=given) if s.name == "b" else s for s in spec.layers)
    model, notes = Model(spec), []
    model.assign(stored()[:6], replace(spec, layers=layers), notes)
    assert notes == []
    assert {n: bits(model["b"][n]) for n in given} == {n: bits(a) for n, a in given.items()}
    model.assign(stored(), replace(spec, layers=layers), notes)  # a weight of that name comes first
    assert bits(model["b"]["running_mean"]) == bits(stored()[6].data)


# ------------------------------------------------------------------------------------------------------ random stacks

STACKS = range(20)
# names that ONNX tensors of other layers, and of the graph itself, are made of
AWKWARD = ["input", "output", "input_output", "a", "a_output", "a_gemm", "a_gemm_output", "b c", "\u5c42", "batch"]


def random_stack(seed: int) -> Model:
    """Up to eight layers that fit each other, random weights."""
    rng = np.random.default_rng(seed)
    rank = [2, 3, 4, 4, 4][seed % 5]
    shape = (int(rng.integers(1, 5)), *(int(d) for d in rng.integers([3, 5, 5][: rank - 1], [6, 10, 10][: rank - 1])))
    layers: list[Layer] = []
    spec = None
    while len(layers) < 8:
        name = AWKWARD[len(layers)] if seed % 2 else f"layer{len(layers)}"
        kind = LAYERS[int(rng.choice(list(LAYERS)))]
        size, flag = (lambda low, high: int(rng.integers(low, high))), (lambda: bool(rng.integers(2)))
        settings = {  # what does not fit the input is drawn again
            LayerType.Dense: {"output_size": size(1, 20), "use_bias": flag()},
            LayerType.Conv2D: {
                "output_channels": size(1, 6), "kernel_size": size(1, 5), "stride": size(1, 3), "padding": size(0, 3),
                "use_bias": flag(),
            },
            LayerType.MaxPool2D: {"pool_size": size(2, 4), "stride": size(0, 3), "padding": size(0, 2)},
            LayerType.AvgPool2D: {
                "pool_size": size(2, 4), "stride": size(0, 3), "padding": size(0, 2), "count_include_pad": flag(),
            },
            LayerType.LogSoftmax: {"axis": size(-1, 4)},
            LayerType.BatchNorm: {"eps": rng.uniform(1e-5, 0.1), "momentum": rng.uniform(), "affine": flag()},
            LayerType.Softmax: {"axis": size(-1, 4)},
            LayerType.Dropout: {"rate": rng.uniform(0, 0.9)},
            LayerType.ELU: {"alpha": rng.uniform(0, 2)},
            LayerType.LeakyReLU: {"negative_slope": rng.uniform(0, 1)},
        }  # fmt: skip
        try:
            spec = ModelSpec.from_layers([*layers, kind(name=name, **settings.get(LayerType(kind.code), {}))], shape)
        except ShapeError:
            continue
        layers = list(spec.typed_layers())
    assert spec is not None
    model = Model(spec)
    randomise(model, seed)
    return model


@pytest.mark.parametrize("seed", STACKS)
def test_random_stack_in_onnxruntime(seed: int, tmp_path: Path) -> None:
    assert_onnxruntime_agrees(random_stack(seed), tmp_path / "model.onnx")


@pytest.mark.parametrize("suffix", [*SUFFIXES, ".json.gz"])
@pytest.mark.parametrize("seed", STACKS)
def test_random_stack_through_files(seed: int, suffix: str, tmp_path: Path) -> None:
    assert_file_keeps_everything(random_stack(seed), tmp_path / f"model{suffix}")


def test_names_that_look_like_onnx_tensors(tmp_path: Path) -> None:
    """An export makes names such as a_flatten and a_flatten_output of its own; layers may have them already."""
    b = ModelBuilder((1, 2, 3, 4)).add_dense(5, name="a").add_relu("a_flatten").add_elu(1, "a_flatten_output")
    b.add_swish("s").add_leaky_relu(0.1, "s_sigmoid").add_tanh("input").add_sigmoid("output").add_relu("a_output")
    model = Model(b.compile())
    randomise(model)
    assert_onnxruntime_agrees(model, tmp_path / "model.onnx")
    assert_file_keeps_everything(model, tmp_path / "model.onnx")


def test_random_stacks_have_every_layer() -> None:
    assert {type(layer) for seed in STACKS for layer in random_stack(seed).layers} == set(LAYERS.values())

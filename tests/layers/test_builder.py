"""ModelBuilder and LayerFactory; above all what go-metal lets pass (layers reference, 1.4, 'Not validated')."""

from collections.abc import Callable
from pathlib import Path

import pytest

import gometal_mlx as gm
from gometal_mlx.errors import GoMetalError, ShapeError, SpecError
from gometal_mlx.layers import (
    BatchNorm,
    LayerFactory,
    LayerSpec,
    LayerType,
    ModelBuilder,
    ReLU,
)

Build = Callable[[ModelBuilder], ModelBuilder]
factory = LayerFactory()


def refused(kind: type[GoMetalError], input_shape: tuple[int, ...], build: Build) -> str:
    """The error's text; one line."""
    with pytest.raises(kind) as caught:
        build(ModelBuilder(input_shape)).compile()
    text = str(caught.value)
    assert "\n" not in text
    return text


BAD_VALUES: list[tuple[Build, str]] = [
    (lambda b: b.add_dense(0, name="x"), "Dense 'x': output_size must be at least 1, got 0"),
    (lambda b: b.add_dense(-5, name="x"), "Dense 'x': output_size must be at least 1, got -5"),
    (lambda b: b.add_conv2d(0, 3, name="x"), "Conv2D 'x': output_channels must be at least 1, got 0"),
    (lambda b: b.add_conv2d(-1, 3, name="x"), "Conv2D 'x': output_channels must be at least 1, got -1"),
    (lambda b: b.add_conv2d(2, 0, name="x"), "Conv2D 'x': kernel_size must be at least 1, got 0"),
    (lambda b: b.add_conv2d(2, -3, name="x"), "Conv2D 'x': kernel_size must be at least 1, got -3"),
    (lambda b: b.add_conv2d(2, 3, 0, name="x"), "Conv2D 'x': stride must be at least 1, got 0"),  # crashes go-metal
    (lambda b: b.add_conv2d(2, 3, -1, name="x"), "Conv2D 'x': stride must be at least 1, got -1"),
    (lambda b: b.add_conv2d(2, 3, 1, -1, name="x"), "Conv2D 'x': padding must be at least 0, got -1"),
    (lambda b: b.add_dropout(-0.1, "x"), "Dropout 'x': rate (probability of a zero) must be from 0 up to"),
    (lambda b: b.add_dropout(1.0, "x"), "Dropout 'x': rate (probability of a zero) must be from 0 up to"),
    (lambda b: b.add_dropout(1.1, "x"), "Dropout 'x': rate (probability of a zero) must be from 0 up to"),
    (lambda b: b.add_batch_norm(eps=-1e-5, name="x"), "BatchNorm 'x': eps must be greater than 0, got -1e-05"),
    (lambda b: b.add_batch_norm(momentum=-0.1, name="x"), "BatchNorm 'x': momentum (weight of the new batch) must be"),
    (lambda b: b.add_batch_norm(0, name="x"), "BatchNorm 'x': num_features must be at least 1 (or None: from the inpu"),
    (lambda b: b.add_batch_norm(-4, name="x"), "BatchNorm 'x': num_features must be at least 1"),
    (lambda b: b.add_batch_norm(True, name="x"), "BatchNorm 'x': num_features must be"),
    (lambda b: b.add_batch_norm("3", name="x"), "BatchNorm 'x': num_features must be"),  # type: ignore[arg-type]
    (lambda b: b.add_max_pool2d(0, name="x"), "MaxPool2D 'x': pool_size must be at least 1, got 0"),
    (lambda b: b.add_max_pool2d(2, 0, name="x"), "MaxPool2D 'x': stride must be at least 1 (or None: pool_size), got"),
    (lambda b: b.add_max_pool2d(2, -1, name="x"), "MaxPool2D 'x': stride must be at least 1"),
    (lambda b: b.add_max_pool2d(2, "2", name="x"), "MaxPool2D 'x': stride must be"),  # type: ignore[arg-type]
    (lambda b: b.add_max_pool2d(3, 1, 2, "x"), "MaxPool2D 'x': padding must be from 0 to half the window (1), got 2"),
    (lambda b: b.add_elu(float("nan"), "x"), "ELU 'x': alpha must be a float, got nan"),
    (lambda b: b.add_leaky_relu(float("inf"), "x"), "LeakyReLU 'x': negative_slope must be a float, got inf"),
    (lambda b: b.add_dense("10", name="x"), "Dense 'x': output_size must be an int, got '10'"),  # type: ignore[arg-type]
    (lambda b: b.add_dense(10**400, name="x"), "Dense 'x': output_size must be"),
    (lambda b: b.add_dense(2, 1, name="x"), "Dense 'x': use_bias must be a bool, got 1"),  # type: ignore[arg-type]
]


@pytest.mark.parametrize(("build", "told"), BAD_VALUES, ids=[t for _, t in BAD_VALUES])
def test_refuses_values_out_of_range(build: Build, told: str) -> None:
    assert refused(SpecError, (2, 3, 8, 8), build).startswith(told)


BAD_SHAPES: list[tuple[tuple[int, ...], Build, str]] = [
    ((2, 3, 8, 4), lambda b: b.add_conv2d(2, 5, name="x"), "Conv2D 'x': window 5 is larger than the padded input 8x4"),
    ((2, 3, 8, 8), lambda b: b.add_conv2d(2, 9, 100, name="x"), "Conv2D 'x': window 9 is larger than the padded input"),
    ((2, 3, 8, 4), lambda b: b.add_max_pool2d(5, name="x"), "MaxPool2D 'x': window 5 is larger than the padded input"),
    ((2, 3), lambda b: b.add_conv2d(2, 1, name="x"), "Conv2D 'x': input needs rank 4"),
    ((2, 3, 4), lambda b: b.add_max_pool2d(name="x"), "MaxPool2D 'x': input needs rank 4"),
    ((2,), lambda b: b.add_dense(2, name="x"), "Dense 'x': input needs rank >= 2"),
    ((2,), lambda b: b.add_batch_norm(name="x"), "BatchNorm 'x': input needs rank >= 2"),
    ((2, 3), lambda b: b.add_batch_norm(4, name="x"), "BatchNorm 'x': num_features is 4, but the input (2, 3) has 3"),
    ((2, 3), lambda b: b.add_softmax(2, "x"), "Softmax 'x': axis 2 is outside the input shape (2, 3)"),
    ((2, 3), lambda b: b.add_softmax(-3, "x"), "Softmax 'x': axis -3 is outside the input shape (2, 3)"),
]


@pytest.mark.parametrize(("shape", "build", "told"), BAD_SHAPES, ids=[t for _, _, t in BAD_SHAPES])
def test_refuses_shapes_that_do_not_fit(shape: tuple[int, ...], build: Build, told: str) -> None:
    assert refused(ShapeError, shape, build).startswith(f"layer 1 of 1: {told}")


def test_shape_error_names_the_position() -> None:
    text = refused(ShapeError, (2, 3, 8, 8), lambda b: b.add_relu().add_conv2d(2, 7).add_conv2d(2, 3, name="late"))
    assert text == "layer 3 of 3: Conv2D 'late': window 3 is larger than the padded input 2x2 + 2*0"


@pytest.mark.parametrize(
    "shape", [(), (0, 3), (-1, 3), (2, 0), (2, 3, -1, 4), (2, 3.0), (2, True), ("2", 3), (2, None)]
)
def test_refuses_an_input_shape_with_a_dimension_below_1(shape: tuple[int, ...]) -> None:
    with pytest.raises(
        SpecError, match=r"^model: input_shape \(batch, \.\.\.\) needs dimensions of at least 1, got \("
    ):
        ModelBuilder(shape)


@pytest.mark.parametrize("shape", [784, None])
def test_refuses_an_input_shape_that_is_no_sequence(shape: object) -> None:
    with pytest.raises(SpecError, match=r"^model: input_shape .*got"):
        ModelBuilder(shape)  # type: ignore[arg-type]


def test_refuses_a_model_that_no_memory_holds() -> None:
    text = refused(SpecError, (1, 2**28), lambda b: b.add_dense(2**20, name="x"))
    assert text == f"layer 1 of 1: 'x' would have {2**48 + 2**20} parameters; a size is wrong"


def test_refuses_rows_that_no_memory_holds() -> None:
    text = refused(ShapeError, (1, 1, 5, 5), lambda b: b.add_conv2d(1, 1, padding=2**20, name="x"))
    assert text.startswith("layer 1 of 1: 'x' would have 4398")


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("", "not empty"),
        ("a.b", "splits parameter names at '.'"),
        (".", "splits parameter names at '.'"),
        ("_a", "hides parameters whose name begins with '_'"),
        ("12", "takes numbers for list positions"),
        ("\u0663", "takes numbers for list positions"),  # a digit, too, and int() reads it
        ("-1", "takes numbers for list positions"),  # whatever int() reads makes a list in mlx.utils.tree_unflatten
        ("+1", "takes numbers for list positions"),
        ("1_0", "takes numbers for list positions"),
        (" 7", "takes numbers for list positions"),
        ("step", "optimizers keep their own state under that name"),
        ("learning_rate", "optimizers keep their own state under that name"),
        ("a\nb", "characters that cannot be printed"),
        ("a\x00", "characters that cannot be printed"),
        ("a" * 65, "go-metal cuts names off at 64 bytes"),
        ("\u00e9" * 33, "go-metal cuts names off at 64 bytes"),  # 66 bytes, 33 letters
        (5, "must be a text"),
    ],
)
def test_refuses_a_name(name: str, told: str) -> None:
    text = refused(SpecError, (2, 3), lambda b: b.add_dense(2, name=name))
    assert text.startswith(f"layer 1 of 1: layer name {name!r}: ")
    assert told in text


def test_refuses_a_name_twice() -> None:
    text = refused(SpecError, (2, 3), lambda b: b.add_relu("a").add_tanh("b").add_relu("a"))
    assert text == "layer 3 of 3: layer name 'a': it is used twice; choose another"


@pytest.mark.parametrize(
    "name", ["a" * 64, "\u00e9" * 32, "1a", "a b", "a/b", "a_", "Step", "input", "\u5c42", "layers"]
)
def test_accepts_a_name(name: str) -> None:
    assert ModelBuilder((2, 3)).add_dense(2, name=name).compile().layers[0].name == name


def test_names_missing_ones_by_type_and_number() -> None:
    b = ModelBuilder((2, 3, 16, 16)).add_conv2d(2, 3).add_batch_norm().add_relu().add_leaky_relu().add_elu().add_relu()
    b.add_max_pool2d().add_dropout().add_dense(4).add_sigmoid().add_tanh().add_swish().add_dense(3).add_softmax()
    assert [s.name for s in b.compile().layers] == [
        "conv2d_1", "batch_norm_1", "relu_1", "leaky_relu_1", "elu_1", "relu_2", "max_pool2d_1", "dropout_1",
        "dense_1", "sigmoid_1", "tanh_1", "swish_1", "dense_2", "softmax_1",
    ]  # fmt: skip


def test_made_up_names_avoid_given_ones() -> None:
    spec = ModelBuilder((2, 3)).add_relu("relu_1").add_relu().add_relu("relu_3").add_relu().compile()
    assert [s.name for s in spec.layers] == ["relu_1", "relu_2", "relu_3", "relu_4"]


def test_refuses_an_empty_model() -> None:
    assert refused(SpecError, (2, 3), lambda b: b) == "model: it has no layers; add at least one before compiling"


def test_compiled_model_is_current() -> None:
    b = ModelBuilder((2, 3)).add_relu()
    with pytest.raises(
        SpecError, match=r"^model: not compiled since the last layer was added; call compile\(\) first$"
    ):
        b.get_compiled_model()
    spec = b.compile()
    assert b.get_compiled_model() is spec
    for add in (lambda: b.add_tanh(), lambda: b.add_layer(ReLU(name="z"))):
        add()
        with pytest.raises(SpecError, match=r"^model: not compiled since"):
            b.get_compiled_model()
        b.compile()


def test_compiled_specs_share_nothing() -> None:
    """go-metal's share their parameter maps and the caller's shape."""
    shape = [2, 3, 4]
    b = ModelBuilder(shape).add_dense(2)
    first = b.compile()
    shape[1] = 99
    again = b.add_relu().compile()
    assert first.input_shape == again.input_shape == (2, 3, 4)
    assert len(first.layers) == 1
    assert first.layers[0].parameters is not again.layers[0].parameters


def test_factory_spec_that_contradicts_the_input() -> None:
    assert refused(SpecError, (2, 7), lambda b: b.add_layer(factory.create_dense_spec(8, 4, True, "x"))) == (
        "Dense 'x': input_size is 8, but its input (2, 7) gives 7"
    )
    conv = factory.create_conv2d_spec(4, 8, 3, name="x")
    assert refused(SpecError, (2, 3, 8, 8), lambda b: b.add_layer(conv)) == (
        "Conv2D 'x': input_channels is 4, but its input (2, 3, 8, 8) gives 3"
    )
    late = factory.create_dense_spec(8, 4, name="x")  # after another layer: its output counts
    assert "input_size is 8, but its input (2, 5)" in refused(
        SpecError, (2, 8), lambda b: b.add_dense(5).add_layer(late)
    )
    norm = factory.create_batch_norm_spec(4, name="x")
    assert "num_features is 4, but the input (2, 3) has 3" in refused(ShapeError, (2, 3), lambda b: b.add_layer(norm))


def test_other_spelling_of_input_channels_is_compared_too() -> None:
    spec = LayerSpec(LayerType.Conv2D, "x", {"output_channels": 2, "kernel_size": 1, "in_channels": 9})
    assert "input_channels is 9, but its input" in refused(SpecError, (2, 3, 8, 8), lambda b: b.add_layer(spec))


@pytest.mark.parametrize("size", [0, -1, "3", 2.5, True])
def test_factory_refuses_an_input_size(size: int) -> None:
    with pytest.raises(SpecError, match=r"^Dense 'd': input_size must be "):
        factory.create_dense_spec(size, 4, name="d")


def test_factory_batch_norm_of_0_features_takes_the_input() -> None:
    spec = ModelBuilder((2, 5)).add_layer(factory.create_batch_norm_spec(0)).compile()
    assert spec.layers[0].parameters["num_features"] == 5


BAD_SPECS: list[tuple[LayerSpec, str]] = [
    (LayerSpec(0, "x"), "Dense 'x': missing parameter 'output_size'; it has no default"),
    (LayerSpec(1, "x", {"output_channels": 2}), "Conv2D 'x': missing parameter 'kernel_size'; it has no default"),
    (LayerSpec(0, "x", {"output_size": "10"}), "Dense 'x': output_size must be an int, got '10'"),
    (LayerSpec(0, "x", {"output_size": 2.5}), "Dense 'x': output_size must be an int, got 2.5"),
    (LayerSpec(0, "x", {"output_size": 2, "use_bias": 0}), "Dense 'x': use_bias must be a bool, got 0"),
    (LayerSpec(1, "x", {"output_channels": 2, "kernel_size": 1, "stride": "2"}), "Conv2D 'x': stride must be an int"),
    (LayerSpec(1, "x", {"output_channels": 2, "kernel_size": 1, "padding": None}), "Conv2D 'x': padding must be an in"),
    (LayerSpec(0, "x", {"output_szie": 2}), "Dense 'x': unknown parameter 'output_szie'; did you mean 'output_size'?"),
    (LayerSpec(2, "x", {"slope": 2}), "ReLU 'x': unknown parameter 'slope'; there are none"),
    (LayerSpec(12, "x"), "layer 'x': type 12 is no LayerType; known: 0 Dense, 1 Conv2D, "),
    (LayerSpec(-1, "x"), "layer 'x': type -1 is no LayerType; "),
]


@pytest.mark.parametrize(("spec", "told"), BAD_SPECS, ids=[t for _, t in BAD_SPECS])
def test_refuses_a_layer_spec(spec: LayerSpec, told: str) -> None:
    assert refused(SpecError, (2, 3, 8, 8), lambda b: b.add_layer(spec)).startswith(told)


def test_add_layer_takes_specs_and_layers_only() -> None:
    with pytest.raises(SpecError, match=r"^add_layer: a LayerSpec or Layer is needed, got dict$"):
        ModelBuilder((2, 3)).add_layer({"type": 2})  # type: ignore[arg-type]
    layer = BatchNorm(name="b", momentum=0.3)
    assert ModelBuilder((2, 3)).add_layer(layer).compile().layers[0].layer() == layer.resolve((2, 3))


def test_layers_of_a_json_file_can_be_compiled_again(tmp_path: Path) -> None:
    """In go-metal the numbers come back as float64, and required ones count as missing."""
    spec = ModelBuilder((2, 3, 8, 8)).add_conv2d(4, 3, 2, 1).add_batch_norm().add_max_pool2d().add_dense(2).compile()
    gm.save(gm.Checkpoint(spec), tmp_path / "m.json")
    loaded = gm.load(tmp_path / "m.json").model_spec
    b = ModelBuilder(loaded.input_shape)
    for layer in loaded.layers:
        b.add_layer(layer)
    assert b.compile() == spec
    whole = LayerSpec(0, "d", {"output_size": 5.0, "use_bias": True, "input_size": 3.0})
    assert ModelBuilder((2, 3)).add_layer(whole).compile().output_shape == (2, 5)

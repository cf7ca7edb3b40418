"""Every registered layer is complete: tested, written out, and reachable from the builder and the factory."""

import importlib
import inspect
from collections.abc import Iterable
from pathlib import Path

import pytest
from contracts import Case, LayerContract

from gometal_mlx import layers as public
from gometal_mlx.errors import SpecError
from gometal_mlx.layers import LayerFactory, LayerSpec, LayerType, ModelBuilder, ReLU
from gometal_mlx.layers.base import LAYERS, Activation, Layer, fields
from gometal_mlx.layers.registry import type_name

GO_METAL = {  # go-metal layers/layer.go
    "Dense": 0, "Conv2D": 1, "ReLU": 2, "Softmax": 3, "MaxPool2D": 4, "Dropout": 5, "BatchNorm": 6, "LeakyReLU": 7,
    "ELU": 8, "Sigmoid": 9, "Tanh": 10, "Swish": 11,
}  # fmt: skip
OURS = {  # layers that go-metal does not know; its own may go on from 12
    "Flatten": 100, "AvgPool2D": 101, "GlobalAvgPool2D": 102, "LogSoftmax": 103, "ReLU6": 104, "Affine": 105,
}  # fmt: skip
SNAKE = {
    "Dense": "dense", "Conv2D": "conv2d", "ReLU": "relu", "Softmax": "softmax", "MaxPool2D": "max_pool2d",
    "Dropout": "dropout", "BatchNorm": "batch_norm", "LeakyReLU": "leaky_relu", "ELU": "elu", "Sigmoid": "sigmoid",
    "Tanh": "tanh", "Swish": "swish", "Flatten": "flatten", "AvgPool2D": "avg_pool2d",
    "GlobalAvgPool2D": "global_avg_pool2d", "LogSoftmax": "log_softmax", "ReLU6": "relu6", "Affine": "affine",
}  # fmt: skip
REQUIRED = {"output_size", "output_channels", "kernel_size"}  # settings without a default
every_layer = pytest.mark.parametrize("layer", LAYERS.values(), ids=lambda c: c.__name__)


def contracts() -> list[type[LayerContract]]:
    """The LayerContract classes of all the test modules beside this one."""
    modules = [importlib.import_module(p.stem) for p in sorted(Path(__file__).parent.glob("test_*.py"))]
    found = [c for m in modules for c in vars(m).values() if inspect.isclass(c) and issubclass(c, LayerContract)]
    return [c for c in found if c is not LayerContract and c.__name__.startswith("Test")]


def uncovered(layers: Iterable[type[Layer]]) -> list[str]:
    """Names of the layers of which no contract has a case."""
    tested = {type(case.layer) for contract in contracts() for case in contract.cases}
    return [layer.__name__ for layer in layers if layer not in tested]


@every_layer
def test_has_cases(layer: type[Layer]) -> None:
    assert uncovered([layer]) == [], f"write tests/layers/test_{layer.__name__.lower()}.py with CASES"


@every_layer
def test_cases_reach_every_setting(layer: type[Layer]) -> None:
    """Each parameter has a case that gives it another value than its default."""
    cases: list[Case] = [c for contract in contracts() for c in contract.cases if type(c.layer) is layer]
    for field in fields(layer):
        assert any(getattr(c.layer, field.name) != field.default for c in cases), field.name
    assert len(cases) >= 4


def test_a_layer_without_cases_is_found() -> None:
    class Forgotten(Layer):
        code = 99

    try:
        assert LAYERS[99] is Forgotten
        assert uncovered(LAYERS.values()) == ["Forgotten"]
    finally:
        del LAYERS[99]


def test_contract_gives_a_test_for_every_case() -> None:
    """CASES that no class hands to LayerContract would be checked by nobody."""
    for contract in contracts():
        assert contract.cases is importlib.import_module(contract.__module__).CASES


@every_layer
@pytest.mark.parametrize("method", ["forward", "to_onnx", "from_onnx"])
def test_overrides(layer: type[Layer], method: str) -> None:
    own = {k for c in layer.__mro__ if c not in (Layer, Activation, object) for k in vars(c)}
    assert method in own


def test_layer_types_are_go_metals_and_ours() -> None:
    assert {t.name: t.value for t in LayerType} == GO_METAL | OURS
    assert {c.__name__: code for code, c in LAYERS.items()} == GO_METAL | OURS
    assert all(layer.code == code for code, layer in LAYERS.items())
    assert [type_name(i) for i in range(13)] == [*GO_METAL, "Unknown"]
    assert [type_name(i) for i in range(99, 107)] == ["Unknown", *OURS, "Unknown"]
    assert type_name(-1) == "Unknown"
    assert str(LayerType.MaxPool2D) == "MaxPool2D"


def test_our_codes_are_far_from_go_metals() -> None:
    """A layer that go-metal adds gets the next number; none of ours may be taken for it."""
    assert min(OURS.values()) >= 100
    assert not OURS.keys() & GO_METAL.keys()
    assert len({*OURS.values(), *GO_METAL.values()}) == len(LAYERS)


@pytest.mark.parametrize("name", OURS)
def test_our_layers_say_that_go_metal_does_not_know_them(name: str) -> None:
    assert LAYERS[OURS[name]].go_metal_limit == "go-metal does not know this layer"


@every_layer
def test_is_exported(layer: type[Layer]) -> None:
    assert getattr(public, layer.__name__) is layer
    assert layer.__name__ in public.__all__


def smallest(layer: type[Layer]) -> Layer:
    """The layer with its defaults, and 1 where it has none."""
    return layer(name="x", **{f.name: 1 for f in fields(layer) if f.name in REQUIRED})


@every_layer
def test_builder_and_factory_make_it_with_its_defaults(layer: type[Layer]) -> None:
    snake = SNAKE[layer.__name__]
    required = {f.name: 1 for f in fields(layer) if f.name in REQUIRED}
    builder = getattr(ModelBuilder((2, 3, 4, 4)), f"add_{snake}")(**required, name="x")
    assert builder.compile().typed_layers()[0] == smallest(layer).resolve((2, 3, 4, 4))
    sizes = {"dense": [48], "conv2d": [3], "batch_norm": [3]}.get(snake, [])  # what a factory is told of the input
    spec: LayerSpec = getattr(LayerFactory(), f"create_{snake}_spec")(*sizes, **required, name="x")
    assert spec.type == LayerType[layer.__name__]
    assert ModelBuilder((2, 3, 4, 4)).add_layer(spec).compile() == builder.compile()


@every_layer
def test_every_setting_can_be_given_to_builder_and_factory(layer: type[Layer]) -> None:
    settings = {f.name for f in fields(layer)}
    snake = SNAKE[layer.__name__]
    for method in (getattr(ModelBuilder, f"add_{snake}"), getattr(LayerFactory, f"create_{snake}_spec")):
        assert settings | {"name"} <= set(inspect.signature(method).parameters)


def test_no_method_without_a_layer() -> None:
    for owner, before, after in ((ModelBuilder, "add_", ""), (LayerFactory, "create_", "_spec")):
        names = [n.removeprefix(before).removesuffix(after) for n in vars(owner) if n.startswith(before)]
        assert sorted(names) == sorted([*SNAKE.values(), *(["layer"] if owner is ModelBuilder else [])])


def test_a_second_layer_of_the_same_code_is_refused() -> None:
    with pytest.raises(SpecError, match=r"^layer Impostor: code 2 belongs to ReLU; choose another$"):

        class Impostor(Layer):
            code = 2

    assert LAYERS[2] is ReLU


@every_layer
def test_is_a_frozen_description(layer: type[Layer]) -> None:
    made = smallest(layer)
    with pytest.raises(AttributeError):
        made.name = "y"  # type: ignore[misc]
    assert hash(made) == hash(layer(name="x", **{f.name: getattr(made, f.name) for f in fields(layer)}))


@every_layer
def test_docstring_says_shapes_onnx_and_source(layer: type[Layer]) -> None:
    for section in ("Shapes:", "ONNX:", "Source:"):
        assert section in (layer.__doc__ or "")

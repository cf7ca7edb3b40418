"""ModelSpec and LayerSpec: go-metal's numbers and texts, and the repair of what files hold."""

from dataclasses import replace

import pytest

from gometal_mlx.errors import ShapeError, SpecError
from gometal_mlx.layers import Conv2D, Dense, LayerSpec, LayerType, Model, ModelBuilder, ModelSpec, ReLU
from gometal_mlx.layers.spec import describe_difference, normalise


def test_vector_of_the_reference() -> None:
    """Layers reference, 9.2."""
    b = ModelBuilder((2, 3, 8, 8)).add_conv2d(4, 3, 1, 1).add_batch_norm(4).add_conv2d(5, 3, 2, 1, False).add_dense(2)
    spec = b.compile()
    assert [s.output_shape for s in spec.layers] == [(2, 4, 8, 8), (2, 4, 8, 8), (2, 5, 4, 4), (2, 2)]
    assert [s.parameter_count for s in spec.layers] == [112, 8, 180, 162]
    assert spec.total_parameters == 462
    assert spec.parameter_shapes == ((4, 3, 3, 3), (4,), (4,), (4,), (5, 4, 3, 3), (80, 2), (2,))
    assert spec.layers[3].parameters["input_size"] == 80
    assert (spec.input_shape, spec.output_shape, spec.compiled) == ((2, 3, 8, 8), (2, 2), True)
    assert len(spec.layers) == 4  # nothing is added: no Softmax, no Flatten


def test_dense_of_rank_3() -> None:
    spec = ModelBuilder((2, 3, 4)).add_dense(5).compile()
    assert (spec.layers[0].parameters["input_size"], spec.output_shape) == (12, (2, 5))


def test_model_without_parameters() -> None:
    spec = ModelBuilder((2, 3)).add_relu().compile()
    assert (spec.total_parameters, spec.parameter_shapes) == (0, ())
    assert "parameter_shapes" in spec.nulls  # go-metal writes null, as for any nil slice


def test_counts_of_go_metals_own_tests() -> None:
    dense = ModelBuilder((2, 128)).add_dense(64).add_dense(32, False).add_dense(10).compile()
    assert [s.parameter_count for s in dense.layers] == [8256, 2048, 330]
    conv = ModelBuilder((2, 3, 32, 32)).add_conv2d(8, 3).add_conv2d(16, 5, use_bias=False).compile()
    assert [s.parameter_count for s in conv.layers] == [224, 3200]


def test_parameters_are_those_of_go_metals_builder() -> None:
    spec = ModelBuilder((2, 3, 8, 8)).add_conv2d(4, 3).add_batch_norm().add_dropout().add_dense(2).compile()
    assert [dict(s.parameters) for s in spec.layers] == [
        {"output_channels": 4, "kernel_size": 3, "stride": 1, "padding": 0, "use_bias": True, "input_channels": 3},
        {
            "num_features": 4, "eps": 1e-5, "momentum": 0.1, "affine": True,
            "track_running_stats": True, "training": True,
        },
        {"rate": 0.5, "training": True},
        {"output_size": 2, "use_bias": True, "input_size": 144},
    ]  # fmt: skip


SUMMARY = """\
Model Summary:
Input Shape: [2 3 8 8]
Output Shape: [2 2]
Total Parameters: 384
Layers: 1

Layer 1: d (Dense)
  Input:  [2 3 8 8]
  Output: [2 2]
  Params: 384
  Config: map[input_size:192 output_size:2 use_bias:false]

"""


def test_summary_of_the_reference() -> None:
    """Layers reference, 9.5."""
    assert ModelBuilder((2, 3, 8, 8)).add_dense(2, False, "d").compile().summary() == SUMMARY


def test_summary_leaves_empty_settings_out() -> None:
    text = ModelBuilder((2, 3)).add_relu("r").add_batch_norm(name="b").compile().summary()
    assert text.endswith(
        "Layer 1: r (ReLU)\n  Input:  [2 3]\n  Output: [2 3]\n  Params: 0\n\n"
        "Layer 2: b (BatchNorm)\n  Input:  [2 3]\n  Output: [2 3]\n  Params: 6\n"
        "  Config: map[affine:true eps:1e-05 momentum:0.1 num_features:3 track_running_stats:true training:true]\n\n"
    )


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"), (1.0, "1"), (-0.25, "-0.25"), (0.1, "0.1"), (1 / 3, "0.33333334"),
        (1e-4, "0.0001"),  # its float32 is a little below 1e-4, but the shortest digits decide
        (1e-5, "1e-05"), (123456.0, "123456"),
        (1e6, "1e+06"), (1234567.0, "1.234567e+06"), (1e20, "1e+20"), (1e-30, "1e-30"),  # strconv: %e from 1e6 on
    ],
)  # fmt: skip
def test_summary_prints_floats_as_go_does(value: float, text: str) -> None:
    """fmt's %v is strconv's shortest %g: %e for exponents < -4 or >= 6 (strconv/ftoa.go, formatDigits)."""
    assert f"  Config: map[alpha:{text}]\n" in ModelBuilder((2, 3)).add_elu(value).compile().summary()


def test_summary_of_what_is_not_compiled() -> None:
    assert ModelSpec(layers=()).summary() == "Model not compiled"


def test_repr_names_every_layer() -> None:
    spec = ModelBuilder((2, 3)).add_dense(1000, name="wide").add_relu("r").compile()
    assert repr(spec) == (
        "ModelSpec([2, 3] -> [2, 1000], 4,000 parameters, 2 layers)\n"
        "  (wide): Dense -> [2, 1000], 4,000\n"
        "  (r): ReLU -> [2, 1000], 0"
    )


def test_html_escapes_names() -> None:
    page = ModelBuilder((2, 3)).add_dense(2, name="<script>&").compile()._repr_html_()
    assert "<td>&lt;script&gt;&amp;</td>" in page
    assert "<script>" not in page
    assert "<td>input_size:3 output_size:2 use_bias:true</td>" in page


def test_layer_spec_knows_its_type() -> None:
    assert LayerSpec(6, "b").type is LayerType.BatchNorm
    assert LayerSpec(6, "b").type_name == "BatchNorm"
    assert LayerSpec(77, "u").type_name == "Unknown"


@pytest.mark.parametrize(
    ("given", "expected", "note"),
    [
        (LayerSpec(6, "b", {"epsilon": 0.5}), {"eps": 0.5}, "BatchNorm 'b': read 'epsilon' as 'eps'"),
        (
            LayerSpec(1, "c", {"out_channels": 3, "kernel_size": 1}),
            {"output_channels": 3},
            "Conv2D 'c': read 'out_channels' as 'output_channels'",
        ),
        (
            LayerSpec(4, "m", {"kernel_size": 3}),
            {"pool_size": 3},
            "MaxPool2D 'm': read 'kernel_size' as 'pool_size'",
        ),
        (LayerSpec(8, "e", {"beta": 1}), {"alpha": 1.0}, "ELU 'e': ignored the unknown parameter 'beta'"),
    ],
)
def test_other_spellings_are_read_with_a_note(given: LayerSpec, expected: dict[str, float], note: str) -> None:
    notes: list[str] = []
    layer = given.layer(notes)
    assert {k: getattr(layer, k) for k in expected} == expected
    assert notes == [note]


def test_the_right_spelling_wins_in_any_order() -> None:
    for parameters in ({"eps": 0.25, "epsilon": 0.5}, {"epsilon": 0.5, "eps": 0.25}):
        assert LayerSpec(6, "b", parameters).layer([]).eps == 0.25  # type: ignore[attr-defined]


def test_flags_of_go_metal_are_no_unknown_parameters() -> None:
    notes: list[str] = []
    LayerSpec(6, "b", {"training": False, "track_running_stats": True}).layer(notes)
    LayerSpec(5, "d", {"training": False}).layer(notes)
    LayerSpec(0, "d", {"output_size": 1, "input_size": 3}).layer(notes)
    assert notes == []


# --------------------------------------------------------------------------------------------------------- normalise


def clean() -> ModelSpec:
    return (
        ModelBuilder((2, 3, 8, 8)).add_conv2d(4, 3, name="c").add_batch_norm(name="b").add_dense(2, name="d").compile()
    )


def changed(position: int, **changes: object) -> ModelSpec:
    layers = list(clean().layers)
    layers[position] = replace(layers[position], **changes)  # type: ignore[arg-type]
    return replace(clean(), layers=tuple(layers))


def test_normalise_leaves_a_clean_spec_alone() -> None:
    notes: list[str] = []
    assert normalise(clean(), notes) == clean()
    assert notes == []


@pytest.mark.parametrize("batch", [0, -1])
def test_normalise_reads_an_open_batch_as_1(batch: int) -> None:
    notes: list[str] = []
    spec = normalise(replace(clean(), input_shape=(batch, 3, 8, 8)), notes)
    assert (spec.input_shape, spec.output_shape) == ((1, 3, 8, 8), (1, 2))
    assert notes == [f"input_shape ({batch}, 3, 8, 8): read the batch {batch} as 1 (any batch size works)"]


@pytest.mark.parametrize(
    ("name", "repaired"),
    [
        ("a.b", "a_b"), ("_a", "a"), ("", "layer"), ("12", "layer_12"), ("step", "layer_step"), ("c", "c_2"),
        ("learning_rate", "layer_learning_rate"), ("a\nb", "a_b"), ("x" * 70, "x" * 58), ("...", "layer"),
    ],
)  # fmt: skip
def test_normalise_renames_what_cannot_be_used(name: str, repaired: str) -> None:
    notes: list[str] = []
    spec = normalise(changed(1, name=name), notes)
    assert [s.name for s in spec.layers] == ["c", repaired, "d"]
    assert len(notes) == 1
    assert notes[0].startswith(f"layer {name!r}: renamed to {repaired!r}, because ")
    Model(spec)


def test_normalise_renames_every_duplicate_to_something_new() -> None:
    layers = [ReLU(name=n) for n in ("a", "b", "c", "d")]
    spec = ModelSpec.from_layers(layers, (1, 3))
    names = ("a", "a", "a_2", "a")
    spec = replace(spec, layers=tuple(replace(s, name=n) for s, n in zip(spec.layers, names, strict=True)))
    notes: list[str] = []
    renamed = [s.name for s in normalise(spec, notes).layers]
    assert renamed[0] == "a"
    assert len(set(renamed)) == 4
    assert len(notes) == 3


def test_normalise_believes_the_input_rather_than_what_follows_from_it() -> None:
    notes: list[str] = []
    parameters = {**clean().layers[2].parameters, "input_size": 7}
    spec = normalise(changed(2, parameters=parameters, output_shape=(2, 9)), notes)
    assert spec == clean()
    assert notes == [
        "layer 'd': ignored input_size = 7, its input (2, 4, 6, 6) gives 144",
        "layer 'd': ignored output_shape (2, 9), its input gives (2, 2)",
    ]


def test_normalise_does_not_mind_another_batch_in_output_shapes() -> None:
    notes: list[str] = []
    normalise(changed(2, output_shape=(64, 2)), notes)
    assert notes == []


@pytest.mark.parametrize(
    ("spec", "kind", "told"),
    [
        (changed(1, type=42), SpecError, "layer 'b': type 42 is no LayerType"),
        (changed(2, parameters={}), SpecError, "Dense 'd': missing parameter 'output_size'"),
        (changed(1, parameters={"num_features": 5}), ShapeError, "layer 2 of 3: BatchNorm 'b': num_features is 5, but"),
        (replace(clean(), input_shape=(2, 3, 0, 8)), SpecError, "model: input_shape"),
        (replace(clean(), input_shape=()), SpecError, "model: input_shape"),
        (replace(clean(), layers=()), SpecError, "model: it has no layers"),
    ],
)
def test_normalise_refuses_what_it_cannot_repair(spec: ModelSpec, kind: type[Exception], told: str) -> None:
    with pytest.raises(kind) as caught:
        normalise(spec, [])
    assert str(caught.value).startswith(told)


def test_differences_are_told_one_by_one() -> None:
    layers = [Conv2D(name="c", output_channels=4, kernel_size=3), ReLU(name="r"), Dense(name="d", output_size=2)]
    a = ModelSpec.from_layers(layers, (2, 3, 8, 8))
    assert describe_difference(a, a) == []
    assert describe_difference(a, ModelSpec.from_layers(layers, (9, 3, 8, 8))) == []  # any batch
    renamed = ModelSpec.from_layers([replace(x, name=f"{x.name}2") for x in layers], (2, 3, 8, 8))
    assert describe_difference(a, renamed) == []
    b = ModelSpec.from_layers([replace(layers[0], stride=2), Dense(name="x", output_size=2)], (2, 3, 8, 9))
    assert describe_difference(a, b) == [
        "input (3, 8, 8) against (3, 8, 9)",
        "3 layers against 2",
        "layer 1 (Conv2D 'c'): stride 1 against 2",
        "layer 2: ReLU 'r' against Dense 'x'",
    ]

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from contracts import Arrays, Case, LayerContract, bits, save, strip_description

import gometal_mlx as gm
from gometal_mlx.errors import SpecError, UnsupportedError
from gometal_mlx.layers import Dropout, Model, ModelSpec


def reference(layer: Dropout, p: Arrays, x: np.ndarray, training: bool) -> np.ndarray:
    return x


CASES = [
    Case(Dropout(name="d"), (2, 3), reference, modes=(False,)),
    Case(Dropout(name="d", rate=0.999), (2, 3, 4), reference, modes=(False,)),
    Case(Dropout(name="d", rate=0.25), (1, 3, 2, 5), reference, modes=(False,)),
    Case(Dropout(name="d", rate=0.0), (1, 3, 2, 5), reference),  # nothing random: the identity in training, too
]


class TestDropout(LayerContract):
    cases = CASES

    def test_onnx_nodes_alone_give_the_layer_back(self, case: Case, tmp_path: Path) -> None:
        """An inference graph leaves Dropout out; of a model of nothing else only an Identity stays."""
        path = tmp_path / "model.onnx"
        save(case.model(), path)
        strip_description(path)
        with pytest.raises(UnsupportedError, match="only hands its input on; there is no layer in it"):
            gm.load(path)


def model_of(rate: float, shape: tuple[int, ...] = (1, 1000)) -> Model:
    return Model(ModelSpec.from_layers([Dropout(name="d", rate=rate)], shape)).train()


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_zeroes_with_probability_rate_and_keeps_the_mean(rate: float) -> None:
    n = 100_000
    y = np.array(model_of(rate)(mx.ones((100, 1000)), key=mx.random.key(0)))
    deviation = (rate * (1 - rate) / n) ** 0.5
    assert (y == 0).mean() == pytest.approx(rate, abs=5 * deviation)  # 5 standard deviations of n draws
    assert y.mean() == pytest.approx(1, abs=5 * deviation / (1 - rate))  # the same, scaled as the kept values are
    np.testing.assert_allclose(y[y != 0], 1 / (1 - rate), rtol=1e-6)  # one float32 product


def test_masks_single_elements() -> None:
    """Not whole channels, rows or samples."""
    y = np.array(model_of(0.5, (1, 4, 8, 8))(mx.ones((16, 4, 8, 8)), key=mx.random.key(0)))
    for axis in range(4):
        shares = (y == 0).mean(axis=tuple(a for a in range(4) if a != axis))
        assert ((shares > 0.3) & (shares < 0.7)).all()  # at least 256 draws each: 0.2 is over 6 standard deviations


def test_gradient_goes_through_what_was_kept() -> None:
    model, key, x = model_of(0.5), mx.random.key(3), mx.random.normal((4, 1000))
    mask = np.array(model(mx.ones((4, 1000)), key=key))
    gradient = mx.grad(lambda x: model(x, key=key).sum())(x)
    np.testing.assert_array_equal(np.array(gradient), mask)
    assert set(np.unique(mask)) == {0, 2}


def test_key_fixes_the_mask() -> None:
    model, x = model_of(0.5), mx.ones((2, 1000))
    first = bits(model(x, key=mx.random.key(1)))
    assert bits(model(x, key=mx.random.key(1))) == first
    assert bits(model(x, key=mx.random.key(2))) != first


def test_without_a_key_follows_the_global_generator() -> None:
    model, x = model_of(0.5), mx.ones((2, 1000))
    mx.random.seed(5)
    first, second = bits(model(x)), bits(model(x))
    mx.random.seed(5)
    assert (bits(model(x)), bits(model(x))) == (first, second)
    assert first != second


def test_two_dropouts_draw_two_masks() -> None:
    layers = [Dropout(name="a"), Dropout(name="b")]
    both = Model(ModelSpec.from_layers(layers, (1, 1000))).train()
    y = np.array(both(mx.ones((10, 1000)), key=mx.random.key(0)))
    assert (y != 0).mean() == pytest.approx(0.25, abs=0.03)  # one mask twice would give 0.5; 0.03 is 7 deviations


def test_compiled_draws_a_new_mask_each_time(compiled: None) -> None:
    model, x = model_of(0.5), mx.ones((2, 1000))
    state = [model.state, mx.random.state]
    forward = mx.compile(lambda x: model(x), inputs=state, outputs=state)
    assert bits(forward(x)) != bits(forward(x))


def test_evaluation_is_the_identity_bit_for_bit() -> None:
    x = mx.random.normal((3, 1000))
    assert bits(model_of(0.9).eval()(x)) == bits(x)


def test_infinite_input_is_dropped_to_zero() -> None:
    """A product with a 0/1 mask would give NaN."""
    y = np.array(model_of(0.5)(mx.full((1, 1000), float("inf")), key=mx.random.key(0)))
    assert set(np.unique(y)) == {0, np.inf}


@pytest.mark.parametrize("rate", [-0.1, 1, 1.5, 1 - 1e-9])  # the last one is 1 as the float32 that files hold
def test_refuses_a_rate_out_of_range(rate: float) -> None:
    with pytest.raises(SpecError, match=r"^Dropout 'd': rate \(probability of a zero\) must be from 0 up to, not incl"):
        Dropout(name="d", rate=rate)


@pytest.mark.parametrize("rate", [float("nan"), float("inf"), "0.5", None, True])
def test_refuses_a_rate_that_is_no_number(rate: object) -> None:
    with pytest.raises(SpecError, match=r"^Dropout 'd': rate must be a float, got "):
        Dropout(name="d", rate=rate)  # type: ignore[arg-type]

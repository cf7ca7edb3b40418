"""The digits that ship with scikit-learn."""

import sys

import numpy as np
import pytest

from gometal_mlx.data import load_digits
from gometal_mlx.errors import UnsupportedError


@pytest.mark.parametrize(("images", "shape"), [(True, (1, 8, 8)), (False, (64,))])
def test_shapes_and_range(images: bool, shape: tuple[int, ...]) -> None:
    train, test = load_digits(images=images)
    assert (len(train), len(test)) == (1437, 360)
    for part in (train, test):
        assert (part.x.shape[1:], part.x.dtype, part.y.dtype) == (shape, np.float32, np.int32)
        assert (part.x.min(), part.x.max()) == (0, 1)
        assert set(part.y.tolist()) == set(range(10))


def test_each_digit_is_split_alike() -> None:
    train, test = load_digits(test_fraction=0.5)
    difference = np.bincount(train.y) - np.bincount(test.y)
    assert np.abs(difference).max() <= 1


def test_split_depends_on_the_seed_alone() -> None:
    first, again, other = (load_digits(seed=seed)[1] for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.x, again.x)
    assert (first.y != other.y).any()


def test_images_are_the_rows() -> None:
    rows, images = load_digits(images=False)[0].x, load_digits()[0].x
    np.testing.assert_array_equal(images.reshape(-1, 64), rows)


def test_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(UnsupportedError, match=r"scikit-learn; install it with: pip install 'gometal_mlx\[digits\]'$"):
        load_digits()

"""DataLoader: an order that depends on seed and epoch alone, and positions that can be taken up again."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gometal_mlx.data import ArrayDataset, DataLoader
from gometal_mlx.errors import SpecError


def dataset(rows: int) -> ArrayDataset:
    """Row i holds i and has the label i."""
    return ArrayDataset(np.arange(rows)[:, None], np.arange(rows))


def loader_of(rows: int = 10, batch_size: int = 3, **options: Any) -> DataLoader:
    return DataLoader(dataset(rows), batch_size, **options)


def served(loader: DataLoader, batches: int | None = None) -> list[list[int]]:
    """The labels of an epoch's batches (or of the next few)."""
    found: list[list[int]] = []
    for x, y in loader:
        np.testing.assert_array_equal(x[:, 0], y)
        found.append(y.tolist())
        if len(found) == batches:
            break
    return found


def flat(batches: list[list[int]]) -> list[int]:
    return [row for batch in batches for row in batch]


def test_without_shuffle_rows_come_in_order() -> None:
    loader = loader_of()
    for _ in range(2):
        assert served(loader) == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9]]


@pytest.mark.parametrize(
    ("rows", "batch_size", "drop_last", "sizes"),
    [
        (10, 3, False, [3, 3, 3, 1]),
        (10, 3, True, [3, 3, 3]),
        (9, 3, False, [3, 3, 3]),
        (9, 3, True, [3, 3, 3]),
        (2, 3, False, [2]),
        (3, 3, True, [3]),
        (1, 1, False, [1]),
    ],
)
def test_last_batch(rows: int, batch_size: int, drop_last: bool, sizes: list[int]) -> None:
    loader = loader_of(rows, batch_size, drop_last=drop_last)
    assert len(loader) == len(sizes)
    assert [len(batch) for batch in served(loader)] == sizes


def test_every_epoch_has_its_own_order_of_all_rows() -> None:
    loader = loader_of(50, 50, shuffle=True, seed=1)
    epochs = [served(loader)[0] for _ in range(3)]
    assert len({tuple(e) for e in epochs}) == 3
    assert all(sorted(e) == list(range(50)) for e in epochs)


def test_order_depends_on_seed_and_epoch_alone() -> None:
    first = loader_of(50, 7, shuffle=True, seed=1)
    np.random.seed(0)
    expected = [served(first) for _ in range(3)]
    np.random.seed(1)
    other = loader_of(50, 7, shuffle=True, seed=1)
    assert [served(other) for _ in range(3)] == expected
    jumped = loader_of(50, 7, shuffle=True, seed=1)
    jumped.epoch = 2
    assert served(jumped) == expected[2]
    assert served(loader_of(50, 7, shuffle=True, seed=2)) != expected[0]
    assert served(loader_of(50, 7, shuffle=True, seed=2)) != expected[1]  # seed + epoch would repeat orders
    bigger = loader_of(50, 10, shuffle=True, seed=1)  # and on nothing of the batches
    assert flat(served(bigger)) == flat(expected[0])


def test_a_drawn_seed_is_saved_and_gives_the_order_again() -> None:
    loader = loader_of(20, 6, shuffle=True)
    other = loader_of(20, 6, shuffle=True, seed=loader.state_dict()["seed"])
    assert served(other) == served(loader)


def test_drop_last_leaves_out_other_rows_every_epoch() -> None:
    loader = loader_of(10, 4, shuffle=True, seed=0, drop_last=True)
    left_out = {tuple(set(range(10)) - set(flat(served(loader)))) for _ in range(5)}
    assert len(left_out) > 1


# -------------------------------------------------------------------------------------------------------- positions


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 40),
    batch_size=st.integers(1, 12),
    shuffle=st.booleans(),
    drop_last=st.booleans(),
    epochs=st.integers(0, 3),
    data=st.data(),
)
def test_resumed_in_mid_epoch_serves_exactly_what_was_left(
    rows: int, batch_size: int, shuffle: bool, drop_last: bool, epochs: int, data: st.DataObject
) -> None:
    drop_last = drop_last and rows >= batch_size
    options = {"shuffle": shuffle, "drop_last": drop_last}
    loader = loader_of(rows, batch_size, seed=3, **options)
    for _ in range(epochs):
        served(loader)
    cut = data.draw(st.integers(0, len(loader)))
    head = served(loader, cut) if cut else []
    state = json.loads(json.dumps(loader.state_dict()))
    resumed = loader_of(rows, batch_size, seed=99, **options)
    resumed.load_state_dict(state)
    whole = loader_of(rows, batch_size, seed=3, **options)
    for _ in range(epochs):
        served(whole)
    assert head + served(resumed) == served(whole)
    assert served(resumed) == served(whole)  # and the epoch after it
    assert resumed.state_dict() == whole.state_dict()


def test_state_says_where_it_stands() -> None:
    loader = loader_of(10, 3, shuffle=True, seed=5)
    served(loader)
    served(loader, 2)
    assert loader.state_dict() == {
        "epoch": 1, "batch": 2, "seed": 5, "shuffle": True, "batch_size": 3, "drop_last": False, "rows": 10,
    }  # fmt: skip


def test_the_saved_seed_wins() -> None:
    loader, other = loader_of(20, 20, shuffle=True, seed=1), loader_of(20, 20, shuffle=True, seed=2)
    other.load_state_dict(loader.state_dict())
    assert served(other) == served(loader)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"shuffle": False}, "shuffle is True, but the saved position needs False"),
        ({"batch_size": 4}, "batch_size is 3, but the saved position needs 4"),
        ({"drop_last": True}, "drop_last is False, but the saved position needs True"),
        ({"rows": 11}, "rows is 10, but the saved position needs 11"),
        ({"epoch": -1}, "epoch -1, batch 2, seed 5 is no position"),
        ({"epoch": None}, "epoch None, batch 2, seed 5 is no position"),
        ({"epoch": "1"}, "epoch 1, batch 2, seed 5 is no position"),
        ({"batch": 5}, "epoch 0, batch 5, seed 5 is no position"),
        ({"batch": 1.0}, "epoch 0, batch 1.0, seed 5 is no position"),
        ({"seed": -5}, "epoch 0, batch 2, seed -5 is no position"),
    ],
)
def test_refuses_a_position_that_does_not_fit(change: dict[str, Any], told: str) -> None:
    loader = loader_of(10, 3, shuffle=True, seed=5)
    served(loader, 2)
    state = loader.state_dict() | change
    other = loader_of(10, 3, shuffle=True, seed=7)
    served(other, 1)
    before = other.state_dict()
    with pytest.raises(SpecError) as e:
        other.load_state_dict(state)
    assert str(e.value) == f"DataLoader: {told}"
    assert other.state_dict() == before


@pytest.mark.parametrize("key", ["epoch", "batch", "seed", "shuffle", "batch_size", "drop_last", "rows"])
def test_refuses_a_position_that_lacks_something(key: str) -> None:
    state = loader_of().state_dict()
    del state[key]
    with pytest.raises(SpecError, match=f"^DataLoader: .*{key}"):
        loader_of().load_state_dict(state)


# ----------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize("batch_size", [0, -1, 2.0, True, "3", None])
def test_refuses_a_batch_size(batch_size: Any) -> None:
    with pytest.raises(SpecError, match=f"^DataLoader: batch_size must be an int of at least 1, got {batch_size!r}$"):
        loader_of(10, batch_size)


def test_refuses_to_drop_everything() -> None:
    with pytest.raises(SpecError, match=r"^DataLoader: drop_last leaves no batch of 4 from 3 rows$"):
        loader_of(3, 4, drop_last=True)


def test_refuses_a_negative_seed() -> None:
    with pytest.raises(SpecError, match=r"^DataLoader: seed must be an int of at least 0, or None, got -1$"):
        loader_of(seed=-1)


def test_takes_any_dataset_with_rows() -> None:
    class Squares:
        def __len__(self) -> int:
            return 5

        def rows(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            return indices[:, None].astype(np.float32) ** 2, indices

    x, y = zip(*DataLoader(Squares(), 2), strict=True)
    assert np.concatenate(x)[:, 0].tolist() == [0, 1, 4, 9, 16]
    assert np.concatenate(y).tolist() == [0, 1, 2, 3, 4]

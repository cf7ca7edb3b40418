"""What ``benchmarks/fuzz_json.py`` found: each text here once brought out something else than a GoMetalError."""

import json
import tracemalloc
from typing import Any

import pytest
from checkpoint_samples import as_bytes, one_line, read, read_fields

from gometal_mlx.checkpoints import Checkpoint
from gometal_mlx.errors import CheckpointError, GoMetalError, SpecError
from gometal_mlx.layers import Model

SIGNED = '"metadata": {"framework": "go-metal"}, '  # else the present time is written
MANY = [2**63 - 1] * 200  # as a shape: a message that lists it all has four thousand characters


def layers(*specs: dict[str, Any], input_shape: list[int] | None = None) -> str:
    """A file of these layers and nothing else."""
    return json.dumps({"model_spec": {"layers": specs, "input_shape": input_shape or [2, 3], "compiled": True}})


def refused(text: str) -> str:
    """The message, after reading and building have failed as they should."""
    with pytest.raises(GoMetalError) as e:
        Model.from_checkpoint(read(text))
    return one_line(e.value)


# ---------------------------------------------------------------------------------------------------------- recursion

PLACES = {
    "extras": '"gometal_mlx": {"version": 1, "x": %s}',
    "optimizer": '"optimizer_state": {"parameters": {"x": %s}}',
    "unknown": '"unknown": %s',
    "data": '"weights": [{"name": "w", "shape": [1], "data": %s}]',
    "layer": '"model_spec": {"layers": [{"type": 2, "name": "r", "parameters": {"x": %s}}]}',
}


@pytest.mark.parametrize("brackets", ["[]", "{}"])
@pytest.mark.parametrize("place", PLACES)
def test_nesting_of_any_depth_is_read_and_written_or_refused(place: str, brackets: str) -> None:
    """RecursionError in json_reader (anything, mapping, extra) and in go_json (_unmark, _parse_slowly, encode)."""
    left, right = ("[", "]") if brackets == "[]" else ('{"a": ', "}")
    for depth in (*range(20, 1020, 20), 5000, 100_000):
        value = left * depth + ("1, " * 300 + "1" if brackets == "[]" else "1") + right * depth
        try:
            checkpoint: Checkpoint = read('{"model_spec": {}, ' + PLACES[place] % value + "}")
        except CheckpointError as e:
            one_line(e)
            continue
        assert checkpoint.notes is not None
        as_bytes(checkpoint)


def test_what_could_be_read_can_be_saved_from_a_deeper_stack() -> None:
    """The limit must not hang on how deep the caller stands."""

    def deeper(levels: int, checkpoint: Checkpoint) -> bytes:
        return deeper(levels - 1, checkpoint) if levels else as_bytes(checkpoint)

    for depth in range(20, 1020, 20):
        try:
            checkpoint = read_fields(SIGNED + PLACES["extras"] % ("[" * depth + "]" * depth))
        except CheckpointError:
            break
        assert deeper(200, checkpoint) == as_bytes(checkpoint)
    else:
        pytest.fail("a thousand levels were read")


# -------------------------------------------------------------------------------------------------- sizes out of bounds


@pytest.mark.parametrize("features", [2**27, 2**33, 2**63 - 1, 10**18, 1e18, 1e300])
def test_statistics_that_a_file_lacks_take_no_memory_that_it_only_asks_for(features: float) -> None:
    """add_missing_statistics: MemoryError, ValueError, or gigabytes and 17 s, for a file of a hundred bytes."""
    tracemalloc.start()
    try:
        try:
            read(layers({"type": 6, "name": "bn", "parameters": {"num_features": features}}))
        except CheckpointError as e:
            one_line(e, "bn", "num_features")
        assert tracemalloc.get_traced_memory()[1] < 200e6
    finally:
        tracemalloc.stop()


def test_statistics_of_many_layers_take_no_memory_either() -> None:
    """Seven kilobytes of text asked for half a gigabyte, seven megabytes for half a terabyte."""
    tracemalloc.start()
    try:
        norms = ({"type": 6, "name": f"bn{i}", "parameters": {"num_features": 2**20}} for i in range(64))
        try:
            read(layers(*norms))
        except CheckpointError as e:
            one_line(e, "bn", "num_features")
        assert tracemalloc.get_traced_memory()[1] < 200e6
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "fields",
    [
        '"weights": [{"name": "w", "shape": %s, "data": [1]}]',
        '"optimizer_state": {"state_data": [{"name": "m_0", "shape": %s, "data": [1]}]}',
        '"gometal_mlx": {"version": 1, "x": {"float32": %s, "data": [1]}}',
    ],
)
def test_a_shape_of_more_dimensions_than_numpy_has_is_refused(fields: str) -> None:
    """_shaped and extra: ValueError (maximum supported dimension for an ndarray is 64)."""
    with pytest.raises(CheckpointError) as e:
        read_fields(fields % json.dumps([1] * 65))
    one_line(e.value, "f.json: $.")


@pytest.mark.parametrize("shape", [[5, 1, 2**63 - 1, 0], [0, 2**62, 4], [2**31, 2**31, 2**31, 0], [3, 10**18, 0]])
def test_an_empty_array_of_absurd_dimensions_is_refused(shape: list[int]) -> None:
    """_shaped and extra: ValueError (cannot reshape array of size 0)."""
    with pytest.raises(CheckpointError) as e:
        read_fields(f'"weights": [{{"name": "w", "shape": {shape}, "data": []}}]')
    one_line(e.value, "f.json: $.weights[0]")
    with pytest.raises(CheckpointError) as e:
        read_fields(f'"gometal_mlx": {{"version": 1, "x": {{"float32": {shape}, "data": []}}}}')
    one_line(e.value, "f.json: $.gometal_mlx.x")


def test_an_array_for_the_version_is_told_in_one_line() -> None:
    """checkpoint: the message showed its numbers, line by line."""
    with pytest.raises(CheckpointError) as e:
        read_fields('"gometal_mlx": {"version": {"float32": [2, 3], "data": [1, 2, 3, 4, 5, 6]}}')
    one_line(e.value, "f.json: $.gometal_mlx.version", "the file has an array of shape (2, 3)")


@pytest.mark.parametrize("shape", [[-1], [-1, -1], [-2, -1], [2, -1, -1]])
def test_an_array_of_negative_dimensions_among_the_extras_is_refused(shape: list[int]) -> None:
    """extra: ValueError (can only specify one unknown dimension)."""
    for data in ([1], [1, 2]):
        with pytest.raises(CheckpointError) as e:
            read_fields(f'"gometal_mlx": {{"version": 1, "x": {{"float32": {shape}, "data": {data}}}}}')
        one_line(e.value, "f.json: $.gometal_mlx.x")


@pytest.mark.parametrize("size", [2**31, 2**33, 2**39, 2**40])
def test_sizes_beyond_mlx_are_refused(size: int) -> None:
    """OverflowError from mx.random.normal: MLX's dimensions have 32 bits."""
    dense = {"type": 0, "name": "fc", "parameters": {"output_size": 1, "use_bias": False}}
    refused(layers(dense, input_shape=[2, size]))
    refused(layers(dense | {"parameters": {"output_size": size}}))
    conv = {"type": 1, "name": "conv", "parameters": {"output_channels": 1, "kernel_size": 1}}
    refused(layers(conv, input_shape=[1, size, 1, 1]))
    refused(layers(conv | {"parameters": {"output_channels": size, "kernel_size": 1}}, input_shape=[1, 1, 1, 1]))


# ------------------------------------------------------------------------------------------------------------ messages


def test_a_shape_of_many_dimensions_is_not_listed_in_full() -> None:
    """Messages of up to eight thousand characters."""
    with pytest.raises(CheckpointError) as e:
        read_fields(f'"weights": [{{"name": "w", "shape": {MANY}, "data": [1]}}]')
    one_line(e.value, "f.json: $.weights[0].shape")
    refused(layers({"type": 2, "name": "r"}, input_shape=[*MANY, -1]))
    refused(layers({"type": 0, "name": "d", "parameters": {"output_size": 1}}, input_shape=MANY))
    refused(layers({"type": 1, "name": "c", "parameters": {"output_channels": 1, "kernel_size": 1}}, input_shape=MANY))


# ------------------------------------------------------------------------------------------------- what is written back


def test_many_lists_that_begin_as_numbers_and_go_on_otherwise_are_read_again() -> None:
    """Written, and then refused as "too many arrays that mix numbers with other things"."""
    items = [[0.5] * 300 + ["x"]] * 12
    checkpoint = read_fields(SIGNED + PLACES["extras"] % json.dumps(items))
    assert as_bytes(read(as_bytes(checkpoint))) == as_bytes(checkpoint)


# ------------------------------------------------------------------------------------------ what took quadratic time


def test_a_key_that_stands_very_often_is_merged() -> None:
    """Each occurrence copied all that had been merged before; 80,000 took 78 s."""
    text = "{" + ", ".join(['"model_spec": {"layers": []}'] * 80_000) + "}"
    assert read(text).model_spec.layers == ()


def test_names_that_stand_twice_are_counted_once() -> None:
    """list.count for every name; 16,000 layers took 6 s."""
    assert len(read(layers(*({"type": 2, "name": f"a{i // 2}"} for i in range(16_000)))).notes) == 8_000


def test_more_layers_than_any_model_has_are_refused() -> None:
    """Renaming tried every number from the first one on, for each layer; 8,000 of one name took 12 s."""
    with pytest.raises(SpecError, match="8000 layers; at most 2000 are run"):
        Model.from_checkpoint(read(layers(*[{"type": 2, "name": "a"}] * 8_000)))

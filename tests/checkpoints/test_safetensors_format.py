"""safetensors: readable by every other reader, and complete for ours."""

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import xxhash
from checkpoint_samples import as_bytes, assert_same, files, full_checkpoint, one_line, small_checkpoint
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from safetensors.numpy import save as library_save

from gometal_mlx.checkpoints import Checkpoint, load, safetensors_format, save
from gometal_mlx.checkpoints.checksum import checksum
from gometal_mlx.errors import CheckpointError, GoMetalError
from gometal_mlx.layers import Model


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "c.safetensors"


def metadata_of(checkpoint: Checkpoint, path: Path) -> dict[str, str]:
    save(checkpoint, path)
    with safe_open(path, framework="numpy") as f:
        return f.metadata()


def names(c: Checkpoint) -> dict[str, np.ndarray]:
    found = {w.name: w.data for w in c.weights}
    return found | {
        f"optimizer_state.{t.name}": t.data for t in (c.optimizer_state.state_data if c.optimizer_state else ())
    }


def test_safe_open_reads_every_array_under_its_name(path: Path) -> None:
    save(full_checkpoint(), path)
    want = names(full_checkpoint())
    with safe_open(path, framework="numpy") as f:
        assert set(f.keys()) == set(want)
        for name, data in want.items():
            assert f.get_tensor(name).tobytes() == data.tobytes()
            assert f.get_tensor(name).shape == data.shape


def test_mlx_reads_every_array_under_its_name(path: Path) -> None:
    save(full_checkpoint(), path)
    arrays, metadata = mx.load(str(path), return_metadata=True)
    want = names(full_checkpoint())
    assert set(arrays) == set(want)
    assert all(np.array(arrays[n]).tobytes() == want[n].tobytes() for n in want)
    assert set(metadata) == {
        "gometal_mlx",
        "gometal_mlx_checksum",
    }  # one key: the library writes several in random order


def test_mlx_modules_load_the_weights(path: Path) -> None:
    c = full_checkpoint()
    save(replace(c, optimizer_state=None), path)
    model = Model(c.model_spec, seed=9)
    model.load_weights(str(path))
    x = mx.random.normal((2, 3, 8, 8), key=mx.random.key(1))
    model.eval()
    assert np.array_equal(model(x), Model.from_checkpoint(c)(x))


def test_the_metadata_is_the_json_checkpoint_without_the_numbers(path: Path) -> None:
    tree = json.loads(metadata_of(full_checkpoint(), path)["gometal_mlx"])
    whole = json.loads(as_bytes(full_checkpoint()))
    for tensor in [*whole["weights"], *whole["optimizer_state"]["state_data"]]:
        del tensor["data"]
    assert tree == whole


def test_a_foreign_file_is_refused_with_advice(path: Path) -> None:
    save_file({"fc1.weight": np.ones((3, 4), np.float32)}, path)
    with pytest.raises(CheckpointError) as e:
        load(path)
    one_line(e.value, str(path), "1 tensors but no architecture", "model.load_weights")


@pytest.mark.parametrize("metadata", [None, {}, {"format": "pt"}])
def test_foreign_metadata_is_no_architecture(metadata: dict[str, str] | None, path: Path) -> None:
    save_file({"x": np.ones(1, np.float32)}, path, metadata=metadata)
    with pytest.raises(CheckpointError, match="no architecture"):
        load(path)


@pytest.mark.parametrize(
    "text", ["", "{", "null", "{}", "[]", '{"model_spec": null}', '{"model_spec": {}, "weights": 1}']
)
def test_damaged_metadata_is_refused(text: str, path: Path) -> None:
    save_file({"x": np.ones(1, np.float32)}, path, metadata={"gometal_mlx": text})
    with pytest.raises(CheckpointError) as e:
        load(path)
    one_line(e.value, str(path), "__metadata__")


def test_a_name_that_stands_twice_is_refused(path: Path) -> None:
    c = small_checkpoint()
    c.weights[1] = replace(c.weights[1], name=c.weights[0].name)
    path.write_bytes(b"old")
    with pytest.raises(CheckpointError) as e:
        save(c, path)
    one_line(e.value, str(path), "'fc1.weight' stands twice")
    assert files(path.parent) == {path.name: b"old"}


def test_a_weight_may_not_take_an_optimizer_arrays_name(path: Path) -> None:
    c = full_checkpoint()
    c.weights[0] = replace(c.weights[0], name="optimizer_state.momentum_0")
    with pytest.raises(CheckpointError, match=r"'optimizer_state\.momentum_0' stands twice"):
        save(c, path)


def test_a_weight_may_not_take_the_metadatas_name(path: Path) -> None:
    c = small_checkpoint()
    c.weights[0] = replace(c.weights[0], name="__metadata__")
    try:
        save(c, path)
    except CheckpointError as e:
        one_line(e, str(path), "__metadata__")
        assert not path.exists()
    else:
        assert_same(load(path), c)


def rewrite(path: Path, change: dict[str, Any], drop: tuple[str, ...] = ()) -> None:
    """The full checkpoint's file with some arrays changed."""
    metadata = metadata_of(full_checkpoint(), path)
    arrays = {k: v for k, v in load_file(path).items() if k not in drop}
    save_file({**arrays, **change}, path, metadata=metadata)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["fc.bias", "bn.running_var", "optimizer_state.momentum_1"])
def test_nan_in_a_file_names_the_array(bad: float, name: str, path: Path) -> None:
    data = names(full_checkpoint())[name].copy()
    data[-1] = bad
    rewrite(path, {name: data})
    with pytest.raises(CheckpointError) as e:
        load(path)
    one_line(e.value, str(path), name, f"element {data.size - 1}")


@pytest.mark.parametrize("kind", [np.float64, np.float16, np.int32, np.uint8])
def test_arrays_of_other_types_are_refused(kind: Any, path: Path) -> None:
    rewrite(path, {"fc.bias": np.zeros(6, kind)})
    with pytest.raises(CheckpointError) as e:
        load(path)
    one_line(e.value, str(path), "'fc.bias'", "float32 needed")


def test_bfloat16_is_refused(path: Path) -> None:
    metadata = metadata_of(small_checkpoint(), path)
    arrays = mx.load(str(path))
    arrays["fc1.bias"] = arrays["fc1.bias"].astype(mx.bfloat16)
    mx.save_safetensors(str(path), arrays, metadata)
    with pytest.raises(CheckpointError) as e:
        load(path)
    one_line(e.value, str(path))


@pytest.mark.parametrize("name", ["fc.weight", "optimizer_state.variance_0"])
def test_a_missing_array_is_told(name: str, path: Path) -> None:
    rewrite(path, {}, drop=(name,))
    with pytest.raises(CheckpointError) as e:
        load(path)
    one_line(e.value, str(path), f"{name!r} is missing")


@pytest.mark.parametrize("shape", [(5,), (7,), (0,), (2, 2)])
def test_an_array_of_another_size_is_told(shape: tuple[int, ...], path: Path) -> None:
    rewrite(path, {"fc.bias": np.zeros(shape, np.float32)})
    with pytest.raises(CheckpointError) as e:
        load(path)
    one_line(e.value, str(path), "fc.bias", "needs 6 numbers")


def test_an_array_that_nobody_owns_is_noted(path: Path) -> None:
    rewrite(path, {"stray": np.zeros(1, np.float32)})
    c = load(path)
    assert_same(c, full_checkpoint())
    assert c.notes == ["ignored the tensor 'stray', which no layer or optimizer owns"]


def test_a_checkpoint_without_arrays(path: Path) -> None:
    c = replace(small_checkpoint(), weights=[])
    save(c, path)
    assert_same(load(path), c)


@pytest.mark.parametrize("size", [0, 1, 7, 8, 2**20, 2**62])
def test_a_header_that_lies_about_its_size_is_refused(size: int, path: Path) -> None:
    save(small_checkpoint(), path)
    path.write_bytes(size.to_bytes(8, "little") + path.read_bytes()[8:])
    with pytest.raises(CheckpointError) as e:
        load(path)
    one_line(e.value, str(path))


def test_arrays_are_ours_and_can_be_changed(path: Path) -> None:
    save(small_checkpoint(), path)
    c = load(path)
    c.weights[0].data += 1
    assert_same(load(path), small_checkpoint())


def test_bytes_are_those_of_the_library():
    arrays = {
        "b.ü\u2028": np.arange(6, dtype=np.float32).reshape(2, 3), "empty": np.zeros((0, 3), np.float32),
        "\U0001f600": np.ones(1, np.float32), 'q"\\\x01\x7f/': np.ones(5, np.float32), "B": np.ones((), np.float32),
    }  # fmt: skip
    metadata = {"gometal_mlx": '{"x": "\\n\x1f\x08\x0c\t</é"}\n'}
    file = io.BytesIO()
    safetensors_format._write(arrays, metadata, file)
    assert file.getvalue() == library_save(arrays, metadata)


def test_a_bit_flipped_anywhere_is_noticed(path: Path) -> None:
    """Every byte of a small file, one bit each: refused, or (in the name of the checksum's key) read as before."""
    c = small_checkpoint()
    save(c, path)
    right = path.read_bytes()
    bits = np.random.default_rng(0).integers(0, 8, len(right))
    unnoticed = []
    for at, bit in enumerate(bits.tolist()):
        data = bytearray(right)
        data[at] ^= 1 << bit
        path.write_bytes(data)
        try:
            read = load(path)
        except GoMetalError:
            continue
        assert_same(c, read)
        unnoticed.append(at)
    assert len(unnoticed) < 30


def test_damaged_numbers_can_be_looked_at(path: Path) -> None:
    c = small_checkpoint()
    save(c, path)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError) as e:
        load(path)
    one_line(e.value, str(path), "damaged")
    read = load(path, tolerant=True)
    assert any(n.startswith("damaged") for n in read.notes)
    assert sum(a.data.tobytes() != b.data.tobytes() for a, b in zip(c.weights, read.weights, strict=True)) == 1


def test_save_returns_the_checksum_of_the_file(path: Path) -> None:
    for suffix in (".safetensors", ".json", ".json.gz"):
        made = save(full_checkpoint(), path.with_suffix(suffix))
        assert made == checksum(path.with_suffix(suffix))
        assert made == f"xxh3_128:{xxhash.xxh3_128_hexdigest(path.with_suffix(suffix).read_bytes())}"


def test_a_checksum_of_another_kind_is_noted(path: Path) -> None:
    c = small_checkpoint()
    metadata = {**metadata_of(c, path), "gometal_mlx_checksum": "blake9:00"}
    save_file(load_file(path), path, metadata=metadata)
    read = load(path)
    assert_same(c, read)
    assert any("unknown kind (blake9:00)" in n for n in read.notes)

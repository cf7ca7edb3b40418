"""What all formats share: the choice by suffix, damaged and misplaced files, and saving whole or not at all."""

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoint_samples import (
    FULL_SUFFIXES,
    SUFFIXES,
    assert_same,
    assert_same_arrays,
    bounded,
    cnn_spec,
    files,
    full_checkpoint,
    one_line,
    small_checkpoint,
    weights_of,
)
from hypothesis import given
from hypothesis import strategies as st

import gometal_mlx as gm
from gometal_mlx.checkpoints import Checkpoint, CheckpointFormat, CheckpointSaver, WeightTensor, load, save
from gometal_mlx.checkpoints.formats import format_of, sniff
from gometal_mlx.errors import CheckpointError, GoMetalError
from gometal_mlx.layers import Model


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the full checkpoint in every format."""
    folder = tmp_path_factory.mktemp("formats")
    for suffix in SUFFIXES:
        save(full_checkpoint(), folder / f"c{suffix}")
    return folder


def content(path: Path) -> Any:
    """The bytes; of safetensors the header as a map, because its library writes the metadata in any order."""
    data = path.read_bytes()
    if path.suffix != ".safetensors":
        return data
    end = 8 + int.from_bytes(data[:8], "little")
    return json.loads(data[8:end]), data[end:]


# ------------------------------------------------------------------------------------------------------ round trips


@pytest.mark.parametrize("suffix", FULL_SUFFIXES)
def test_everything_comes_back_to_the_bit(suffix: str, shared: Path) -> None:
    c = load(shared / f"c{suffix}")
    assert_same(c, full_checkpoint())
    assert c.notes == []


def test_onnx_brings_back_all_but_the_optimizer(shared: Path) -> None:
    c = load(shared / "c.onnx")
    assert_same(c, replace(full_checkpoint(), optimizer_state=None))
    assert c.notes == []


@pytest.mark.parametrize(("first", "second"), [*itertools.product(FULL_SUFFIXES, FULL_SUFFIXES)])
def test_conversion_between_formats_loses_nothing(first: str, second: str, shared: Path, tmp_path: Path) -> None:
    save(load(shared / f"c{first}"), tmp_path / f"d{second}")
    save(load(tmp_path / f"d{second}"), tmp_path / f"e{first}")
    assert content(tmp_path / f"e{first}") == content(shared / f"c{first}")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_saving_is_repeatable_and_changes_nothing_in_the_checkpoint(suffix: str, shared: Path, tmp_path: Path) -> None:
    c = full_checkpoint()
    save(c, tmp_path / f"c{suffix}")
    assert_same(c, full_checkpoint())
    assert content(tmp_path / f"c{suffix}") == content(shared / f"c{suffix}")
    assert [p.name for p in tmp_path.iterdir()] == [f"c{suffix}"]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_model_of_every_format_computes_the_same(suffix: str, shared: Path) -> None:
    import mlx.core as mx

    x = mx.random.normal((5, 3, 8, 8), key=mx.random.key(3))
    want = Model.from_checkpoint(full_checkpoint())(x)
    assert np.array_equal(Model.from_checkpoint(load(shared / f"c{suffix}"))(x), want)


FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)


@bounded(25)
@given(st.lists(FINITE, min_size=6, max_size=6), st.sampled_from(FULL_SUFFIXES))
def test_any_float32_survives_any_format(shared: Path, values: list[float], suffix: str) -> None:
    c = small_checkpoint()
    c.weights[2].data = np.array(values + values[:2], np.float32).reshape(c.weights[2].shape)
    save(c, shared / f"any{suffix}")
    assert_same_arrays(load(shared / f"any{suffix}"), c)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_arrays_need_not_be_contiguous(suffix: str, tmp_path: Path) -> None:
    c = small_checkpoint()
    want = c.weights[0].data.copy()
    c.weights[0].data = np.asfortranarray(want)
    save(c, tmp_path / f"c{suffix}")
    assert load(tmp_path / f"c{suffix}").weights[0].data.tobytes() == want.tobytes()


# ------------------------------------------------------------------------------------------------------- the choice


@pytest.mark.parametrize(
    ("name", "format"),
    [
        ("a.json", CheckpointFormat.JSON), ("a.JSON", CheckpointFormat.JSON), ("a.json.gz", CheckpointFormat.JSON),
        ("a.b.onnx", CheckpointFormat.ONNX), ("a.Safetensors", CheckpointFormat.SAFETENSORS),
    ],
)  # fmt: skip
def test_the_suffix_chooses_the_format(name: str, format: CheckpointFormat, tmp_path: Path) -> None:
    assert format_of(tmp_path / name) == format
    save(small_checkpoint(), str(tmp_path / name))
    assert load(tmp_path / name).weights[0].name == "fc1.weight"


@pytest.mark.parametrize("name", ["a", "a.txt", "a.json.bak", "json", "a.gz", ".json/a", "a.onnx.gz", ""])
def test_any_other_suffix_is_refused(name: str, tmp_path: Path) -> None:
    for action in (lambda p: save(small_checkpoint(), p), load):
        with pytest.raises(CheckpointError) as e:
            action(tmp_path / name)
        folder = not name and action is load
        one_line(e.value, str(tmp_path / name), "a folder" if folder else ".json, .json.gz, .onnx, .safetensors")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("format", [*CheckpointFormat, "json", "ONNX", "SafeTensors", 0, 2])
def test_the_saver_writes_its_format_whatever_the_name(format: Any, tmp_path: Path) -> None:
    saver = CheckpointSaver(format)
    saver.save_checkpoint(small_checkpoint(), tmp_path / "model.bin")
    assert_same_arrays(saver.load_checkpoint(tmp_path / "model.bin"), small_checkpoint())
    assert saver.format in CheckpointFormat


@pytest.mark.parametrize("format", ["", "pickle", "JSON "])
def test_an_unknown_format_is_refused_with_the_known_ones(format: str) -> None:
    with pytest.raises(CheckpointError) as e:
        CheckpointSaver(format)
    one_line(e.value, repr(format), "JSON, ONNX, SAFETENSORS")


def test_an_unknown_format_number_is_refused() -> None:
    with pytest.raises(ValueError, match="7"):
        CheckpointSaver(7)


def test_format_names_are_go_metals() -> None:
    assert [(f.value, str(f)) for f in CheckpointFormat] == [(0, "JSON"), (1, "ONNX"), (2, "SAFETENSORS")]


def test_the_package_has_both_functions_on_top(tmp_path: Path) -> None:
    gm.save(small_checkpoint(), tmp_path / "c.safetensors")
    assert_same(gm.load(tmp_path / "c.safetensors"), small_checkpoint())


@pytest.mark.parametrize(
    ("head", "format"),
    [
        (b"", None), (b"{", CheckpointFormat.JSON), (b" \n{", CheckpointFormat.JSON),
        (b"\x1f\x8b\x08", CheckpointFormat.JSON),
        (b"\x40\x00\x00\x00\x00\x00\x00\x00{", CheckpointFormat.SAFETENSORS),
        (b"\x08\x08\x12\x0bgometal_", CheckpointFormat.ONNX), (b"\x08\x0a\x1a", CheckpointFormat.ONNX),
        (b"\x08\x08", None), (b"\xff" * 8 + b"{", None),
    ],
)  # fmt: skip
def test_the_first_bytes_tell_the_format_only_where_they_are_certain(
    head: bytes, format: CheckpointFormat | None
) -> None:
    assert sniff(head) == format


# ----------------------------------------------------------------------------------------------- files that are none


@pytest.mark.parametrize("suffix", SUFFIXES)
class TestNoFile:
    def test_missing(self, suffix: str, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError) as e:
            load(tmp_path / f"c{suffix}")
        one_line(e.value, str(tmp_path / f"c{suffix}"), "no such file")

    def test_a_folder(self, suffix: str, tmp_path: Path) -> None:
        (tmp_path / f"c{suffix}").mkdir()
        with pytest.raises(CheckpointError) as e:
            load(tmp_path / f"c{suffix}")
        one_line(e.value, str(tmp_path / f"c{suffix}"), "folder")
        with pytest.raises(CheckpointError) as e:
            save(small_checkpoint(), tmp_path / f"c{suffix}")
        one_line(e.value, str(tmp_path / f"c{suffix}"))
        assert [p.name for p in tmp_path.iterdir()] == [f"c{suffix}"]

    def test_empty(self, suffix: str, tmp_path: Path) -> None:
        (tmp_path / f"c{suffix}").touch()
        with pytest.raises(CheckpointError) as e:
            load(tmp_path / f"c{suffix}")
        one_line(e.value, str(tmp_path / f"c{suffix}"), "0 bytes")

    @pytest.mark.parametrize("content", [b"\x00", b"{", b"PK\x03\x04" + b"x" * 100, b"\xff" * 100, b"\x00" * 100])
    def test_garbage(self, content: bytes, suffix: str, tmp_path: Path) -> None:
        (tmp_path / f"c{suffix}").write_bytes(content)
        with pytest.raises(CheckpointError) as e:
            load(tmp_path / f"c{suffix}")
        one_line(e.value, str(tmp_path / f"c{suffix}"))

    @pytest.mark.parametrize("folder", ["missing", "file"])
    def test_a_folder_that_cannot_be_written_to(self, folder: str, suffix: str, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("x")
        path = tmp_path / folder / f"c{suffix}"
        with pytest.raises(CheckpointError) as e:
            save(small_checkpoint(), path)
        one_line(e.value, str(path), "the folder must exist")
        with pytest.raises(CheckpointError) as e:
            load(path)
        one_line(e.value, str(path))
        assert files(tmp_path) == {"file": b"x"}


MISPLACED = [(a, b) for a, b in itertools.permutations(SUFFIXES, 2) if not (".json" in a and ".json" in b)]


@pytest.mark.parametrize(("content", "suffix"), MISPLACED)
def test_content_that_does_not_match_the_suffix(content: str, suffix: str, shared: Path, tmp_path: Path) -> None:
    path = tmp_path / f"c{suffix}"
    path.write_bytes((shared / f"c{content}").read_bytes())
    with pytest.raises(CheckpointError) as e:
        load(path)
    one_line(e.value, str(path))
    if content != ".onnx":  # an ONNX file has no certain first bytes
        one_line(e.value, "the content looks like")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_cut_off_at_any_place_is_an_error(suffix: str, shared: Path, tmp_path: Path) -> None:
    data = (shared / f"c{suffix}").read_bytes()
    path = tmp_path / f"c{suffix}"
    for n in sorted(
        {*range(0, 20), *range(20, len(data) - 20, max(1, len(data) // 200)), *range(len(data) - 20, len(data) - 1)}
    ):
        path.write_bytes(data[:n])
        with pytest.raises(GoMetalError) as e:
            load(path)
        one_line(e.value, str(path))


@bounded(250)
@given(
    st.sampled_from(SUFFIXES),
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=3),
    st.booleans(),
)
def test_flipped_bytes_are_an_error_or_a_checkpoint(
    shared: Path, suffix: str, flips: list[tuple[float, int]], early: bool
) -> None:
    data = bytearray((shared / f"c{suffix}").read_bytes())
    for where, byte in flips:
        data[int(where * (min(400, len(data)) if early else len(data)))] = byte
    path = shared / f"flipped{suffix}"
    path.write_bytes(data)
    try:
        c = load(path)
    except GoMetalError as e:
        one_line(e, str(path))
    else:
        assert all(w.data.size == (int(np.prod(w.shape)) if w.shape else 0) for w in c.weights)


# ------------------------------------------------------------------------------------------- checkpoints that are none


def broken_weight(change: dict[str, Any]) -> Checkpoint:
    c = small_checkpoint()
    c.weights[0] = replace(c.weights[0], **change)
    return c


def with_values(*values: float) -> np.ndarray:
    a = np.zeros((3, 4), np.float32)
    a.reshape(-1)[: len(values)] = values
    return a


NO_FLOAT32 = [np.zeros((3, 4)), np.zeros((3, 4), np.int32), np.zeros((3, 4), np.float16), [[0.0] * 4] * 3, None]


@pytest.mark.parametrize("suffix", SUFFIXES)
class TestNotSaved:
    """One line naming file, layer and field; the old file untouched, no temporary file left."""

    def refuse(self, c: Checkpoint, suffix: str, tmp_path: Path, *parts: str, **options: Any) -> None:
        path = tmp_path / f"c{suffix}"
        for before in ({}, {path.name: b"the old file"}):
            for name, content in before.items():
                (tmp_path / name).write_bytes(content)
            with pytest.raises(GoMetalError) as e:
                save(c, path, **options)
            one_line(e.value, str(path), *parts)
            assert files(tmp_path) == before
        path.unlink()

    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
    @pytest.mark.parametrize("at", [0, 11])
    def test_nan_and_infinity(self, bad: float, at: int, suffix: str, tmp_path: Path) -> None:
        self.refuse(broken_weight({"data": with_values(*[0] * at, bad)}), suffix, tmp_path, "fc1.weight", "NaN")

    @pytest.mark.parametrize("kind", ["running_mean", "running_var"])
    def test_nan_in_statistics(self, kind: str, suffix: str, tmp_path: Path) -> None:
        c = full_checkpoint()
        next(w for w in c.weights if w.name == f"bn.{kind}").data[1] = np.nan
        self.refuse(c, suffix, tmp_path, f"bn.{kind}")

    @pytest.mark.parametrize(
        "change",
        [
            {"data": np.zeros(11, np.float32)}, {"data": np.zeros((4, 4), np.float32)}, {"shape": (3, 5)},
            {"data": np.zeros(0, np.float32)},
        ],
    )  # fmt: skip
    def test_data_that_is_not_its_shape(self, change: dict[str, Any], suffix: str, tmp_path: Path) -> None:
        self.refuse(broken_weight(change), suffix, tmp_path, "fc1.weight")

    @pytest.mark.parametrize("data", NO_FLOAT32)
    def test_data_that_is_not_float32(self, data: Any, suffix: str, tmp_path: Path) -> None:
        self.refuse(broken_weight({"data": data}), suffix, tmp_path, "fc1.weight", "float32")

    def test_no_architecture(self, suffix: str, tmp_path: Path) -> None:
        self.refuse(replace(small_checkpoint(), model_spec=None), suffix, tmp_path, "model_spec")

    def test_extras_that_are_no_json(self, suffix: str, tmp_path: Path) -> None:
        self.refuse(replace(small_checkpoint(), extras={"x": {1, 2}}), suffix, tmp_path)
        self.refuse(replace(small_checkpoint(), extras={"x": np.nan}), suffix, tmp_path)

    @pytest.mark.parametrize("field", ["learning_rate", "best_loss", "best_accuracy"])
    @pytest.mark.parametrize("bad", [np.nan, np.inf])
    def test_training_state_without_a_json_form(self, field: str, bad: float, suffix: str, tmp_path: Path) -> None:
        c = small_checkpoint()
        setattr(c.training_state, field, bad)
        self.refuse(c, suffix, tmp_path, field)

    def test_training_state_beyond_float32(self, suffix: str, tmp_path: Path) -> None:
        c = small_checkpoint()
        c.training_state.best_loss = 1e39
        self.refuse(c, suffix, tmp_path, "best_loss")


@pytest.mark.parametrize("suffix", FULL_SUFFIXES)
def test_nan_in_the_optimizer_state_is_not_saved(suffix: str, tmp_path: Path) -> None:
    c = full_checkpoint()
    c.optimizer_state.state_data[3].data[0] = np.nan
    TestNotSaved().refuse(c, suffix, tmp_path, "momentum_3")


@pytest.mark.parametrize("suffix", FULL_SUFFIXES)
def test_nan_in_the_hyper_parameters_is_not_saved(suffix: str, tmp_path: Path) -> None:
    c = full_checkpoint()
    c.optimizer_state.parameters = {"beta1": np.float32(np.nan)}
    TestNotSaved().refuse(c, suffix, tmp_path)


@pytest.mark.parametrize("suffix", FULL_SUFFIXES)
def test_unusual_weights_are_kept(suffix: str, tmp_path: Path) -> None:
    """Names with any character, arrays of no elements, weights of no layer: a file may hold them."""
    odd = [
        WeightTensor('a/"b" é\n🙂', (1,), np.ones(1, np.float32), "", ""),
        WeightTensor("", (2, 0), np.zeros((2, 0), np.float32), "no layer", "no kind"),
        WeightTensor("x" * 1000, (1, 1, 1, 1, 1), np.full((1,) * 5, -0.0, np.float32), "fc1", "weight"),
    ]
    c = replace(small_checkpoint(), weights=odd)
    save(c, tmp_path / f"c{suffix}")
    assert_same(load(tmp_path / f"c{suffix}"), c)


@pytest.mark.parametrize("suffix", FULL_SUFFIXES)
def test_extras_can_be_left_out_of_both_full_formats(suffix: str, tmp_path: Path) -> None:
    save(full_checkpoint(), tmp_path / f"c{suffix}", extras=False)
    assert_same(load(tmp_path / f"c{suffix}"), replace(full_checkpoint(), extras={}))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_link_is_written_through(suffix: str, tmp_path: Path) -> None:
    (tmp_path / "latest").symlink_to(tmp_path / f"real{suffix}")
    (tmp_path / f"latest{suffix}").symlink_to(tmp_path / f"real{suffix}")
    save(small_checkpoint(), tmp_path / f"latest{suffix}")
    assert (tmp_path / f"latest{suffix}").is_symlink()
    assert_same_arrays(load(tmp_path / f"real{suffix}"), small_checkpoint())


def test_statistics_of_a_new_model_are_saved_and_read_without_notes(tmp_path: Path) -> None:
    c = replace(full_checkpoint(), weights=weights_of(cnn_spec(), seed=5), optimizer_state=None)
    for suffix in SUFFIXES:
        save(c, tmp_path / f"c{suffix}")
        again = load(tmp_path / f"c{suffix}")
        assert_same_arrays(again, c)
        assert again.notes == []


@pytest.mark.parametrize("suffix", [".json", ".safetensors", ".onnx"])
def test_options_that_a_format_does_not_have(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"m{suffix}"
    gm.save(small_checkpoint(), path, **({} if suffix == ".onnx" else {"extras": False}))
    before = path.read_bytes()
    save_has = "export option 'opsett' is unknown" if suffix == ".onnx" else "save has no option 'opsett' .*extras"
    with pytest.raises(CheckpointError, match=save_has):
        gm.save(small_checkpoint(), path, opsett=13)
    with pytest.raises(CheckpointError, match=rf"m\{suffix}: load has no option 'strict' for this format; .*tolerant"):
        gm.load(path, strict=True)
    assert path.read_bytes() == before

"""What may be among the extras, and ``info`` above all: what no file can hold is refused before anything is written."""

import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from checkpoint_samples import SUFFIXES, one_line, small_checkpoint

from gometal_mlx.checkpoints import load, save
from gometal_mlx.errors import CheckpointError
from gometal_mlx.training import CheckpointConfig, CheckpointManager, ModelTrainer, TrainerConfig

CYCLE: list[Any] = []
CYCLE.append(CYCLE)
UNFIT: dict[str, tuple[Any, str]] = {
    "whole numbers in an array": (np.arange(3), "an array of int64"),
    "doubles": (np.array([0.5]), "an array of float64"),
    "the other byte order": (np.zeros(2, ">f4"), "an array of >f4"),
    "texts in an array": (np.array(["a"]), "an array of <U1"),
    "a number as key": ({0: "cat"}, "the key 0"),
    "the mark of an array": ({"float32": [1]}, "marks an array"),
    "half a letter": ("\ud800", "UTF-8"),
    "half a letter as key": ({"\udfff": 1}, "the key"),
    "itself": (CYCLE, "levels deep"),
    "a lock": (threading.Lock(), "got lock"),
    "a set": ({1, 2}, "got set"),
    "NaN in an array": (np.full(1, np.nan, np.float32), "NaN"),
}


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("name", UNFIT)
def test_what_no_file_can_hold_is_refused_before_it_is_written(name: str, suffix: str, tmp_path: Path) -> None:
    value, told = UNFIT[name]
    c = small_checkpoint()
    c.extras = {"info": {"x": value}}
    with pytest.raises(CheckpointError) as e:
        save(c, tmp_path / f"c{suffix}")
    one_line(e.value, f"c{suffix}", "info/x", told)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", [None, ["a"], "abc", 1])
def test_info_is_a_map(value: Any, tmp_path: Path) -> None:
    c = small_checkpoint()
    with pytest.raises(CheckpointError, match="a map of names is needed"):
        c.info = value
    c.extras["info"] = value
    with pytest.raises(CheckpointError, match="a map of names is needed"):
        save(c, tmp_path / "c.json")


@pytest.mark.parametrize("value", ['"abc"', "[1]", "3", "null"])
def test_a_file_whose_info_is_no_map_is_refused(value: str, tmp_path: Path) -> None:
    c = small_checkpoint()
    c.info = {}
    save(c, tmp_path / "c.json")
    text = (tmp_path / "c.json").read_text()
    (tmp_path / "c.json").write_text(text.replace('"info": {}', f'"info": {value}'))
    with pytest.raises(CheckpointError) as e:
        load(tmp_path / "c.json")
    one_line(e.value, "c.json", "$.gometal_mlx.info", "a map of names is needed")


def test_info_is_set_as_a_whole() -> None:
    c = small_checkpoint()
    with pytest.raises(TypeError):
        c.info["x"] = 1  # type: ignore[index]
    assert c.info == {}
    assert c.extras == {}


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_numpys_numbers_go_through_every_format(suffix: str, tmp_path: Path) -> None:
    c = small_checkpoint()
    c.info = {"a": np.float32(0.1), "b": np.int64(3), "c": (1, [True, None])}
    save(c, tmp_path / f"c{suffix}")
    assert load(tmp_path / f"c{suffix}").info == {"a": 0.1, "b": 3, "c": [1, [True, None]]}


def trainer(**info: Any) -> ModelTrainer:
    t = ModelTrainer(small_checkpoint().model_spec, TrainerConfig(seed=0, batch_size=4))
    t.info = info
    return t


def test_a_trainers_info_is_checked_when_it_is_saved_and_training_goes_on(tmp_path: Path) -> None:
    t = trainer(ids=np.arange(3), lock=threading.Lock())
    x, y = np.zeros((8, 3), np.float32), np.zeros(8, np.int64)
    for format in ("SAFETENSORS", "JSON"):
        config = CheckpointConfig(tmp_path, format=format, save_frequency=1, on_error="warn", async_save=True)
        with CheckpointManager(t, config) as m, pytest.warns(UserWarning, match="info/ids: an array of int64"):
            t.fit((x, y), 1, checkpoints=m)
    assert t.step == 4


def test_a_checkpoint_without_info_takes_none_away(tmp_path: Path) -> None:
    t = trainer(class_names=["a", "b"])
    t.restore(small_checkpoint())
    assert t.info == {"class_names": ["a", "b"]}
    c = small_checkpoint()
    c.info = {"class_names": ["c"]}
    t.restore(c)
    t.info["class_names"].append("d")
    assert c.info == {"class_names": ["c"]}


def test_metadata_that_another_tool_has_changed_counts(tmp_path: Path) -> None:
    path = tmp_path / "c.onnx"
    c = small_checkpoint()
    c.info = {"class_names": ["a", "b"], "scale": 0.5}
    save(c, path)
    proto = onnx.load(path)
    next(p for p in proto.metadata_props if p.key == "class_names").value = json.dumps(["c", "d"])
    onnx.save(proto, path)
    read = load(path)
    assert read.info["class_names"] == ["c", "d"]
    assert any("changed by another tool" in n for n in read.notes)


def test_metadata_of_others_as_json_values(tmp_path: Path) -> None:
    path = tmp_path / "c.onnx"
    save(small_checkpoint(), path)
    proto = onnx.load(path)
    del proto.metadata_props[:]
    values = {"mean": [0.5, 0.25], "bgr": True, "size": 224, "deep": {"a": [1, {"b": None}]}}
    texts = {
        "list": '[{"float32": [1]}]',
        "p": json.dumps(values),
        "bad": '{"x": NaN}',
        "deep": "[" * 5000 + "]" * 5000,
    }
    onnx.helper.set_model_props(proto, {**texts, "float32": "[1]"})
    onnx.save(proto, path)
    assert load(path).info == {**texts, "p": values}

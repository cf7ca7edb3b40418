"""Files appear whole or not at all."""

import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from checkpoint_samples import files, one_line

from gometal_mlx.checkpoints import atomic
from gometal_mlx.checkpoints.atomic import replacing
from gometal_mlx.errors import CheckpointError


def write(path: Path, content: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(content)


def test_a_new_file_and_then_another_in_its_place(tmp_path: Path) -> None:
    for content in ("first", "second"):
        write(tmp_path / "f", content)
        assert files(tmp_path) == {"f": content.encode()}


def test_the_old_file_is_there_until_the_end(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("old")
    with replacing(tmp_path / "f") as temporary:
        temporary.write_text("new")
        assert temporary.parent == tmp_path  # a rename across file systems would be no rename
        assert (tmp_path / "f").read_text() == "old"
    assert files(tmp_path) == {"f": b"new"}


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit, MemoryError])
@pytest.mark.parametrize("old", [b"old", None])
def test_after_any_error_the_folder_is_as_it_was(error: type[BaseException], old: bytes | None, tmp_path: Path) -> None:
    if old is not None:
        (tmp_path / "f").write_bytes(old)
    before = files(tmp_path)

    def fail() -> None:
        with replacing(tmp_path / "f") as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(error):
        fail()
    assert files(tmp_path) == before


def test_an_error_of_the_system_becomes_one_line(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("old")
    with pytest.raises(CheckpointError) as e, replacing(tmp_path / "f"):
        raise OSError(28, "No space left on device")
    one_line(e.value, str(tmp_path / "f"), "No space left on device", "as it was")
    assert files(tmp_path) == {"f": b"old"}


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o644, 0o444])
def test_the_mode_is_kept(mode: int, tmp_path: Path) -> None:
    (tmp_path / "f").write_text("old")
    (tmp_path / "f").chmod(mode)
    write(tmp_path / "f", "new")
    assert (tmp_path / "f").stat().st_mode & 0o777 == mode


def test_a_new_file_gets_the_usual_mode(tmp_path: Path) -> None:
    write(tmp_path / "f", "new")
    (tmp_path / "usual").write_text("")
    assert (tmp_path / "f").stat().st_mode == (tmp_path / "usual").stat().st_mode


@pytest.mark.parametrize("relative", [True, False])
def test_a_link_stays_a_link_and_its_target_is_replaced(relative: bool, tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    target = tmp_path / "store" / "real"
    target.write_text("old")
    link = tmp_path / "link"
    link.symlink_to("store/real" if relative else target)
    write(link, "new")
    assert link.is_symlink()
    assert target.read_text() == "new"
    assert files(tmp_path / "store") == {"real": b"new"}


def test_a_link_to_nothing_makes_its_target(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "real")
    write(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "new"


@pytest.mark.parametrize("folder", ["missing", "missing/deeper", "file"])
def test_a_folder_that_is_none_is_told(folder: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(CheckpointError) as e:
        write(tmp_path / folder / "f", "new")
    one_line(e.value, str(tmp_path / folder / "f"), "the folder must exist")
    assert files(tmp_path) == {"file": b"x"}


def test_a_folder_in_place_of_the_file_is_told_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "inside").write_text("x")
    with pytest.raises(CheckpointError) as e:
        write(tmp_path / "f", "new")
    one_line(e.value, str(tmp_path / "f"))
    assert [p.name for p in tmp_path.iterdir()] == ["f"]
    assert files(tmp_path / "f") == {"inside": b"x"}


def test_names_as_long_as_the_file_system_allows(tmp_path: Path) -> None:
    name = "n" * 250 + ".json"
    write(tmp_path / name, "new")
    assert files(tmp_path) == {name: b"new"}


def test_names_of_many_bytes_a_character(tmp_path: Path) -> None:
    name = "é" * 120 + ".json"
    write(tmp_path / name, "new")
    wide = "模" * 80 + ".json"
    write(tmp_path / wide, "new")
    assert set(files(tmp_path)) == {name, wide}


def test_names_relative_to_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(Path("f"), "new")
    assert files(tmp_path) == {"f": b"new"}


def test_two_writers_at_once_use_two_temporary_files(tmp_path: Path) -> None:
    with replacing(tmp_path / "f") as a, replacing(tmp_path / "f") as b:
        assert a != b
        a.write_text("a")
        b.write_text("b")
    assert files(tmp_path) == {"f": b"a"}  # the one that ends last


def test_the_content_is_flushed_to_disk_before_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    monkeypatch.setattr(sys, "platform", "linux")
    flush, rename = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (done.append("flush"), flush(handle))[1])
    monkeypatch.setattr(Path, "replace", lambda self, to: (done.append("rename"), rename(self, to))[1])
    write(tmp_path / "f", "new")
    assert done[:2] == ["flush", "rename"]


@pytest.mark.parametrize("refuses", [False, True])
def test_a_mac_is_told_to_flush_its_drive(refuses: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its fsync hands the data to the drive, which may write it later and in another order."""
    done: list[str] = []

    def full(handle: int, command: int) -> None:
        assert command == 51
        done.append("full")
        if refuses:
            raise OSError("not supported")

    flush = os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: (done.append("fsync"), flush(handle))[1])
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(atomic, "fcntl", SimpleNamespace(fcntl=full, F_FULLFSYNC=51))
    write(tmp_path / "f", "new")
    assert done == (["full", "fsync"] if refuses else ["full"]) * 2  # the file's, the folder's
    assert files(tmp_path) == {"f": b"new"}

"""Outputs: everything that can be refused is, before any work, and nothing is left behind."""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

import pytest

from ld3_dist.core.errors import InputError
from ld3_dist.store import outputs
from ld3_dist.store.outputs import check_distinct, check_output, rescue, write_output
from ld3_dist.store.storage import LocalStorage


def test_what_can_be_written_is_accepted_and_nothing_is_left(tmp_path: Path) -> None:
    assert check_output(tmp_path / "a.json") == tmp_path / "a.json"
    assert check_output(tmp_path / "new" / "deep", "folder") == tmp_path / "new" / "deep"
    (tmp_path / "empty").mkdir()
    check_output(tmp_path / "empty", "folder")
    assert [path.name for path in tmp_path.rglob("*")] == ["empty"]


def refused(path: object, say: str, *arguments: object, **options: object) -> None:
    with pytest.raises(InputError, match=say):
        check_output(path, *arguments, **options)  # type: ignore[arg-type]


def test_what_cannot_is_refused(tmp_path: Path) -> None:
    file, folder = tmp_path / "a.json", tmp_path / "folder"
    file.write_text("mine")
    (folder / "inner").mkdir(parents=True)
    os.mkfifo(tmp_path / "pipe")
    refused("", "--out is empty; name a file")
    refused(" ", "--picture is empty", option="--picture")
    refused("a\0b", "control character")
    refused(folder, "is a folder; name a file")
    refused(folder, "is a folder; name a file", force=True)
    refused(".", "is a folder; name a file")
    refused(f"{tmp_path}/new/", "ends like a folder's name")
    refused(file, "is a file, and a folder is to be written", "folder")
    refused(file, "exists already; name another file, or add --force")
    refused(folder, "exists already; name another folder, or add --force", "folder")
    refused(tmp_path / "pipe", "a device, a pipe or a socket", force=True)
    refused("/dev/null", "a device, a pipe or a socket", force=True)
    refused(tmp_path / "no" / "a.json", "its folder does not exist; create it")
    refused(file / "a.json", "a part of its path is a file")
    refused(tmp_path / ("n" * 300), "File name too long")
    refused("/".join(["n" * 100] * 60), "File name too long")
    assert check_output(file, force=True) == file
    assert check_output(folder, "folder", force=True) == folder
    assert file.read_text() == "mine"


def test_a_name_that_leaves_no_room_for_the_temporary_one_is_refused(tmp_path: Path) -> None:
    refused(tmp_path / ("n" * 250), "cannot be written .File name too long")
    assert not list(tmp_path.iterdir())


def test_a_read_only_place_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_only(self: LocalStorage, name: str, data: bytes) -> None:
        raise PermissionError(13, "Permission denied", name)

    monkeypatch.setattr(LocalStorage, "write_bytes", read_only)
    refused(tmp_path / "a.json", "cannot be written .Permission denied.; name a file that you may")
    refused(tmp_path / "new", "Permission denied", "folder")


def test_no_input_is_overwritten_even_if_forced(tmp_path: Path) -> None:
    file, link = tmp_path / "my.json", tmp_path / "link.json"
    file.write_text("mine")
    link.symlink_to(file)
    for path in (file, link, tmp_path / "." / "my.json", os.path.relpath(file)):
        for force in (False, True):
            refused(path, "is the file that --start reads", force=force, inputs={"--start": file})
    absent = tmp_path / "absent.json"
    refused(absent, "is the file that --start reads", inputs={"--start": absent})
    check_output(tmp_path / "other.json", inputs={"--start": file})


def test_two_outputs_are_two_files(tmp_path: Path) -> None:
    out = tmp_path / "x.png"
    with pytest.raises(InputError, match="the schedule and its picture would be the same file"):
        check_distinct({"the schedule": out, "its picture": out.with_suffix(".png")})
    check_distinct({"the schedule": tmp_path / "x.json", "its picture": out})


def test_a_file_is_written_whole_or_the_result_is_kept_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "a.json"
    assert write_output(file, "one") == file
    assert write_output(file, b"two") == file
    assert file.read_bytes() == b"two"
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]

    def full(self: LocalStorage, file: BinaryIO, data: bytes) -> None:
        file.write(data[:1])
        raise OSError(28, "No space left on device")

    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(outputs.tempfile, "gettempdir", lambda: str(tmp_path / "tmp"))
    monkeypatch.setattr(LocalStorage, "_put", full)
    with pytest.raises(
        InputError, match=r"cannot be written \(No space left on device\)"
    ) as caught:
        write_output(file, "the result")
    assert file.read_bytes() == b"two"
    (kept,) = (tmp_path / "tmp").iterdir()
    assert kept.read_text() == "the result"
    assert kept.name.endswith("-a.json")
    assert str(kept) in str(caught.value)


def test_rescue_falls_back_to_the_home_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outputs.tempfile, "gettempdir", lambda: str(tmp_path / "absent"))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert rescue(b"x", "n" * 300 + ".json").parent == tmp_path
    monkeypatch.setenv("HOME", str(tmp_path / "absent"))
    with pytest.raises(InputError, match="cannot be kept anywhere"):
        rescue("x", "a.json")

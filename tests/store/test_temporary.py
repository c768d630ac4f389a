"""The temporary folder that Ray's sockets fit into."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from ld3_dist.store.temporary import (
    LONGEST,
    fits_sockets,
    is_mine,
    short_folder,
    temporary_folder,
    users_folder,
)


def test_the_longest_path_is_that_of_the_operating_system() -> None:
    with socket.socket(socket.AF_UNIX) as made:
        with pytest.raises(FileNotFoundError):
            made.connect("/" + "x" * (LONGEST - 1))
        with pytest.raises(OSError, match="too long"):
            made.connect("/" + "x" * LONGEST)


def test_the_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", "/a")
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    assert temporary_folder() == Path("/a")
    monkeypatch.setenv("RAY_TMPDIR", "/b")
    assert temporary_folder() == Path("/b")


def test_sockets_fit_into_short_folders_only() -> None:
    assert fits_sockets(Path("/tmp"))
    longest = next(n for n in range(1, 200) if not fits_sockets(Path("/" + "x" * n)))
    real = "/" + "x" * longest + "/ray/session_2026-11-26_15-19-36_007081_4194304/sockets"
    assert len(real + "/plasma_store") == LONGEST + 1
    assert not fits_sockets(Path("/" + "é" * (longest // 2 + 1)))  # bytes count, not letters


def test_the_first_place_that_serves_is_taken_and_not_made(tmp_path: Path) -> None:
    long, file, good = tmp_path / ("x" * 90), Path("/dev/null"), Path("/tmp")
    folder = short_folder((long, file, tmp_path / "none"))
    assert folder is None
    there = users_folder(good).exists()
    assert short_folder((long, file, good)) == users_folder(good)
    assert users_folder(good).exists() == there


def test_a_folder_of_another_user_is_not_mine(tmp_path: Path) -> None:
    assert is_mine(tmp_path)
    if os.getuid():
        assert not is_mine(Path("/"))

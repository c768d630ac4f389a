"""A Ray of this machine whatever TMPDIR is, and without /dev/shm."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ld3_dist.cluster.ray import local_folders
from ld3_dist.core.errors import InputError

LONG = "a-folder-of-a-job-on-a-batch-system-" + 3 * "0123456789"


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    folder = tmp_path / LONG
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    return folder


def test_a_short_folder_is_left_to_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", "/tmp")
    assert "_temp_dir" not in local_folders.folder_options()


def test_a_long_folder_is_replaced_and_that_is_said(
    temporary: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "ld3_dist"):
        folder = Path(local_folders.folder_options()["_temp_dir"])
    socket = folder / "ray" / "session_2026-11-26_15-19-36_007081_4194304/sockets/plasma_store"
    assert len(os.fsencode(socket)) <= 107  # sun_path, unix(7)
    assert folder.stat().st_uid == os.getuid()
    (record,) = [r for r in caplog.records if "too long" in r.getMessage()]
    assert str(temporary) in record.getMessage()
    assert str(folder) in record.getMessage()


def test_no_short_folder_is_bad_input(temporary: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="set RAY_TMPDIR to a short folder") as caught:
        local_folders._short_folder(str(temporary), (tmp_path / "file", temporary))
    assert str(temporary) in str(caught.value)


SMALL_RAY = """
import logging, sys
logging.basicConfig(level=logging.WARNING)
from pathlib import Path
from ld3_dist.cluster.ray import connect, local_folders
local_folders.SHARED = Path(sys.argv[1])
connect.connect(None)
import ray
print("came up with", ray.get(ray.remote(num_cpus=0)(lambda: 42).remote()))
ray.shutdown()
"""


@pytest.mark.slow  # a Ray of its own
def test_ray_starts_with_a_long_folder_and_without_shared_memory(temporary: Path) -> None:
    """Ray itself; the machine is told to have no shared memory."""
    done = subprocess.run(
        [sys.executable, "-c", SMALL_RAY, str(temporary / "no-shm")],
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
    )
    assert "came up with 42" in done.stdout, done.stderr[-3000:]
    assert "is too long for Ray" in done.stderr
    assert "has no" in done.stderr

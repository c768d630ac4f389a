"""Killed workers, workers out of memory, a full disk: rows, a message, and the same command goes
on.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from finished_sweeps import Contest, Finished, command_line, copy_pairs, run
from tiny_sweep import lasting

from ld3_dist import load_results
from ld3_dist.store.opening import open_storage
from ld3_dist.store.tables import read_table


def left_behind(out: Path) -> list[Path]:
    return [
        file
        for file in out.rglob("*")
        if file.name.startswith(".tmp") or file.name in (".ray", "lock.json")
    ]


def test_workers_that_die_or_run_out_of_memory(contest: Contest) -> None:
    """Each costs an attempt, each is in the table of failures, and the sweep ends whole."""
    assert contest.faults == {f"{s}-{w}" for s in ("trial", "actor") for w in ("killed", "memory")}
    failures = read_table(open_storage(contest.out), "failures")
    assert failures["pid"].gt(0).all()
    assert failures["node"].notna().all()
    assert failures["traceback"].str.len().gt(40).all()
    for stage in ("teach", "search"):
        reasons = failures[failures["stage"] == stage]["reason"].tolist()
        assert sum("the worker died" in reason for reason in reasons) == 1, reasons
        assert (
            sum("MemoryError: Unable to allocate 3.00 GiB" in reason for reason in reasons) == 1
        ), reasons
    rows = load_results(contest.out).query("kind == 'learned'")
    assert set(rows["status"]) == {"ok"}
    assert rows["attempts"].max() >= 2
    assert (contest.out / "report/index.html").exists()


@pytest.mark.parametrize(
    ("fault", "code", "kept"),
    [
        # whatever lies in a folder: rows, records of failures, logs
        pytest.param("full write.half@/", 1, "pairs", marks=pytest.mark.slow),
        pytest.param("full write.half@shard", 1, "failures", marks=pytest.mark.slow),
        ("full write.half", 2, ""),  # nothing fits
    ],
)
def test_a_full_disk(
    tmp_path: Path, finished: Finished, local_ray: None, fault: str, code: int, kept: str
) -> None:
    """A message, no traceback, nothing half written; with room again the same command gives the
    same table.

    Where not even a failure can be recorded the sweep stops at once, instead of spending every
    trial."""
    out = tmp_path / "out"
    if kept == "pairs":  # the disk is full when the search begins
        copy_pairs(finished.out, out)
    done = command_line(finished.file, out, fault)
    assert done.returncode == code, done.stdout + done.stderr[-2000:]
    assert "No space left on device" in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert ("Go on with:" in done.stdout) == (code == 1)
    assert not left_behind(out)
    assert (out / kept).exists()
    assert not list(out.glob("rows/*"))
    if kept == "pairs":
        assert "Stopped: storage: " in done.stdout
        assert run(finished.file, out)[0].failures == 0
        pd.testing.assert_frame_equal(lasting(out), lasting(finished.out), check_exact=True)


def test_a_written_file_is_whole_at_the_limit_of_the_system(tmp_path: Path) -> None:
    """The kernel's own refusal (a limit on file size), in the middle of a write."""
    code = """
import resource, signal, sys
from ld3_dist.store.opening import open_storage
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
storage = open_storage(sys.argv[1])
storage.write_bytes("rows/a", b"old")
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    storage.write_bytes("rows/a", b"x" * 5000)
except OSError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert "File too large" in done.stdout
    assert str(tmp_path / "rows" / "a") in done.stdout
    assert [file.name for file in (tmp_path / "rows").iterdir()] == ["a"]
    assert (tmp_path / "rows" / "a").read_bytes() == b"old"


def test_a_second_driver_is_refused_by_host_and_pid(contest: Contest) -> None:
    assert contest.second.returncode == 2
    assert f"in use by process {contest.first} on " in contest.second.stderr
    assert "Traceback" not in contest.second.stderr


def test_the_lock_of_a_killed_driver_stops_nobody(contest: Contest) -> None:
    assert contest.lock_left
    assert contest.third.returncode == 0, contest.third.stdout + contest.third.stderr[-2000:]
    assert "Traceback" not in contest.third.stdout + contest.third.stderr  # Ray's own
    assert not left_behind(contest.out)

"""Killed at every step of every kind of write, a sweep goes on to the reference table: in a folder
and on S3.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from faulty_storage import OBJECT_POINTS, WRITE_POINTS
from object_store import endpoint  # noqa: F401
from tiny_sweep import lasting

from ld3_dist.store.opening import open_storage

EVERY_STEP = ("shard", "manifest", "rows/", "evaluations/")
HALF = tuple(
    f"write.half@{file}" for file in ("experiment", "rows/baseline", "schedules/", "parts/")
)
MANIFEST = ("manifest.before", "manifest.after")


def killed_and_resumed(place: str, points: list[str]) -> dict[str, list[int]]:
    here = Path(__file__).parents[1] / "support"
    path = os.pathsep.join([str(here), str(here.parents[1]), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, str(here / "forked_sweeps.py"), place, *points],
        capture_output=True,
        text=True,
        timeout=1200,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def check(place: str, points: list[str]) -> None:
    ended = killed_and_resumed(place, points)
    expected = lasting(open_storage(place % "reference"))
    assert len(expected) == 3
    assert expected["eval_loss"].notna().sum() >= 2
    for i, point in enumerate(points):
        assert ended[point] == [-signal.SIGKILL, 0], point
        pd.testing.assert_frame_equal(
            lasting(open_storage(place % i)), expected, check_exact=True, obj=point
        )


@pytest.mark.slow  # quicker: a kill at any point, in tests/store
def test_killed_at_every_step_of_every_write_in_a_folder(tmp_path: Path) -> None:
    points = [f"{point}@{file}" for file in EVERY_STEP for point in WRITE_POINTS] + [
        *HALF,
        *MANIFEST,
    ]
    check(f"{tmp_path}/%s", points)
    assert not [
        path
        for path in tmp_path.rglob("*")
        if path.name.startswith(".tmp") or path.name == "lock.json"
    ]


@pytest.mark.slow
def test_killed_at_every_step_of_every_write_on_s3(endpoint: str) -> None:  # noqa: F811
    points = [f"{point}@{file}" for file in EVERY_STEP for point in OBJECT_POINTS] + [
        *HALF,
        *MANIFEST,
    ]
    check(f"s3://bucket/faults/%s?endpoint_override={endpoint}", points)

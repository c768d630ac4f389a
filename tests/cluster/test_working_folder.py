"""Relative paths of an experiment, on a Ray that was started in another folder."""

from __future__ import annotations

from pathlib import Path

import pytest
from finished_sweeps import run
from schedules import coupled_schedule
from tiny_sweep import changed, write

from ld3_dist import load_results
from ld3_dist.core.noise import EDM


def test_workers_find_a_relative_path_where_the_command_does(
    local_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trial starts from the file, and an actor scores it as a baseline."""
    monkeypatch.chdir(tmp_path)
    schedule = coupled_schedule(EDM(), 3, grid="quadratic", solver="ddim")
    schedule.save("theirs.json")
    data = changed(
        solvers=["ddim"],
        search={"members": {"seeds": 1, "starts": ["theirs.json"]}},
        baselines=["uniform", "theirs.json"],
    )
    run(write(tmp_path, data), tmp_path / "out")
    frame = load_results(tmp_path / "out")
    assert set(frame["status"]) == {"ok"}
    assert (frame["kind"] == "learned").sum() == 4  # two values of gamma, two rounds
    assert set(frame.loc[frame["kind"] == "learned", "start"]) == {"theirs.json"}
    theirs = frame[(frame["kind"] == "baseline") & (frame["start"] == "theirs.json")].iloc[0]
    assert theirs["knots"].tolist() == pytest.approx(list(schedule.knots))

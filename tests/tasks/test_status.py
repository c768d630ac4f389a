"""The state of a sweep from its files: counts, rate, gains, failures, and who is at work."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from plain_sweep import sweep
from tiny_sweep import changed
from typer.testing import CliRunner

from ld3_dist import load_results
from ld3_dist.cli.app import app
from ld3_dist.cli.console import duration
from ld3_dist.cli.status import say_unfinished
from ld3_dist.cluster.events import Event
from ld3_dist.cluster.failures import attempts_so_far, record_failure
from ld3_dist.cluster.pace import Pace
from ld3_dist.core.errors import InputError
from ld3_dist.store import lock as locks
from ld3_dist.store.opening import open_storage
from ld3_dist.store.part import Part
from ld3_dist.store.storage import Storage
from ld3_dist.store.tables import read_records, write_table
from ld3_dist.tasks import status as module
from ld3_dist.tasks.status import status_of


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("status") / "out"
    sweep(open_storage(place), changed(evaluate={"samples": 20}))
    return place


def copy(place: Path, to: Path) -> Storage:
    source, storage = open_storage(place), open_storage(to)
    for name in source.list(recursive=True):
        storage.write_bytes(name, source.read_bytes(name))
    return storage


def test_a_finished_sweep(finished: Path) -> None:
    """Two cells, two points, two rounds: 8 trials; gains are those of the table."""
    found = status_of(open_storage(finished))
    assert (found.total, found.done, found.failed, found.left, found.running) == (8, 8, 0, 0, 0)
    assert found.finished
    assert found.seconds_left is None
    frame = load_results(finished)
    learned = frame[frame["kind"] == "learned"]
    assert found.statuses == learned["status"].value_counts().to_dict()
    assert {gain.cell for gain in found.gains} == set(learned["cell"])
    for gain in found.gains:
        (row,) = learned[learned["key"] == gain.key].to_dict("records")
        assert gain.fresh
        assert gain.gain == row["eval_gain"]
        rivals = learned[(learned["cell"] == gain.cell) & learned["eval_gain"].notna()]
        assert row["valid_loss"] == rivals["valid_loss"].min()
        if gain.low is not None and gain.high is not None:
            assert gain.low <= row["eval_gain"] <= gain.high
    assert found.scored == frame["eval_loss"].notna().sum()


def test_what_is_missing_failed_or_did_not_come_out(finished: Path, tmp_path: Path) -> None:
    storage = copy(finished, tmp_path)
    names = [name for name in storage.list("rows") if "baseline" not in name]
    for name in names[:2]:
        storage.remove(name)
    stem = names[2].removeprefix("rows/").removesuffix(".parquet")
    rows = read_records(storage, "rows", stem) or []
    write_table(storage, "rows", stem, [row | {"status": "failed"} for row in rows])
    stem = names[3].removeprefix("rows/").removesuffix(".parquet")
    rows = read_records(storage, "rows", stem) or []
    rows[0] |= {"status": "collapsed"}
    write_table(storage, "rows", stem, rows)
    for i in range(7):
        record_failure(storage, "search", "abc-d", i + 1, f"reason {i}")
    found = status_of(storage)
    assert (found.total, found.done, found.failed, found.left) == (8, 5, 1, 2)
    assert found.statuses["failed"] == 2
    assert found.statuses["collapsed"] == 1
    assert found.failures == 7
    assert [one["reason"] for one in found.last_failures] == [
        f"reason {i}" for i in (6, 5, 4, 3, 2)
    ]
    assert attempts_so_far(storage) == {"abc-d": 7}
    assert not found.finished


@pytest.mark.parametrize("baselines", [False, True])
def test_a_sweep_that_has_learned_nothing_yet(
    finished: Path, tmp_path: Path, baselines: bool
) -> None:
    """A folder while pairs are made, and while the grids are scored."""
    storage = copy(finished, tmp_path)
    for name in storage.list("rows", recursive=True):
        if not (baselines and "baseline" in name):
            storage.remove(name)
    found = status_of(storage)
    assert (found.total, found.done, found.failed, found.left) == (8, 0, 0, 8)
    assert (found.statuses, found.gains, found.rate) == ({}, [], None)
    for command in ("status", "report"):
        shown = CliRunner().invoke(app, [command, str(tmp_path)])
        assert shown.exit_code == 0
        assert "0 of 8 trials done" in shown.output


def test_signs_of_failure_are_named(finished: Path, tmp_path: Path) -> None:
    storage = copy(finished, tmp_path)
    before = status_of(storage).signs.get("unstable", 0)
    stem = next(name for name in storage.list("rows") if "baseline" not in name)
    stem = stem.removeprefix("rows/").removesuffix(".parquet")
    rows = read_records(storage, "rows", stem) or []
    rows[0] |= {"valid_curve": [1.0, 0.1, 0.5]}
    write_table(storage, "rows", stem, rows)
    assert status_of(storage).signs["unstable"] == before + 1
    shown = CliRunner().invoke(app, ["status", str(tmp_path)])
    assert f"{before + 1} unstable" in shown.output
    assert status_of(storage).as_json()["signs"]["unstable"] == before + 1


def test_drivers_and_what_they_do(finished: Path, tmp_path: Path) -> None:
    storage = copy(finished, tmp_path)
    state = {"search": {"done": 3, "total": 8, "running": 2, "failed": 0}}
    with locks.acquire(storage, part=Part(1, 2)) as lock, locks.acquire(storage, part=Part(2, 2)):
        lock.note = {"stages": state}
        lock._beat_once()
        found = status_of(storage)
        assert [driver.shard for driver in found.drivers] == ["1/2", "2/2"]
        assert found.drivers[0].stages == state
        assert found.running == 2
        assert not found.finished
        shown = CliRunner().invoke(app, ["status", str(tmp_path)])
        assert shown.exit_code == 0, shown.output
        assert "shard 1/2: search 3/8" in shown.output
        assert "shard 2/2: starting" in shown.output


def test_the_time_left_is_the_slowest_drivers_guess(finished: Path, tmp_path: Path) -> None:
    """A guess by the drivers' own count of work; a driver without one does not hide another's."""
    storage = copy(finished, tmp_path)
    storage.remove(next(name for name in storage.list("rows") if "baseline" not in name))
    with locks.acquire(storage, part=Part(1, 2)) as lock, locks.acquire(storage, part=Part(2, 2)):
        assert status_of(storage).seconds_left != 70.0
        for guess in (None, 70.0):
            lock.note = {"stages": {"search": {"done": 3, "total": 8, "left": guess}}}
            lock._beat_once()
            assert (status_of(storage).seconds_left == 70.0) == (guess == 70.0)
        shown = CliRunner().invoke(app, ["status", str(tmp_path)])
        assert "about 1 min 10 s left" in shown.output
    assert status_of(storage).seconds_left is None


def test_the_command_and_its_json(finished: Path) -> None:
    shown = CliRunner().invoke(app, ["status", str(finished)])
    assert shown.exit_code == 0
    for part in ("8 of 8 trials done", "0 left", "no driver is at work", "it is finished", "fresh"):
        assert part in shown.output, shown.output
    printed = CliRunner().invoke(app, ["status", str(finished), "--json"])
    body = json.loads(printed.output)
    assert body["done"] == 8
    assert body["finished"] is True
    assert body == json.loads(json.dumps(status_of(open_storage(finished)).as_json()))
    watched = CliRunner().invoke(app, ["status", str(finished), "--watch"])  # ends: it is finished
    assert watched.exit_code == 0


def test_a_report_of_an_unfinished_sweep_says_so(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    say_unfinished(str(finished))
    assert capsys.readouterr().out == ""
    storage = copy(finished, tmp_path)
    storage.remove(next(name for name in storage.list("rows") if "baseline" not in name))
    say_unfinished(str(tmp_path))
    said = " ".join(capsys.readouterr().out.split())
    assert "Unfinished: 7 of 8 trials done, and no driver is at work." in said


def test_a_folder_without_a_sweep(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        status_of(open_storage(tmp_path / "none"))
    with pytest.raises(InputError, match="holds no results"):
        status_of(open_storage(tmp_path))


def test_a_folder_whose_experiment_cannot_be_read(finished: Path, tmp_path: Path) -> None:
    storage = copy(finished, tmp_path)
    for name in [*storage.list("experiments"), "experiment.json"]:
        storage.remove(name)
    found = status_of(storage)
    assert found.total is found.left is None
    assert found.done == 8
    shown = CliRunner().invoke(app, ["status", str(tmp_path)])
    assert "an unknown number left" in shown.output


@pytest.mark.parametrize("alive", [True, False])
@pytest.mark.parametrize("count", [2, 5, 400])
def test_the_rate_of_a_steady_run(count: int, alive: bool) -> None:
    """A trial every ten seconds is 360 an hour, however long ago the run ended."""
    now = time.time()
    end = now if alive else now - 1e6
    ends = end - 10.0 * np.arange(count)[::-1]
    assert module._rate(ends, now, alive) == pytest.approx(360.0, rel=0.02)


def test_the_rate_forgets_earlier_runs() -> None:
    now = time.time()
    yesterday = now - 86400 + np.arange(1000.0)
    today = now - 10.0 * np.arange(20)[::-1]
    ends = np.concatenate([yesterday, today])
    assert module._rate(ends, now, alive=True) == pytest.approx(360.0, rel=0.02)
    assert module._rate(yesterday, now, alive=True) is None  # nothing has ended lately
    assert module._rate(ends[:1], now, alive=True) is None


def test_the_time_left_of_a_running_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tasks of 30 s, two at once, with what is done inside of them; those found do not count."""
    clock = [0.0]
    monkeypatch.setattr("ld3_dist.cluster.pace.time.monotonic", lambda: clock[0])
    pace = Pace()
    assert pace.left(Event("search", 50, 100, 2)) is None
    for second in range(1, 600):
        clock[0] = float(second)
        done, inside = 50 + 2 * (second // 30), 2 * (second % 30) / 30
        left = pace.left(Event("search", done, 100, 2, inside=inside))
        if second >= 10:
            assert left == pytest.approx(50 * 15 - second, rel=1e-6)
    assert pace.left(Event("teach", 1, 3)) is None


def test_the_time_left_counts_work_where_tasks_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twenty tasks of one evaluation come first, a second each, then twenty of ten."""
    clock = [0.0]
    monkeypatch.setattr("ld3_dist.cluster.pace.time.monotonic", lambda: clock[0])
    pace = Pace()
    for second in range(221):
        clock[0] = float(second)
        done = min(second, 20) + max(second - 20, 0) // 10
        left = pace.left(Event("search", done, 40, 1, work=second, work_left=220 - second))
        if second >= 10:
            assert left == pytest.approx(220 - second)


def test_what_is_found_late_is_no_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A resumed stage comes upon the rows of earlier runs while it works, ten in a second."""
    clock = [0.0]
    monkeypatch.setattr("ld3_dist.cluster.pace.time.monotonic", lambda: clock[0])
    pace = Pace()
    for second in range(50):
        clock[0] = float(second)
        found = min(10 * second, 200)
        event = Event("search", 0, 1, work=second, work_left=300 - second - found)
        if second >= 10:
            assert pace.left(event) == pytest.approx(300 - second - found)
        else:
            assert pace.left(event) is None


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0 s"), (59.6, "1 min"), (250, "4 min 10 s"), (7200, "2 h"), (183_600, "2 d 3 h"),
     (86_400 + 5, "1 d"), (3661, "1 h 1 min")],
)  # fmt: skip
def test_lengths_of_time(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_no_number_is_shown_that_is_none(finished: Path, tmp_path: Path) -> None:
    """A cell without hand-made grids has no gain, and no line that claims one."""
    storage = copy(finished, tmp_path)
    for name in storage.list("rows"):
        if "baseline" in name:
            storage.remove(name)
    found: Any = status_of(storage)
    assert all(gain.gain is None or math.isfinite(gain.gain) for gain in found.gains)

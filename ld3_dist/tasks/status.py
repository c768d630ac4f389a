"""The state of a sweep, from the files of its output folder alone.

Any machine that sees the folder can ask: no model is opened, no cluster is needed, nothing is
written. Counts come from the tables, the work that is still to come from the experiment that the
folder keeps, and the stage at hand from the lock, in which a driver writes with every heartbeat
what it is doing.

    done, failed, left    trials: every member has a row; one of them failed; neither
    running               trials at work, as the living drivers say
    rate                  trials per hour over the last WINDOW seconds of the present or last run
    seconds_left          as long as the slowest of the living drivers guesses that its trials take;
                          left / rate where none of them can tell yet
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any

import numpy as np

from ..core.errors import InputError
from ..experiment import parse_experiment
from ..experiment.plan import Plan
from ..store.lineage import current
from ..store.lock import Holder, holders
from ..store.results import load_results, own_first
from ..store.storage import Storage
from ..store.symptoms import counted_signs, symptoms
from ..store.tables import read_records

WINDOW = 900.0
"""Seconds over which the rate is taken."""

LAST_FAILURES = 5
"""Failures that are told in words."""


@dataclass(frozen=True)
class Driver:
    """A living driver: where it runs, its shard ("" for a whole sweep), and its stages.

    silence: seconds since its last heartbeat.
    stages: by their names, the counts done, total, running and failed.
    """

    host: str
    pid: int
    shard: str
    silence: float
    stages: dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Gain:
    """The best schedule of a cell: its key and its gain over the best hand-made grid.

    gain: on fresh samples where these were scored (`fresh`), else on the held-out pairs that
        selected it. low, high: its 95 % interval, where there is one.
    """

    cell: str
    key: str
    gain: float | None
    low: float | None
    high: float | None
    fresh: bool


@dataclass(frozen=True)
class Status:
    """See the top of the file. `total` and `left` are None where the experiment cannot be read."""

    name: str
    folder: str
    total: int | None
    done: int
    failed: int
    running: int
    left: int | None
    rate: float | None
    seconds_left: float | None
    scored: int
    statuses: dict[str, int]
    drivers: list[Driver]
    gains: list[Gain]
    failures: int
    last_failures: list[dict[str, Any]] = field(default_factory=list)
    signs: dict[str, int] = field(default_factory=dict)
    """Learned schedules by sign of failure: mode collapse, lost modes, unstable."""

    @property
    def finished(self) -> bool:
        """True when no trial is left and nobody works in the folder."""
        return self.left == 0 and not self.drivers

    def as_json(self) -> dict[str, Any]:
        """The same as plain values."""
        return asdict(self) | {"finished": self.finished}


def status_of(storage: Storage) -> Status:
    """Read the state of a sweep.

    Raises InputError for a folder that is missing or holds no sweep.
    """
    frame: Any = load_results(storage)
    experiment = current(storage)
    total, members = _asked(experiment)
    drivers = [_driver(holder) for holder in holders(storage)]
    learned = frame[frame["kind"] == "learned"]
    trials = learned.assign(bad=learned["status"] == "failed").groupby(
        ["cell", "trial"], dropna=False
    )
    counts, bad = trials["key"].nunique(), trials["bad"].any()
    failed = int(bad.sum())
    done = int(((counts >= members) & ~bad).sum())
    left = None if total is None else max(total - done - failed, 0)
    rate = _rate(_ends(learned), time.time(), bool(drivers))
    names, failures = _failures(storage)
    return Status(
        name=str(experiment.get("name", "")),
        folder=storage.url,
        total=total,
        done=done,
        failed=failed,
        running=sum(int(d.stages.get("search", {}).get("running", 0)) for d in drivers),
        left=left,
        rate=rate,
        seconds_left=_seconds_left(drivers, left, rate),
        scored=int(frame["eval_loss"].notna().sum()),
        statuses={str(name): int(n) for name, n in learned["status"].value_counts().items()},
        drivers=drivers,
        gains=_gains(frame, experiment),
        failures=names,
        last_failures=failures,
        signs=counted_signs(symptoms(frame)),
    )


def _asked(experiment: Mapping[str, Any]) -> tuple[int | None, int]:
    """Numbers of an experiment's trials and of a trial's members; (None, 1) if unknown."""
    try:
        settings = parse_experiment(experiment["settings"])
        plan = Plan(settings, {model.label: "unknown" for model in settings.models}, {}, {})
        total = settings.search.rounds * sum(len(plan.points_of(cell)) for cell in plan.cells)
        first = plan.cells[0]
        return total, len(plan.trial(first, plan.points_of(first)[0]).members)
    except (InputError, KeyError, TypeError):
        return None, 1


def _driver(holder: Holder) -> Driver:
    process, part = holder.process, "" if holder.part is None else str(holder.part)
    stages = holder.note.get("stages")
    stages = stages if isinstance(stages, dict) else {}
    silence = max(time.time() - holder.beat, 0.0)
    return Driver(process.host, process.pid, part, round(silence, 1), stages)


def _ends(learned: Any) -> np.ndarray:
    """The times at which trials ended, in order: seconds since 1970."""
    ends = []
    for _, rows in learned.dropna(subset=["started", "seconds"]).groupby(["cell", "trial"]):
        begin = datetime.fromisoformat(str(rows["started"].iloc[-1])).timestamp()
        ends.append(begin + float(rows["seconds"].sum()))  # each member has its share
    return np.sort(np.array(ends, dtype=np.float64))


def _rate(ends: np.ndarray, now: float, alive: bool) -> float | None:
    """Trials per hour over the last WINDOW seconds, up to now or to the end of the last run."""
    if len(ends) < 2:
        return None
    last = now if alive else float(ends[-1])
    recent = ends[ends > last - WINDOW]
    if len(recent) < 2:
        return None
    # a run that began within the window: from its first trial's end on
    whole = len(recent) < len(ends) and recent[0] - ends[-len(recent) - 1] < WINDOW
    count, span = (len(recent), WINDOW) if whole else (len(recent) - 1, last - recent[0])
    return 3600.0 * count / span if span > 0 else None


def _seconds_left(drivers: list[Driver], left: int | None, rate: float | None) -> float | None:
    """Seconds until the trials are done; None without a driver and while nothing is known."""
    guesses = [driver.stages.get("search", {}).get("left") for driver in drivers]
    known = [float(guess) for guess in guesses if isinstance(guess, int | float)]
    if known:
        return max(known)
    return 3600.0 * left / rate if drivers and rate and left is not None else None


def _gains(frame: Any, experiment: Mapping[str, Any]) -> list[Gain]:
    """The best learned schedule of every cell; on fresh samples where any of its rows has them."""
    found = []
    for cell, rows in frame[frame["kind"] == "learned"].groupby("cell", sort=False):
        ok = rows[rows["status"] == "ok"]
        scored = ok[ok["eval_gain"].notna()]
        fresh = len(scored) > 0
        ranked = scored if fresh else ok[ok["gain"].notna()]
        if not len(ranked):
            continue
        column = "eval_gain" if fresh else "gain"
        best = own_first(ranked, experiment).iloc[0]
        low, high = (_number(best.get(f"{column}_{end}")) for end in ("low", "high"))
        key, gain = str(best["key"]), _number(best[column])
        found.append(Gain(str(cell), key, gain, low, high, fresh))
    return found


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _failures(storage: Storage) -> tuple[int, list[dict[str, Any]]]:
    """The number of failed attempts, and the last of them in words."""
    stems = [name.removeprefix("failures/").partition(".")[0] for name in storage.list("failures")]
    stems.sort(key=lambda stem: stem.rpartition("-")[2].rjust(20, "0"))  # a time in hexadecimal
    last = []
    for stem in reversed(stems[-LAST_FAILURES:]):
        records = read_records(storage, "failures", stem) or []
        kept = ("stage", "item", "attempt", "reason", "node", "time")
        last += [{name: record.get(name) for name in kept} for record in records]
    return len(stems), last

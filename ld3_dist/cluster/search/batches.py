"""Batches: one Tune trial works through several of the search's trials, one after the other.

Ray Tune takes 20 ms and more of the driver's CPU to start and end a trial of its own, waits 50 ms
and more for it, and keeps some 60 kB of it in memory for good. That is nothing beside trials of a
minute, and most of the time of a sweep of short ones: the driver started 6 trials a second, with
the workers waiting. So a Tune trial is a worker's turn. It gets as many trials as fill the turn
(`turn_seconds`; by the times that trials of the same cell took so far), and sends the driver each
result, those of short trials together. Trials that take longer than a turn stand alone in it.

Measured on two busy cores with trials that do nothing (results/benchmarks/cluster.json, growth):
10,000 trials at 182 a second, 1.5 ms of the driver's CPU and 10 kB of its memory each, and no more
for the last than for the first. What was tried beside it: Optuna's own journal storage kept another
17 kB of each trial (see `studies`); reading back the rows of each trial took as long as all the
rest (see `RowIndex.learned`). A longer period of Tune's snapshots was not worth a setting, as the
period already grows with their cost.

What the rest of the sweep sees is a trial:

  - the searcher (`CellSearcher`) proposes single trials and is told of each as it ends;
  - an exception ends one trial of a turn, not the turn. The trial is tried again, up to `retries`
    times, in another turn;
  - if a worker dies, the trial that it was at is charged with an attempt; the others of its turn
    go back to the queue. A trial whose rows are there has ended, whether it was reported or not.

With trackers (resources.callbacks) every turn is one trial, as they make a run of each Tune trial.
"""

from __future__ import annotations

import json
import math
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic
from typing import Any, cast

from ray.tune.search import Searcher

from ...tasks.trial import Outcome
from ..best_gain import Place, place_of

TURN = 5.0
"""Seconds of work that a worker gets at once, at least."""

TURNS = 10.0
"""Turns that the driver starts in a second, at most, all workers together."""

LARGEST = 250
"""Trials of a turn, at most."""

AHEAD = 2000
"""Proposals that are asked before a worker wants them, at most."""

ASK_AGAIN = 0.5
"""Seconds after which a searcher that had nothing to give is asked again."""

FINISHED, LEAVES, EPOCH, EPOCHS = "finished", "leaves", "epoch", "epochs"
"""Keys of a report: the trials that ended, as JSON; true if the worker ends after a failure that
the report names; the epoch of the trial at work, and how many it has."""


@dataclass(frozen=True)
class TrialEvent:
    """A trial is done (with its outcome), about to be tried again (retry), or failed.

    place: the losses that its own are comparable with, if done.
    """

    kind: str
    cell: str
    key: str
    outcome: Outcome | None = None
    message: str = ""
    place: Place = ()


@dataclass
class Item:
    """A trial on its way: its number in the searcher, its settings, and how often it has failed.

    failed counts attempts of this run; `config["attempt"]` also those of earlier runs."""

    id: str
    config: dict[str, Any]
    failed: int = 0

    @property
    def cell(self) -> str:
        return self.config["cell"]

    @property
    def key(self) -> str:
        return self.config["key"]


def turn_seconds(workers: int) -> float:
    """Seconds of work in a turn, so that all workers together start at most TURNS in a second."""
    return max(TURN, workers / TURNS)


class Batches(Searcher):
    """Ray Tune's searcher: gives every worker a turn's trials of another searcher.

    Args:
        inner: proposes the trials.
        workers: turns that may be out at once.
        retries: further attempts of a trial that failed.
        single: one trial per turn.
        attempts: attempts of earlier runs, by the key of the trial.
        ended: the outcome of a trial if its rows are there.
        tell: told what becomes of each trial.
        record: writes down a failure (reason, trace, node, pid) that the worker could not.
    """

    def __init__(
        self,
        inner: Searcher,
        workers: int,
        retries: int,
        single: bool,
        attempts: Counter[str],
        ended: Callable[[dict[str, Any]], Outcome | None],
        tell: Callable[[TrialEvent], None],
        record: Callable[[Item, dict[str, Any]], None],
    ) -> None:
        super().__init__(metric="objective", mode="min")
        self.inner, self.workers, self.retries, self.single = inner, workers, retries, single
        self.attempts, self.ended, self.tell, self.record = attempts, ended, tell, record
        self.queue: deque[Item] = deque()
        self.out: dict[str, dict[str, Item]] = {}
        """By the id of a Tune trial, the items that have not ended, by key, in their order."""
        self.dead: dict[str, dict[str, Item]] = {}
        """The same of turns that failed, until `bury`."""
        self.leaving: set[str] = set()
        """Tune trials whose worker ends of its own will."""
        self.took: dict[str, float] = {}
        """Seconds that a trial of a cell takes, a moving mean."""
        self.inside: dict[str, float] = {}
        """By the id of a Tune trial, the share of the trial at work that is done."""
        self.asked, self.exhausted, self.over = 0, -math.inf, False

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its searcher for a restore we never do."""
        return {}

    @property
    def running(self) -> int:
        """Trials at work."""
        return len(self.out)

    @property
    def shares(self) -> dict[str, float]:
        """By the id of each trial at work, the share of it that is done."""
        first = [(turn, list(items.values())[:1]) for turn, items in list(self.out.items())]
        return {item.id: self.inside.get(turn, 0.0) for turn, items in first for item in items}

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        """Return the next turn, None while there is none to give, FINISHED at the end."""
        if len(self.out) >= self.workers:
            return None
        self._fill()
        if not self.queue:
            # FINISHED is a string that Tune expects here, though its annotation leaves it out
            return cast("dict[str, Any]", Searcher.FINISHED) if self.over else None
        items = self._take()
        self.out[trial_id] = {item.key: item for item in items}
        turn: dict[str, Any] = {"batch": json.dumps([item.config for item in items])}
        return turn | items[0].config if self.single else turn

    def _fill(self) -> None:
        """Ask for as many proposals as all workers could take now."""
        if self.over or monotonic() - self.exhausted < ASK_AGAIN:
            return
        most = self.workers if self.single else min(self.workers * self._usual(), AHEAD)
        while len(self.queue) < max(most, 1):
            config = self.inner.suggest(f"trial-{self.asked}")
            if not isinstance(config, dict):
                self.over, self.exhausted = config == Searcher.FINISHED, monotonic()
                return
            attempt = 1 + self.attempts[config["key"]]
            self.queue.append(Item(f"trial-{self.asked}", config | {"attempt": attempt}))
            self.asked += 1

    def _usual(self) -> int:
        """Trials in a turn, by the quickest cell."""
        quickest = min(self.took.values(), default=math.inf)
        return min(max(int(turn_seconds(self.workers) / max(quickest, 1e-3)), 1), LARGEST)

    def _take(self) -> list[Item]:
        """Items off the queue that fill a turn; a fair share where nothing comes after them."""
        most = 1 if self.single else LARGEST
        if monotonic() - self.exhausted < ASK_AGAIN or self.over:
            most = min(most, math.ceil(len(self.queue) / self.workers))
        items, seconds = [], 0.0
        while self.queue and len(items) < most and (not items or seconds < self._room()):
            item = self.queue.popleft()
            items.append(item)
            seconds += self.took.get(item.cell, math.inf)
        return items

    def _room(self) -> float:
        return turn_seconds(self.workers)

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Take what a worker reports: trials that ended, and how far the one at work is."""
        for record in json.loads(result.get(FINISHED) or "[]"):
            item = self.out.get(trial_id, {}).pop(record["key"], None)
            if item is None:
                continue
            self.inside.pop(trial_id, None)  # the next one of the turn is at its beginning
            if "failed" in record:
                self._failed(item, record["failed"], record.get("unrecorded"))
            else:
                self._ended(item, Outcome(**record["outcome"]), record["seconds"])
        if result.get(LEAVES):
            self.leaving.add(trial_id)
        if trial_id in self.out and result.get(EPOCHS):
            self.inside[trial_id] = min(result[EPOCH] / result[EPOCHS], 1.0)

    def _ended(self, item: Item, outcome: Outcome, seconds: float | None = None) -> None:
        if seconds is not None:
            before = self.took.get(item.cell, seconds)
            self.took[item.cell] = 0.7 * before + 0.3 * seconds
        self.inner.on_trial_complete(item.id, {"objective": outcome.objective, "outcome": outcome})
        self.exhausted = -math.inf
        place = place_of(item.cell, json.loads(item.config["settings"]))
        self.tell(TrialEvent("done", item.cell, item.key, outcome, place=place))

    def _failed(self, item: Item, reason: str, unrecorded: dict[str, Any] | None) -> None:
        if unrecorded is not None:
            self.record(item, {"reason": reason, **unrecorded})
        item.failed += 1
        item.config["attempt"] += 1
        if item.failed > self.retries:
            self.inner.on_trial_complete(item.id, error=True)
            self.exhausted = -math.inf
            self.tell(TrialEvent("failed", item.cell, item.key, message=reason))
        else:
            self.queue.append(item)
            self.tell(TrialEvent("retry", item.cell, item.key, message=reason))

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """End a turn. What it has not done goes back to the queue; if it died, in `bury`."""
        left = self.out.pop(trial_id, {})
        self.inside.pop(trial_id, None)
        if error and trial_id not in self.leaving:
            self.dead[trial_id] = left
        else:
            self.queue.extendleft(reversed(left.values()))

    def bury(self, trial_id: str, death: Callable[[], dict[str, Any]]) -> None:
        """Charge a worker's death to the trial that it was at: the first without rows.

        Those before it have ended, the others go back to the queue. `death` is asked for the
        reason, trace, node and pid."""
        left = deque(self.dead.pop(trial_id, {}).values())
        while left:
            item = left.popleft()
            outcome = self.ended(item.config)
            if outcome is None:
                found = death()
                self._failed(item, found.pop("reason"), found)
                break
            self._ended(item, outcome)
        self.queue.extendleft(reversed(left))

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save: the rows are the truth."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to restore."""

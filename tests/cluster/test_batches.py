"""Turns of trials: every trial ends once, whatever workers do; short ones go together."""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from typing import Any

import pytest
from ray.tune.search import Searcher

from ld3_dist.cluster.search import batches
from ld3_dist.cluster.search.batches import (
    EPOCH,
    EPOCHS,
    FINISHED,
    LEAVES,
    Batches,
    Item,
    TrialEvent,
)
from ld3_dist.tasks.trial import Outcome

TEACHER = {"solver": "unipc-3", "nfe": 20, "start": "karras"}


class Rounds(Searcher):
    """Proposes `rounds` rounds of `points` trials; a round only when the one before has ended."""

    def __init__(self, points: int, rounds: int) -> None:
        super().__init__(metric="objective", mode="min")
        self.points, self.rounds, self.round, self.next = points, rounds, 0, 0
        self.live: dict[str, str] = {}
        self.ends: dict[str, float | None] = {}

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        if self.next == self.points:
            if self.live:
                return None
            self.round, self.next = self.round + 1, 0
        if self.round == self.rounds:
            return Searcher.FINISHED
        key = f"{self.round}.{self.next}"
        self.next += 1
        self.live[trial_id] = key
        return {
            "cell": "a",
            "key": key,
            "settings": json.dumps({"distance": "l2", "teacher": TEACHER}),
        }

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        key = self.live.pop(trial_id)
        assert key not in self.ends
        self.ends[key] = None if error else (result or {})["objective"]


class World:
    """Searcher, turns and workers that may fail; time is what the trials take."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, points: int, rounds: int, **given: Any):
        self.clock = 0.0
        monkeypatch.setattr(batches, "monotonic", lambda: self.clock)
        self.inner, self.rows = Rounds(points, rounds), dict[str, Outcome]()
        self.events: list[TrialEvent] = []
        self.recorded: list[tuple[str, int, str]] = []
        defaults = {"workers": 2, "retries": 1, "single": False, "attempts": Counter()}
        self.turns = Batches(
            self.inner,
            **(defaults | given),
            ended=lambda config: self.rows.get(config["key"]),
            tell=self.events.append,
            record=self.record,
        )
        self.sizes: list[int] = []
        self.number = 0

    def record(self, item: Item, failure: dict[str, Any]) -> None:
        self.recorded.append((item.key, item.config["attempt"], failure["reason"]))

    def turn(self) -> tuple[str, list[dict[str, Any]]] | str | None:
        self.number += 1
        given = self.turns.suggest(f"turn{self.number}")
        if not isinstance(given, dict):
            return given
        items = json.loads(given["batch"])
        self.sizes.append(len(items))
        return f"turn{self.number}", items

    def learn(self, key: str, seconds: float) -> dict[str, Any]:
        self.clock += seconds
        self.rows[key] = Outcome(key, float(key), (float(key), math.inf), "ok")
        return {"key": key, "outcome": vars(self.rows[key]), "seconds": seconds}

    def report(self, turn: str, records: list[dict[str, Any]], **more: Any) -> None:
        self.turns.on_trial_result(turn, {FINISHED: json.dumps(records)} | more)

    def die(self, turn: str, reason: str = "killed") -> None:
        self.turns.on_trial_complete(turn, error=True)
        where = {"trace": None, "node": "n", "pid": 1}
        self.turns.bury(turn, lambda: {"reason": reason, **where})


@pytest.mark.parametrize(("seconds", "least", "most"), [(60.0, 1, 1), (0.01, 3, 20)])
def test_short_trials_go_together_and_long_ones_alone(
    monkeypatch: pytest.MonkeyPatch, seconds: float, least: int, most: int
) -> None:
    world = World(monkeypatch, 40, 3)
    while isinstance(found := world.turn() or wait(world), tuple):
        turn, items = found
        for item in items:
            world.report(turn, [world.learn(item["key"], seconds)])
        world.turns.on_trial_complete(turn, {})
    assert found == Searcher.FINISHED
    assert world.inner.ends == {f"{r}.{i}": float(f"{r}.{i}") for r in range(3) for i in range(40)}
    assert Counter(event.kind for event in world.events) == {"done": 120}
    assert least <= max(world.sizes) <= most
    assert world.sizes[0] == 1  # nothing is known of how long they take


def wait(world: World) -> Any:
    world.clock += batches.ASK_AGAIN + 0.1
    return world.turn()


def test_no_worker_takes_what_the_others_could_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last trials are shared evenly, though one turn could hold them all."""
    world = World(monkeypatch, 9, 1, workers=4)
    world.turns.took["a"] = 0.001
    found = [world.turn() for _ in range(4)]
    assert [len(turn[1]) for turn in found if isinstance(turn, tuple)] == [3, 2, 1, 1]
    assert world.turn() is None  # all workers are at work


def test_a_death_is_charged_to_the_trial_that_was_at_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those before it have ended, reported or not; those behind it are not charged."""
    world = World(monkeypatch, 4, 1, workers=1, attempts=Counter({"0.2": 2}))
    world.turns.took["a"] = 0.001
    turn, items = tuple_of(world.turn())
    assert [item["key"] for item in items] == ["0.0", "0.1", "0.2", "0.3"]
    assert [item["attempt"] for item in items] == [1, 1, 3, 1]
    world.report(turn, [world.learn("0.0", 0.1)])
    world.learn("0.1", 0.1)  # its rows are there, the report never came
    world.die(turn)
    assert world.recorded == [("0.2", 3, "killed")]
    assert [(e.kind, e.key) for e in world.events] == [
        ("done", "0.0"), ("done", "0.1"), ("retry", "0.2"),
    ]  # fmt: skip
    again, items = tuple_of(world.turn())
    assert {item["key"]: item["attempt"] for item in items} == {"0.2": 4, "0.3": 1}
    first = items[0]["key"]
    world.report(again, [world.learn(first, 0.1)])
    world.die(again)
    (left,) = [item["key"] for item in items if item["key"] != first]
    assert world.recorded[-1][0] == left


def test_the_share_that_is_done_is_of_the_trial_at_work(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, 20, 1, workers=1)
    turn, items = tuple_of(world.turn())
    world.report(turn, [world.learn(items[0]["key"], 0.01)])
    world.turns.on_trial_complete(turn)
    turn, items = tuple_of(world.turn())
    assert len(items) > 2
    ids = {key: name for name, key in world.inner.live.items()}
    assert world.turns.shares == {ids[items[0]["key"]]: 0.0}
    world.report(turn, [], **{EPOCH: 3, EPOCHS: 4})
    assert world.turns.shares == {ids[items[0]["key"]]: 0.75}
    world.report(turn, [world.learn(items[0]["key"], 0.01)])
    assert world.turns.shares == {ids[items[1]["key"]]: 0.0}  # it is at its beginning
    world.turns.on_trial_complete(turn)
    assert world.turns.shares == {}


def tuple_of(found: Any) -> tuple[str, list[dict[str, Any]]]:
    assert isinstance(found, tuple)
    return found


def test_an_exception_ends_a_trial_and_not_its_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, 3, 1, workers=1)
    world.turns.took["a"] = 0.001
    turn, _ = tuple_of(world.turn())
    failed = {"key": "0.0", "failed": "ValueError: no", "unrecorded": {"pid": 3}}
    world.report(turn, [failed, world.learn("0.1", 0.1)])
    assert world.recorded == [("0.0", 1, "ValueError: no")]
    world.report(turn, [{"key": "0.2", "failed": "late"}], **{LEAVES: True})
    world.die(turn, "never said")  # the worker ended of its own will: nobody is charged
    again, items = tuple_of(world.turn())
    assert [(item["key"], item["attempt"]) for item in items] == [("0.0", 2), ("0.2", 2)]
    world.report(again, [{"key": "0.0", "failed": "again"}, world.learn("0.2", 0.1)])
    world.turns.on_trial_complete(again, {})
    assert wait(world) == Searcher.FINISHED
    assert world.inner.ends == {"0.0": None, "0.1": 0.1, "0.2": 0.2}
    assert [(e.kind, e.key) for e in world.events if e.kind != "done"] == [
        ("retry", "0.0"), ("retry", "0.2"), ("failed", "0.0"),
    ]  # fmt: skip


@pytest.mark.parametrize("seed", range(8))
def test_every_trial_ends_once_whatever_workers_do(
    monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Workers that die, raise, and are slow to report, at random; retries enough for all."""
    dice = random.Random(seed)
    world = World(monkeypatch, 17, 3, workers=3, retries=10**6)
    world.turns.took["a"] = 0.4
    busy: dict[str, list[str]] = {}
    held: dict[str, list[dict[str, Any]]] = {}
    for _ in range(20_000):
        found = world.turn()
        if isinstance(found, tuple):
            busy[found[0]], held[found[0]] = [item["key"] for item in found[1]], []
            continue
        if found == Searcher.FINISHED:
            break
        world.clock += 0.2
        if not busy:
            continue
        turn = dice.choice(sorted(busy))
        luck = dice.random()
        if luck < 0.1:
            world.die(turn)
            del busy[turn]
            continue
        if busy[turn]:
            key = busy[turn].pop(0)
            there = key in world.rows
            bad = luck < 0.2 and not there
            record = {"key": key, "failed": "no"} if bad else world.learn(key, 0.4)
            held[turn].append(record)
        if luck < 0.6 or not busy[turn]:
            world.report(turn, held[turn])
            held[turn] = []
        if not busy[turn]:
            world.turns.on_trial_complete(turn, {})
            del busy[turn]
    assert world.inner.ends == {f"{r}.{i}": float(f"{r}.{i}") for r in range(3) for i in range(17)}
    assert not world.inner.live
    assert not world.turns.out


def test_with_trackers_every_turn_is_a_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, 4, 1, workers=1, single=True)
    world.turns.took["a"] = 0.001
    given = world.turns.suggest("t")
    assert given is not None
    assert given["key"] == "0.0"
    assert len(json.loads(given["batch"])) == 1


def test_a_thousand_workers_start_few_turns_in_a_second() -> None:
    assert batches.turn_seconds(2) == batches.TURN
    assert 1000 / batches.turn_seconds(1000) == pytest.approx(batches.TURNS)

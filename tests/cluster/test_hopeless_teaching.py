"""A model that no worker can teach costs a few shards; a single sick worker ends nothing."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny_sweep import changed, write

from ld3_dist import load_results
from ld3_dist.cluster.ray.pool import Done, Failed, Task
from ld3_dist.cluster.sweep import Sweep
from ld3_dist.cluster.teach_stage import Preparation
from ld3_dist.experiment.reading import load_experiment, parse_experiment
from ld3_dist.store.opening import open_storage
from ld3_dist.store.tables import read_table
from ld3_dist.tasks.planning import make_plan

MODEL = """
import os

from ld3_dist.core.noise import EDM
from ld3_dist.models.analytic.mixture import mixture_2d

DRIVER = %d

class Broken:
    def __init__(self):
        self.inner = mixture_2d(EDM())
        self.noise, self.shape, self.decode = self.inner.noise, self.inner.shape, self.inner.decode

    def __call__(self, x, t, condition=None):
        if os.getpid() != DRIVER:
            raise RuntimeError("no kernel image for this device, says the test")
        return self.inner(x, t)


def build(options):
    return Broken()
"""


def test_a_model_that_fails_on_every_worker_is_given_up(local_ray: None, tmp_path: Path) -> None:
    """The other model is taught; the message says how many shards were left out."""
    (tmp_path / "broken_model.py").write_text(MODEL % os.getpid())
    broken = {"model": f"python:{tmp_path}/broken_model.py:build", "name": "broken"}
    file = write(
        tmp_path,
        changed(
            models=[broken, "analytic:mixture-2d"],
            pairs={"train": 80, "valid": 80},
            resources={"shard": 4},
        ),
    )
    sweep = Sweep(load_experiment(file), open_storage(tmp_path / "out"))
    events = []
    with pytest.raises(RuntimeError, match="teacher pairs of broken could not all be made"):
        events.extend(sweep.run())  # as far as it came
    (said,) = [event.message for event in events if "not tried" in event.message]
    found = re.fullmatch(
        r"broken: (\d+) shards failed, on every worker, and none was made; "
        r"the other (\d+) are not tried",
        said,
    )
    assert found, said
    shards = max(event.total for event in events if event.stage == "teach") // 2
    assert shards >= 40
    failures = read_table(open_storage(tmp_path / "out"), "failures")
    assert int(found[1]) <= len(failures) == shards - int(found[2]) < 12
    assert failures["pid"].nunique() > 1
    rows = load_results(tmp_path / "out")
    assert set(rows["model"]) == {"analytic:mixture-2d"}
    assert set(rows["status"]) == {"ok"}


class Played:
    """A pool that says what it is told to, and counts what is taken from it."""

    def __init__(self, play: Callable[[list[Task]], Iterator[Done | Failed]]) -> None:
        self.play, self.count, self.all_fail = play, 2, True
        self.waiting: list[Task] = []
        self.withdrawn = 0

    def add(self, tasks: list[Task]) -> None:
        self.waiting.extend(tasks)

    def withdraw(self, unwanted: Callable[[Task], bool]) -> int:
        self.withdrawn += sum(map(unwanted, self.waiting))
        return self.withdrawn

    def run(self) -> Iterator[Done | Failed]:
        yield from self.play(list(self.waiting))


def fail(task: Task, pid: int, final: bool = True) -> Failed:
    return Failed(task, 1, "RuntimeError: no", None, "node", pid, final)


@pytest.mark.parametrize(
    ("pids", "final", "made", "others_fail", "given_up"),
    [
        ([1, 2, 1], True, False, True, True),
        ([1, 2], True, False, True, False),  # too few to say
        ([1, 1, 1, 1], True, False, True, False),  # one worker, which is replaced
        ([1, 2, 1], False, False, True, False),  # each is tried again
        ([1, 2, 1], True, True, True, False),  # it can be taught
        ([1, 2, 1], True, False, False, False),  # a third has not failed
    ],
)
def test_what_it_takes_to_give_a_model_up(
    tmp_path: Path, pids: list[int], final: bool, made: bool, others_fail: bool, given_up: bool
) -> None:
    def play(tasks: list[Task]) -> Iterator[Done | Failed]:
        if made:
            yield Done(tasks.pop(), None, 1)
        for pid in pids:
            yield fail(tasks.pop(), pid, final)

    experiment = changed(pairs={"train": 10, "valid": 10}, resources={"shard": 1})
    plan, storage = make_plan(parse_experiment(experiment)), open_storage(tmp_path)
    pool: Any = Played(play)
    pool.all_fail = others_fail
    stage = Preparation(plan, storage, pool, lambda f: "", lambda m: None, None)
    messages = [event.message for event in stage.run()]
    assert (pool.withdrawn > 0) == given_up
    assert any("not tried" in message for message in messages) == given_up

"""Everything a search needs, on one pool of actors: pairs of teachers, and baselines.

The shards of all models stand in one queue, in the order of the models. When the last shard of a
model is there, from all of its teachers, its pairs are sealed, the baselines of its cells join the
queue, and its trials may start. So the pool holds its GPUs until the teaching is over, and gives
each back as soon as there is nothing left for it: trials never wait behind an idle actor, and no
teacher waits behind trials.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ..core.errors import InputError
from ..experiment.plan import Plan
from ..experiment.sections import ModelSettings
from ..schedule.ranges import Range
from ..schedule.teaching import Teacher
from ..store.part import Part
from ..store.storage import Storage
from ..tasks.baselines import missing_baselines, run_baselines
from ..tasks.index import RowIndex
from ..tasks.teach import make_shard, make_shard_if_missing, seal, survey
from .events import Event
from .ray.pool import Done, Failed, Pool, Task, Waiting

Note = Callable[[Failed], str]

HOPELESS_AFTER = 3
"""Shards of a model that are given up, before one was made, after which the others are not tried if
every worker fails, and two of them at least: one worker with a broken GPU is not enough.
"""


class Preparation:
    """The work and its counts.

    Args:
        note: records a failed attempt and says it in a line.
        on_ready: called with a model whose teacher pairs are complete.
        rows: the rows that are there; None if baselines are not wanted.
        part: the part of the work to do; all if None. A trial needs all pairs of its teacher, so
            that a part makes its own shards first, and then those that the others have not made
            yet, from the last on: it meets them halfway, and waits for nobody.
    """

    def __init__(
        self,
        plan: Plan,
        storage: Storage,
        pool: Pool,
        note: Note,
        on_ready: Callable[[ModelSettings], None],
        rows: RowIndex | None,
        part: Part | None = None,
    ) -> None:
        self.part = part
        self.plan, self.storage, self.pool, self.note = plan, storage, pool, note
        self.on_ready, self.rows = on_ready, rows
        self.open: dict[str, set[str]] = {}  # shards still to make, by model
        self.model_of: dict[str, ModelSettings] = {}  # of every shard
        self.unmade: set[str] = set()
        self.given_up: dict[str, list[tuple[str | None, int | None]]] = {}
        """By model, the worker (node and pid) of each shard that was given up."""
        self.taught: set[str] = set()  # models of which a shard was made in this run
        self.done = {"teach": 0, "baselines": 0}
        self.total = {"teach": 0, "baselines": 0}
        self.failed = {"teach": 0, "baselines": 0}
        self.not_tried = {"teach": 0, "baselines": 0}  # shards of a model without hope

    @property
    def failures(self) -> int:
        """Tasks given up."""
        return sum(self.failed.values())

    def run(self) -> Iterator[Event]:
        """Do what is missing, model after model; a model whose shards cannot all be made ends up in
        `unmade`. Where every worker fails, the rest of its shards are not tried.
        """
        models = {model.label: model for model in self.plan.models}
        for model in models.values():
            yield from self._survey(model)
        if self.pool.waiting:
            yield self._event("teach")
        for label in [label for label, items in self.open.items() if not items]:
            yield from self._complete(models[label])
        for outcome in self.pool.run():
            if isinstance(outcome, Waiting):
                yield self._event("teach", outcome.message)
                continue
            stage = outcome.task.stage
            message = ""
            if isinstance(outcome, Done):
                self.done[stage] += 1
            else:
                message = self.note(outcome)
                self.failed[stage] += outcome.final
            yield self._event(stage, message)
            if stage == "teach":
                yield from self._count(self.model_of[outcome.task.item], outcome)

    def _survey(self, model: ModelSettings) -> Iterator[Event]:
        tasks: list[Task] = []
        for number, teacher in enumerate(self.plan.teachers):
            good, missing, bad = survey(self.plan, model, self.storage, teacher)
            self.done["teach"] += len(good)
            self.total["teach"] += len(good) + len(missing)
            for reason in bad:
                yield self._event("teach", f"{reason}; made again")
            own, others = self._divided(number, missing)
            tasks += [self._task(model, number, teacher, a, b) for a, b in own + others]
        self.open[model.label] = {task.item for task in tasks}
        self.model_of |= dict.fromkeys(self.open[model.label], model)
        self.pool.add(tasks)

    def _divided(self, number: int, missing: list[Range]) -> tuple[list[Range], list[Range]]:
        """The shards of this part, and those of the others."""
        part, size = self.part, self.plan.experiment.resources.shard
        if part is None:
            return missing, []
        own = [span for span in missing if part.has(span[0] // size + number)]
        return own, [span for span in reversed(missing) if span not in own]

    def _task(
        self, model: ModelSettings, number: int, teacher: Teacher, start: int, stop: int
    ) -> Task:
        """The task of a shard; the teachers of axes have numbers in its name."""
        name = f"{model.label}-{start}-{stop}" if number == 0 else (
            f"{model.label}-teacher{number}-{start}-{stop}"
        )  # fmt: skip
        arguments = (self.plan, model, self.storage, start, stop, None, teacher)
        make = make_shard if self.part is None else make_shard_if_missing
        return Task("teach", name, make, arguments)

    def _count(self, model: ModelSettings, outcome: Done | Failed) -> Iterator[Event]:
        items = self.open[model.label]
        if isinstance(outcome, Done):
            self.taught.add(model.label)
            items.discard(outcome.task.item)
            if not items:
                yield from self._complete(model)
        elif outcome.final:
            self.unmade.add(model.label)
            self.given_up.setdefault(model.label, []).append((outcome.node, outcome.pid))
            yield from self._give_up_if_hopeless(model)

    def _give_up_if_hopeless(self, model: ModelSettings) -> Iterator[Event]:
        workers, items = self.given_up[model.label], self.open[model.label]
        many = len(workers) >= HOPELESS_AFTER and len(set(workers)) > 1
        if model.label in self.taught or not (many and self.pool.all_fail):
            return
        left_out = self.pool.withdraw(lambda task: task.item in items)
        self.not_tried["teach"] += left_out
        if left_out:
            yield self._event(
                "teach",
                f"{model.label}: {len(workers)} shards failed, on every worker, and none was made; "
                f"the other {left_out} are not tried",
            )

    def _complete(self, model: ModelSettings) -> Iterator[Event]:
        try:
            sealed = [seal(self.plan, model, self.storage, t) for t in self.plan.teachers]
        except InputError as error:  # a shard has gone bad since; the next run makes it again
            self.unmade.add(model.label)
            yield self._event("teach", str(error))
            return
        shards = sum(one["shards"] for one in sealed)
        yield self._event("teach", f"{model.label}: {shards} shards of teacher pairs complete")
        if self.rows is not None:
            every, part = enumerate(self.plan.cells), self.part
            mine = [cell for i, cell in every if part is None or part.has(i)]
            cells = [cell for cell in mine if cell.model.label == model.label]
            found = [missing_baselines(self.plan, cell, self.rows) for cell in cells]
            missing = [one for one in found if one is not None]
            self.pool.add(
                Task(
                    "baselines",
                    f"baselines-{one.cell.id}",
                    run_baselines,
                    (self.plan, one.cell, self.storage, None, one),
                )
                for one in missing
            )
            self.total["baselines"] += len(missing)
            if missing:
                yield self._event("baselines")
        self.on_ready(model)

    def _event(self, stage: str, message: str = "") -> Event:
        ended = self.done[stage] + self.failed[stage] + self.not_tried[stage]
        running = min(self.total[stage] - ended, self.pool.count)
        return Event(
            stage, self.done[stage], self.total[stage], running, self.failed[stage], message=message
        )

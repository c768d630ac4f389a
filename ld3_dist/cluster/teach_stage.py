"""Everything a search needs: the teacher's pairs of every model and the baselines of its cells, on
one pool of actors.

The shards of all models stand in one queue, in the order of the models; when the last shard of a
model is there, its set is sealed, the baselines of its cells join the queue, and its trials may
start. So the pool holds its GPUs until the teaching is over, and gives each back as soon as there
is nothing left for it: trials never wait behind an idle actor, and no teacher waits behind trials.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ..core.errors import InputError
from ..experiment.plan import Plan
from ..experiment.sections import ModelSettings
from ..store.storage import Storage
from ..tasks.baselines import run_baselines
from ..tasks.rows import has_baselines
from ..tasks.teach import make_shard, missing_shards, seal
from .events import Event
from .ray.pool import Done, Failed, Pool, Task, Waiting

Note = Callable[[Failed], str]


class Preparation:
    """The work and its counts.

    Args:
        note: records a failed attempt and says it in a line.
        on_ready: called with a model whose teacher pairs are complete.
        baselines: whether to measure them, too.
    """

    def __init__(
        self,
        plan: Plan,
        storage: Storage,
        pool: Pool,
        note: Note,
        on_ready: Callable[[ModelSettings], None],
        baselines: bool,
    ) -> None:
        self.plan, self.storage, self.pool, self.note = plan, storage, pool, note
        self.on_ready, self.baselines = on_ready, baselines
        self.open: dict[str, set[str]] = {}  # shards still to make, by model
        self.model_of: dict[str, ModelSettings] = {}  # of every shard
        self.unmade: set[str] = set()
        self.done = {"teach": 0, "baselines": 0}
        self.total = {"teach": 0, "baselines": 0}
        self.failed = {"teach": 0, "baselines": 0}

    @property
    def failures(self) -> int:
        """Tasks given up."""
        return sum(self.failed.values())

    def run(self) -> Iterator[Event]:
        """Do what is missing, model after model; a model whose shards cannot all be made ends up in
        `unmade`.
        """
        models = {model.label: model for model in self.plan.experiment.models}
        self.total["teach"] = len(models) * len(self.plan.shards())
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
        missing, bad = missing_shards(self.plan, model, self.storage)
        self.done["teach"] += len(self.plan.shards()) - len(missing)
        for message in bad:
            yield self._event("teach", f"{message}; made again")
        tasks = [
            Task(
                "teach",
                f"{model.label}-{a}-{b}",
                make_shard,
                (self.plan, model, self.storage, a, b),
            )
            for a, b in missing
        ]
        self.open[model.label] = {task.item for task in tasks}
        self.model_of |= dict.fromkeys(self.open[model.label], model)
        self.pool.add(tasks)

    def _count(self, model: ModelSettings, outcome: Done | Failed) -> Iterator[Event]:
        items = self.open[model.label]
        if isinstance(outcome, Done):
            items.discard(outcome.task.item)
            if not items:
                yield from self._complete(model)
        elif outcome.final:
            self.unmade.add(model.label)

    def _complete(self, model: ModelSettings) -> Iterator[Event]:
        try:
            seal(self.plan, model, self.storage)
        except (
            InputError
        ) as error:  # a shard has gone bad since it was written; the next run makes it again
            self.unmade.add(model.label)
            yield self._event("teach", str(error))
            return
        shards = len(self.plan.shards())
        yield self._event("teach", f"{model.label}: {shards} shards of teacher pairs complete")
        if self.baselines:
            cells = [cell for cell in self.plan.cells if cell.model.label == model.label]
            missing = [c for c in cells if not has_baselines(self.storage, self.plan, c)]
            self.pool.add(
                Task("baselines", f"baselines-{c.id}", run_baselines, (self.plan, c, self.storage))
                for c in missing
            )
            self.total["baselines"] += len(missing)
            if missing:
                yield self._event("baselines")
        self.on_ready(model)

    def _event(self, stage: str, message: str = "") -> Event:
        left = self.total[stage] - self.done[stage] - self.failed[stage]
        running = min(left, self.pool.count)
        return Event(
            stage, self.done[stage], self.total[stage], running, self.failed[stage], message=message
        )

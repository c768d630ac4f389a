"""A sweep from teacher to report, as a generator of events: `teach -> search -> evaluate`, each stage resumable.

Whatever is already there is not done again: shards, rows and evaluations are named by what they are. Trials of a model
start as soon as its teacher pairs are complete, while other models are still being taught.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayError
from ray.tune import TuneError

from ..experiment.plan import Plan
from ..experiment.settings import Experiment
from ..store.lock import acquire
from ..store.results import load_results
from ..store.storage import Storage
from ..store.tables import read_table
from ..tasks.context import make_plan
from ..tasks.evaluate import finish, part_name, pictures, sample_part, teacher_item
from ..tasks.teach import make_shard, missing_shards, seal
from ..tasks.trial import run_baselines
from .connect import Sizes, connect, sizes_of
from .evaluation import evaluation_items, others, picture_pairs
from .failures import record_failure
from .folder import check_claim, claim, scratch
from .gain import BestGain
from .log import Log, logged, timed
from .nodes import check_nodes, versions
from .pool import Done, Failed, Pool, Task
from .search import SearchRun
from .trackers import check_trackers


@dataclass(frozen=True)
class Event:
    """What happened: `stage` (teach, baselines, search, evaluate), counts so far, and a line for the log."""

    stage: str
    done: int
    total: int
    running: int = 0
    failed: int = 0
    gain: float | None = None
    message: str = ""


@dataclass
class Sweep:
    """One run of an experiment into an output folder."""

    experiment: Experiment
    storage: Storage
    address: str | None = None
    stages: tuple[str, ...] = ("teach", "search", "evaluate")
    failures: int = 0
    log: Log = field(init=False)

    def __post_init__(self) -> None:
        self.log = Log(self.storage, "driver")

    def run(self) -> Iterator[Event]:
        """Do what is missing.

        Raises InputError before anything is written if it cannot be done, RuntimeError if the cluster or the storage
        fails for good on the way; what is finished by then is kept.
        """
        plan = make_plan(self.experiment)
        check_trackers(self.experiment)
        check_claim(self.storage, plan)
        self.storage.check_writable()
        connect(self.address)
        try:
            if self.address is not None:
                check_nodes(self.storage)
            sizes = sizes_of(self.experiment)
            with acquire(self.storage):
                claim(self.storage, plan)
                self.storage.sweep_temporary()
                about = self._about(plan, sizes)
                with timed(self.log, "sweep", self.experiment.name, **about), scratch(self.storage) as folder:
                    try:
                        yield from self._stages(plan, sizes, folder)
                    finally:
                        ray.shutdown()  # no worker outlives the lock
        except (RayError, TuneError, OSError) as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            what = "storage" if isinstance(error, OSError) else "the Ray cluster"
            raise RuntimeError(f"{what}: {lines[-1]} (everything finished is kept)") from error
        finally:
            ray.shutdown()

    def _about(self, plan: Plan, sizes: Sizes) -> dict[str, Any]:
        """What the log says of a sweep at its start and end."""
        about = {"fingerprint": plan.fingerprint, "address": self.address, "nodes": len(ray.nodes())}
        return about | {"trial": sizes.trial, "actor": sizes.actor, "versions": versions()}

    def _stages(self, plan: Plan, sizes: Sizes, folder: str) -> Iterator[Event]:
        ready: set[str] = set()
        run = SearchRun(plan, self.storage, ready, folder, sizes.trial, sizes.trials, self.log)
        started = False
        try:
            for model in plan.experiment.models:
                yield from self._teach(plan, model, sizes)
                ready.add(model.label)
                if "search" in self.stages and not started:
                    run.start()
                    started = True
            if started:
                yield from self._baselines(plan, sizes)
                yield from self._watch(plan, run)
        finally:
            run.stop()
        if "evaluate" in self.stages:
            yield from self._evaluate(plan, sizes)

    def _pool(self, stage: str, sizes: Sizes, tasks: list[Task]) -> Pool:
        asked, storage = self.experiment.resources, self.storage
        return Pool(
            min(sizes.actors, max(len(tasks), 1)), sizes.actor["cpu"], sizes.actor["gpu"], asked.retries,
            asked.deadline, lambda task: (logged, (storage, stage, task.item, task.function, task.arguments)),
        )  # fmt: skip

    def _work(
        self, stage: str, sizes: Sizes, tasks: list[Task], on_done: Callable[[Done], None] | None = None
    ) -> Iterator[Event]:
        """Run tasks on a pool and report them as events of a stage."""
        if not tasks:
            return
        done = failed = 0
        yield Event(stage, 0, len(tasks), running=min(len(tasks), sizes.actors))
        with timed(self.log, stage, None, tasks=len(tasks)), self._pool(stage, sizes, tasks) as pool:
            for outcome in pool.run(tasks):
                message = ""
                if isinstance(outcome, Done):
                    done += 1
                    if on_done:
                        on_done(outcome)
                else:
                    message = self._note(stage, outcome)
                    failed += outcome.final
                left = len(tasks) - done - failed
                yield Event(stage, done, len(tasks), running=min(left, sizes.actors), failed=failed, message=message)
        self.failures += failed

    def _note(self, stage: str, failure: Failed) -> str:
        item, attempt = failure.task.item, failure.attempt
        self.log.write(
            "fail" if failure.final else "retry", stage, item, attempt=attempt, reason=failure.reason,
            worker_node=failure.node, worker_pid=failure.pid,
        )  # fmt: skip
        record_failure(self.storage, stage, item, attempt, failure.reason, failure.traceback, failure.node, failure.pid)
        return f"{stage} {item}, attempt {attempt}: {failure.reason}" + ("; given up" if failure.final else "; again")

    def _teach(self, plan: Plan, model: Any, sizes: Sizes) -> Iterator[Event]:
        missing, bad = missing_shards(plan, model, self.storage)
        for message in bad:
            yield Event("teach", 0, len(missing), message=f"{message}; made again")
        tasks = [Task(f"{model.label}-{a}-{b}", make_shard, (plan, model, self.storage, a, b)) for a, b in missing]
        before = self.failures
        yield from self._work("teach", sizes, tasks)
        if self.failures > before:
            raise RuntimeError(
                f"teacher pairs of {model.label} could not all be made; see the failures table, then run again"
            )
        seal(plan, model, self.storage)
        total = len(plan.shards())
        yield Event("teach", total, total, message=f"{model.label}: {total} shards of teacher pairs complete")

    def _baselines(self, plan: Plan, sizes: Sizes) -> Iterator[Event]:
        cells = [c for c in plan.cells if not self.storage.exists(f"rows/{plan.baseline_key(c)}.parquet")]
        tasks = [Task(f"baselines-{cell.id}", run_baselines, (plan, cell, self.storage)) for cell in cells]
        yield from self._work("baselines", sizes, tasks)

    def _watch(self, plan: Plan, run: SearchRun) -> Iterator[Event]:
        total, done, failed = run.searcher.total, 0, 0
        best = BestGain(self.storage)
        self.log.write("start", "search", None, trials=total)
        while run.thread.is_alive() or not run.events.empty():
            for event in run.drain(timeout=1.0):
                message = ""
                done += event.kind == "done"
                failed += event.kind == "failed"
                if event.kind in ("failed", "retry"):
                    after = "; again" if event.kind == "retry" else ""
                    message = f"trial {event.key} of {event.cell} failed: {event.message}{after}"
                if event.outcome:
                    best.add(event.cell, event.outcome.valid)
                yield Event(
                    "search", done + run.searcher.found, total, len(run.searcher.live), failed, best.value, message
                )
        if run.error is not None:
            raise run.error
        self.failures += failed
        self.log.write("end", "search", None, done=done, found=run.searcher.found, failed=failed, gain=best.value)
        yield Event("search", done + run.searcher.found, total, 0, failed, best.value)

    def _evaluate(self, plan: Plan, sizes: Sizes) -> Iterator[Event]:
        if not plan.experiment.evaluate.samples:
            return
        frame = load_results(self.storage)
        items = evaluation_items(plan, frame)
        written = set(read_table(self.storage, "evaluations")["key"])
        items = [item for item in items if item.key not in written]
        seconds: dict[str, float] = dict.fromkeys((item.key for item in items), 0.0)

        def count(done: Done) -> None:
            seconds[done.task.arguments[1].key] += done.result

        parts = [
            Task(f"{item.key}-{a}", sample_part, (plan, item, self.storage, a, b))
            for item in (*items, *([] if not items else [teacher_item(plan, m) for m in plan.experiment.models]))
            for a, b in item.parts(plan)
        ]
        parts = list({task.item: task for task in parts}.values())
        for task in parts:
            seconds.setdefault(task.arguments[1].key, 0.0)
        yield from self._work("evaluate", sizes, parts, count)
        scored = [
            Task(item.key, finish, (plan, item, self.storage, seconds[item.key], others(frame, item))) for item in items
        ]
        drawn = [
            Task(f"pictures-{learned.key}", pictures, (plan, baseline, learned, self.storage))
            for cell, baseline, learned in picture_pairs(plan, frame)
            if not self.storage.exists(f"samples/{cell.id.replace('/', '_')}.safetensors")
        ]
        yield from self._work("score", sizes, scored + drawn)
        for item in [*items, *(teacher_item(plan, m) for m in plan.experiment.models)]:
            for a, b in item.parts(plan):
                self.storage.remove(part_name(item, a, b))

"""A sweep from teacher to report as a generator of events: `teach -> search -> evaluate`.

Each stage can be resumed. Nothing that is already there is done again, because shards, rows and
evaluations are named by their content. Trials of a model start as soon as its teacher pairs are
complete, while other models are still being taught.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import ray
from ray.exceptions import RayError
from ray.tune import TuneError

from ..experiment.plan import Plan
from ..experiment.sections import ModelSettings
from ..experiment.settings import Experiment
from ..schedule.provenance import now
from ..store.credentials import masked
from ..store.folding import folding
from ..store.lock import Lock, acquire, refuse_if_held
from ..store.part import Part
from ..store.storage import Storage
from ..tasks.checkpoints import remove_finished
from ..tasks.index import RowIndex
from ..tasks.planning import make_plan
from . import logs, parts
from .evaluate_stage import Evaluation
from .events import Event
from .failures import record_failure
from .output_folder import Lineage, check_claim, claim, scratch, with_names_of
from .pace import Pace
from .ray.connect import Sizes, connect, sizes_of
from .ray.liveness import HeadWatch, room_for, room_in_words
from .ray.nodes import check_nodes, versions
from .ray.pool import Call, Done, Failed, Pool, Task, Waiting
from .search.importance import write_importance
from .search.trackers import check_trackers
from .search.tune_run import SearchRun
from .teach_stage import Preparation

LOOK_EVERY = 30.0
"""Seconds between two looks at whether any node can still hold a trial."""


@dataclass
class Sweep:
    """One run of an experiment into an output folder.

    source: the file of the experiment, for messages.
    part: the part of the teaching and the search to do; everything if None.
    """

    experiment: Experiment
    storage: Storage
    address: str | None = None
    stages: tuple[str, ...] = ("teach", "search", "evaluate")
    source: str = ""
    part: Part | None = None
    failures: int = 0
    watch: HeadWatch | None = None
    lock: Lock | None = None
    log: logs.SweepHandler | None = None
    lineage: Lineage | None = None
    since: str = field(default_factory=now)

    def run(self) -> Iterator[Event]:
        """Do what is missing.

        Raises InputError before anything is written if it cannot be done, RuntimeError if the
        cluster or the storage fails for good on the way, or another driver takes the folder over;
        what is finished by then is kept."""
        try:
            with contextlib.suppress(OSError):  # what cannot be read is refused below, in words
                refuse_if_held(self.storage, part=self.part)
            plan = make_plan(self.experiment, self.source)
            check_trackers(self.experiment)
            check_claim(self.storage)
            plan = with_names_of(self.storage, plan)
            self.experiment = plan.experiment
            self.storage.check_writable()
            with acquire(self.storage, part=self.part) as self.lock:
                connect(self.address)
                yield from self._on_the_cluster(plan)
        except (RayError, TuneError, OSError) as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            what = "storage" if isinstance(error, OSError) else "the Ray cluster"
            raise RuntimeError(
                masked(f"{what}: {lines[-1]} (everything finished is kept)")
            ) from error

    def _on_the_cluster(self, plan: Plan) -> Iterator[Event]:
        """The stages, once the folder is ours and Ray is there."""
        try:
            if self.address is not None:
                check_nodes(self.storage)
            sizes = sizes_of(self.experiment)
            self.lineage = claim(self.storage, plan)
            if self.part is not None:
                parts.begin(self.storage, plan.fingerprint, self.part)
            self.storage.sweep_temporary()
            remove_finished(self.storage)
            with (
                logs.driver_log(self.storage) as self.log,
                logs.timed("sweep", self.experiment.name, **self._about(plan, sizes)),
                scratch(self.storage, alone=self.part is None) as folder,
                folding(self.storage) if self.part is None else contextlib.nullcontext(),
            ):
                try:
                    stages = self._noted(self._stages(plan, sizes, folder))
                    yield from self._with_warnings(stages, self.log)
                finally:
                    self._disconnect()
            if self.part is not None:
                parts.end(self.storage, plan.fingerprint, self.part, self.failures)
        finally:
            self._disconnect()  # no worker outlives the lock

    def _noted(self, events: Iterator[Event]) -> Iterator[Event]:
        """The events with the time left; the next heartbeat tells both to those who watch."""
        pace = Pace()
        for given in events:
            event = replace(given, left=pace.left(given))
            if self.lock is not None:
                state = {"done": event.done, "total": event.total, "running": event.running}
                state |= {"failed": event.failed, "inside": round(event.inside, 3)}
                state |= {"left": None if event.left is None else round(event.left, 1)}
                stages = self.lock.note.get("stages", {}) | {event.stage: state}
                self.lock.note = {"since": self.since, "stages": stages}
            yield event

    def _with_warnings(self, events: Iterator[Event], log: logs.SweepHandler) -> Iterator[Event]:
        """The events, and after each the warnings logged meanwhile, each text once."""
        said: set[str] = set()
        for event in events:
            yield event
            for warning in log.take_warnings():
                if warning not in said:
                    said.add(warning)
                    yield replace(event, message=f"warning: {warning}")

    def _warn(self, warning: str) -> None:
        """Pass a worker's warning on to the terminal."""
        if self.log is not None:
            self.log.show(warning)

    def _check(self) -> None:
        """Raise RuntimeError if the cluster is gone or the folder another driver's."""
        if self.watch is not None:
            self.watch.check()
        if self.lock is not None:
            self.lock.check()

    @property
    def reachable(self) -> bool:
        """True if Ray may be called. Without the cluster's head such calls block until Ray ends the
        process.
        """
        return self.watch is None or self.watch.answers

    def _room(self, size: dict[str, float], count: int) -> str:
        return room_in_words(size, count) if self.reachable else "the cluster's head is silent"

    def _disconnect(self) -> None:
        if self.reachable:
            ray.shutdown()

    def _about(self, plan: Plan, sizes: Sizes) -> dict[str, Any]:
        """Facts that the log gives of a sweep at its start and end."""
        about = {
            "fingerprint": plan.fingerprint,
            "cluster": self.address,
            "nodes": [node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]],
        }
        return about | {"trial": sizes.trial, "actor": sizes.actor, "versions": versions()}

    def _stages(self, plan: Plan, sizes: Sizes, folder: str) -> Iterator[Event]:
        self.watch = HeadWatch()
        ready: set[str] = set()
        searching = "search" in self.stages
        assert self.lineage is not None
        rows = RowIndex(plan, self.storage)
        run = SearchRun(
            plan, self.storage, ready, folder, sizes.trial, sizes.trials, self._warn,
            rows, self.lineage, self.part,
        )  # fmt: skip
        try:
            with self._pool(sizes) as pool:

                def on_ready(model: ModelSettings) -> None:
                    ready.add(model.label)
                    if searching:
                        pool.release_idle = True
                        run.start()

                prepare = Preparation(
                    plan,
                    self.storage,
                    pool,
                    self._note,
                    on_ready,
                    rows if searching else None,
                    self.part,
                )
                with logs.timed("teach", None):
                    for event in prepare.run():
                        yield event
                        yield from self._search_events(run)
            self.failures += prepare.failures
            if run.started:
                run.searcher.hopeless |= prepare.unmade
                yield from self._watch(run, sizes)
                remove_finished(self.storage)  # of workers killed between their rows and the end
        finally:
            run.stop()
        if prepare.unmade:
            labels = ", ".join(sorted(prepare.unmade))
            raise RuntimeError(
                f"teacher pairs of {labels} could not all be made; see the failures, then run again"
            )
        if "evaluate" in self.stages:
            yield from self._evaluate(plan, sizes)
        write_importance(plan, self.storage)

    def _pool(self, sizes: Sizes) -> Pool:
        asked, storage = self.experiment.resources, self.storage

        def call(task: Task) -> Call:
            return logs.logged, (storage, task.stage, task.item, task.function, task.arguments)

        return Pool(
            sizes.actors,
            sizes.actor["cpu"],
            sizes.actor["gpu"],
            asked.retries,
            asked.deadline,
            call,
            self._check,
            self._warn,
            self._room,
            {key: value for key, value in sizes.actor.items() if key not in ("cpu", "gpu")},
        )

    def _work(
        self,
        stage: str,
        pool: Pool,
        tasks: list[Task],
        on_done: Callable[[Done], None] | None = None,
    ) -> Iterator[Event]:
        """Run tasks on a pool and report them as events of a stage."""
        if not tasks:
            return
        done = failed = 0
        yield Event(stage, 0, len(tasks), running=min(len(tasks), pool.count))
        with logs.timed(stage, None, tasks=len(tasks)):
            pool.add(tasks)
            for outcome in pool.run():
                message = ""
                if isinstance(outcome, Waiting):
                    message = outcome.message
                elif isinstance(outcome, Done):
                    done += 1
                    if on_done:
                        on_done(outcome)
                else:
                    message = self._note(outcome)
                    failed += outcome.final
                left = len(tasks) - done - failed
                yield Event(
                    stage,
                    done,
                    len(tasks),
                    running=min(left, pool.count),
                    failed=failed,
                    message=message,
                )
        self.failures += failed

    def _note(self, failure: Failed) -> str:
        stage, item, attempt = failure.task.stage, failure.task.item, failure.attempt
        logs.write(
            "fail" if failure.final else "retry",
            stage,
            item,
            attempt=attempt,
            reason=failure.reason,
            worker_node=failure.node,
            worker_pid=failure.pid,
        )
        record_failure(
            self.storage,
            stage,
            item,
            attempt,
            failure.reason,
            failure.traceback,
            failure.node,
            failure.pid,
        )
        return f"{stage} {item}, attempt {attempt}: {failure.reason}" + (
            "; given up" if failure.final else "; again"
        )

    def _search_events(self, run: SearchRun, timeout: float = 0.0) -> Iterator[Event]:
        """Report what the search has done since the last call."""
        for event in run.drain(timeout):
            message = ""
            run.done += event.kind == "done"
            run.failed += event.kind == "failed"
            if event.kind in ("failed", "retry"):
                after = "; again" if event.kind == "retry" else ""
                message = f"trial {event.key} of {event.cell} failed: {event.message}{after}"
            if event.outcome:
                run.best.add(event.place, event.outcome.valid)
            yield run.state(message)

    def _watch(self, run: SearchRun, sizes: Sizes) -> Iterator[Event]:
        """The rest of the search. Raises RuntimeError when no node of the cluster can hold a trial
        any more.
        """
        run.best.read()
        logs.write("start", "search", None, trials=run.searcher.total)
        room = looked = time.monotonic()
        while run.thread.is_alive() or not run.events.empty():
            self._check()
            if self.lineage is not None:
                self.lineage.write()
            yield from self._search_events(run, timeout=1.0)
            now = time.monotonic()
            if now - looked > LOOK_EVERY and self.reachable:
                looked = now
                if room_for(sizes.trial):
                    room = now
                elif now - room > self.experiment.resources.deadline:
                    raise RuntimeError(
                        f"for {now - room:.0f} s no node of the cluster could hold a trial"
                    )
                else:
                    yield run.state("no node of the cluster can hold a trial; waiting for one")
        if self.lineage is not None:
            self.lineage.write(at_once=True)
        if run.error is not None:
            raise run.error
        whole = self.part is None and not run.searcher.hopeless
        if self.lineage is not None and whole:
            self.lineage.finish()
        self.failures += run.failed
        found = run.searcher.found
        logs.write(
            "end",
            "search",
            None,
            done=run.done,
            found=found,
            failed=run.failed,
            gain=run.best.value,
        )
        yield run.state()

    def _evaluate(self, plan: Plan, sizes: Sizes) -> Iterator[Event]:
        if not plan.experiment.evaluate.samples:
            return
        with self._pool(sizes) as pool:

            def work(
                stage: str, tasks: list[Task], on_done: Callable[[Done], None] | None
            ) -> Iterator[Event]:
                return self._work(stage, pool, tasks, on_done)

            evaluation = Evaluation(plan, self.storage, work)
            yield from evaluation.run()
            self.failures += evaluation.lost

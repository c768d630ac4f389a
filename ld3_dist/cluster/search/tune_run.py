"""The search stage: a Ray Tune run over the trials of all cells.

Its truth are the rows; Tune's own state is scratch.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from sys import maxsize
from typing import Any

from ray import tune
from ray.tune import (
    Callback,
    CheckpointConfig,
    FailureConfig,
    RunConfig,
    Stopper,
    TuneConfig,
    Tuner,
)

from ...experiment.plan import Plan
from ...store.part import Part
from ...store.process import working_folder
from ...store.storage import Storage
from ...store.tables import write_table
from ...tasks.index import RowIndex
from ...tasks.rows import failed_rows
from ...tasks.trial import Outcome
from ..best_gain import BestGain
from ..events import Event
from ..failures import attempts_so_far, death_of, last_failure, record_failure
from ..logs import write
from ..output_folder import Lineage
from .batches import Batches, Item, TrialEvent
from .searcher import CellSearcher
from .studies import StudyMirror
from .trackers import make_trackers
from .worker import REPORT_EVERY, WARNINGS, spec_of, trainable

REPORTS = 50
"""Reports a second that a driver gets from all trials together, at most: it takes them one after
the other.
"""


class Watcher(Callback):
    """Passes on what Tune tells of turns, and records failures that no worker could.

    Storage that cannot even take such a record ends the search: `broken` is then why, and `stop` is
    called."""

    def __init__(
        self,
        events: queue.Queue[TrialEvent | None],
        storage: Storage,
        warn: Callable[[str], None],
        stop: Callable[[], None],
    ) -> None:
        self.events, self.storage, self.warn, self.stop = events, storage, warn, stop
        self.batches: Batches | None = None
        self.broken: OSError | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its callbacks for a restore we never do; a queue cannot go along."""
        return {}

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """A report; the worker's warnings may come with it."""
        for warning in str(result.get(WARNINGS, "")).splitlines():
            self.warn(warning)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A turn ended well. Tune keeps it, and several copies of its settings with it."""
        if self.batches is not None and not self.batches.single:
            trial.config, trial.evaluated_params, trial.experiment_tag = {}, {}, ""

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A turn ended with an error: where its worker died, the trial that it was at failed."""
        assert self.batches is not None
        self.batches.bury(trial.trial_id, lambda: death_of(trial))

    def tell(self, event: TrialEvent) -> None:
        """Pass on what became of a trial; a failure is logged."""
        if event.kind != "done":
            kind = "fail" if event.kind == "failed" else event.kind
            write(kind, "search", event.key, cell=event.cell, reason=event.message)
        self.events.put(event)

    def record(self, item: Item, failure: dict[str, Any]) -> None:
        """Write down an attempt that no worker could: reason, trace, node and pid."""
        try:
            record_failure(self.storage, "search", item.key, item.config["attempt"], **failure)
        except OSError as error:
            self.broken = error
            self.stop()


class StopSwitch(Stopper):
    """Ends the whole Tune run when asked to."""

    def __init__(self) -> None:
        self.stopped = False

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Return True to stop this trial."""
        return self.stopped

    def stop_all(self) -> bool:
        """Return True to stop everything."""
        return self.stopped


class SearchRun:
    """A Tune run in a thread of its own, so that the sweep goes on teaching and showing what
    happens.
    """

    def __init__(
        self,
        plan: Plan,
        storage: Storage,
        ready: set[str],
        scratch: str,
        sizes: dict[str, float],
        limit: int,
        warn: Callable[[str], None],
        rows: RowIndex,
        lineage: Lineage,
        part: Part | None = None,
    ) -> None:
        self.plan, self.storage, self.scratch, self.sizes = plan, storage, scratch, sizes
        # the file of all studies is the whole sweep's; a part would write its own over another's
        self.mirror = StudyMirror(storage) if part is None else None
        self.rows = rows
        self.searcher = CellSearcher(
            plan, rows.outcome, ready, maxsize, self.mirror, lineage.ask, rows.learned, part
        )
        self.limit, self.switch = limit, StopSwitch()
        self.events: queue.Queue[TrialEvent | None] = queue.Queue()
        self.watcher = Watcher(self.events, storage, warn, self._halt)
        self.batches: Batches | None = None
        self.error: BaseException | None = None
        self.started, self.done, self.failed = False, 0, 0
        self.best = BestGain(storage)
        self.thread = threading.Thread(target=self._run, name="tune", daemon=True)

    def start(self) -> None:
        """Begin, unless begun; trials of a cell follow as soon as its teacher is ready."""
        if not self.started:
            self.started = True
            if len(self.rows.places):
                self.searcher.foresee(self.rows)
            self.batches = self.watcher.batches = self._batches()
            self.thread.start()

    def _batches(self) -> Batches:
        asked = self.plan.experiment.resources
        return Batches(
            self.searcher,
            self.limit,
            asked.retries,
            bool(asked.callbacks),
            attempts_so_far(self.storage),
            self._outcome,
            self.watcher.tell,
            self.watcher.record,
        )

    def _outcome(self, config: dict[str, Any]) -> Outcome | None:
        """The outcome of a trial that no report told of, if its rows are there."""
        spec = spec_of(self.plan, config)
        found = self.rows.outcome(spec, spec.task)
        return found if isinstance(found, Outcome) else None

    def stop(self, patience: float = 5.0) -> None:
        """End the run early: its trials are killed, their finished rows stay."""
        self.switch.stopped = True
        if self.thread.is_alive():
            self.thread.join(patience)

    def state(self, message: str = "") -> Event:
        """The state of the search as an event."""
        done, searcher = self.done + self.searcher.found, self.searcher
        left = searcher.total - done - self.failed
        shares = self.batches.shares if self.batches else {}
        begun = searcher.work_inside(shares)
        return Event(
            "search",
            done,
            searcher.total,
            min(self.batches.running, left) if self.batches else 0,
            self.failed,
            self.best.value,
            message,
            inside=sum(shares.values()),
            work=searcher.work + begun,
            work_left=searcher.work_left - begun,
        )

    def drain(self, timeout: float) -> Iterator[TrialEvent]:
        """Yield what has happened since the last call; wait at most `timeout` seconds for it."""
        try:
            event = self.events.get(timeout=timeout)
            while event is not None:
                yield event
                event = self.events.get_nowait()
        except queue.Empty:
            return

    def _halt(self) -> None:
        self.switch.stopped = True

    def _run(self) -> None:
        try:
            self._tuner().fit()
            if self.watcher.broken:
                raise self.watcher.broken
            if not self.switch.stopped:
                self._record_failed()
        except BaseException as error:  # noqa: BLE001  handed to the sweep, which raises it
            self.error = error
        finally:
            if self.mirror is not None:
                self.mirror.write()
            self.events.put(None)

    def _tuner(self) -> Tuner:
        e = self.plan.experiment
        function = tune.with_parameters(
            trainable, plan=self.plan, storage=self.storage, threads=int(self.sizes["cpu"]),
            every=max(REPORT_EVERY, self.limit / REPORTS), folder=working_folder(),
        )  # fmt: skip
        return Tuner(
            tune.with_resources(function, {k: v for k, v in self.sizes.items() if v}),
            tune_config=TuneConfig(
                search_alg=self.batches,
                num_samples=-1,  # until the searcher has no more
                max_concurrent_trials=self.limit,
                reuse_actors=True,
            ),
            run_config=RunConfig(
                name=f"search-{time.time_ns():x}",
                storage_path=self.scratch,
                verbose=0,
                stop=self.switch,
                failure_config=FailureConfig(max_failures=0),  # Batches tries again
                checkpoint_config=CheckpointConfig(num_to_keep=1),
                callbacks=[self.watcher, *make_trackers(e, self.storage)],
            ),
        )

    def _record_failed(self) -> None:
        """Trials that failed for good become rows, so that the table is complete."""
        for proposal in self.searcher.failed:
            spec, tried = proposal.missing, self.plan.experiment.resources.retries + 1
            numbers = {"round": proposal.round, "attempts": tried}
            rows = failed_rows(self.plan, spec, numbers, last_failure(self.storage, spec.task))
            write_table(self.storage, "rows", spec.task, rows)

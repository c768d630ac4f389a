"""The search stage: a Ray Tune run over the trials of all cells.

Its truth are the rows; Tune's own state is scratch.
"""

from __future__ import annotations

import contextlib
import json
import math
import queue
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
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

from ...core.learning.learn import Progress
from ...core.user_code import label
from ...experiment.plan import Plan
from ...store.storage import Storage
from ...store.tables import write_table
from ...tasks.index import RowIndex
from ...tasks.rows import failed_rows
from ...tasks.trial import Outcome, restored_outcome, run_trial
from ..best_gain import BestGain
from ..events import Event
from ..failures import death_of, failures_of, last_failure, record_failure
from ..logs import SweepHandler, timed, worker_log, write
from ..output_folder import Lineage
from .searcher import CellSearcher
from .studies import StudyMirror
from .trackers import make_trackers

REPORT_EVERY = 2.0
"""Seconds between the reports of a trial, at least."""

REPORTS = 50
"""Reports a second that a driver gets from all trials together, at most: it takes them one after
the other.
"""


WARNINGS = "warnings"
"""Key of the warnings in a report."""


@dataclass(frozen=True)
class TrialEvent:
    """A trial is running, done (with its outcome), about to be tried again (retry), or failed.

    distance: label of the distance that it learned in, if done.
    """

    kind: str
    cell: str
    key: str
    outcome: Outcome | None = None
    message: str = ""
    distance: str = ""


def trainable(
    config: dict[str, Any], plan: Plan, storage: Storage, threads: int, every: float
) -> None:
    """One Tune trial. Writes its rows itself; returns at once if they are there. every: seconds
    between reports.
    """
    import torch

    torch.set_num_threads(max(threads, 1))
    cell = plan.cell(config["cell"])
    spec = plan.spec(cell, json.loads(config["settings"]), json.loads(config["members"]))
    outcome = restored_outcome(plan, spec, storage)
    log = worker_log(storage)
    if outcome is None:
        attempt = 1 + len(failures_of(storage, spec.task))
        numbers = {"round": config["round"], "attempts": attempt}

        def note(message: str) -> None:
            write("note", "search", spec.task, cell=cell.id, attempt=attempt, message=message)

        reporter = Reporter(every, log)
        try:
            with timed("search", spec.task, cell=cell.id, attempt=attempt) as facts:
                outcome = run_trial(plan, spec, storage, numbers, on_progress=reporter, note=note)
                facts["status"] = outcome.status
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            with contextlib.suppress(OSError):  # the driver notices that nothing was written
                record_failure(
                    storage, "search", spec.task, attempt, reason, traceback.format_exc()
                )
            raise
    objective = min(outcome.objective, 1e9)  # a study must hear a number; the rows say what it was
    best = min((loss for loss in outcome.valid if math.isfinite(loss)), default=1e300)
    last = {"objective": objective, "status": outcome.status, "best_loss": best}
    tune.report(last | warnings_of(log))


def warnings_of(log: SweepHandler) -> dict[str, str]:
    """The part of a report that carries a worker's warnings, a line each; empty without any."""
    taken = log.take_warnings()
    return {WARNINGS: "\n".join(taken)} if taken else {}


class Reporter:
    """Reports a trial's progress and warnings to Tune, at most once in `every` seconds."""

    def __init__(self, every: float, log: SweepHandler) -> None:
        self.every, self.last, self.log = every, time.monotonic(), log

    def __call__(self, progress: Progress) -> None:
        """Called after each epoch."""
        if time.monotonic() - self.last > self.every:
            self.last = time.monotonic()
            loss = progress.best_valid.clamp(1e-300, 1e300).log().mean().item()
            start = (progress.best_valid / progress.valid.clamp_min(1e-300)).mean().item()
            tune.report(
                {
                    "objective": loss,
                    "status": "running",
                    "epoch": progress.epoch,
                    "improvement": start,
                }
                | warnings_of(self.log)
            )


class Watcher(Callback):
    """Turns Tune's callbacks into events of the sweep, and records failures that no worker could.

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
        self.recorded = set(storage.list("failures"))
        self.broken: OSError | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its callbacks for a restore we never do; a queue cannot go along."""
        return {}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial began."""
        self.events.put(TrialEvent("running", trial.config["cell"], trial.config["key"]))

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """A report; the worker's warnings may come with it."""
        for warning in str(result.get(WARNINGS, "")).splitlines():
            self.warn(warning)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial ended well."""
        result = trial.last_result or {}
        losses = (result.get("best_loss", math.inf),)
        outcome = Outcome(
            trial.config["key"],
            result.get("objective", math.inf),
            losses,
            result.get("status", "ok"),
        )
        distance = label(json.loads(trial.config["settings"])["distance"])
        self.events.put(
            TrialEvent("done", trial.config["cell"], outcome.key, outcome, distance=distance)
        )

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial failed for good."""
        key, reason = trial.config["key"], self._note(trial, "fail")
        self.events.put(TrialEvent("failed", trial.config["cell"], key, message=reason))

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """An attempt failed; there will be another."""
        key, reason = trial.config["key"], self._note(trial, "retry")
        self.events.put(TrialEvent("retry", trial.config["cell"], key, message=reason))

    def _note(self, trial: Any, event: str) -> str:
        """Make sure the attempt is in the failures table; why it failed."""
        key, death = trial.config["key"], death_of(trial)
        try:
            found = {name for name in self.storage.list("failures") if key in name}
            if not found - self.recorded:
                record_failure(
                    self.storage, "search", key, len(failures_of(self.storage, key)) + 1, **death
                )
            self.recorded |= {name for name in self.storage.list("failures") if key in name}
            reason = last_failure(self.storage, key)
        except OSError as error:
            self.broken, reason = error, f"{death['reason']} ({error})"
            self.stop()
        write(event, "search", key, cell=trial.config["cell"], reason=reason)
        return reason


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
    ) -> None:
        self.plan, self.storage, self.scratch, self.sizes = plan, storage, scratch, sizes
        self.mirror = StudyMirror(storage)
        self.searcher = CellSearcher(plan, rows.outcome, ready, limit, self.mirror, lineage.ask)
        self.limit, self.switch = limit, StopSwitch()
        self.events: queue.Queue[TrialEvent | None] = queue.Queue()
        self.watcher = Watcher(self.events, storage, warn, self._halt)
        self.error: BaseException | None = None
        self.started, self.done, self.failed = False, 0, 0
        self.best = BestGain(storage)
        self.thread = threading.Thread(target=self._run, name="tune", daemon=True)

    def start(self) -> None:
        """Begin, unless begun; trials of a cell follow as soon as its teacher is ready."""
        if not self.started:
            self.started = True
            self.thread.start()

    def stop(self, patience: float = 5.0) -> None:
        """End the run early: its trials are killed, their finished rows stay."""
        self.switch.stopped = True
        if self.thread.is_alive():
            self.thread.join(patience)

    def state(self, message: str = "") -> Event:
        """The state of the search as an event."""
        done, running = self.done + self.searcher.found, len(self.searcher.live)
        return Event(
            "search", done, self.searcher.total, running, self.failed, self.best.value, message
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
            self.mirror.write()
            self.events.put(None)

    def _tuner(self) -> Tuner:
        e = self.plan.experiment
        function = tune.with_parameters(
            trainable, plan=self.plan, storage=self.storage, threads=int(self.sizes["cpu"]),
            every=max(REPORT_EVERY, self.limit / REPORTS),
        )  # fmt: skip
        return Tuner(
            tune.with_resources(function, {k: v for k, v in self.sizes.items() if v}),
            tune_config=TuneConfig(
                search_alg=self.searcher,
                num_samples=self.searcher.total,
                max_concurrent_trials=self.limit,
                reuse_actors=True,
            ),
            run_config=RunConfig(
                name=f"search-{time.time_ns():x}",
                storage_path=self.scratch,
                verbose=0,
                stop=self.switch,
                failure_config=FailureConfig(max_failures=e.resources.retries),
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

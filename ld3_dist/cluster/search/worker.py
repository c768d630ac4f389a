"""The worker's side of a search: the function that Ray Tune runs, a turn of trials at a time."""

from __future__ import annotations

import json
import math
import os
import time
import traceback
from typing import Any

from ray import tune

from ...core.learning.learn import Progress
from ...core.memory import give_back
from ...experiment.plan import Plan, TrialSpec
from ...store.process import node_name, work_in
from ...store.storage import Storage
from ...tasks.trial import Outcome, restored_outcome, run_trial
from ..failures import record_failure
from ..logs import SweepHandler, timed, worker_log, write
from .batches import EPOCH, EPOCHS, FINISHED, LEAVES

REPORT_EVERY = 2.0
"""Seconds between the reports of a trial, at least."""

HOLD = 1.0
"""Seconds for which results may wait for others to go with them."""

SICK_AFTER = 3
"""Failures in a row after which a worker without a GPU is replaced; one with a GPU is at once, as
a failed kernel or a lack of memory stays with the process."""

WARNINGS = "warnings"
"""Key of the warnings in a report."""

_in_a_row = 0


def spec_of(plan: Plan, config: dict[str, Any]) -> TrialSpec:
    """The trial that a proposal stands for, with the members that are to be learned."""
    settings, members = json.loads(config["settings"]), json.loads(config["members"])
    return plan.spec(plan.cell(config["cell"]), settings, members)


def trainable(
    config: dict[str, Any], plan: Plan, storage: Storage, threads: int, every: float, folder: str
) -> None:
    """A turn: trials one after the other, each of which writes its rows itself.

    every: seconds between reports.  folder: to work in, the driver's.

    Raises the error of a trial after which this process had better be replaced; it is reported
    before.
    """
    global _in_a_row
    import torch

    work_in(folder)
    torch.set_num_threads(max(threads, 1))
    reporter = Reporter(every, worker_log(storage))
    for given in json.loads(config["batch"]):
        clock = time.perf_counter()
        try:
            outcome = run_one(given, plan, storage, reporter)
        except Exception as error:
            _in_a_row += 1
            leaves = torch.cuda.is_available() or _in_a_row >= SICK_AFTER
            reporter.ended({"key": given["key"], **failure_of(error)})
            if leaves:
                reporter.send(leaves=True)
                raise
        else:
            _in_a_row = 0
            seconds = time.perf_counter() - clock
            record = {"outcome": vars(outcome), "seconds": seconds}
            reporter.ended({"key": given["key"], **record})
            reporter.send_if_due(seconds)
    reporter.send()
    give_back()  # the next turn has a thread of its own


def run_one(given: dict[str, Any], plan: Plan, storage: Storage, reporter: Reporter) -> Outcome:
    """One trial; returns at once if its rows are there. Raises what it failed with, recorded."""
    spec = spec_of(plan, given)
    outcome = restored_outcome(plan, spec, storage)
    if outcome is not None:
        return outcome
    attempt, cell = given["attempt"], spec.cell.id
    numbers = {"round": given["round"], "attempts": attempt}

    def note(message: str) -> None:
        write("note", "search", spec.task, cell=cell, attempt=attempt, message=message)

    reporter.begin(spec.config.epochs)
    try:
        with timed("search", spec.task, later=True, cell=cell, attempt=attempt) as facts:
            outcome = run_trial(plan, spec, storage, numbers, on_progress=reporter, note=note)
            facts["status"] = outcome.status
    except Exception as error:
        try:
            reason = f"{type(error).__name__}: {error}"
            record_failure(storage, "search", spec.task, attempt, reason, traceback.format_exc())
        except OSError:  # the driver tries it again
            raise Unrecorded(error) from error
        raise
    return outcome


class Unrecorded(Exception):
    """An error of a trial that could not be written into the table of failures."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error, self.trace = error, traceback.format_exc()


def failure_of(error: Exception) -> dict[str, Any]:
    """A trial's error as part of a report: why it failed, and what to record if nobody has."""
    if not isinstance(error, Unrecorded):
        return {"failed": f"{type(error).__name__}: {error}"}
    reason = f"{type(error.error).__name__}: {error.error}"
    where = {"trace": error.trace, "node": node_name(), "pid": os.getpid()}
    return {"failed": reason, "unrecorded": where}


def warnings_of(log: SweepHandler) -> dict[str, str]:
    """The part of a report that carries a worker's warnings, a line each; empty without any."""
    taken = log.take_warnings()
    return {WARNINGS: "\n".join(taken)} if taken else {}


class Reporter:
    """Reports a turn to Tune: the trials that ended, and the progress and warnings of the others.

    A report waits until the driver has taken it, so there is at most one in `every` seconds while a
    trial runs, and results of short trials go together.
    """

    def __init__(self, every: float, log: SweepHandler) -> None:
        self.every, self.log, self.epochs = every, log, 0
        self.last = self.sent = time.monotonic()
        self.records: list[dict[str, Any]] = []
        self.state: dict[str, Any] = {"objective": 1e9, "status": "running"}

    def begin(self, epochs: int) -> None:
        """A trial of so many epochs begins."""
        self.epochs = epochs

    def __call__(self, progress: Progress) -> None:
        """Called after each epoch."""
        if time.monotonic() - self.last > self.every:
            loss = progress.best_valid.clamp(1e-300, 1e300).log().mean().item()
            start = (progress.best_valid / progress.valid.clamp_min(1e-300)).mean().item()
            self.state = {
                "objective": loss,
                "status": "running",
                EPOCH: progress.epoch,
                EPOCHS: self.epochs,
                "improvement": start,
            }
            self.send()

    def ended(self, record: dict[str, Any]) -> None:
        """A trial ended: keep the record of it for the next report."""
        self.records.append(record)
        outcome = record.get("outcome", {})
        objective = min(outcome.get("objective", math.inf), 1e9)  # Tune wants a number
        self.state = {"objective": objective, "status": outcome.get("status", "failed")}

    def send_if_due(self, seconds: float) -> None:
        """Report if a trial took long, or enough time has passed since the last report."""
        if seconds > HOLD or time.monotonic() - self.last > min(self.every, HOLD):
            self.send()

    def send(self, leaves: bool = False) -> None:
        """Report what there is, once the log is written; `leaves`: this process ends with it."""
        self.log.flush()
        report = self.state | warnings_of(self.log)
        if self.records:
            report |= {FINISHED: json.dumps(self.records)}
        self.records = []
        tune.report(report | ({LEAVES: True} if leaves else {}))
        self.last = time.monotonic()

"""The search stage: a Ray Tune run over the trials of all cells.

Its truth are the rows; Tune's own state is scratch.
"""

from __future__ import annotations

import json
import os
import queue
import threading
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ray import tune
from ray.tune import Callback, CheckpointConfig, FailureConfig, RunConfig, Stopper, TuneConfig, Tuner

from ..core.learn import Progress
from ..experiment.plan import Plan, TrialSpec
from ..store.storage import Storage, open_storage
from ..store.tables import read_records, read_table, write_table
from ..tasks.context import now, where
from ..tasks.trial import Outcome, failed_rows, outcome_of, run_trial
from .searcher import CellSearcher

REPORT_EVERY = 2.0
"""Seconds between the reports of a trial: a few hundred reports a second are what a driver can take."""


@dataclass(frozen=True)
class TrialEvent:
    """Something happened to a trial: running, done (with its outcome), retry or failed."""

    kind: str
    cell: str
    key: str
    outcome: Outcome | None = None
    message: str = ""


def read_outcome(storage: Storage, spec: TrialSpec) -> Outcome | None:
    """A trial's outcome from its rows; None while there are none, or only those of a failure."""
    if not storage.exists(f"rows/{spec.key}.parquet"):
        return None
    rows = read_records(storage, "rows", spec.key)
    if not rows or any(row["status"] == "failed" for row in rows):
        return None
    return outcome_of(
        spec, [row | {"valid_loss": float("inf") if row["valid_loss"] is None else row["valid_loss"]} for row in rows]
    )


def trainable(config: dict[str, Any], plan: Plan, place: str, threads: int) -> None:
    """One Tune trial. Writes its rows itself; returns at once if they are there."""
    import torch

    torch.set_num_threads(max(threads, 1))
    storage = open_storage(place)
    cell = next(cell for cell in plan.cells if cell.id == config["cell"])
    spec = TrialSpec(cell, json.loads(config["settings"]), config["key"])
    outcome = read_outcome(storage, spec)
    if outcome is None:
        attempt = 1 + len([n for n in storage.list("failures") if f"{spec.key}-" in n])
        numbers = {"trial": config["trial"], "generation": config["generation"], "attempts": attempt}
        try:
            outcome = run_trial(plan, spec, storage, numbers, on_progress=Reporter())
        except Exception as error:
            record_failure(
                storage, "search", spec.key, attempt, f"{type(error).__name__}: {error}", traceback.format_exc()
            )
            raise
    objective = min(outcome.objective, 1e9)  # a study must hear a number; the rows say what it was
    tune.report({"objective": objective, "status": outcome.status})


class Reporter:
    """Reports a trial's progress to Tune, now and then."""

    def __init__(self) -> None:
        self.last = time.monotonic()

    def __call__(self, progress: Progress) -> None:
        """Called after each epoch."""
        if time.monotonic() - self.last > REPORT_EVERY:
            self.last = time.monotonic()
            loss = progress.best_valid.clamp(1e-300, 1e300).log().mean().item()
            start = (progress.best_valid / progress.valid.clamp_min(1e-300)).mean().item()
            tune.report({"objective": loss, "status": "running", "epoch": progress.epoch, "improvement": start})


def record_failure(
    storage: Storage, stage: str, item: str, attempt: int, reason: str, trace: str | None = None,
    node: str | None = None, pid: int | None = None,
) -> None:  # fmt: skip
    """One row of the failures table."""
    record = {"stage": stage, "item": item, "attempt": attempt, "reason": reason, "traceback": trace, "time": now()}
    record |= {"node": node or where("cpu")["host"], "pid": pid or os.getpid()}
    write_table(storage, "failures", f"{stage}-{item.replace('/', '_')}-{attempt}-{time.time_ns():x}", [record])


def last_failure(storage: Storage, key: str) -> str:
    """Why a trial failed last, from the failures table; a worker that was killed could not write there."""
    mine = read_table(storage, "failures").query("item == @key")
    reasons = mine.sort_values(by="attempt", kind="stable")["reason"].tolist()
    return reasons[-1] if reasons else "the worker died"


class Watcher(Callback):
    """Turns Tune's callbacks into events of the sweep."""

    def __init__(self, events: queue.Queue[TrialEvent | None], storage: Storage) -> None:
        self.events, self.storage = events, storage

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its callbacks for a restore we never do; a queue cannot go along."""
        return {}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial began."""
        self.events.put(TrialEvent("running", trial.config["cell"], trial.config["key"]))

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial ended well."""
        result = trial.last_result or {}
        outcome = Outcome(trial.config["key"], result.get("objective", float("inf")), (), result.get("status", "ok"))
        self.events.put(TrialEvent("done", trial.config["cell"], trial.config["key"], outcome))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial failed for good."""
        key = trial.config["key"]
        self.events.put(TrialEvent("failed", trial.config["cell"], key, message=last_failure(self.storage, key)))


class StopSwitch(Stopper):
    """Ends the whole Tune run when asked to."""

    def __init__(self) -> None:
        self.stopped = False

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Whether to stop this trial."""
        return self.stopped

    def stop_all(self) -> bool:
        """Whether to stop everything."""
        return self.stopped


class SearchRun:
    """A Tune run in a thread of its own, so that the sweep goes on teaching and showing what happens."""

    def __init__(
        self, plan: Plan, storage: Storage, ready: set[str], scratch: str, sizes: dict[str, float], limit: int
    ) -> None:
        self.plan, self.storage, self.scratch, self.sizes = plan, storage, scratch, sizes
        self.searcher = CellSearcher(plan, lambda spec: read_outcome(storage, spec), ready, limit)
        self.limit, self.switch = limit, StopSwitch()
        self.events: queue.Queue[TrialEvent | None] = queue.Queue()
        self.error: BaseException | None = None
        self.thread = threading.Thread(target=self._run, name="tune", daemon=True)

    def start(self) -> None:
        """Begin; trials of a cell follow as soon as its teacher is ready."""
        self.thread.start()

    def stop(self, patience: float = 5.0) -> None:
        """End the run early: its trials are killed, their finished rows stay."""
        self.switch.stopped = True
        if self.thread.is_alive():
            self.thread.join(patience)

    def drain(self, timeout: float) -> Iterator[TrialEvent]:
        """What has happened since the last call; waits up to `timeout` seconds for the first event."""
        try:
            event = self.events.get(timeout=timeout)
            while event is not None:
                yield event
                event = self.events.get_nowait()
        except queue.Empty:
            return

    def _run(self) -> None:
        try:
            self._tuner().fit()
            if not self.switch.stopped:
                self._record_failed()
        except BaseException as error:  # noqa: BLE001  handed to the sweep, which raises it
            self.error = error
        finally:
            self.events.put(None)

    def _tuner(self) -> Tuner:
        e = self.plan.experiment
        function = tune.with_parameters(
            trainable, plan=self.plan, place=self.storage.url, threads=int(self.sizes["cpu"])
        )
        return Tuner(
            tune.with_resources(function, {k: v for k, v in self.sizes.items() if v}),
            tune_config=TuneConfig(
                search_alg=self.searcher, num_samples=self.searcher.total, max_concurrent_trials=self.limit,
                reuse_actors=True,
            ),
            run_config=RunConfig(
                name=f"search-{time.time_ns():x}", storage_path=self.scratch, verbose=0, stop=self.switch,
                failure_config=FailureConfig(max_failures=e.resources.retries),
                checkpoint_config=CheckpointConfig(num_to_keep=1),
                callbacks=[Watcher(self.events, self.storage), *_callbacks(self.plan)],
            ),
        )  # fmt: skip

    def _record_failed(self) -> None:
        """Trials that failed for good become rows, so that the table is complete."""
        for proposal in self.searcher.failed:
            spec, tried = proposal.spec, self.plan.experiment.resources.retries + 1
            numbers = {"trial": proposal.number, "generation": proposal.generation, "attempts": tried}
            rows = failed_rows(self.plan, spec, numbers, last_failure(self.storage, spec.key))
            write_table(self.storage, "rows", spec.key, rows)


def _callbacks(plan: Plan) -> list[Callback]:
    """The trackers asked for by resources.callbacks."""
    from ray.tune import logger

    made: list[Callback] = []
    for name in plan.experiment.resources.callbacks:
        if name == "tensorboard":
            made.append(logger.TBXLoggerCallback())
        elif name == "csv":
            made.append(logger.CSVLoggerCallback())
        elif name == "json":
            made.append(logger.JsonLoggerCallback())
        elif name == "wandb":
            from ray.air.integrations.wandb import WandbLoggerCallback

            made.append(WandbLoggerCallback(project=plan.experiment.name))
        else:
            from ray.air.integrations.mlflow import MLflowLoggerCallback

            made.append(MLflowLoggerCallback(experiment_name=plan.experiment.name))
    return made

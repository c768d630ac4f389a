"""A sweep from teacher to report, as a generator of events: `teach -> search -> evaluate`, each stage resumable.

Whatever is already there is not done again: shards, rows and evaluations are named by what they are. Trials of a model
start as soon as its teacher pairs are complete, while other models are still being taught.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from ..core.errors import InputError
from ..experiment.plan import FORMAT, Cell, Plan
from ..experiment.settings import Experiment
from ..store.lock import acquire
from ..store.results import load_results
from ..store.storage import Storage
from ..store.tables import read_table
from ..tasks.context import make_plan, open_settings
from ..tasks.evaluate import Item, finish, part_name, pictures, sample_part, teacher_item
from ..tasks.teach import make_shard, missing_shards, seal
from ..tasks.trial import run_baselines
from .connect import Sizes, connect, sizes_of
from .pool import Done, Failed, Pool, Task
from .search import SearchRun, record_failure


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

    def run(self) -> Iterator[Event]:
        """Do what is missing. Raises InputError before anything is written if it cannot be done."""
        plan = make_plan(self.experiment)
        check_claim(self.storage, plan)
        self.storage.check_writable()
        connect(self.address)
        try:
            sizes = sizes_of(self.experiment)
            with acquire(self.storage):
                claim(self.storage, plan)
                self.storage.sweep_temporary()
                try:
                    yield from self._stages(plan, sizes)
                finally:
                    ray.shutdown()
                    clean(self.storage)
        finally:
            ray.shutdown()

    def _stages(self, plan: Plan, sizes: Sizes) -> Iterator[Event]:
        ready: set[str] = set()
        with tempfile.TemporaryDirectory(prefix="ld3-dist-") as fallback:
            local = self.storage.local_path
            scratch = str(Path(local, ".ray")) if local else fallback
            run = SearchRun(plan, self.storage, ready, scratch, sizes.trial, sizes.trials)
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

    def _pool(self, sizes: Sizes, tasks: list[Task]) -> Pool:
        asked = self.experiment.resources
        count = min(sizes.actors, max(len(tasks), 1))
        return Pool(count, sizes.actor["cpu"], sizes.actor["gpu"], asked.retries, asked.deadline)

    def _work(
        self, stage: str, sizes: Sizes, tasks: list[Task], on_done: Callable[[Done], None] | None = None
    ) -> Iterator[Event]:
        """Run tasks on a pool and report them as events of a stage."""
        done = failed = 0
        if tasks:
            yield Event(stage, 0, len(tasks), running=min(len(tasks), sizes.actors))
        with self._pool(sizes, tasks) as pool:
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
        while run.thread.is_alive() or not run.events.empty():
            for event in run.drain(timeout=1.0):
                message = ""
                done += event.kind == "done"
                if event.kind == "failed":
                    failed += 1
                    message = f"trial {event.key} of {event.cell} failed: {event.message}"
                gain = best_gain(self.storage) if event.kind == "done" else None
                yield Event("search", done + run.searcher.found, total, len(run.searcher.live), failed, gain, message)
        if run.error is not None:
            raise run.error
        self.failures += failed
        yield Event("search", done + run.searcher.found, total, 0, failed, best_gain(self.storage))

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


def check_claim(storage: Storage, plan: Plan) -> bool:
    """Is the folder this experiment's? Or nobody's (False)? Raises InputError for another's, or a newer format."""
    if storage.exists("experiment.json"):
        found = json.loads(storage.read_bytes("experiment.json"))
        if found.get("format", 0) > FORMAT:
            raise InputError(
                f"{storage.url}: written by a newer ld3_dist (format {found['format']}); update, or use another folder"
            )
        if found.get("fingerprint") != plan.fingerprint:
            raise InputError(
                f"{storage.url}: holds another experiment ({found.get('name')!r}, fingerprint "
                f"{found.get('fingerprint')}; this is "
                f"{plan.fingerprint}); choose another --output, or remove that folder"
            )
        return True
    if storage.exists("rows") or storage.exists("pairs"):
        raise InputError(f"{storage.url}: holds results but no experiment.json; choose another --output")
    return False


def claim(storage: Storage, plan: Plan) -> None:
    """Make the folder this experiment's."""
    if check_claim(storage, plan):
        return
    body = {
        "format": FORMAT, "name": plan.experiment.name, "fingerprint": plan.fingerprint,
        "models": plan.model_hashes, "settings": plan.experiment.model_dump(mode="json"),
    }  # fmt: skip
    storage.write_bytes("experiment.json", (json.dumps(body, indent=2) + "\n").encode())


def clean(storage: Storage) -> None:
    """Remove Tune's scratch."""
    import shutil

    if storage.local_path:
        shutil.rmtree(Path(storage.local_path, ".ray"), ignore_errors=True)


def best_gain(storage: Storage) -> float | None:
    """Largest gain over the best baseline so far."""
    gains = load_results(storage).query("kind == 'learned' and status == 'ok' and gain.notna()")["gain"]
    return max(gains.tolist(), default=None)


def evaluation_items(plan: Plan, frame: Any) -> list[Item]:
    """Teachers, data, all baselines, and every member of the best trial of each cell."""
    items = [teacher_item(plan, model) for model in plan.experiment.models]
    if plan.experiment.evaluate.extractor == "auto" and plan.experiment.evaluate.reference == "auto":
        items += [Item(f"data:{m.model}", "data", m) for m in plan.experiment.models if m.model == "digits"][:1]
    for cell in plan.cells:
        here = frame[(frame["cell"] == cell.id) & (frame["status"] == "ok")]
        base = here[(here["kind"] == "baseline") & (here["distance"] == plan.experiment.distance)]
        items += [_item(row, cell) for row in base.to_dict("records")]
        best = here[here["best"]]
        if len(best):
            trial = best.iloc[0]["trial"]
            chosen = here[(here["kind"] == "learned") & (here["trial"] == trial)]
            items += [_item(row, cell) for row in chosen.to_dict("records")]
    return items


def picture_pairs(plan: Plan, frame: Any) -> list[tuple[Cell, Item, Item]]:
    """Best baseline and best learned row of every cell that has both, and whose samples are images."""
    pairs = []
    for cell in plan.cells if plan.experiment.evaluate.pictures else []:
        if len(open_settings(cell.model, "cpu").image_shape) != 3:
            continue
        here = frame[(frame["cell"] == cell.id) & (frame["status"] == "ok")]
        base = here[here["kind"] == "baseline"].sort_values("valid_loss")
        best = here[here["best"]]
        if len(base) and len(best):
            pairs.append((cell, _item(base.iloc[0].to_dict(), cell), _item(best.iloc[0].to_dict(), cell)))
    return pairs


def others(frame: Any, item: Item) -> dict[str, Any]:
    """Losses of the cell's baselines, for a learned row's schedule file."""
    if item.kind != "learned" or item.cell is None:
        return {}
    here = frame[(frame["cell"] == item.cell.id) & (frame["kind"] == "baseline") & (frame["status"] == "ok")]
    return {row["start"]: {"valid_loss": row["valid_loss"]} for row in here.to_dict("records")}


def _item(row: dict[str, Any], cell: Any) -> Item:
    grid = {name: tuple(float(v) for v in row[name]) for name in ("knots", "evals")}
    return Item(row["key"], row["kind"], cell.model, cell, grid)

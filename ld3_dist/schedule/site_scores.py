"""Losses of schedules and hand-made grids at sites, and the rows that follow from them.

The losses of a row are kept under the row's key, a set of samples per file, in the table `losses`.
What is there is not done again: an interrupted run goes on, and a folder grows with sites,
schedules, solvers, grids and sets. Gains, intervals and verdicts are made from the losses at the
end, which costs nothing.
"""

from __future__ import annotations

import math
import multiprocessing
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..core.errors import InputError
from ..core.learning.pairs import Pairs
from ..core.solver import Tableau, make_solver
from ..core.user_code import label
from ..metrics.paired import compare
from ..models import Model
from ..store.opening import open_storage
from ..store.tables import read_records, write_table
from .baselines import FOLLOWED, hand_made, to_follow
from .distances import open_distance
from .elsewhere import table_in
from .evaluating import loss_columns, measure
from .file import Schedule
from .learning import check_student
from .provenance import provenance
from .ranges import eval_range
from .sampling import device_of
from .sites import Site
from .starts import search_evals
from .target_features import TargetFeatures
from .teaching import Diverged, Teacher, teach

Losses = dict[tuple[str, int], np.ndarray]
"""(key of a row, number of the set) -> distances [samples], float32."""

WORKS, DOES_NOT, UNDECIDED = "works", "does not", "undecided"


@dataclass(frozen=True)
class Entry:
    """A schedule, or a hand-made grid, in a cell of a site.

    name: of the schedule or the grid.
    message: what of the schedule was left behind.
    """

    key: str
    kind: str
    name: str
    solver: str
    nfe: int
    message: str = ""


@dataclass(frozen=True)
class Work:
    """Everything that is to be measured at a site.

    named: the schedules by name.
    mapped: times are mapped in lam where the noise schedule is another one.
    """

    named: tuple[tuple[str, Schedule], ...]
    entries: tuple[Entry, ...]
    samples: int
    repeats: int
    seed: int
    teacher: Teacher
    distance: str
    mapped: bool
    model_hash: str
    conditioning: str
    guidance: float | None

    @property
    def network_evals(self) -> int:
        """Network evaluations, counted per sample; the teacher's included."""
        each = self.teacher.nfe + sum(entry.nfe for entry in self.entries)
        followed = 0
        for entry in self.entries:
            if entry.kind == "baseline":
                steps = make_solver(entry.solver).steps(entry.nfe)
                followed += search_evals(entry.name, steps, FOLLOWED)
        return each * self.samples * self.repeats + followed


@dataclass(frozen=True)
class Scored:
    """A site's records of the table `transfers`; `failed` says why there are no losses."""

    site: str
    records: list[dict[str, Any]]
    failed: str = ""


def score_sites(
    sites: Sequence[Site], work: Sequence[Work], out: str | os.PathLike[str] | None, jobs: int
) -> Iterator[Scored]:
    """The records of every site, in their order; see `transferring.score`."""
    place = None if out is None else os.fspath(out)
    if jobs == 1:
        for site, asked in zip(sites, work, strict=True):
            yield _scored(site, asked, *measure_site(site, asked, place))
        return
    with ProcessPoolExecutor(
        min(jobs, len(sites)),
        multiprocessing.get_context("spawn"),
        torch.set_num_threads,
        (max(1, torch.get_num_threads() // jobs),),
    ) as pool:
        running = [
            pool.submit(measure_site, *pair, place) for pair in zip(sites, work, strict=True)
        ]
        for site, asked, one in zip(sites, work, running, strict=True):
            try:
                found = one.result()
            except BrokenProcessPool:
                found = {}, "its process was killed, perhaps for want of memory; use fewer jobs"
            yield _scored(site, asked, *found)


def measure_site(site: Site, work: Work, out: str | None) -> tuple[Losses, str]:
    """The losses of every row of a site, and why they cannot be had; the latter is often empty.

    Args:
        out: where they are kept; they are read if they are there.
    """
    known = {} if out is None else _kept(work, out)
    sets = range(work.repeats)
    missing = {r: [e for e in work.entries if (e.key, r) not in known] for r in sets}
    if not any(missing.values()):
        return known, ""
    try:
        model = site.open()
        distance = open_distance(work.distance, model, str(device_of(model)))
        tables: dict[str, Tableau] = {}
        features = TargetFeatures()
        wanted = [e for entries in missing.values() for e in entries if e.kind == "baseline"]
        followed = to_follow((e.name for e in wanted), model, work.seed)
        for r, entries in missing.items():
            if not entries:
                continue
            indices = range(*eval_range(r, work.samples))
            pairs = teach(model, seed=work.seed, teacher=work.teacher, indices=indices)
            for entry in entries:
                if entry.key not in tables:
                    tables[entry.key] = _table(entry, model, work, followed)
                table = tables[entry.key]
                found = measure(model, table, pairs, distance, known=features).losses
                known[entry.key, r] = found.float().numpy()
                if out is not None:
                    _keep(out, entry.key, r, known[entry.key, r])
    except (Diverged, InputError) as error:
        return known, str(error)
    return known, ""


def _table(entry: Entry, model: Model, work: Work, followed: Pairs | None) -> Tableau:
    """The table of a row. Grids that follow trajectories look at samples of teaching, not at these.

    So they are the same for every set of samples.
    """
    if entry.kind == "learned":
        return table_in(dict(work.named)[entry.name], model, entry.solver, work.mapped)
    student = check_student(entry.solver, entry.nfe)
    return hand_made(entry.name, model, student, entry.nfe, followed)[1]


def _kept(work: Work, out: str) -> Losses:
    """The losses that are there, of as many samples as are asked for."""
    storage, found = open_storage(out), {}
    for entry in work.entries:
        for r in range(work.repeats):
            records = read_records(storage, "losses", _file(entry.key, r)) or [{}]
            losses = records[0].get("losses") or ()
            if len(losses) == work.samples:
                found[entry.key, r] = np.array(losses, dtype=np.float32)  # null becomes NaN
    return found


def _keep(out: str, key: str, repeat: int, losses: np.ndarray) -> None:
    start = eval_range(repeat, len(losses))[0]
    record = {"key": key, "repeat": repeat, "start": start, "losses": losses.tolist()}
    write_table(open_storage(out), "losses", _file(key, repeat), [record])


def _file(key: str, repeat: int) -> str:
    return f"{key}-{repeat}"


def _scored(site: Site, work: Work, losses: Losses, failed: str) -> Scored:
    """The records of a site from the losses that there are."""
    whole = {}
    for entry in work.entries:
        sets = [losses.get((entry.key, r)) for r in range(work.repeats)]
        there = [one for one in sets if one is not None]
        if len(there) == work.repeats:
            whole[entry.key] = np.concatenate(there).astype(np.float64)
    best = _best(work, whole)
    records = []
    for entry in work.entries:
        record = _described(site, work, entry)
        if entry.key not in whole:
            record |= {"status": "failed", "message": failed}
        else:
            record |= _measured(entry, whole, best.get((entry.solver, entry.nfe)))
            record["repeats"] = work.repeats
        records.append(record)
    return Scored(str(site), records, failed)


def _best(work: Work, whole: Mapping[str, np.ndarray]) -> dict[tuple[str, int], Entry]:
    """The hand-made grid with the smallest finite mean loss of each cell."""
    found: dict[tuple[str, int], Entry] = {}
    for entry in work.entries:
        mean = whole[entry.key].mean() if entry.key in whole else np.nan
        cell = entry.solver, entry.nfe
        better = cell not in found or mean < whole[found[cell].key].mean()
        if entry.kind == "baseline" and np.isfinite(mean) and better:
            found[cell] = entry
    return found


def _described(site: Site, work: Work, entry: Entry) -> dict[str, Any]:
    """What is known of a row before it is measured."""
    learned = dict(work.named)[entry.name] if entry.kind == "learned" else None
    found = {
        "key": entry.key,
        "kind": entry.kind,
        "site": str(site),
        "cell": f"{site}/{label(entry.solver)}/{entry.nfe}",
        "model": site.name,
        "model_hash": work.model_hash,
        "conditioning": work.conditioning,
        "guidance": work.guidance,
        "size": site.size,
        "dtype": site.dtype,
        "solver": label(entry.solver),
        "nfe": entry.nfe,
        "teacher_solver": work.teacher.solver,
        "teacher_nfe": work.teacher.nfe,
        "teacher_start": work.teacher.start,
        "distance": work.distance,
        "seed": work.seed,
        "message": entry.message or None,
        **provenance(),
    }
    if learned is None:
        return found | {"start": label(entry.name)}
    return found | {
        "schedule": entry.name,
        "learned_model": label(learned.model),
        "learned_solver": label(learned.solver),
        "learned_guidance": learned.guidance,
    }


def _measured(entry: Entry, whole: Mapping[str, np.ndarray], best: Entry | None) -> dict[str, Any]:
    """Losses of a row and, of a schedule, its gain over the best hand-made grid."""
    losses = whole[entry.key]
    found: dict[str, Any] = {"samples": len(losses)}
    lost = int((~np.isfinite(losses)).sum())
    if lost:
        said = f"{lost} of {len(losses)} samples are not finite"
        verdict = DOES_NOT if entry.kind == "learned" else None
        return found | {"status": "diverged", "message": said, "verdict": verdict}
    found |= loss_columns(torch.from_numpy(losses)) | {"status": "ok"}
    if entry.kind == "baseline":
        return found
    if best is None:
        return found | {"verdict": UNDECIDED, "message": "no hand-made grid is finite here"}
    others = whole[best.key]
    one = compare(losses, others)
    middle = loss_columns(torch.from_numpy(others))
    for name in ("median", "iqm"):
        own = found[f"eval_loss_{name}"]
        found[f"eval_gain_{name}"] = middle[f"eval_loss_{name}"] / own if own > 0 else None
    value, low, high = one.ratio
    return found | {
        "eval_gain": 1 / value,
        "eval_gain_low": 1 / high,
        "eval_gain_high": 1 / low if low else math.inf,  # so few samples decide nothing
        "eval_gain_over": best.key,
        "eval_p_improvement": one.p_improvement,
        "against": label(best.name),
        "verdict": WORKS if high < 1 else DOES_NOT if low > 1 else UNDECIDED,
    }

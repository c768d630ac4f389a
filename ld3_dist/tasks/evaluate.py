"""Evaluation: fresh samples of schedules, their distances to the teacher, and their scores.

`sample_part` makes a fixed range of samples and keeps their features and distances to the teacher;
`finish` merges the parts of a row and computes its scores. Parts are files: large features never
pass through the driver. A part says which table made it, and is verified when it is read.

An evaluation is named by its settings: number of samples and sets, extractor, reference, metrics,
distance, teacher. Other settings make another evaluation of the same row, beside the first. The
teacher and the distance are always the experiment's own, so that all rows of a cell compare. The
distance of every sample is kept in `losses/` (`kept_samples`).
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..core.errors import InputError
from ..core.features import Extractor, Reference
from ..core.grid import Grid
from ..core.solver import Tableau, make_solver
from ..core.text import file_name
from ..experiment.plan import Cell, Plan, digest
from ..experiment.sections import ModelSettings
from ..metrics.extractors import model_reference, read_reference
from ..metrics.judges import judge_name
from ..metrics.of_samples import sample_metric
from ..metrics.scores import BUILT_IN, as_reference
from ..metrics.statistics import frechet_parts
from ..models import Model
from ..schedule.evaluating import (
    Measured,
    joined,
    loss_columns,
    measure,
    prompts_of,
    score_columns,
)
from ..schedule.file import parse_schedule, read_schedule
from ..schedule.provenance import provenance, where
from ..schedule.sampling import make_samples, to_images
from ..schedule.target_features import TargetFeatures
from ..store.sealed import seal, unseal
from ..store.storage import Storage
from ..store.tables import read_records, write_table
from .kept_samples import Kept, gain_columns, read_kept, write_kept
from .opened import distance_of, extractor_of, judges_of, keep, model_of, pairs_of
from .schedules import metrics_of, schedule_name
from .scored import evaluation_name, evaluation_of

PART = 500
SCORE = "judged."
"""The names of tensors of a part that hold a metric of single samples begin with this."""


@dataclass(frozen=True)
class Item:
    """One thing to score: a learned row, a baseline, a teacher, or the data (one half against the
    other).

    grid: knots and network times of a baseline.
    rivals: row keys of the cell's hand-made grids, which a learned row is compared with.
    """

    key: str
    kind: str
    model: ModelSettings
    cell: Cell | None = None
    grid: Mapping[str, tuple[float, ...]] | None = None
    rivals: tuple[str, ...] = ()
    own: str | None = None
    """Text of the schedule file of a baseline that brings its own table."""

    def parts(self, plan: Plan) -> list[tuple[int, int]]:
        """The ranges of evaluation samples it is sampled in.

        They are fixed, so that any number of actors gives the same, and counted from the start of
        their set, so that more samples change the last one at most.
        """
        if self.kind == "data":
            return []
        return [part for span in plan.eval_ranges for part in _tiles(span)]


def _tiles(span: tuple[int, int]) -> list[tuple[int, int]]:
    start, stop = span
    return [(i, min(i + PART, stop)) for i in range(start, stop, PART)]


def teacher_item(plan: Plan, model: ModelSettings) -> Item:
    """The teacher's own samples of a model."""
    return Item(f"teacher:{plan.teacher_key(model)}", "teacher", model)


def schedule_tableau(item: Item, model: Model, storage: Storage) -> Tableau:
    """The table of an item: a learned row's from its schedule file, a baseline's from its grid.

    A published schedule among the baselines has its own.
    """
    if item.own is not None:
        return parse_schedule(item.own).table_for(model)
    if item.kind == "learned":
        return read_schedule(storage, schedule_name(item.key)).table_for(model)
    assert item.grid is not None
    assert item.cell is not None
    knots, evals = (
        torch.tensor(item.grid[name], dtype=torch.float64) for name in ("knots", "evals")
    )
    return make_solver(item.cell.solver).tableau(model.denoiser.noise, Grid(knots, evals))


def part_name(item: Item, start: int, stop: int) -> str:
    """File of a part."""
    return f"parts/{digest(item.key)}/{start:08d}-{stop:08d}.safetensors"


def sample_part(
    plan: Plan, item: Item, storage: Storage, start: int, stop: int, device: str | None = None
) -> float:
    """Make the samples [start, stop) of an item; returns the seconds it took."""
    clock = time.perf_counter()
    read_part(plan, item, storage, start, stop, device)
    return time.perf_counter() - clock


def read_part(
    plan: Plan, item: Item, storage: Storage, start: int, stop: int, device: str | None = None
) -> Measured:
    """The losses, features and scores of the samples [start, stop) of an item.

    They are read from their file, or made and written if the file is missing, damaged or another's.
    """
    model, e, name = model_of(item.model, device), plan.experiment, part_name(item, start, stop)
    table = None if item.kind == "teacher" else schedule_tableau(item, model, storage)
    extractor = extractor_of(plan, item.model, device)
    about = {"item": item.key, "start": start, "stop": stop, "table": _digest_of(table)}
    about |= {"extractor": extractor and extractor.hash, "distance": e.distance}
    judges = [name for name in e.evaluate.metrics or () if judge_name(name)]
    if judges:
        about |= {"judges": [[judge_name(name), plan.content(name)] for name in judges]}
    further = [[plan.portable(name), e.distance_options(name)] for name in e.further_distances]
    if further:
        about |= {"distances": further}
    with contextlib.suppress(FileNotFoundError, InputError):
        return _unpacked(unseal(storage.read_bytes(name), about)[1])
    prompts = prompts_of(model, e.seed, [range(start, stop)])
    found = measure(
        model,
        table,
        pairs_of(plan, item.model, storage, start, stop, device),
        distance_of(plan, e.distance, item.model, device),
        extractor,
        judges_of(plan, device),
        prompts[0] if prompts else None,
        further={name: distance_of(plan, name, item.model, device) for name in e.further_distances},
        space=e.loss_space,
        batch=e.resources.batch,
        known=keep("features of targets", TargetFeatures),
    )
    storage.write_bytes(name, seal(_packed(found), about))
    return found


def _packed(found: Measured) -> dict[str, Tensor]:
    """The tensors of a part's file."""
    tensors = {"loss": found.losses} | {f"{SCORE}{k}": v for k, v in found.scores.items()}
    return tensors if found.features is None else tensors | {"features": found.features}


def _unpacked(tensors: Mapping[str, Tensor]) -> Measured:
    """The inverse of `_packed`."""
    scores = {k.removeprefix(SCORE): v for k, v in tensors.items() if k.startswith(SCORE)}
    return Measured(tensors["loss"], tensors.get("features"), scores)


def _digest_of(table: Tableau | None) -> str | None:
    """A short hash of a table; None of the teacher's own samples."""
    if table is None:
        return None
    return digest([part.tolist() for part in (table.evals, table.state, table.outputs)])


def finish(
    plan: Plan,
    item: Item,
    storage: Storage,
    seconds: float,
    others: Mapping[str, Any],
    device: str | None = None,
) -> dict[str, Any]:
    """Merge an item's parts, score them, write its evaluation (and, for a learned row, its schedule
    file anew).

    `others`: losses and metrics of the cell's baselines, for the schedule file.
    """
    clock = time.perf_counter()
    model, extractor = model_of(item.model, device), extractor_of(plan, item.model, device)
    evaluation = evaluation_of(plan, item.model, device)
    name = evaluation_name(item.key, evaluation)
    metrics = plan.experiment.evaluate.metrics or BUILT_IN
    record: dict[str, Any] = {"key": item.key, "kind": item.kind, "evaluation": evaluation}
    record |= {"cell": item.cell.id if item.cell else None} | provenance() | where(device)
    if item.kind == "data":
        assert extractor is not None
        features, reference = _data_halves(extractor, model)
        record |= {"samples": len(features), "repeats": 1}
        halves = Measured(torch.zeros(0), features)
        of_features = [name for name in metrics if sample_metric(name) is None]
        record |= score_columns([halves], extractor, [reference], of_features)
    else:
        sets = read_sets(plan, item, storage, device)
        losses = [one.losses for one in sets]
        record |= loss_columns(torch.cat(losses)) | {"repeats": len(sets)}
        references: list[Reference | None] = [None] * len(sets)
        if extractor is not None:
            references = _references(plan, item, storage, extractor, model, device)
        record |= score_columns(sets, extractor, references, metrics)
        kept = _kept(plan, model, sets, references if record.get("fid") is not None else [])
        write_kept(storage, item.key, evaluation, [span[0] for span in plan.eval_ranges], kept)
        if item.kind == "learned":
            record |= gain_columns(storage, item.rivals, evaluation, Kept.joined(kept))
    record["seconds"] = seconds + time.perf_counter() - clock
    if item.kind == "learned":
        _complete_schedule(storage, item.key, record, others)
    write_table(storage, "evaluations", name, [record])
    return {k: record.get(k) for k in ("key", "eval_loss", "fid")}


def _kept(
    plan: Plan, model: Model, sets: Sequence[Measured], references: Sequence[Reference | None]
) -> list[Kept]:
    """The values of single samples that are kept of each set.

    Args:
        references: of each set, for what its samples add to the Fréchet distance; or none.
    """
    found = []
    for i, (span, one) in enumerate(zip(plan.eval_ranges, sets, strict=True)):
        known = references[i] if references else None
        frechet = None
        if known is not None and one.features is not None:
            frechet = frechet_parts(one.features, known.moments)
        prompts = prompts_of(model, plan.experiment.seed, [range(*span)]) if one.scores else None
        found.append(Kept(one.losses, frechet, one.scores, prompts[0] if prompts else None))
    return found


def read_sets(
    plan: Plan, item: Item, storage: Storage, device: str | None = None
) -> list[Measured]:
    """The losses, features and scores of every set of samples of an item, its parts joined."""
    found = []
    for span in plan.eval_ranges:
        parts = [read_part(plan, item, storage, a, b, device) for a, b in _tiles(span)]
        features = [part.features for part in parts if part.features is not None]
        whole = torch.cat(features) if features else None
        losses = torch.cat([part.losses for part in parts])
        found.append(Measured(losses, whole, joined([part.scores for part in parts])))
    return found


def compare_again(plan: Plan, item: Item, storage: Storage) -> None:
    """Bring the gain of an evaluation up to date, where another grid is the best one by now."""
    evaluation = evaluation_of(plan, item.model)
    name = evaluation_name(item.key, evaluation)
    records = read_records(storage, "evaluations", name)
    kept = read_kept(storage, item.key, evaluation)
    if not records or kept is None:
        return
    own = json.loads(records[0].pop("own_metrics") or "{}")
    records[0].pop("over_grid", None)  # it is made again
    record = records[0] | own | gain_columns(storage, item.rivals, evaluation, kept)
    write_table(storage, "evaluations", name, [record])


def pictures(
    plan: Plan, baseline: Item, learned: Item, storage: Storage, device: str | None = None
) -> None:
    """A few samples of a cell's teacher, best baseline and best learned schedule, same noise."""
    assert learned.cell is not None
    model = model_of(learned.model, device)
    if len(model.image_shape) != 3:
        return
    about = _about_pictures(plan, baseline, learned)
    pairs = pairs_of(plan, learned.model, storage, about["start"], about["stop"], device)
    images = {"teacher": to_images(model, plan.experiment.loss_space, pairs.target)}
    for item in (baseline, learned):
        table = schedule_tableau(item, model, storage)
        images[item.kind] = make_samples(model, table, pairs.noise, pairs.condition)
    tensors = {name: value.float() for name, value in images.items()}
    storage.write_bytes(picture_name(learned.cell.id), seal(tensors, about))


def has_pictures(plan: Plan, baseline: Item, learned: Item, storage: Storage) -> bool:
    """True if the pictures of a cell are there whole and show these two schedules."""
    assert learned.cell is not None
    try:
        data = storage.read_bytes(picture_name(learned.cell.id))
        unseal(data, _about_pictures(plan, baseline, learned))
    except (FileNotFoundError, InputError):
        return False
    return True


def picture_name(cell: str) -> str:
    """The file of a cell's pictures."""
    return f"samples/{file_name(cell)}.safetensors"


def _about_pictures(plan: Plan, baseline: Item, learned: Item) -> dict[str, Any]:
    assert learned.cell is not None
    start, stop = plan.eval_range
    stop = min(start + plan.experiment.evaluate.pictures, stop)
    found = {"cell": learned.cell.id, "baseline": baseline.key, "learned": learned.key}
    return found | {"start": start, "stop": stop}


def _references(
    plan: Plan,
    item: Item,
    storage: Storage,
    extractor: Extractor,
    model: Model,
    device: str | None,
) -> list[Reference | None]:
    """The reference of every set of an item: the model's own, a file's, or the teacher's samples.

    The teacher's samples are those of the same set, from the same noise.
    """
    wanted, repeats = plan.experiment.evaluate.reference, len(plan.eval_ranges)
    if wanted not in ("auto", "teacher"):
        key = f"reference {wanted} {extractor.hash}"
        return [keep(key, lambda: read_reference(wanted, extractor))] * repeats
    if wanted == "auto":
        key = f"reference {model.hash} {extractor.hash}"
        own = keep(key, lambda: model_reference(model, extractor))
        if own is not None:
            return [own] * repeats
    if item.kind == "teacher":
        return [None] * repeats

    def make() -> list[Reference | None]:
        sets = read_sets(plan, teacher_item(plan, item.model), storage, device)
        made = [as_reference(one.features) for one in sets]
        return [one and replace(one, name="teacher") for one in made]

    evaluation = evaluation_of(plan, item.model, device)
    return keep(f"teacher's samples {storage.url} {evaluation}", make)


def _data_halves(extractor: Extractor, model: Model) -> tuple[Tensor, Reference]:
    """Every other example of the data against the rest: what two samples of the truth score."""
    known = model_reference(model, extractor)
    assert known is not None
    assert known.features is not None
    other = as_reference(known.features[1::2])
    assert other is not None
    return known.features[0::2], replace(other, name="the other half of the data")


def _complete_schedule(
    storage: Storage, key: str, record: dict[str, Any], others: Mapping[str, Any]
) -> None:
    schedule = read_schedule(storage, schedule_name(key))
    complete = replace(schedule, metrics=metrics_of(record), baselines=dict(others))
    complete.write(storage, schedule_name(key))

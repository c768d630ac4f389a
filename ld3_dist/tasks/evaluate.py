"""Evaluation: fresh samples of the best trial and the baselines of every cell, and what they score.

`sample_part` makes a fixed range of samples and keeps their features and distances to the teacher;
`finish` merges the parts of a row and computes its scores. Parts are files: large features never
pass through the driver."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from ..core.features import Extractor, Reference
from ..core.grid import Grid
from ..core.solver import Tableau, make_solver
from ..experiment.plan import Cell, Plan, digest
from ..experiment.settings import ModelSettings
from ..metrics.extractors import model_reference, read_reference
from ..metrics.scores import Samples, as_reference, score
from ..models import Model
from ..schedule.file import read_schedule
from ..store.storage import Storage
from ..store.tables import write_table
from .context import (
    distance_of,
    extractor_of,
    keep,
    make_samples,
    open_settings,
    pairs_of,
    provenance,
    where,
)
from .space import in_loss_space, to_images

PART = 500


@dataclass(frozen=True)
class Item:
    """What is evaluated: a learned row, a baseline, a teacher, or the data (one half against the
    other).
    """

    key: str
    kind: str
    model: ModelSettings
    cell: Cell | None = None
    grid: Mapping[str, tuple[float, ...]] | None = None

    def parts(self, plan: Plan) -> list[tuple[int, int]]:
        """The ranges of evaluation samples it is sampled in; fixed, so that any number of actors
        gives the same.
        """
        start, stop = plan.eval_range
        return (
            [(i, min(i + PART, stop)) for i in range(start, stop, PART)]
            if self.kind != "data"
            else []
        )


def teacher_item(plan: Plan, model: ModelSettings) -> Item:
    """The teacher's own samples of a model."""
    return Item(f"teacher:{plan.teacher_key(model)}", "teacher", model)


def schedule_tableau(item: Item, opened: Model, storage: Storage) -> Tableau:
    """The table of an item: a learned row's from its schedule file, a baseline's from its grid."""
    if item.kind == "learned":
        return read_schedule(storage, f"schedules/{item.key}.json").tableau
    assert item.grid is not None
    assert item.cell is not None
    knots, evals = (
        torch.tensor(item.grid[name], dtype=torch.float64) for name in ("knots", "evals")
    )
    return make_solver(item.cell.solver).tableau(opened.denoiser.noise, Grid(knots, evals))


def part_name(item: Item, start: int, stop: int) -> str:
    """File of a part."""
    return f"parts/{digest(item.key)}/{start:08d}-{stop:08d}.safetensors"


def sample_part(
    plan: Plan, item: Item, storage: Storage, start: int, stop: int, device: str | None = None
) -> float:
    """Make the samples [start, stop) of an item; returns the seconds it took."""
    clock = time.perf_counter()
    if storage.exists(part_name(item, start, stop)):
        return 0.0
    opened = open_settings(item.model, device)
    pairs = pairs_of(plan, item.model, storage, start, stop, device)
    extractor = extractor_of(plan, item.model, device)
    batch = plan.experiment.resources.batch
    if item.kind == "teacher":
        made = pairs.target
    else:
        made = make_samples(
            in_loss_space(plan, opened), schedule_tableau(item, opened, storage), pairs, batch
        )
    distance = distance_of(plan, plan.experiment.distance, item.model, device)
    with torch.no_grad():
        losses = [
            distance.between(distance.features(made[i]), distance.features(pairs.target[i]))
            for i in torch.arange(len(made)).split(batch)
        ]
        images = to_images(plan, opened, made, batch) if extractor else made
        features = [extractor.features(part) for part in images.split(batch)] if extractor else []
    tensors = {"loss": torch.cat(losses).double().cpu()}
    if features:
        tensors["features"] = torch.cat(features).float().cpu()
    storage.write_bytes(part_name(item, start, stop), save_tensors(tensors))
    return time.perf_counter() - clock


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
    opened = open_settings(item.model, device)
    extractor = extractor_of(plan, item.model, device)
    record: dict[str, Any] = {
        "key": item.key,
        "kind": item.kind,
        "cell": item.cell.id if item.cell else None,
    }
    record |= provenance() | where(device)
    features = reference = None
    if item.kind == "data":
        assert extractor is not None
        features, reference = _data_halves(extractor, opened)
        record["samples"] = len(features)
    else:
        parts = [
            load_tensors(storage.read_bytes(part_name(item, a, b))) for a, b in item.parts(plan)
        ]
        loss = torch.cat([part["loss"] for part in parts])
        record |= {"samples": len(loss), "eval_loss": loss.mean().item()}
        if len(loss) > 1:
            record["eval_loss_sem"] = (loss.std() / math.sqrt(len(loss))).item()
        reference = _reference(plan, item, storage, extractor, opened)
        if parts and "features" in parts[0]:
            features = torch.cat([part["features"] for part in parts])
    if features is not None and extractor is not None:
        logits = None if extractor.class_scores is None else extractor.class_scores(features)
        record |= {"extractor": extractor.name, "extractor_hash": extractor.hash}
        record |= {"reference": reference.name if reference else None}
        record |= score(Samples(features, logits), reference).values
    record["seconds"] = seconds + time.perf_counter() - clock
    if item.kind == "learned":
        _complete_schedule(storage, item.key, record, others)
    write_table(storage, "evaluations", item.key.replace(":", "_"), [record])
    return {k: record.get(k) for k in ("key", "eval_loss", "fid")}


def pictures(
    plan: Plan, baseline: Item, learned: Item, storage: Storage, device: str | None = None
) -> None:
    """A few samples of a cell's teacher, best baseline and best learned schedule, from the same
    noise.
    """
    assert learned.cell is not None
    opened = open_settings(learned.model, device)
    if len(opened.image_shape) != 3:
        return
    start, stop = plan.eval_range
    pairs = pairs_of(
        plan,
        learned.model,
        storage,
        start,
        min(start + plan.experiment.evaluate.pictures, stop),
        device,
    )
    made = {
        item.kind: make_samples(opened, schedule_tableau(item, opened, storage), pairs, len(pairs))
        for item in (baseline, learned)
    }
    target = to_images(plan, opened, pairs.target, len(pairs))
    tensors = {
        name: value.float().cpu().contiguous()
        for name, value in {"teacher": target, **made}.items()
    }
    storage.write_bytes(
        f"samples/{learned.cell.id.replace('/', '_')}.safetensors",
        save_tensors(tensors, {"cell": learned.cell.id}),
    )


def _reference(
    plan: Plan, item: Item, storage: Storage, extractor: Extractor | None, opened: Model
) -> Reference | None:
    """What an item is compared with: the model's own reference, the teacher's samples, or a file of
    statistics.
    """
    if extractor is None:
        return None
    wanted = plan.experiment.evaluate.reference
    if wanted not in ("auto", "teacher"):
        return keep(
            f"reference {wanted} {extractor.hash}", lambda: read_reference(wanted, extractor)
        )
    if wanted == "auto":
        own = keep(
            f"reference {opened.hash} {extractor.hash}", lambda: model_reference(opened, extractor)
        )
        if own is not None:
            return own
    if item.kind == "teacher":
        return None
    teacher = teacher_item(plan, item.model)
    parts = [
        load_tensors(storage.read_bytes(part_name(teacher, a, b))) for a, b in teacher.parts(plan)
    ]
    known = as_reference(torch.cat([part["features"] for part in parts]))
    return replace(known, name="teacher") if known else None


def _data_halves(extractor: Extractor, opened: Model) -> tuple[Tensor, Reference]:
    """Every other example of the data against the rest: what two samples of the truth score."""
    assert opened.data is not None
    features = extractor.features_of(opened.data)
    known = as_reference(features[1::2])
    assert known is not None
    return features[0::2], replace(known, name="the other half of the data")


def _complete_schedule(
    storage: Storage, key: str, record: dict[str, Any], others: Mapping[str, Any]
) -> None:
    schedule = read_schedule(storage, f"schedules/{key}.json")
    names = ("eval_loss", "eval_loss_sem", "fid", "kid", "inception_score")
    names += ("precision", "recall", "density", "coverage")
    metrics = {
        name: record[name]
        for name in names
        if record.get(name) is not None and math.isfinite(record[name])
    }
    complete = replace(schedule, metrics=metrics, baselines=dict(others))
    complete.write(storage, f"schedules/{key}.json")

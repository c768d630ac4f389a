"""Checks of memory: what a step of learning takes, and the teacher's pairs on disk."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import torch

from ..core.errors import InputError
from ..core.learning.config import CHECKPOINTING
from ..core.memory import free_memory
from ..experiment.plan import Plan
from ..experiment.sections import ModelSettings
from ..models import Model
from ..schedule.sampling import in_loss_space
from ..tasks.opened import distance_of
from .check import Check
from .footprint import Footprint, footprint, pairs_bytes, readable
from .output_folder import existing


def memory_checks(plan: Plan, opened: dict[str, Model], output: str | None) -> Iterator[Check]:
    """Check memory and disk for the models that could be opened."""
    disk = 0
    for model in plan.models:
        found = opened.get(plan.source_of(model).label)
        if found is None:
            yield Check("memory", model.label, "note", "unknown until the model is there")
            continue
        disk += pairs_bytes(plan, model, found)
        yield _learning(plan, model, found)
    if opened:
        count = (
            "" if len(opened) == len(plan.experiment.models) else " (of the models that are there)"
        )
        yield _disk(disk, count, output)


def _learning(plan: Plan, model: ModelSettings, opened: Model) -> Check:
    """The memory of a step of learning, if it can be estimated."""
    try:
        distance = distance_of(plan, plan.experiment.distance, model, "cpu")
    except InputError:
        distance = None
    try:
        size = footprint(in_loss_space(opened, plan.experiment.loss_space), distance)
    # a user's network may do things that have no version for shapes alone
    except Exception as error:  # noqa: BLE001
        detail = f"cannot be estimated ({type(error).__name__})"
        return Check("memory", model.label, "note", detail)
    return _step(plan, model, size, "" if distance else "; without the distance's network")


def _step(plan: Plan, model: ModelSettings, size: Footprint, without: str) -> Check:
    """The memory of the largest step of learning, for every `learn.checkpointing` that is asked."""
    nfe = max(plan.experiment.nfe)
    cell = next(cell for cell in plan.cells if cell.model == model)
    trials = [plan.trial(cell, point) for point in plan.points_of(cell)]
    samples = max(len(trial.members) * min(trial.config.batch, trial.train) for trial in trials)
    asked = {trial.config.checkpointing for trial in trials}
    kept, again = size.step(samples, nfe), size.step(samples, nfe, recomputed=True)
    words = {
        "never": f"{readable(kept)}, activations kept",
        "always": f"{readable(again)}, activations recomputed",
        "auto": f"{readable(kept)} with activations kept, {readable(again)} if they do not fit "
        "and are recomputed",
    }
    modes = [mode for mode in CHECKPOINTING if mode in asked]
    text = " or ".join(f"{words[mode]} (checkpointing: {mode})" for mode in modes)
    detail = (
        f"weights {readable(size.weights)}; learning {samples} samples at {nfe} evaluations: "
        f"{text}{without}"
    )
    place, free = _free()
    if (kept if "never" in asked else again) <= free:
        return Check("memory", model.label, "ok", detail)
    if size.step(1, nfe, recomputed="never" not in asked) <= free:
        remedy = (
            f"{place} {readable(free)}: samples go through in smaller parts, which takes longer; "
            "or a smaller learn.batch"
        )
    else:
        remedy = (
            f"{place} {readable(free)}, too little for one sample: set learn: "
            "{checkpointing: always}, a smaller dtype, or another device"
        )
    return Check("memory", model.label, "note", detail, remedy)


def _free() -> tuple[str, int]:
    """The bytes that learning can use here, and the words for messages before them."""
    if torch.cuda.is_available():
        return "the GPU has", torch.cuda.get_device_properties(0).total_memory
    return "free here are", free_memory(torch.device("cpu"))


def _disk(need: int, count: str, output: str | None) -> Check:
    """The room on disk for pairs; unknown for an object store."""
    detail = f"{readable(need)}{count}"
    if output is None or "://" in output:
        return Check("memory", "pairs on disk", "ok", detail)
    free = shutil.disk_usage(existing(Path(output))).free
    detail += f"; {readable(free)} are free"
    if free > need:
        return Check("memory", "pairs on disk", "ok", detail)
    return Check("memory", "pairs on disk", "missing", detail, "use another --output")

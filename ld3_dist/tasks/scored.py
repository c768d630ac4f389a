"""The rows that a sweep evaluates, and the name of their evaluation.

    best              all members of the best trial of each cell
    {best_per: axes}  the best trial for each combination of levels of these axes, and its members
                      at these levels
    all               every learned row that came out ok

The best trial has the row with the smallest held-out loss. Losses are compared only where they can
be: within a cell, a distance, a teacher and the same held-out pairs. A hand-made grid is evaluated
once, by its row in the experiment's own distance and with its own teacher.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

from ..core.text import file_name
from ..experiment.plan import Plan, digest
from ..experiment.sections import BestPer, ModelSettings
from ..store.results import COMPARABLE
from ..store.settings_columns import axis_column
from .opened import extractor_of, keep

Row = dict[str, Any]
Wanted = Literal["best", "all"] | BestPer


def grids_of(
    rows: Iterable[Row], distance: str | None, teachers: Iterable[str] | None
) -> list[Row]:
    """The hand-made grids that are evaluated, each once.

    Args:
        distance: label of the experiment's own distance; any if None.
        teachers: keys of its own teacher for the models; any if None.
    """
    known = None if teachers is None else set(teachers)
    found: dict[tuple[Any, Any], Row] = {}
    for row in rows:
        if (row["kind"], row["status"]) != ("baseline", "ok"):
            continue
        own = distance in (None, row["distance"]) and (known is None or row["teacher"] in known)
        if own:
            found.setdefault((row["cell"], row["start"]), row)
    return list(found.values())


def learned_of(rows: Iterable[Row], wanted: Wanted) -> list[Row]:
    """The learned rows that are evaluated, in their order."""
    ok = [row for row in rows if (row["kind"], row["status"]) == ("learned", "ok")]
    ok = [row for row in ok if _number(row["valid_loss"])]
    if wanted == "all":
        return ok
    axes = wanted.best_per if isinstance(wanted, BestPer) else ()
    columns = (*COMPARABLE, *map(axis_column, axes))
    best: dict[tuple[Any, ...], Row] = {}
    for row in ok:
        level = _level(row, columns)
        if level not in best or row["valid_loss"] < best[level]["valid_loss"]:
            best[level] = row
    chosen = {(level, row["trial"]) for level, row in best.items()}
    return [row for row in ok if (_level(row, columns), row["trial"]) in chosen]


def _level(row: Row, columns: Sequence[str]) -> tuple[Any, ...]:
    """The values of some columns, with None for what is missing."""
    values = [row.get(name) for name in columns]
    return tuple(value if _number(value) or isinstance(value, str) else None for value in values)


def _number(value: Any) -> bool:
    """True for a number that is not missing, in any of pandas' ways."""
    return isinstance(value, int | float) and value == value


def evaluation_of(plan: Plan, model: ModelSettings, device: str | None = None) -> str:
    """The name of a model's evaluations with the settings of an experiment: a hash of them."""
    e = plan.experiment

    def make() -> str:
        extractor = extractor_of(plan, model, device)
        settings = dict(plan.identity["evaluate"])
        for name in ("rows", "pictures"):
            settings.pop(name, None)
        settings["extractor"] = extractor and [extractor.name, extractor.hash]
        settings["distance"] = [plan.identity["distance"], e.distance_options(e.distance)]
        options = {name: e.distance_options(name) for name in e.further_distances}
        if options := {name: known for name, known in options.items() if known}:
            settings["further_distances"] = plan.portable(options)
        return digest(settings | {"teacher": plan.teacher_key(model)})

    return keep(f"evaluation {plan.fingerprint} {model.model_dump_json()}", make)


def evaluations_of(plan: Plan) -> list[str]:
    """The names of the evaluations that an experiment asks for, a name for each model."""
    if not plan.experiment.evaluate.samples:
        return []
    return sorted({evaluation_of(plan, model, "cpu") for model in plan.models})


def evaluation_name(key: str, evaluation: str) -> str:
    """The name of the files of an evaluation, in `evaluations/` and in `losses/`."""
    return f"{file_name(key)}-{evaluation}"

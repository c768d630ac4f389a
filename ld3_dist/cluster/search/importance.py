"""The importance of each axis of a search, from Optuna's fANOVA: OUT/importance.csv.

    cell, axis, importance, trials

A trial's value is the log of its loss: on fresh samples where all trials that count have one, else
on the held-out pairs; the mean over its members. fANOVA (Hutter et al. 2014) fits a forest to the
values and splits their variance between the axes; the shares of a cell add up to 1. Losses in two
distances or from two teachers are compared on fresh samples alone, whose distance and teacher are
the experiment's own. The file follows from the tables, and is written at the end of a sweep.
"""

from __future__ import annotations

import csv
import io
import logging
import math
from collections.abc import Iterable, Mapping
from typing import Any

import optuna
from optuna.distributions import CategoricalDistribution
from optuna.trial import create_trial

from ...experiment.plan import Plan
from ...experiment.points import count_points, levels_of
from ...store.results import COMPARABLE, load_results
from ...store.settings_columns import axis_column
from ...store.storage import Storage

Row = dict[str, Any]

NAME = "importance.csv"
LEAST = 4
"""Trials of a cell; of fewer nothing can be said."""

log = logging.getLogger("ld3_dist")


def write_importance(plan: Plan, storage: Storage) -> None:
    """Write importance.csv anew; without an axis that has several values there is none."""
    axes = axes_of(plan)
    if not axes:
        return
    try:
        table = importance_table(load_results(storage).to_dict("records"), axes)
    except (ImportError, ValueError, RuntimeError) as error:  # a finished sweep stays finished
        log.warning("%s could not be made: %s: %s", NAME, type(error).__name__, error)
        return
    if table:
        text = io.StringIO()
        writer = csv.DictWriter(text, list(table[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(table)
        storage.write_bytes(NAME, text.getvalue().encode())


def axes_of(plan: Plan) -> dict[str, str]:
    """The axes that take several values in a cell, with their columns in the results."""
    e = plan.experiment
    if e.ablate is not None and count_points(e) > 1:
        names = [name for name, levels in levels_of(e).items() if len(levels) > 1]
    else:
        names = [name for name, values in e.search.grid.items() if len(values) > 1]
    names += [name for name in e.search.optuna if name not in names]
    return {name: axis_column(name) for name in names if name != "guidance"}


def importance_table(rows: Iterable[Row], axes: Mapping[str, str]) -> list[Row]:
    """The importance of axes (name -> column) in every cell of some results, a row for each."""
    cells: dict[str, list[Row]] = {}
    for row in rows:
        if (row["kind"], row["status"]) == ("learned", "ok"):
            cells.setdefault(row["cell"], []).append(row)
    found = []
    for cell, inside in sorted(cells.items()):
        trials = _trials(inside, axes)
        varied = [name for name in axes if len({trial[0][name] for trial in trials}) > 1]
        if len(trials) < LEAST or not varied:
            continue
        shares = _shares(trials, varied)
        found += [
            {"cell": cell, "axis": name, "importance": shares[name], "trials": len(trials)}
            for name in varied
        ]
    return found


Trial = tuple[dict[str, Any], float]
"""Values of the axes, and the log of the loss."""


def _trials(rows: list[Row], axes: Mapping[str, str]) -> list[Trial]:
    """The trials of a cell, with the mean over their members."""
    loss = "eval_loss" if all(_positive(row["eval_loss"]) for row in rows) else "valid_loss"
    places = {tuple(_plain(row[name]) for name in COMPARABLE) for row in rows}
    if loss == "valid_loss" and len(places) > 1:
        return []
    trials: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        if _positive(row[loss]):
            member = row["start"] if "start" in axes else None
            trials.setdefault((row["trial"], member), []).append(row)
    found = []
    for members in trials.values():
        values = {name: _plain(members[0][column]) for name, column in axes.items()}
        logs = [math.log(row[loss]) for row in members]
        found.append((values, sum(logs) / len(logs)))
    return found


def _positive(value: Any) -> bool:
    """True for a number above 0; a missing one of any kind is none."""
    return isinstance(value, int | float) and value > 0


def _plain(value: Any) -> Any:
    """A value that Optuna's distributions accept; None for a missing one of any kind."""
    known = isinstance(value, bool | int | str) or (isinstance(value, float) and value == value)
    return value if known else None


def _shares(trials: list[Trial], names: list[str]) -> dict[str, float]:
    """The share of each axis; of a number with many values by its size, else by its level."""
    study = optuna.create_study()
    distributions = {name: _distribution([trial[0][name] for trial in trials]) for name in names}
    for values, loss in trials:
        params = {name: values[name] for name in names}
        study.add_trial(create_trial(params=params, distributions=distributions, value=loss))
    from optuna.importance import (  # scikit-learn: a second of every start
        FanovaImportanceEvaluator,
        get_param_importances,
    )

    return get_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=0))


def _distribution(values: list[Any]) -> optuna.distributions.BaseDistribution:
    levels = list(dict.fromkeys(values))
    numbers = [v for v in levels if isinstance(v, int | float) and not isinstance(v, bool)]
    if len(numbers) < len(levels) or len(levels) <= 10:
        return CategoricalDistribution(levels)
    low, high = min(map(float, numbers)), max(map(float, numbers))
    return optuna.distributions.FloatDistribution(low, high, log=low > 0 and high > 10 * low)

"""Ablation: what each level of a factor does, against the base, on the same seeds and samples.

A sweep with `ablate` has points around a base. A level and the base are compared where everything
else agrees: cell, start and the levels of all other factors. Such a place is called a unit here.

    loss   mean distance to the teacher on fresh samples. The ratio is a geometric mean over the
           units, paired over seeds and samples; its interval holds the spread of both
           (`metrics.paired.over_seeds`). A further distance, distance.NAME, likewise
    fid, kid, precision, …
           every other score that was measured. The ratio is paired over seeds; its interval is
           Student's over the seeds' mean log ratios. All seeds share their samples, whose spread
           is not in it. A score that is not above 0 everywhere has no ratio

Where lower is better, a ratio below 1 is better than the base, else one above 1. p-values are
corrected by Holm's procedure for all comparisons of the same score. Where a search proposed several
trials at a level, each seed counts with the one of the smallest held-out loss.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from ..core.errors import InputError
from ..core.user_code import label
from ..experiment.axes import OTHER_AXES
from ..experiment.points import levels_of
from ..experiment.reading import parse_experiment
from ..metrics.of_samples import is_distance
from ..metrics.paired import NOTHING, Estimate, holm, interval_over_sets, over_seeds
from ..metrics.resampling import STATISTICS, exponential, statistic_of
from ..store.frames import column, groups, numbers, of_kind, records, varies, where
from ..store.settings_columns import axis_column
from .columns import METRIC
from .formats import DASH, missing, number, ratio
from .scores import LOSSES, Score, label_of, measured
from .tables import SweepTables

LOSS = "loss"
"""The score that is compared sample by sample; the others bear the names of their columns."""

COLUMNS = (
    "model", "factor", "level", "base", "score", "better", "units", "seeds", "samples", "ratio",
    "low", "high", "p_value", "p_holm", "ratio_median", "ratio_iqm",
)  # fmt: skip
"""Columns of ablation.csv. base: the base's level; better: "lower" or "higher"; units, seeds,
samples: numbers compared.
"""

SURE = 0.05
"""A corrected p-value below this is called a difference."""


@dataclass(frozen=True)
class Factor:
    """A factor of an ablation. column: of the results.  levels: all of them, the base's first."""

    name: str
    column: str
    levels: tuple[Any, ...]


def factors_of(experiment: Mapping[str, Any]) -> list[Factor]:
    """The factors of an experiment's settings, sorted by name; [] without an ablation.

    Factors with a single level hold the base in place. Raises InputError for settings that cannot
    be read on this machine, such as a file of the user's own that is not here.
    """
    settings = experiment.get("settings")
    if not isinstance(settings, dict) or not settings.get("ablate"):
        return []
    found = levels_of(parse_experiment({k: v for k, v in settings.items() if v is not None}))
    return [
        Factor(name, axis_column(name), tuple(map(_as_in_rows, values)))
        for name, values in found.items()
    ]


def _as_in_rows(level: Any) -> Any:
    """A level as the rows have it: without the folder of a user's file."""
    return label(level) if isinstance(level, str) else level


@dataclass(frozen=True)
class Compared:
    """The factors of an ablation, the learned rows at their levels, and their scores.

    losses: of every fresh sample, by the key of a row.
    further: the same in further distances, by the column of their mean.
    """

    factors: Sequence[Factor]
    rows: pd.DataFrame
    losses: Mapping[str, np.ndarray]
    scores: Sequence[Score]
    further: Mapping[str, Mapping[str, np.ndarray]] = field(default_factory=dict)


def compared(sweep: SweepTables) -> Compared:
    """The rows and scores that an ablation compares; none without `ablate` or evaluations.

    Raises InputError as `factors_of`.
    """
    factors = factors_of(sweep.experiment)
    rows = of_kind(sweep.results, "learned", "ok")
    rows = where(rows, column(rows, "eval_loss").notna()) if len(rows) else rows
    if not factors or rows.empty:
        return Compared([], pd.DataFrame(columns=["model"]), {}, [])
    rows = _completed(rows, factors)
    rows = where(rows, [all(_is_level(row, factor) for factor in factors) for row in records(rows)])
    keys = {str(key) for key in column(rows, "key")}
    scores = [score for score in measured(rows) if score not in LOSSES]
    further = {
        score.name: sweep.losses(keys, name)
        for score in scores
        if is_distance(name := score.name.removeprefix(METRIC))
    }
    return Compared(factors, rows, sweep.losses(keys), scores, further)


def _completed(rows: pd.DataFrame, factors: Sequence[Factor]) -> pd.DataFrame:
    """The rows with the base's level of every setting that their procedure does not have."""
    rows = rows.copy()
    for factor in factors:
        without = column(rows, factor.column).isna()
        if factor.name not in OTHER_AXES and without.any():
            rows[factor.column] = column(rows, factor.column).astype(object)
            rows.loc[without, factor.column] = factor.levels[0]
    return rows


def ablation_table(sweep: SweepTables) -> pd.DataFrame:
    """The levels of every factor against the base, a row for each score; empty without `ablate`.

    Raises InputError as `factors_of`.
    """
    known = compared(sweep)
    found = [
        {"model": model, **line}
        for model, inside in groups(known.rows, "model")
        for factor in known.factors
        for level in factor.levels[1:]
        for line in level_lines(known, inside, factor, level)
    ]
    return corrected(pd.DataFrame.from_records(found, columns=list(COLUMNS)))


def corrected(table: pd.DataFrame) -> pd.DataFrame:
    """The table with p-values corrected for all comparisons of the same score of a model."""
    for _, inside in groups(table, ["model", "score"]):
        table.loc[inside.index, "p_holm"] = holm(numbers(inside, "p_value").to_numpy())
    return table


def level_lines(
    known: Compared, rows: pd.DataFrame, factor: Factor, level: Any
) -> list[dict[str, Any]]:
    """One level of a factor against the base within some of the rows, a line for each score."""
    pairs = _pairs(rows, known.factors, factor, level)
    shared = {"factor": factor.name, "level": level, "base": factor.levels[0]}
    seeds = _common_seeds(pairs)
    units = [unit for unit in pairs if set(seeds) <= set(unit)]
    both = [[unit[seed] for seed in seeds] for unit in units]
    lines = []
    same_teacher = factor.name != "guidance"
    if units and same_teacher:
        lines.append({"score": LOSS, "better": "lower"} | _of_loss(both, known.losses))
    for score in known.scores if units else ():
        line = {"score": score.name, "better": "lower" if score.lower else "higher"}
        if score.name not in known.further:
            lines.append(line | _of_score(both, score.name))
        elif same_teacher:
            lines.append(line | _of_loss(both, known.further[score.name]))
    return [
        shared | line | {"units": len(units), "seeds": len(seeds)}
        for line in lines
        if not missing(line["ratio"])
    ]


Pair = tuple[dict[str, Any], dict[str, Any]]
"""A row at the level, and the row of the same unit and seed at the base."""


def _pairs(
    rows: pd.DataFrame, factors: Sequence[Factor], factor: Factor, level: Any
) -> list[dict[Any, Pair]]:
    """Units where both the level and the base were learned: seed -> the two rows."""
    cell = ("solver", "nfe", "conditioning") if factor.name == "guidance" else ("cell",)
    others = [one.column for one in factors if one.name != factor.name]
    start = () if factor.name == "start" else ("start",)
    names = tuple(dict.fromkeys([*cell, *others, *start]))
    found: dict[tuple[Any, ...], dict[Any, dict[str, dict[str, Any]]]] = {}
    for row in records(rows.sort_values("valid_loss", ascending=False, kind="stable")):
        side = _side(row, factor, level)
        if side:
            unit = tuple(None if missing(row[name]) else row[name] for name in names)
            found.setdefault(unit, {}).setdefault(row["seed"], {})[side] = row
    units = [
        {seed: (both["level"], both["base"]) for seed, both in unit.items() if len(both) == 2}
        for unit in found.values()
    ]
    return [unit for unit in units if unit]


def _is_level(row: Mapping[str, Any], factor: Factor) -> bool:
    """True for a row at some level of a factor."""
    return any(at_level(row, factor, level) for level in factor.levels)


def at_level(row: Mapping[str, Any], factor: Factor, level: Any) -> bool:
    """True for a row at this level of a factor."""
    side = _side(row, factor, level)
    return side == "level" or (side == "base" and level == factor.levels[0])


def _side(row: Mapping[str, Any], factor: Factor, level: Any) -> str:
    """Which of the two a row belongs to: "level", "base" or neither."""
    value = None if missing(row.get(factor.column)) else row[factor.column]
    if value == level:
        return "level"
    base = factor.levels[0]
    others = factor.levels[1:]
    return "base" if value == base or (base is None and value not in others) else ""


def _common_seeds(units: Sequence[Mapping[Any, Pair]]) -> list[Any]:
    """The seeds that all units have; where none is common, those of the unit with the most."""
    if not units:
        return []
    common = set(units[0]).intersection(*units)
    return sorted(common or max(units, key=len))


def _of_loss(units: Sequence[Sequence[Pair]], losses: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The ratio of losses over units, with what is known of it."""
    try:
        level, base = (
            [np.stack([losses[pair[side]["key"]] for pair in unit]) for unit in units]
            for side in (0, 1)
        )
        found, p = over_seeds(level, base)
    except (KeyError, ValueError, InputError):  # losses that were not kept, or of other samples
        return {"ratio": None}
    line = _line(found, p) | {"samples": level[0].shape[1]}
    for statistic in STATISTICS[1:]:
        line[f"ratio_{statistic}"] = _mean_ratio(
            *([statistic_of(x, statistic) for unit in side for x in unit] for side in (level, base))
        )
    return line


def _mean_ratio(a: list[float], b: list[float]) -> float | None:
    """The geometric mean of ratios; None unless all values are above 0."""
    return float(np.exp((np.log(a) - np.log(b)).mean())) if min(a + b) > 0 else None


def _of_score(units: Sequence[Sequence[Pair]], name: str) -> dict[str, Any]:
    """The ratio of a score over units, seed by seed."""
    values = [[(a[name], b[name]) for a, b in unit] for unit in units]
    if any(missing(value) or not value > 0 for unit in values for pair in unit for value in pair):
        return {"ratio": None}
    logs = np.log(np.array(values, dtype=float))  # [units, seeds, 2]
    by_seed = (logs[..., 0] - logs[..., 1]).mean(0)
    found = interval_over_sets(by_seed)
    p = _t_test(by_seed)
    return _line(Estimate(*map(exponential, found)), p)


def _t_test(values: np.ndarray) -> float:
    """Two-sided p-value of Student's test that the mean of some values is 0."""
    n = len(values)
    if n < 2 or not values.std() > 0:
        return math.nan
    from scipy.special import stdtr

    t = values.mean() / (values.std(ddof=1) / math.sqrt(n))
    return 2 * float(stdtr(n - 1, -abs(t)))


def _line(found: Estimate, p: float) -> dict[str, Any]:
    if found == NOTHING:
        return {"ratio": None}
    return {"ratio": found.value, "low": found.low, "high": found.high, "p_value": p}


def verdict(row: Mapping[str, Any]) -> str:
    """A comparison in a word: better, worse, or not decided."""
    p = row["p_holm"]
    if missing(p) or missing(row["low"]):
        return "not tested"
    if p >= SURE:
        return "no difference seen"
    return "better" if (row["ratio"] < 1) == (row["better"] == "lower") else "worse"


ABLATION_NOTE = (
    "Each level of a factor against the base, everything else equal. The ratio is the geometric "
    "mean over cells, paired over seeds and samples; below 1 is better than the base. The interval "
    "is at 95 %; p is corrected by Holm's procedure for all comparisons of the same score. All "
    "other scores are in ablation.csv."
)


def ablation_texts(table: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    """Headings and lines of the table of an ablation: a line per level for loss and Fréchet
    distance. The other scores stand in ablation.csv and in the figure.
    """
    table = where(table, column(table, "score").isin([LOSS, "fid"]))
    heads = ["factor", "level", "base", "score", "ratio", "95 % interval", "p", "verdict"]
    heads += ["of medians", "of interquartile means", "cells", "seeds"]
    several = varies(table, "model")
    lines = []
    for row in records(table):
        low, high = row["low"], row["high"]
        interval = DASH if missing(low) else f"{number(low)}–{number(high)}"
        line = [row["factor"], level_text(row["level"]), level_text(row["base"])]
        line += [label_of(row["score"]), ratio(row["ratio"]), interval, number(row["p_holm"], 2)]
        line += [verdict(row), ratio(row["ratio_median"]), ratio(row["ratio_iqm"])]
        line += [str(row["units"]), str(row["seeds"])]
        lines.append([str(row["model"]), *line] if several else line)
    return ["model", *heads] if several else heads, lines


def level_text(level: Any) -> str:
    """A level as a reader sees it."""
    if missing(level):
        return "as given"
    if isinstance(level, bool):
        return "on" if level else "off"
    return f"{level:.4g}" if isinstance(level, float) else str(level)

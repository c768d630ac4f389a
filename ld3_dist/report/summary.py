"""One row per cell: the best hand-made grid, the best learned schedule, and how far apart they are.

A cell that learned in several distances, or from several teachers, has a row for each, as their
losses are not comparable.

    baseline   the hand-made grid with the smallest mean loss on fresh samples; where none was
               evaluated, the one with the smallest held-out loss. Every column that begins with
               `baseline_` is a score of this grid
    loss       smallest held-out loss of a learned schedule; eval_loss, fid, coverage,
               inception_score and the user's own metrics are scores of this schedule
    eval_gain  baseline_eval_loss / eval_loss, with its interval eval_gain_low to eval_gain_high
    gain       baseline_loss / loss, on the held-out pairs that selected the schedule
    teacher_…  the same scores of the teacher's own samples
    lowest_fid smallest Fréchet distance of any hand-made grid, which is `lowest_fid_grid`

The best learned schedule is the one with the smallest hard held-out loss; no metric takes part in
the choice. Mean and standard deviation over seeds are of the schedules that share its settings
(trial and start) and differ in the seed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from ..store.frames import Row, column, groups, numbers, of_kind, records, where
from ..store.results import COMPARABLE
from .columns import metric_names, over_grid_names, with_metrics
from .formats import missing

SCORES = ("fid", "coverage", "inception_score")
"""Scores that a cell's best grid, its best schedule and the teacher all have."""

SETTINGS = ("trial", "start", "gamma", "distance", "coordinate", "procedure", "coefficients")
"""Learned rows of a cell that agree in these differ in the seed alone."""

Scores = Mapping[str, Mapping[str, Any]]
"""Teacher key -> the teacher's row of the evaluations."""


def summary_table(frame: pd.DataFrame, evaluations: pd.DataFrame | None = None) -> pd.DataFrame:
    """One row per cell, distance and teacher, ordered by model, guidance, solver and NFE.

    Values are null where nothing was measured. The columns are those of `columns.COLUMNS` and
    three for each metric of a user's own.

    Args:
        frame: from `load_results`.
        evaluations: the table of evaluations, for the teachers' own scores; without it they stay
            null.
    """
    metrics = metric_names(frame, *([] if evaluations is None else [evaluations]))
    columns = with_metrics(metrics)
    teachers = teacher_scores(evaluations)
    scores = (*SCORES, *metrics)
    places = groups(frame, comparable(frame), sort=False, nulls=True)
    cells = [_cell(rows, teachers, scores) for _, rows in places]
    table = pd.DataFrame.from_records(cells, columns=[known.name for known in columns])
    table = table.astype({known.name: known.dtype for known in columns if known.dtype})
    order = ["model", "conditioning", "guidance", "solver", "nfe", "cell", "distance", "taught_by"]
    return table.sort_values(order, ignore_index=True)


def comparable(frame: pd.DataFrame) -> list[str]:
    """The columns in which the rows of one line of the summary agree."""
    return [name for name in COMPARABLE if name in frame]


def teacher_scores(evaluations: pd.DataFrame | None) -> dict[str, dict[str, Any]]:
    """Teacher key -> its row of the evaluations."""
    if evaluations is None:
        return {}
    rows = where(evaluations, column(evaluations, "kind") == "teacher").drop_duplicates("key")
    return {str(row["key"]).removeprefix("teacher:"): row for row in records(rows)}


def seed_group(rows: pd.DataFrame, best: Mapping[str, Any]) -> pd.DataFrame:
    """The ok learned rows of a cell that have the settings of `best`: they differ in the seed."""
    same = (column(rows, "kind") == "learned") & (column(rows, "status") == "ok")
    for name in SETTINGS:  # one selection at the end: rows of a wide frame are slow to take
        values = column(rows, name)
        same &= (values.isna() if missing(best[name]) else values == best[name]).fillna(False)
    return where(rows, same)


def best_row(rows: pd.DataFrame) -> Row | None:
    """The best learned row of a cell, or None."""
    return _first(rows, column(rows, "best"))


def best_baseline(rows: pd.DataFrame, score: str = "valid_loss") -> Row | None:
    """The ok hand-made grid of a cell with the smallest loss (or other score), or None."""
    grids = (column(rows, "kind") == "baseline") & (column(rows, "status") == "ok")
    values = numbers(rows, score).where(grids.fillna(False).astype(bool))
    return _first(rows, values == values.min())


def _first(rows: pd.DataFrame, mask: pd.Series) -> Row | None:
    """The first row where a mask holds, or None."""
    places = np.flatnonzero(mask.fillna(False).to_numpy(bool))
    return Row(rows, int(places[0])) if len(places) else None


def _cell(rows: pd.DataFrame, teachers: Scores, scores: Sequence[str]) -> dict[str, Any]:
    """The summary's row of one cell."""
    first = Row(rows, 0)
    shared = ("model", "conditioning", "guidance", "solver", "nfe", "cell", "distance")
    learned, ok = of_kind(rows, "learned"), of_kind(rows, "learned", "ok")
    found = {name: first[name] for name in shared} | {"taught_by": _taught_by(first)}
    found |= {"learned": len(learned), "ok": len(ok), "not_ok": len(learned) - len(ok)}
    found |= _hand_made(rows, scores)
    teacher = teachers.get(str(first["teacher"]), {})
    found |= {f"teacher_{name}": teacher.get(name) for name in scores}
    best = best_row(rows)
    if best is not None:
        found |= _learned(rows, best, scores)
        loss = found.get("baseline_loss")
        found["gain"] = None if missing(loss) else loss / best["valid_loss"]
    return found


def _hand_made(rows: pd.DataFrame, scores: Sequence[str]) -> dict[str, Any]:
    """The best hand-made grid of a cell with its own scores, and the lowest Fréchet distance."""
    found: dict[str, Any] = {}
    baseline = best_baseline(rows, "eval_loss") or best_baseline(rows)
    if baseline is not None:
        found |= {"baseline": baseline["start"], "baseline_loss": baseline["valid_loss"]}
        found |= {"baseline_eval_loss": baseline["eval_loss"]}
        found |= {f"baseline_{name}": baseline.get(name) for name in scores}
    lowest = best_baseline(rows, "fid")
    if lowest is not None:
        found |= {"lowest_fid": lowest["fid"], "lowest_fid_grid": lowest["start"]}
    return found


def _learned(rows: pd.DataFrame, best: Row, scores: Sequence[str]) -> dict[str, Any]:
    """The best learned schedule of a cell with its own scores, and the spread over its seeds."""
    losses = numbers(seed_group(rows, best), "valid_loss")
    same = ("eval_loss", "gamma", "start", "distance", "key")
    fresh = ("eval_gain", "eval_gain_low", "eval_gain_high", "decided", "eval_gain_median")
    fresh += ("eval_gain_iqm", "fid_low", "fid_high")
    fresh += ("fid_gain", "fid_gain_low", "fid_gain_high")
    fresh += tuple(over_grid_names(scores))
    return {
        "loss": best["valid_loss"],
        "seed_mean": losses.mean(),
        "seed_std": losses.std(),
        "seeds": len(losses),
        "method": method(best),
        **{name: best[name] for name in same},
        **{name: best.get(name) for name in (*fresh, *scores)},
    }


def _taught_by(row: Mapping[str, Any]) -> str | None:
    """The teacher of a row in words; None where the table does not say."""
    parts = [row.get(f"teacher_{name}") for name in ("solver", "nfe", "start")]
    return None if any(missing(part) for part in parts) else "/".join(map(str, parts))


def method(row: Mapping[str, Any]) -> str:
    """The method by which a schedule was learned, in a few words."""
    corrected = not missing(row["coefficients"]) and bool(row["coefficients"])
    return f"{row['procedure']}{' + coefficients' if corrected else ''}"

"""Gains on fresh samples: how much nearer to the teacher than the best hand-made grid, how surely.

    eval_gain         smallest eval_loss of any hand-made grid of the cell / eval_loss
    eval_gain_median  median loss of that grid / own median loss; eval_gain_iqm likewise
    eval_gain_low, eval_gain_high
                      95 % interval of eval_gain, paired over the same samples, of learned rows
    decided           true where this interval does not hold 1

The grid is the one with the smallest mean on these samples, which makes the gain smaller than it
is, if anything. An evaluation holds the interval against the best grid of its time. Where another
grid is the best now, the interval is made again from the losses, if they were kept.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

import numpy as np
import pandas as pd

from ..metrics.paired import ratios
from .frames import column, of_kind, where
from .table_files import OVER_GRID

Losses = Callable[[Collection[str]], Mapping[str, np.ndarray]]
"""Row keys -> the kept losses [M] of those that have any."""

STATISTICS = {
    "eval_gain": "eval_loss",
    "eval_gain_median": "eval_loss_median",
    "eval_gain_iqm": "eval_loss_iqm",
}
ENDS = ["eval_gain_low", "eval_gain_high"]
OF_FRECHET = ("fid_gain", "fid_gain_low", "fid_gain_high")


def with_fresh_gains(frame: pd.DataFrame, losses: Losses) -> pd.DataFrame:
    """Results with the columns at the top of this file.

    Args:
        frame: rows with their evaluations. Rows of a cell with the same evaluation compare.
        losses: reads losses; asked only where an interval is to be made again.
    """
    group = _text(frame, "cell") + "\n" + _text(frame, "evaluation")
    frame = frame.assign(_group=group)
    grids = of_kind(frame, "baseline", "ok")
    grids = where(grids, column(grids, "eval_loss").notna())
    best = grids.sort_values(by="eval_loss", kind="stable").drop_duplicates("_group")
    best = best.set_index("_group")
    for gain, loss in STATISTICS.items():
        if loss in frame:
            smallest = group.map(best[loss].astype("float64").to_dict())
            frame[gain] = smallest.astype("float64") / frame[loss].astype("float64")
    missing = [name for name in ("eval_gain_over", *ENDS) if name not in frame]
    frame = frame.assign(**dict.fromkeys(missing, None))
    _make_again(frame, group.map(best["key"].to_dict()), losses)
    low, high = (frame[name].astype("float64") for name in ENDS)
    decided = ((low > 1) | (high < 1)).astype("boolean")
    frame["decided"] = decided.where(low.notna() & high.notna())
    return frame.drop(columns="_group")


def share_between_rows(frame: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    """Results in which all rows of the same hand-made grid have the evaluation of one of them.

    A grid has a row for each distance and teacher, and is evaluated once.

    Args:
        columns: the columns of the evaluations.
    """
    grids = of_kind(frame, "baseline")
    names = _grids(grids)
    if names.duplicated().any():
        found = grids[columns].groupby(names, sort=False).transform("first")
        is_grid = pd.Series(frame.index.isin(grids.index), index=frame.index)
        found = found.reindex(frame.index)
        # by column: all at once loses the types, and missing whole numbers become an error
        frame = frame.assign(**{name: frame[name].mask(is_grid, found[name]) for name in columns})
    return frame


def _make_again(frame: pd.DataFrame, best: pd.Series, losses: Losses) -> None:
    """Make the intervals of learned rows that were made against another grid than the best.

    Args:
        best: key of the best hand-made grid, for every row.
    """
    grids = of_kind(frame, "baseline")
    named = dict(zip(grids["key"], _grids(grids), strict=True))
    now, then = best.map(named), _text(frame, "eval_gain_over").map(named)
    other = now.notna() & (now != then) & column(frame, "eval_loss").notna()
    stale = of_kind(where(frame.assign(_now=now), other), "learned")
    if stale.empty:
        return
    kept = losses({*stale["key"], *named})
    of_grid = {name: kept[key] for key, name in named.items() if key in kept}
    others = [name for name in frame if name in OF_FRECHET or str(name).startswith(OVER_GRID)]
    frame.loc[stale.index, [*ENDS, *others]] = np.nan
    for name, rows in stale.groupby("_now"):
        base = of_grid.get(str(name), np.empty(0))
        keys = dict(zip(rows.index, map(str, rows["key"]), strict=True))
        mine = {i: kept.get(key, ()) for i, key in keys.items()}
        here = {i: x for i, x in mine.items() if len(x) == len(base) > 0}
        if here:
            _, low, high = ratios(np.stack(list(here.values())), base)
            frame.loc[list(here), ENDS] = np.column_stack([1 / high, 1 / low])


def _grids(grids: pd.DataFrame) -> pd.Series:
    """A name for the grid of every hand-made row: its cell, its start and its knots."""
    knots = [np.asarray(value, dtype=float).tobytes().hex() for value in grids["knots"]]
    cells, starts = _text(grids, "cell"), _text(grids, "start")
    return cells + "\n" + starts + "\n" + pd.Series(knots, index=grids.index, dtype="object")


def _text(frame: pd.DataFrame, name: str) -> pd.Series:
    """A column as text, empty where it is null or there is no such column."""
    if name not in frame:
        return pd.Series("", index=frame.index)
    return pd.Series(frame[name].astype("object").fillna(""), dtype="object").astype(str)

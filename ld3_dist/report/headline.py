"""One or two sentences that say what a sweep found."""

from __future__ import annotations

import pandas as pd

from .formats import counted, number
from .frames import count, numbers, records, varies


def headline(table: pd.DataFrame) -> str:
    """What a sweep found, from its summary, in one or two sentences."""
    if table.empty:
        return "There are no results yet."
    gains = numbers(table, "gain")
    compared = count(gains.notna())
    if not compared:
        return f"No schedule has been learned yet in any of {counted(len(table), 'cell')}."
    top = max(records(table), key=lambda row: -1.0 if pd.isna(row["gain"]) else row["gain"])
    on_model = f" on {top['model']}" if varies(table, "model") else ""
    where = f"{top['solver']} at {top['nfe']} NFE{on_model}"
    if compared == 1:
        text = (
            f"At {where}, the learned schedule's held-out distance to the teacher is "
            f"{_times(top['gain'])} than the best hand-made grid's."
        )
    else:
        text = (
            f"Learned schedules beat every hand-made grid in {count(gains > 1)} of {compared} "
            f"cells: their held-out distance to the teacher is {_times(float(gains.median()))} in "
            f"the median and {_times(float(gains.max()))} at best ({where})."
        )
    return text + _frechet(table)


def _frechet(table: pd.DataFrame) -> str:
    """In how many cells the learned Fréchet distance is below that of every hand-made grid."""
    learned, lowest = numbers(table, "fid"), numbers(table, "lowest_fid")
    compared = count(learned.notna() & lowest.notna())
    if not compared:
        return ""
    lower = count(learned < lowest)
    return f" The Fréchet distance is lower in {lower} of {counted(compared, 'cell')}."


def _times(gain: float) -> str:
    return f"{number(gain)} times smaller" if gain >= 1 else f"{number(1 / gain)} times larger"

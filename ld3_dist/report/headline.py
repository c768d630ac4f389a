"""Two or three sentences that say what a sweep found, on samples that nothing was chosen on."""

from __future__ import annotations

import pandas as pd

from ..store.frames import column, count, numbers, records, varies, where
from .columns import Row
from .formats import counted, missing, number


def headline(table: pd.DataFrame) -> str:
    """The findings of a sweep, from its summary, in two or three sentences.

    The gain is the one on fresh samples. Where none were drawn, the sentence says so before it
    gives the gain on the held-out pairs.
    """
    if table.empty:
        return "There are no results yet."
    fresh = numbers(table, "eval_gain")
    if count(fresh.notna()):
        return _gains(table, "eval_gain", "on fresh samples") + _undecided(table) + _frechet(table)
    if not count(numbers(table, "gain").notna()):
        asked = counted(len(table), unit(table))
        return f"No schedule has been learned yet in any of {asked}."
    text = _gains(table, "gain", "on the held-out pairs, which also selected them,")
    return f"Nothing was evaluated on fresh samples. {text}{_frechet(table)}"


def _gains(table: pd.DataFrame, name: str, place: str) -> str:
    """In how many cells the learned schedules are better, and how much."""
    known = where(table, numbers(table, name).notna())
    gains = numbers(known, name)
    top = max(records(known), key=lambda row: row[name])
    on_model = f" on {top['model']}" if varies(table, "model") else ""
    cell = f"{top['solver']} at {top['nfe']} NFE{on_model}"
    if len(known) == 1:
        return (
            f"At {cell}, the distance to the teacher {place} is {_times(top[name])} with the "
            f"learned schedule than with the best hand-made grid{_between(top, name)}."
        )
    return (
        f"Learned schedules beat every hand-made grid in {count(gains > 1)} of {len(known)} "
        f"{_said(table)}: their distance to the teacher {place} is "
        f"{_times(float(gains.median()))} in the median and {_times(float(gains.max()))} at "
        f"best ({cell}{_between(top, name, ', ')})."
    )


def _between(row: Row, name: str, joint: str = " ") -> str:
    """The interval of a gain on fresh samples, in words; empty where there is none."""
    low, high = row["eval_gain_low"], row["eval_gain_high"]
    if name != "eval_gain" or missing(low) or missing(high):
        return ""
    text = f"95 % interval of the gain {number(low)} to {number(high)}"
    return f"{joint}{text}" if joint.startswith(",") else f"{joint}({text})"


def _undecided(table: pd.DataFrame) -> str:
    """In how many cells the interval of the gain holds 1."""
    decided = column(table, "decided")
    open_cells = count(decided.notna() & ~decided.fillna(True).astype(bool))
    if not open_cells:
        return ""
    if count(decided.notna()) == 1:
        return " That is undecided: the interval holds 1."
    found = counted(open_cells, unit(table))
    return f" In {found} that is undecided: the interval of the gain holds 1."


def _frechet(table: pd.DataFrame) -> str:
    """In how many cells the learned Fréchet distance is below that of every hand-made grid."""
    learned, lowest = numbers(table, "fid"), numbers(table, "lowest_fid")
    compared = count(learned.notna() & lowest.notna())
    if not compared:
        return ""
    lower = count(learned < lowest)
    return f" The Fréchet distance is lower in {lower} of {counted(compared, unit(table))}."


def unit(table: pd.DataFrame) -> str:
    """The word for a row of the summary: a cell, or a case where distances vary as well."""
    return "case" if varies(table, "distance") else "cell"


def _said(table: pd.DataFrame) -> str:
    """The same in the plural, explained where it is no cell."""
    explained = " (a cell and a distance that was learned in)"
    return f"{unit(table)}s{explained if unit(table) == 'case' else ''}"


def _times(gain: float) -> str:
    return f"{number(gain)} times smaller" if gain >= 1 else f"{number(1 / gain)} times larger"

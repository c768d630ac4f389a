"""A transfer as text: the answer of each schedule at each site, and the matrix of all ratios.

A ratio is the schedule's mean loss over that of the best hand-made grid at the same site, solver
and NFE, 1 / eval_gain. The matrix has a row per schedule (where it was learned) and a column per
site and solver (where it is scored).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import pandas as pd

from ..store.frames import column, records, where
from .formats import DASH, missing, number, visible

MARKS = {"works": "+", "does not": "-", "undecided": "?"}
"""A mark behind each ratio of the matrix."""

LEAST = 6
"""Characters of a column of the matrix."""


@dataclass(frozen=True)
class Matrix:
    """Verdicts by schedule and site.

    schedules, sites: names of the rows and of the columns.
    cells: (schedule, site) -> the record of the table `transfers`.
    """

    schedules: tuple[str, ...]
    sites: tuple[str, ...]
    cells: dict[tuple[str, str], dict]


def matrix(frame: pd.DataFrame) -> Matrix:
    """The matrix of a transfer, from the table `transfers`; rows and columns in its order."""
    learned = where(frame, column(frame, "kind") == "learned")
    several = column(learned, "solver").nunique() > 1
    cells, schedules, sites = {}, {}, {}
    for row in records(learned):
        site = f"{row['site']}, {row['solver']}" if several else row["site"]
        schedules[row["schedule"]] = sites[site] = None
        cells[row["schedule"], site] = row
    return Matrix(tuple(schedules), tuple(sites), cells)


def ratio_of(row: dict) -> tuple[float, float, float] | None:
    """(ratio, low, high) of a row; None where it was not measured.

    An end of a gain's interval that is infinite is null in the table.
    """
    gain, low, high = (row[f"eval_gain{end}"] for end in ("", "_low", "_high"))
    if missing(gain) or missing(low):
        return None
    return 1 / gain, 0.0 if missing(high) else 1 / high, 1 / low if low else math.inf


def interval_of(row: dict) -> str:
    """0.80x (0.71-0.90); a dash where it was not measured."""
    found = ratio_of(row)
    if found is None:
        return DASH
    value, low, high = (number(one, 2) for one in found)
    return f"{value}x ({low}-{high})"


def answer(row: dict) -> str:
    """One schedule at one site, as a sentence."""
    said = "" if missing(row["message"]) else f" ({row['message']})"
    head = f"{row['schedule']}, {row['solver']}, {row['nfe']} evaluations: "
    if row["status"] != "ok":
        return visible(f"{head}{row['status']}{said}")
    if missing(row["against"]):
        return visible(f"{head}{row['verdict']}{said}")
    of = f"of the best hand-made grid here ({row['against']}): {row['verdict']}"
    return visible(f"{head}{interval_of(row)} {of}{said}")


def matrix_lines(found: Matrix, width: int = 80) -> Iterator[str]:
    """The matrix as lines of at most `width` characters; columns have letters, named below.

    Too many columns for one line make several blocks.
    """
    head = min(max(map(len, found.schedules), default=0), width // 3)
    each = max(1, (width - head) // (LEAST + 2))
    letters = [_letters(i) for i in range(len(found.sites))]
    for first in range(0, len(found.sites), each):
        block = slice(first, first + each)
        yield " " * head + "".join(f"  {letter:>{LEAST}}" for letter in letters[block])
        for name in found.schedules:
            shown = [_cell(found.cells.get((name, site))) for site in found.sites[block]]
            yield f"{_cut(visible(name), head):{head}}" + "".join(f"  {c:>{LEAST}}" for c in shown)
    for letter, site in zip(letters, found.sites, strict=True):
        yield _cut(f"{letter}  {visible(site)}", width)
    yield "Loss over the best hand-made grid's: + works, - does not, ? undecided."


def _cell(row: dict | None) -> str:
    if row is None:
        return ""
    ratio = ratio_of(row)
    mark = MARKS.get(str(row["verdict"]), "!")
    return f"{DASH}{mark}" if ratio is None else f"{number(ratio[0], 2)}{mark}"


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 1]}…"


def _letters(index: int) -> str:
    """A, B, …, Z, AA, AB, …"""
    name = ""
    while index >= 0:
        name = chr(ord("A") + index % 26) + name
        index = index // 26 - 1
    return name

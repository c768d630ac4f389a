"""A score of many schedules as a table for a paper: rows and columns by columns of results.

A cell of the table is the mean over the results that fall into it, arithmetic or geometric. Beside
it stands the interval of a single result that has one, else the standard deviation over several: of
the values, or as a factor, exp of that of their logarithms. The best mean of a column is marked,
and every row has its mean rank over the columns that all rows have.

    which = best    learned schedules that are best in their cell, and the best hand-made grid
            learned every learned schedule
            all     every result

The derived column `method` is "learned" or the name of a hand-made grid, so that `rows="method"`
sets learned schedules beside grids. Rows of several columns are named by those values that say
something: texts as they are, numbers with the name of their column, True as that name, and nothing
for False or a missing value. So `method, procedure, coefficients` has the rows "learned, default",
"learned, default, coefficients" and "karras".
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

from ..core.errors import InputError, unknown
from ..metrics.paired import average_ranks
from ..store.frames import column, is_scalar, of_kind, where
from ..store.views import metrics_in
from .formats import kinds, missing, number

Which = Literal["best", "learned", "all"]
WHICH: tuple[Which, ...] = ("best", "learned", "all")

Mean = Literal["arithmetic", "geometric"]
MEANS: tuple[Mean, ...] = ("arithmetic", "geometric")

MORE_IS_BETTER = (
    "gain",
    "eval_gain",
    "eval_gain_median",
    "eval_gain_iqm",
    "eval_p_improvement",
    "inception_score",
    "precision",
    "recall",
    "density",
    "coverage",
)
"""Scores of which the largest is best; of all others it is the smallest."""

HELD_OUT = ("valid_loss", "train_loss", "start_loss")
MEASURED_BY = ("distance", "teacher_solver", "teacher_nfe", "teacher_start")
"""Columns of results that say against what, and how, held-out losses were measured."""

FRESH = ("eval_loss", "eval_loss_median", "eval_loss_iqm")


@dataclass(frozen=True)
class Entry:
    """One cell of the table: a mean over `count` results; NaN bounds where there are none.

    spread: a standard deviation, or a factor where the mean is geometric.
    """

    mean: float
    low: float = math.nan
    high: float = math.nan
    spread: float = math.nan
    count: int = 1
    best: bool = False


@dataclass(frozen=True)
class Crosstab:
    """A table: names of its rows and columns, and an entry for each pair that has results.

    ranks: mean rank of each row, 1 is best; NaN where no column has all rows.
    geometric: the means are geometric.
    """

    rows: str
    columns: Sequence[str]
    value: str
    row_names: Sequence[Any]
    column_names: Sequence[tuple[Any, ...]]
    entries: dict[tuple[Any, tuple[Any, ...]], Entry]
    ranks: Sequence[float]
    geometric: bool = False


def crosstab(
    results: pd.DataFrame,
    rows: str | Sequence[str] = "solver",
    columns: Sequence[str] = ("nfe",),
    value: str = "fid",
    which: str = "best",
    mean: str = "arithmetic",
) -> Crosstab:
    """The table of a score.

    Args:
        results: from `load_results`.
        rows: name of a column of results, or "method", or several of them.
        columns: as `rows`; every combination of their values is a column of the table.
        value: a measured column.
        which, mean: see the top of this file.

    Raises InputError for unknown names, with the nearest, where nothing was measured, and for a
    geometric mean of values that are not all positive.
    """
    frame = chosen(results, rows, columns, value, which)
    _check_mean(frame, value, mean)
    rows = joined(rows)
    entries: dict[tuple[Any, tuple[Any, ...]], Entry] = {}
    for key, part in frame.groupby([rows, *columns], sort=True, dropna=False):
        group = tuple(_plain(item) for item in key) if isinstance(key, tuple) else (_plain(key),)
        entries[group[0], group[1:]] = _entry(part, value, mean)
    row_names = list(dict.fromkeys(name for name, _ in entries))
    column_names = sorted({name for _, name in entries}, key=_order)
    _mark_best(entries, column_names, value)
    ranks = _ranks(entries, row_names, column_names, value)
    return Crosstab(
        rows, columns, value, row_names, column_names, entries, ranks, mean == "geometric"
    )


def joined(rows: str | Sequence[str]) -> str:
    """The name of the column that names the rows: of one column its own."""
    return rows if isinstance(rows, str) else ", ".join(rows)


def chosen(
    results: pd.DataFrame,
    rows: str | Sequence[str],
    columns: Sequence[str],
    value: str,
    which: str,
) -> pd.DataFrame:
    """The results that a table is made of, with the columns `method` and `joined(rows)`."""
    rows = [rows] if isinstance(rows, str) else list(rows)
    if which not in WHICH:
        raise unknown("value of --which:", which, WHICH)
    method = column(results, "start").where(column(results, "kind") == "baseline", "learned")
    frame = results.assign(method=method)
    scores = metrics_in(results)
    if value not in scores:
        raise unknown("value of --value:", value, scores)
    options = [("--rows", name) for name in rows] + [("--columns", name) for name in columns]
    for option, name in options:
        known = [str(n) for n in frame.columns if n not in scores and is_scalar(frame, str(n))]
        if name not in known:
            raise unknown(f"column in {option}:", name, known)
    ok = column(frame, "status") == "ok"
    measured = frame = where(frame, ok & column(frame, value).notna())
    if which == "learned":
        frame = of_kind(frame, "learned")
    if which == "best":
        frame = _best(frame, {*rows, *columns})
    if frame.empty and len(measured):
        raise InputError(
            f"--value {value}: was measured only for rows that --which {which} leaves out, "
            f"{len(measured)} of them; --which all shows them"
        )
    if frame.empty:
        raise InputError(f"--value {value}: was not measured for any of these results")
    _check_comparable(frame, columns, value)
    if len(rows) > 1:
        frame = frame.assign(**{joined(rows): [kind or "–" for kind in kinds(frame, rows)]})
    return frame


def _check_comparable(frame: pd.DataFrame, columns: Sequence[str], value: str) -> None:
    """Raises InputError where a column of the table would hold losses that do not compare."""
    if value in HELD_OUT:
        found, mixing = frame, MEASURED_BY
    elif value in FRESH:  # all rows of a sweep are in its own distance, which one of several hides
        alone = frame.groupby("source")["distance"].transform("nunique") == 1
        found, mixing = where(frame, alone), ("distance",)
    else:
        return
    for _, part in found.groupby([*columns], dropna=False):
        for name in mixing:
            levels = sorted({str(level) for level in column(part, name).dropna()})
            if len(levels) > 1:
                raise InputError(
                    f"--value {value}: losses of different {name} ({', '.join(levels)}) do not "
                    f"compare, and columns by {', '.join(columns)} hold several; add {name} to "
                    f"--columns{', or take eval_loss' if value in HELD_OUT else ''}"
                )


def _check_mean(frame: pd.DataFrame, value: str, mean: str) -> None:
    if mean not in MEANS:
        raise unknown("value of --mean:", mean, MEANS)
    if mean == "geometric" and not (column(frame, value).astype("float64") > 0).all():
        raise InputError(
            f"--mean geometric: needs positive values, and {value} has others; use arithmetic"
        )


def _best(frame: pd.DataFrame, names: set[str]) -> pd.DataFrame:
    """The best learned schedules; hand-made grids, too, where the table tells them apart."""
    learned = where(frame, column(frame, "best"))
    if not names & {"method", "kind", "start"}:
        return learned
    grids = of_kind(frame, "baseline")
    return pd.concat([learned, grids.drop_duplicates(["cell", "start"])])


def _entry(part: pd.DataFrame, value: str, mean: str) -> Entry:
    values = column(part, value).astype("float64").to_numpy()
    if len(values) > 1 and mean == "geometric":
        logs = np.log(values)
        factor = float(np.exp(logs.std(ddof=1)))
        return Entry(float(np.exp(logs.mean())), spread=factor, count=len(values))
    if len(values) > 1:
        return Entry(float(values.mean()), spread=float(values.std(ddof=1)), count=len(values))
    ends = []
    for end in ("low", "high"):
        name = f"{value}_{end}"
        known = name in part and not missing(part[name].iloc[0])
        ends.append(float(part[name].iloc[0]) if known else math.nan)
    return Entry(float(values[0]), *ends)


def _mark_best(entries: dict[Any, Entry], column_names: Sequence[Any], value: str) -> None:
    pick: Callable[..., float] = max if value in MORE_IS_BETTER else min
    for name in column_names:
        here = {key: entry for key, entry in entries.items() if key[1] == name}
        best = pick(entry.mean for entry in here.values())
        for key, entry in here.items():
            if entry.mean == best and len(here) > 1:
                entries[key] = Entry(**(vars(entry) | {"best": True}))


def _ranks(
    entries: dict[Any, Entry], row_names: Sequence[Any], column_names: Sequence[Any], value: str
) -> list[float]:
    """The mean rank of each row over the columns that all rows have."""
    full = [c for c in column_names if all((r, c) in entries for r in row_names)]
    if not full or len(row_names) < 2:
        return [math.nan] * len(row_names)
    sign = -1 if value in MORE_IS_BETTER else 1
    scores = [[sign * entries[r, c].mean for r in row_names] for c in full]
    return [float(rank) for rank in average_ranks(np.array(scores))]


def write_table(table: Crosstab, form: str) -> str:
    """The table as text.

    Args:
        form: latex (booktabs), markdown or csv (one entry per line).

    Raises InputError for another form.
    """
    forms = {"latex": _latex, "markdown": _markdown, "csv": _csv}
    if form not in forms:
        raise unknown("format of a table:", form, list(forms))
    return forms[form](table)


def _beside(entry: Entry, sign: str) -> str:
    """The text beside a mean; `sign` stands before a spread."""
    if not math.isnan(entry.low) and not math.isnan(entry.high):
        return f" [{number(entry.low)}, {number(entry.high)}]"
    return "" if math.isnan(entry.spread) else f" {sign} {number(entry.spread, 2)}"


def _heads(table: Crosstab) -> list[str]:
    several = len(table.columns) > 1
    return [
        ", ".join(f"{n} {v}" for n, v in zip(table.columns, name, strict=True))
        if several
        else f"{table.columns[0]} {name[0]}"
        for name in table.column_names
    ]


def _latex(table: Crosstab) -> str:
    ranked = not all(map(math.isnan, table.ranks))
    sign = r"$\times\!/\!\div$" if table.geometric else r"$\pm$"
    lines = [
        r"\begin{tabular}{l" + "r" * (len(table.column_names) + ranked) + "}",
        r"\toprule",
        " & ".join(map(_tex, [table.rows, *_heads(table), *(["rank"] * ranked)])) + r" \\",
        r"\midrule",
    ]
    for name, rank in zip(table.row_names, table.ranks, strict=True):
        cells = [_tex(str(name))]
        for head in table.column_names:
            entry = table.entries.get((name, head))
            text = "--" if entry is None else number(entry.mean)
            if entry is not None:
                text = (rf"\textbf{{{text}}}" if entry.best else text) + _beside(entry, sign)
            cells.append(text)
        cells += [f"{rank:.2f}"] * ranked
        lines.append(" & ".join(cells) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def _tex(text: str) -> str:
    special = {c: f"\\{c}" for c in "&%$#_{}"} | {"\\": r"\textbackslash{}"}
    special |= {"~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    return "".join(special.get(c, c) for c in text)


def _markdown(table: Crosstab) -> str:
    ranked = not all(map(math.isnan, table.ranks))
    heads = [table.rows, *_heads(table), *(["rank"] * ranked)]
    lines = [_bar(heads), _bar(["---", *(["---:"] * (len(heads) - 1))])]
    for name, rank in zip(table.row_names, table.ranks, strict=True):
        cells = [str(name)]
        for head in table.column_names:
            entry = table.entries.get((name, head))
            text = "–" if entry is None else number(entry.mean)
            if entry is not None:
                text = (f"**{text}**" if entry.best else text) + _beside(
                    entry, "×/÷" if table.geometric else "±"
                )
            cells.append(text)
        lines.append(_bar([*cells, *([f"{rank:.2f}"] * ranked)]))
    return "\n".join(lines) + "\n"


def _bar(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _csv(table: Crosstab) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    measured = ["value", "mean", "low", "high", "spread", "count", "best", "rank"]
    writer.writerow([table.rows, *table.columns, *measured])
    ranks = dict(zip(table.row_names, table.ranks, strict=True))
    for (name, head), e in table.entries.items():
        numbers = [e.mean, e.low, e.high, e.spread]
        shown = ["" if math.isnan(v) else repr(v) for v in numbers]
        rank = "" if math.isnan(ranks[name]) else repr(ranks[name])
        writer.writerow([name, *head, table.value, *shown, e.count, e.best, rank])
    return text.getvalue()


def _plain(value: Any) -> Any:
    return "–" if missing(value) else value.item() if hasattr(value, "item") else value


def _order(name: tuple[Any, ...]) -> tuple[Any, ...]:
    """Numbers in their order, then texts."""
    return tuple((isinstance(v, str), v if not isinstance(v, str) else 0, str(v)) for v in name)

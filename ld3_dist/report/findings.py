"""Failures of a sweep and results that may mislead, in sentences: they belong on its page."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd

from ..store.frames import best_only, column, groups, numbers, of_kind, records, varies, where
from ..store.symptoms import counted_signs, symptoms
from .columns import Row
from .formats import counted, missing, number, ratio
from .tables import SweepTables

LOWER_COVERAGE = 0.02
"""Coverage this far below the teacher's is worth a line."""

CLOSE_KNOTS = 1e-3
"""A gap below this fraction of the range of lambda makes two steps one."""

MOST_NAMES = 6
"""Cells that one sentence names; the rest is counted."""


def status_counts(frame: pd.DataFrame) -> str:
    """Counts of rows by kind and status, in a fixed order: "16 baseline rows ok, …"."""
    told = [
        f"{counted(len(rows), f'{kind} row')} {status}"
        for (kind, status), rows in groups(frame, ("kind", "status"))
    ]
    return ", ".join(told)


def broken_rows(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows that did not come out ok, in the order of the table."""
    return where(frame, column(frame, "status") != "ok")


def findings(sweep: SweepTables, table: pd.DataFrame) -> list[str]:
    """Sentences to read before trusting the summary; none if all is well."""
    return [
        *_about_cells(table),
        *_about_metrics(table),
        *_about_grids(sweep.results),
        *_about_signs(sweep.results),
        *_about_running(sweep),
    ]


def _named(table: pd.DataFrame, told: Callable[[Row], str] = lambda row: "") -> str:
    """'unipc-3 at 4 NFE (…), …', the rest counted."""
    several = varies(table, "model")
    texts = []
    for row in records(table.head(MOST_NAMES)):
        model = f"{row['model']}, " if several else ""
        texts.append(f"{model}{row['solver']} at {row['nfe']} NFE {told(row)}".rstrip())
    more = f" and {len(table) - MOST_NAMES} more" if len(table) > MOST_NAMES else ""
    return ", ".join(texts) + more


def _about_cells(table: pd.DataFrame) -> list[str]:
    found = []
    learned, ok = column(table, "learned"), column(table, "ok")
    gain, fresh = numbers(table, "gain"), numbers(table, "eval_gain")
    untried = where(table, learned == 0)
    if len(untried):
        found.append(f"Nothing has been learned yet in {_named(untried)}.")
    barren = where(table, (learned > 0) & (ok == 0))
    if len(barren):
        found.append(f"No learned schedule came out ok in {_named(barren)}.")
    bare = where(table, column(table, "baseline_loss").isna())
    if len(bare):
        found.append(f"No hand-made grid to compare with in {_named(bare)}.")
    lost = where(table, (fresh <= 1) | (fresh.isna() & (gain <= 1)))
    faded = where(lost, (numbers(lost, "gain") > 1) & (numbers(lost, "eval_gain") <= 1))
    lost = lost.drop(index=faded.index)
    if len(lost):
        told = _named(lost, _gain_of)
        found.append(f"The best hand-made grid was not beaten in {told}.")
    if len(faded):
        told = _named(
            faded, lambda row: f"({ratio(row['gain'])} held out, {ratio(row['eval_gain'])} fresh)"
        )
        found.append(
            f"The gain on held-out pairs is gone on fresh pairs in {told}: more held-out pairs "
            f"would help."
        )
    decided = column(table, "decided")
    undecided = where(table, decided.notna() & ~decided.fillna(True).astype(bool))
    if len(undecided):
        told = _named(undecided, _interval_of)
        found.append(
            f"The 95 % interval of the gain holds 1 in {told}: more evaluation samples would "
            f"narrow it."
        )
    return found


def _gain_of(row: Row) -> str:
    """The gain of a row, on fresh samples where there are any."""
    fresh = not missing(row["eval_gain"])
    return f"(gain {ratio(row['eval_gain'] if fresh else row['gain'])})"


def _interval_of(row: Row) -> str:
    return f"({number(row['eval_gain_low'])} to {number(row['eval_gain_high'])})"


def _about_metrics(table: pd.DataFrame) -> list[str]:
    found = []
    fid, lowest = numbers(table, "fid"), numbers(table, "lowest_fid")
    worse = where(table, (numbers(table, "gain") > 1) & (fid >= lowest))
    if len(worse):
        told = _named(worse, _against_lowest)
        found.append(
            f"The distance to the teacher improved but the Fréchet distance did not in {told}."
        )
    coverage, teacher = numbers(table, "coverage"), numbers(table, "teacher_coverage")
    narrow = where(table, coverage < teacher - LOWER_COVERAGE)
    if len(narrow):
        told = _named(
            narrow,
            lambda row: f"({number(row['coverage'])} against {number(row['teacher_coverage'])})",
        )
        found.append(
            f"Coverage is below the teacher's, so some modes of the data may be missed, in {told}."
        )
    if column(table, "loss").notna().any() and fid.isna().all():
        found.append("The Fréchet distance was not measured.")
    return found


def _against_lowest(row: Row) -> str:
    """The learned Fréchet distance against the lowest of any hand-made grid, which is named."""
    return f"({number(row['fid'])} against {number(row['lowest_fid'])} of {row['lowest_fid_grid']})"


def _about_grids(frame: pd.DataFrame) -> list[str]:
    best = best_only(frame)
    close = where(best, column(best, "min_gap") < CLOSE_KNOTS)
    if close.empty:
        return []
    named = _named(close)
    return [
        f"Two knots of the best schedule nearly coincide, so that a step is wasted, in {named}."
    ]


def _about_signs(frame: pd.DataFrame) -> list[str]:
    found = symptoms(frame)
    told = []
    for sign, count in counted_signs(found).items():
        cells = list(dict.fromkeys(one.cell for one in found if one.sign == sign))
        more = f" and {len(cells) - MOST_NAMES} more" if len(cells) > MOST_NAMES else ""
        shown = next(one for one in found if one.sign == sign)
        told.append(
            f"Sign of failure, {sign}: {counted(count, 'learned schedule')}, in "
            f"{', '.join(cells[:MOST_NAMES])}{more} (the first: {shown.detail})."
        )
    return told


def unfinished(sweep: SweepTables) -> str:
    """A sentence about how much of what was asked for is there; empty where all of it is."""
    asked = sweep.experiment.get("asked")
    if not isinstance(asked, dict):
        return ""
    learned = of_kind(sweep.results, "learned")
    trials = {str(key) for key in asked.get("trials", [])}
    there = len(trials & set(column(learned, "trial").dropna()))
    told = []
    if there < len(trials):
        told.append(f"{there:,} of {counted(len(trials), 'trial')} learned")
    if not asked.get("complete"):
        told.append("the search has more trials to ask for")
    ok = of_kind(sweep.results, "learned", "ok")
    wanted = sweep.experiment.get("evaluation")
    if wanted and len(ok) and column(ok, "eval_loss").isna().all():
        told.append("no schedule is evaluated on fresh samples yet")
    return f"This sweep is not finished: {'; '.join(told)}." if told else ""


def _about_running(sweep: SweepTables) -> list[str]:
    found = []
    for stage, rows in groups(sweep.failures, "stage"):
        reasons = [str(row["reason"]) for row in records(rows) if isinstance(row["reason"], str)]
        most = ""
        if reasons:
            often = max(sorted(set(reasons)), key=reasons.count)
            most = f", most often: {often}"
        found.append(
            f"Stage {stage}: {counted(len(rows), 'failed attempt')}{most}. What a retry mended "
            f"is counted too."
        )
    unreadable = sweep.results.attrs.get("unreadable", [])
    if unreadable:
        found.append(
            f"{counted(len(unreadable), 'file')} could not be read and were left out: "
            f"{', '.join(unreadable[:5])}."
        )
    return found

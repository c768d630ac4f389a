"""What went wrong, or may mislead, said in words: a sweep's failures belong on its page, not in its
logs.
"""

from __future__ import annotations

# A selection from a frame is a union of types to pandas' own annotations:
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportReturnType=false
from collections.abc import Callable

import pandas as pd

from .tables import SweepTables
from .text import counted, number, ratio

LOWER_COVERAGE = 0.02
"""Coverage this far below the teacher's is worth a line."""

CLOSE_KNOTS = 1e-3
"""A gap below this fraction of the range of lambda makes two steps one."""

MOST_ROWS = 30
MOST_NAMES = 6


def status_counts(frame: pd.DataFrame) -> list[tuple[str, str, int]]:
    """(kind, status, rows), in a fixed order."""
    counts = frame.groupby(["kind", "status"]).size()
    return [(str(kind), str(status), int(count)) for (kind, status), count in counts.items()]


def broken_rows(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows that did not come out ok, in the order of the table."""
    return frame[frame["status"] != "ok"]


def findings(sweep: SweepTables, table: pd.DataFrame) -> list[str]:
    """Sentences about what a reader should know before trusting the summary; empty where all is
    well.
    """
    return [
        *_about_cells(table),
        *_about_metrics(table),
        *_about_grids(sweep.results),
        *_about_running(sweep),
    ]


def _named(table: pd.DataFrame, describe: Callable[[dict], str]) -> str:
    """'unipc-3 at 4 NFE (…), …', the rest counted."""
    several = table["model"].nunique() > 1
    texts = [
        (f"{row['model']}, " if several else "")
        + f"{row['solver']} at {row['nfe']} NFE {describe(row)}".rstrip()
        for row in table.head(MOST_NAMES).to_dict("records")
    ]
    return ", ".join(texts) + (
        f" and {len(table) - MOST_NAMES} more" if len(table) > MOST_NAMES else ""
    )


def _about_cells(table: pd.DataFrame) -> list[str]:
    found = []
    untried = table[table["learned"] == 0]
    if len(untried):
        found.append(f"Nothing has been learned yet in {_named(untried, lambda row: '')}.")
    barren = table[(table["learned"] > 0) & (table["ok"] == 0)]
    if len(barren):
        found.append(f"No learned schedule came out ok in {_named(barren, lambda row: '')}.")
    bare = table[table["baseline_loss"].isna()]
    if len(bare):
        found.append(f"No hand-made grid to compare with in {_named(bare, lambda row: '')}.")
    lost = table[table["gain"] <= 1]
    if len(lost):
        told = _named(lost, lambda row: f"(gain {ratio(row['gain'])})")
        found.append(f"The best hand-made grid was not beaten in {told}.")
    faded = table[(table["gain"] > 1) & (table["eval_gain"] <= 1)]
    if len(faded):
        told = _named(
            faded, lambda row: f"({ratio(row['gain'])} held out, {ratio(row['eval_gain'])} fresh)"
        )
        found.append(
            f"The gain on held-out pairs is gone on fresh pairs in {told}: more held-out pairs "
            f"would help."
        )
    return found


def _about_metrics(table: pd.DataFrame) -> list[str]:
    found = []
    worse = table[(table["gain"] > 1) & (table["fid"] >= table["baseline_fid"])]
    if len(worse):
        told = _named(
            worse, lambda row: f"({number(row['fid'])} against {number(row['baseline_fid'])})"
        )
        found.append(
            f"The distance to the teacher improved but the Fréchet distance did not in {told}."
        )
    narrow = table[table["coverage"] < table["teacher_coverage"] - LOWER_COVERAGE]
    if len(narrow):
        told = _named(
            narrow,
            lambda row: f"({number(row['coverage'])} against {number(row['teacher_coverage'])})",
        )
        found.append(
            f"Coverage is below the teacher's, so some modes of the data may be missed, in {told}."
        )
    if table["loss"].notna().any() and table["fid"].isna().all():
        found.append("The Fréchet distance was not measured.")
    return found


def _about_grids(frame: pd.DataFrame) -> list[str]:
    close = frame[frame["best"].astype(bool) & (frame["min_gap"] < CLOSE_KNOTS)]
    if close.empty:
        return []
    return [
        f"Two knots of the best schedule nearly coincide, so that a step is wasted, in "
        f"{_named(close, lambda row: '')}."
    ]


def _about_running(sweep: SweepTables) -> list[str]:
    found = []
    for stage, rows in sweep.failures.groupby("stage", sort=True):
        reasons = (
            rows["reason"]
            .dropna()
            .value_counts(sort=False)
            .sort_index()
            .sort_values(ascending=False, kind="stable")
        )
        most = f", most often: {reasons.index[0]}" if len(reasons) else ""
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

"""The summary in words: headline, numbers, and the table as Markdown."""

from __future__ import annotations

# A selection from a frame is a union of types to pandas' own annotations:
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportReturnType=false
import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import pandas as pd

from .summary import summary_table


def headline(table: pd.DataFrame) -> str:
    """What a sweep found, in one or two sentences."""
    if table.empty:
        return "There are no results yet."
    gains = table["gain"].astype(float)
    if gains.notna().sum() == 0:
        return f"No schedule has been learned yet in any of {counted(len(table), 'cell')}."
    top = table.loc[gains.idxmax()]
    won, of = int((gains > 1).sum()), int(gains.notna().sum())
    where = f"{top['solver']} at {top['nfe']} NFE" + (
        f" on {top['model']}" if table["model"].nunique() > 1 else ""
    )
    if of == 1:
        text = f"At {where}, the learned schedule's held-out distance to the teacher is {_times(top['gain'])}"
        text += " than the best hand-made grid's."
    else:
        text = f"Learned schedules beat every hand-made grid in {won} of {of} cells: their held-out distance to"
        text += f" the teacher is {_times(gains.median())} in the median and {_times(gains.max())} at best ({where})."
    fids = table.dropna(subset=["fid", "baseline_fid"])
    if len(fids):
        lower = int((fids["fid"] < fids["baseline_fid"]).sum())
        text += f" The Fréchet distance is lower in {lower} of {counted(len(fids), 'cell')}."
    return text


def _times(gain: float) -> str:
    return f"{number(gain)} times smaller" if gain >= 1 else f"{number(1 / gain)} times larger"


def counted(count: int, noun: str) -> str:
    """'1 cell', '4 cells'."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def ratio(value: Any) -> str:
    """A factor with three digits and a multiplication sign; a dash where it was not measured."""
    return "–" if missing(value) else f"{number(value)}×"


def number(value: Any, digits: int = 3) -> str:
    """Significant digits without exponent where that stays short; a dash where it was not measured."""
    if value is None or missing(value):
        return "–"
    value = float(value)
    if value == 0:
        return "0"
    power = math.floor(math.log10(abs(value)))
    if not -5 <= power < 7:
        return f"{value:.{digits - 1}e}"
    return f"{value:,.{max(digits - 1 - power, 0)}f}"


def missing(value: Any) -> bool:
    """Null in any of pandas' ways."""
    return value is None or bool(pd.isna(value))


def summary_markdown(frame: pd.DataFrame, evaluations: pd.DataFrame | None = None) -> str:
    """The summary as a Markdown table under its headline."""
    return table_markdown(summary_table(frame, evaluations))


def table_markdown(table: pd.DataFrame) -> str:
    """The same from a summary that is there already."""
    text = headline(table) + "\n"
    if table.empty:
        return text
    rows = printed(table)
    rule = ["---" if name in _WORDS else "---:" for name in shown_columns(table)]
    return "\n".join([text, *map(_line, [rows[0], rule, *rows[1:]])]) + "\n"


HEADS = {
    "model": "model",
    "conditioning": "conditioning",
    "guidance": "guidance",
    "solver": "solver",
    "nfe": "NFE",
    "baseline": "best hand-made",
    "baseline_loss": "its loss",
    "loss": "learned loss",
    "seeds": "over seeds",
    "gain": "gain",
    "eval_gain": "gain, fresh pairs",
    "baseline_fid": "FID hand-made",
    "fid": "FID learned",
    "teacher_fid": "FID teacher",
    "baseline_inception_score": "IS hand-made",
    "inception_score": "IS learned",
    "teacher_inception_score": "IS teacher",
    "method": "method",
    "gamma": "γ",
    "start": "start",
}
"""Columns of the summary as a reader sees them, with their headings."""

_WORDS = ("model", "conditioning", "solver", "nfe", "baseline", "method", "start")
_ALWAYS = ("solver", "nfe", "baseline")


def printed(table: pd.DataFrame) -> list[list[str]]:
    """The summary as text, headings first, without columns that were never measured or that only
    repeat themselves.
    """
    shown = shown_columns(table)
    return [
        [HEADS[name] for name in shown],
        *([shown_value(row, name) for name in shown] for row in table.to_dict("records")),
    ]


def shown_columns(table: pd.DataFrame) -> list[str]:
    """Model, conditioning and guidance are shown where they differ, the method where it is not the
    default alone; anything else where it was measured."""
    varied = [name for name in ("model", "conditioning", "guidance") if table[name].nunique() > 1]
    rest = [name for name in list(HEADS)[3:] if name in _ALWAYS or table[name].notna().any()]
    if not (table["method"].dropna() != "default").any():
        rest = [name for name in rest if name != "method"]
    return varied + rest


def shown_value(row: Mapping[Hashable, Any], name: str) -> str:
    """One value of the summary as text."""
    value = row[name]
    if missing(value):
        return "–"
    if name in _WORDS:
        return str(value)
    if name in ("gain", "eval_gain"):
        return ratio(value)
    if name == "seeds":
        deviation = "" if missing(row["seed_std"]) else f" ± {number(row['seed_std'], 2)}"
        return f"{number(row['seed_mean'])}{deviation}"
    return f"{value:.3g}" if name in ("gamma", "guidance") else number(value)


def _line(texts: Sequence[str]) -> str:
    return "| " + " | ".join(text.replace("|", "\\|") for text in texts) + " |"

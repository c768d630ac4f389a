"""The columns of the summary: one table for the page, summary.md, the terminal and the README.

A column is listed once in `COLUMNS`: what it is called, how its values are written, and where it
is shown. `summary.py` fills the columns, everything else asks `shown`. A metric of a user's own,
`metric.<name>` in the result tables, adds three columns: for the hand-made grid, the learned
schedule and the teacher. Where its values are kept sample by sample, those of judges and of
further distances, there is the difference of learned and hand-made too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import pandas as pd

from ..metrics.judges import judges
from ..metrics.of_samples import is_distance
from ..store.frames import column, varies
from ..store.table_files import OVER_GRID
from .formats import DASH, missing, number, ratio, visible

Place = Literal["page", "markdown", "terminal", "readme"]
Row = Mapping[str, Any]
"""One cell of the summary: column name -> value."""

METRIC = "metric."
"""Columns of the result tables that begin with this hold a metric of a user's own."""

LEAST = 99
"""Rank of a column that a narrow terminal drops first."""


@dataclass(frozen=True)
class Column:
    """One column of the summary.

    Attributes:
        name: its name in the summary's frame.
        heading: its heading where it stands alone. Without one it is in the frame only.
        group: the heading above it on the page.
        short: its heading below that group; `heading` if not given.
        dtype: of the frame's column; pandas decides if not given.
        written: value and row -> text. It is not asked for nulls.
        words: is it text, and so aligned to the left?
        when: `measured`: where any cell has a value; `always`; `varied`: where cells differ.
        places: where it is shown.
        rank: a terminal too narrow for all columns drops the highest rank first.
        learned: does it describe the learned schedule? It has the colour of those.
        stands_for: where this column was measured, terminal and README show it alone.
    """

    name: str
    heading: str = ""
    group: str = ""
    short: str = ""
    dtype: str = ""
    written: Callable[[Any, Row], str] = field(default=lambda value, row: number(value))
    words: bool = False
    when: Literal["measured", "always", "varied"] = "measured"
    places: tuple[Place, ...] = ("page", "markdown")
    rank: int = LEAST
    learned: bool = False
    stands_for: str = ""

    def text(self, row: Row) -> str:
        """The value of this column in a row, as one line of text; a dash for null."""
        value = row[self.name]
        return DASH if missing(value) else visible(self.written(value, row))

    def wanted(self, table: pd.DataFrame) -> bool:
        """Tell if a summary has anything to show in this column."""
        if self.when == "varied":
            return varies(table, self.name)
        return self.when == "always" or bool(column(table, self.name).notna().any())


def _plain(value: Any, row: Row) -> str:
    return str(value)


def _short(value: Any, row: Row) -> str:
    return f"{value:.3g}"


def _factor(value: Any, row: Row) -> str:
    return ratio(value)


def _spread(value: Any, row: Row) -> str:
    """Mean ± standard deviation over seeds."""
    deviation = "" if missing(row["seed_std"]) else f" ± {number(row['seed_std'], 2)}"
    return f"{number(row['seed_mean'])}{deviation}"


def _interval(value: Any, row: Row) -> str:
    """The interval that begins at this value; it says so where a gain is undecided."""
    undecided = "" if row["decided"] else ", undecided"
    return f"{number(value)}–{number(row['eval_gain_high'])}{undecided}"


def _frechet(value: Any, row: Row) -> str:
    """A Fréchet distance with half the width of its interval, where it has one."""
    if missing(row["fid_low"]):
        return number(value)
    return f"{number(value)} ± {number((row['fid_high'] - row['fid_low']) / 2, 2)}"


def _frechet_gain(value: Any, row: Row) -> str:
    """The ratio of two Fréchet distances with its interval."""
    low, high = row["fid_gain_low"], row["fid_gain_high"]
    ends = "" if missing(low) else f" ({number(low)}–{number(high)})"
    return f"{ratio(value)}{ends}"


def _over_grid(name: str) -> Callable[[Any, Row], str]:
    """How the difference of a metric of samples is written: with its sign and its interval."""

    def written(value: Any, row: Row) -> str:
        low, high = row[f"{name}_low"], row[f"{name}_high"]
        ends = "" if missing(low) else f" ({number(low)} to {number(high)})"
        return f"{'+' if value > 0 else ''}{number(value)}{ends}"

    return written


def _whatever(value: Any, row: Row) -> str:
    """A user's metric may be anything."""
    return number(value) if isinstance(value, int | float) else str(value)


def _words(name: str, heading: str, **kinds: Any) -> Column:
    return Column(name, heading, written=_plain, words=True, **kinds)


def _float(name: str, heading: str = "", **kinds: Any) -> Column:
    return Column(name, heading, dtype="float64", **kinds)


def _count(name: str) -> Column:
    return Column(name, dtype="Int64")


_TABLES: tuple[Place, ...] = ("page", "markdown", "terminal")
_ALL: tuple[Place, ...] = (*_TABLES, "readme")
_GRID, _LEARNED, _FRECHET, _FOUND = "hand-made", "learned", "Fréchet distance", "found with"
_INCEPTION, _HELD_OUT = "Inception score", "held-out pairs"

COLUMNS: tuple[Column, ...] = (
    _words("model", "model", when="varied"),
    _words("conditioning", "conditioning", when="varied"),
    _float("guidance", "guidance", when="varied", written=_short),
    _words("solver", "solver", when="always"),
    Column("nfe", "NFE", dtype="Int64", when="always", written=_plain),
    _words("cell", "cell", when="always", places=("terminal", "readme"), rank=0),
    _words("baseline", "best hand-made", group=_GRID, short="grid", when="always", places=_ALL,
           rank=3),
    _float("baseline_eval_loss", "its loss", group=_GRID, short="loss", places=_ALL, rank=6),
    _float("eval_loss", "learned loss", group=_LEARNED, short="loss", places=_ALL, rank=5,
           learned=True),
    _float("eval_gain", "gain", group=_LEARNED, short="of means", written=_factor, places=_ALL,
           rank=1),
    _float("eval_gain_low", "95 % interval", group=_LEARNED, written=_interval, places=_ALL,
           rank=2),
    _float("eval_gain_high"),
    Column("decided", dtype="boolean"),
    _float("eval_gain_median", "gain of medians", group=_LEARNED, short="of medians",
           written=_factor),
    _float("eval_gain_iqm", "gain of interquartile means", group=_LEARNED,
           short="of interquartile means", written=_factor),
    _float("baseline_loss", "its held-out loss", group=_HELD_OUT, short="hand-made", places=_ALL,
           rank=11, stands_for="baseline_eval_loss"),
    _float("loss", "held-out loss", group=_HELD_OUT, short="learned", places=_ALL, rank=10,
           learned=True, stands_for="eval_loss"),
    _float("gain", "held-out gain", group=_HELD_OUT, short="gain", written=_factor, places=_ALL,
           rank=9, stands_for="eval_gain"),
    _float("seed_mean"),
    _float("seed_std"),
    Column("seeds", "over seeds", _HELD_OUT, "mean ± std over seeds", "Int64", _spread),
    _float("baseline_fid", "Fréchet hand-made", group=_FRECHET, short="hand-made", places=_ALL,
           rank=7),
    _float("fid", "Fréchet learned", group=_FRECHET, short="learned", written=_frechet, places=_ALL,
           rank=4, learned=True),
    _float("fid_low"),
    _float("fid_high"),
    _float("fid_gain", "Fréchet gain", group=_FRECHET, short="gain", written=_frechet_gain),
    _float("fid_gain_low"),
    _float("fid_gain_high"),
    _float("teacher_fid", "Fréchet teacher", group=_FRECHET, short="teacher", places=_TABLES,
           rank=8),
    _float("lowest_fid"),
    Column("lowest_fid_grid"),
    _float("baseline_coverage"),
    _float("coverage"),
    _float("teacher_coverage"),
    _float("baseline_inception_score", "IS hand-made", group=_INCEPTION, short="hand-made"),
    _float("inception_score", "IS learned", group=_INCEPTION, short="learned", learned=True),
    _float("teacher_inception_score", "IS teacher", group=_INCEPTION, short="teacher"),
    _words("method", "method", group=_FOUND),
    _float("gamma", "γ", group=_FOUND, written=_short, places=_TABLES, rank=12),
    _words("start", "start", group=_FOUND),
    _words("distance", "distance", when="varied", group=_FOUND),
    _words("taught_by", "teacher", when="varied", group=_FOUND),
    _count("learned"),
    _count("ok"),
    _count("not_ok"),
    Column("key"),
)  # fmt: skip
"""Every column of the summary, in its order."""


def metric_names(*tables: pd.DataFrame) -> list[str]:
    """The metrics of a user's own in result tables: `metric.<name>`, in order, each once."""
    found = [str(name) for table in tables for name in table.columns]
    return sorted({name for name in found if name.startswith(METRIC)})


def with_metrics(metrics: Iterable[str]) -> list[Column]:
    """`COLUMNS` and three columns for each metric, before what the schedules were found with."""
    place = next(i for i, known in enumerate(COLUMNS) if known.group == _FOUND)
    added = [made for metric in metrics for made in _of_metric(metric)]
    return [*COLUMNS[:place], *added, *COLUMNS[place:]]


def over_grid_names(metrics: Iterable[str]) -> list[str]:
    """The columns that compare metrics of single samples with those of the best hand-made grid."""
    names = [metric.removeprefix(METRIC) for metric in metrics]
    kept = [name for name in names if name in judges or is_distance(name)]
    return [f"{OVER_GRID}{name}{end}" for name in kept for end in ("", "_low", "_high")]


def _of_metric(metric: str) -> list[Column]:
    name = metric.removeprefix(METRIC)
    difference, *ends = over_grid_names([metric]) or [""]
    compared = [
        Column(
            difference,
            f"{name} over hand-made",
            name,
            "over hand-made",
            "float64",
            _over_grid(difference),
            places=_TABLES,
            rank=23,
            learned=True,
        ),
        *(_float(end) for end in ends),
    ]
    return [
        Column(
            f"{prefix}{metric}",
            f"{name} {short}",
            name,
            short,
            written=_whatever,
            places=_TABLES,
            rank=20 + rank,
            learned=short == "learned",
        )
        for prefix, short, rank in (
            ("baseline_", "hand-made", 1),
            ("", "learned", 0),
            ("teacher_", "teacher", 2),
        )
    ] + (compared if difference else [])


def shown(table: pd.DataFrame, place: Place) -> list[Column]:
    """The columns that a place shows of a summary, in order.

    Model, conditioning and guidance are shown where they differ, the method where it is not the
    default alone, and everything else where it was measured.
    """
    found = [
        known
        for known in with_metrics(metric_names(table))
        if known.heading and place in known.places and known.wanted(table)
    ]
    if place in ("terminal", "readme"):
        measured = {name for name in table.columns if column(table, str(name)).notna().any()}
        found = [known for known in found if known.stands_for not in measured]
    if not (column(table, "method").dropna() != "default").any():
        found = [known for known in found if known.name != "method"]
    return found

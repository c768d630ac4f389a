"""The HTML page: one file that needs nothing else, reads well in light, in dark and on paper.

`templates/page.html.j2` holds the markup, `templates/page.css` the look and `templates/page.js` the
script, which adds sorting, filters, charts and copies, and without which everything can be read.
This module holds what goes into them, as plain values; the template escapes every text.
"""

from __future__ import annotations

import math
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup

from ..store.frames import column, records
from .ablation import ABLATION_NOTE, ablation_texts
from .columns import Column, Row, shown
from .figures import Drawing, Pictures, PlotGroup
from .formats import DASH, missing, visible

TEMPLATES = Path(__file__).with_name("templates")

MOST_ROWS = 30
"""Rows that did not come out ok are listed up to here."""

_GAINS = ("eval_gain", "gain")
"""Columns with a bar behind their values."""

_FRESH = ("eval_gain", "eval_gain_low", "eval_gain_median", "eval_gain_iqm")
_GAIN = "gain"

_BROKEN = ("cell", "kind", "status", "trial", "start", "gamma", "seed", "message")


@dataclass(frozen=True)
class GroupHead:
    """A heading over several columns."""

    name: str
    width: int


@dataclass(frozen=True)
class TableCell:
    """One heading or value.

    Attributes:
        bar: length of the bar behind it, in percent of the cell.
        name: of a heading: the summary's column.
    """

    text: str
    classes: str = ""
    bar: int | None = None
    name: str = ""


@dataclass(frozen=True)
class SummaryTable:
    """The summary of one model as a page shows it. places: its lines' numbers in the whole one."""

    groups: Sequence[GroupHead] = ()
    heads: Sequence[TableCell] = ()
    lines: Sequence[Sequence[TableCell]] = ()
    places: Sequence[int] = ()


@dataclass(frozen=True)
class PlainTable:
    """A table of texts. note: a sentence below it."""

    heads: Sequence[str] = ()
    lines: Sequence[Sequence[str]] = ()
    note: str = ""


@dataclass(frozen=True)
class Block:
    """Figures that stand together, under a common heading if they have one."""

    title: str
    text: str
    drawings: Sequence[Drawing]


@dataclass(frozen=True)
class Section:
    """One model's part of the page."""

    title: str
    table: SummaryTable
    blocks: Sequence[Block] = ()


@dataclass(frozen=True)
class Page:
    """Everything on the page, in its order.

    Attributes:
        facts: (name, value) pairs of the header.
        findings: sentences about what may mislead.
        status: how many rows came out how, in words.
        ablation: each level of an ablation's factors against the base.
        unfinished: how much of what was asked for is there, if not all of it is.
        methods: what was measured on what.
        settings: the experiment as YAML.
        data: the JSON of `page_data`, for the script.
    """

    name: str
    headline: str
    facts: Sequence[tuple[str, str]]
    sections: Sequence[Section]
    findings: Sequence[str]
    status: str
    broken: PlainTable
    ablation: PlainTable = PlainTable()
    unfinished: str = ""
    methods: str = ""
    settings: str = ""
    data: str = ""


def html_page(page: Page) -> str:
    """The page as one self-contained HTML document."""
    styles, script = (Markup(_bare(name)) for name in ("page.css", "page.js"))
    data = Markup(page.data)  # JSON without "<"
    settings = Markup("\n").join(visible(line) for line in page.settings.splitlines())
    return _template().render(page=page, styles=styles, script=script, data=data, settings=settings)


@cache
def _template() -> Template:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=_printable,
    )
    environment.filters["data_uri"] = _data_uri
    environment.filters["enlarged"] = enlarged
    return environment.get_template("page.html.j2")


def _printable(value: Any) -> Any:
    """Control characters of a text become visible; markup of the package's own stays as it is."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _bare(name: str) -> str:
    """A template without indentation, empty lines and lines of comment, which pages need not."""
    lines = (TEMPLATES / name).read_text(encoding="utf-8").splitlines()
    bare = (line.strip() for line in lines)
    return "\n".join(line for line in bare if line and not line.startswith("//")) + "\n"


def _data_uri(png: bytes) -> str:
    return f"data:image/png;base64,{b64encode(png).decode()}"


def enlarged(pictures: Pictures, room: int) -> int:
    """The whole factor by which a strip is enlarged to fill `room` pixels, 1 at least."""
    return max(1, room // (pictures.count * pictures.width))


def blocks_of(drawings: Sequence[Drawing]) -> list[Block]:
    """Figures in their order; neighbours of one group stand together."""
    found = []
    for group, inside in groupby(drawings, key=lambda drawing: drawing.group):
        title, text = (group.title, group.text) if isinstance(group, PlotGroup) else ("", "")
        found.append(Block(title, text, list(inside)))
    return found


def summary_view(table: pd.DataFrame) -> SummaryTable:
    """A summary with grouped headings, the gain first: it is in view on a narrow screen.

    A bar behind each gain shows it on a logarithmic scale.
    """
    if table.empty:
        return SummaryTable()
    order: list[tuple[Column, bool]] = []
    heads = []
    listed = shown(table, "page")
    fresh = any(known.name == "eval_gain" for known in listed)
    first = _FRESH if fresh else ("gain",)
    columns = [(_GAIN if known.name in first else known.group, known) for known in listed]
    grouped = {"": None, _GAIN: None} | {name: None for name, _ in columns}
    for name in grouped:
        inside = [known for group, known in columns if group == name]
        if inside:
            heads.append(GroupHead(name, len(inside)))
        order += [(known, i == 0) for i, known in enumerate(inside)]
    gains = [column(table, name).dropna() for name in _GAINS]
    largest = max([1.01, *(float(gain) for found in gains for gain in found)])
    return SummaryTable(
        heads,
        [
            TableCell(known.short or known.heading, _classes(known, first), name=known.name)
            for known, first in order
        ],
        [
            [
                TableCell(known.text(row), _classes(known, first, row), _bar(row, known, largest))
                for known, first in order
            ]
            for row in records(table)
        ],
        [int(place) for place in table.index],
    )


def _classes(known: Column, first: bool, row: Row | None = None) -> str:
    """The classes of a column's cells; `first` marks the first column of a group."""
    undecided = known.name == "eval_gain" and row is not None and not missing(row["decided"])
    names = {
        "num": not known.words,
        "first": first,
        "gain": known.name in _GAINS,
        "method": known.name == "method",
        "learned": known.learned,
        "interval": known.name == "eval_gain_low",
        "undecided": undecided and row is not None and not row["decided"],
    }
    return " ".join(name for name, holds in names.items() if holds)


def _bar(row: Row, known: Column, largest: float) -> int | None:
    """Length of the bar behind a gain: its logarithm over that of the largest one, in percent."""
    if known.name not in _GAINS or missing(row[known.name]) or not row[known.name] > 1:
        return None
    if known.name == "eval_gain" and not missing(row["decided"]) and not row["decided"]:
        return None
    return round(100 * math.log(row[known.name]) / math.log(largest))


def broken_view(rows: pd.DataFrame) -> PlainTable:
    """The rows that did not come out ok, the first `MOST_ROWS` of them."""
    note = ""
    if len(rows) > MOST_ROWS:
        note = f"The first {MOST_ROWS} of {len(rows)}; the table of results has all."
    heads = ["γ" if name == "gamma" else name for name in _BROKEN]
    lines = [[_text(row, name) for name in _BROKEN] for row in records(rows.head(MOST_ROWS))]
    return PlainTable(heads, lines, note)


def ablation_view(table: pd.DataFrame) -> PlainTable:
    """The table of an ablation, in words."""
    if table.empty:
        return PlainTable()
    heads, lines = ablation_texts(table)
    return PlainTable(heads, lines, ABLATION_NOTE)


def _text(row: Row, name: str) -> str:
    value = row[name]
    if missing(value):
        return DASH
    return f"{value:.3g}" if name == "gamma" else str(value)

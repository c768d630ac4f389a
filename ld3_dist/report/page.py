"""The HTML page: one file that needs nothing else, reads well in light, in dark and on paper."""

from __future__ import annotations

# A selection from a frame is a union of types to pandas' own annotations:
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportReturnType=false
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

import pandas as pd

from .figures.style import Plot, as_svg
from .findings import MOST_ROWS
from .stylesheet import STYLESHEET
from .text import HEADS, counted, shown_columns, shown_value

_TEXT = ("model", "conditioning", "solver", "baseline", "method", "start")
_GROUPS = {
    "": ("model", "conditioning", "guidance", "solver", "nfe"),
    "hand-made": ("baseline", "baseline_loss"),
    "learned": ("loss", "seeds", "gain", "eval_gain"),
    "Fréchet distance": ("baseline_fid", "fid", "teacher_fid"),
    "found with": ("method", "gamma", "start"),
}
_SHORT = {
    "baseline": "grid",
    "baseline_loss": "loss",
    "loss": "loss",
    "seeds": "mean ± std over seeds",
    "eval_gain": "gain, fresh pairs",
    "baseline_fid": "hand-made",
    "fid": "learned",
    "teacher_fid": "teacher",
}


@dataclass(frozen=True)
class Section:
    """One model's part of the page."""

    title: str
    table: pd.DataFrame
    plots: Sequence[Plot] = ()
    samples: Sequence[Plot] = ()


@dataclass(frozen=True)
class Page:
    """Everything on the page, in its order. facts: (name, value) pairs of the header."""

    name: str
    headline: str
    facts: Sequence[tuple[str, str]]
    sections: Sequence[Section]
    findings: Sequence[str]
    counts: Sequence[tuple[str, str, int]]
    broken: pd.DataFrame = field(default_factory=pd.DataFrame)


def html_page(page: Page) -> str:
    """The page as one self-contained HTML document."""
    facts = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in page.facts
    )
    several = len(page.sections) > 1
    toc = "".join(
        f'<li><a href="#model-{i}">{escape(s.title)}</a></li>' for i, s in enumerate(page.sections)
    )
    body = "\n".join(_section(section, i, several) for i, section in enumerate(page.sections))
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(page.name)}: learned schedules</title>
<style>
{STYLESHEET}</style>
</head>
<body>
<header>
<p class="kicker">Learned time discretizations</p>
<h1>{escape(page.name)}</h1>
<p class="headline">{escape(page.headline)}</p>
<dl class="facts">{facts}</dl>
{f'<nav aria-label="models"><ul>{toc}</ul></nav>' if several else ""}
</header>
<main>
{body}
{_failures(page)}
</main>
<footer>
<p>Gain: smallest held-out distance to the teacher of any hand-made grid in the cell, divided by the learned schedule's.
The learned schedule of a cell is the one with the smallest held-out distance; no other metric takes part in the choice.
Distances of two cells are comparable only where model, conditioning and distance agree.</p>
<p>The same numbers in Python: <code>import ld3_dist; ld3_dist.load_results(folder)</code>.</p>
</footer>
</body>
</html>
"""


def _section(section: Section, number_: int, several: bool) -> str:
    name = section.title if several else "Results"
    parts = [
        f'<section id="model-{number_}">',
        f"<h2>{escape(name)}</h2>",
        summary_html(section.table),
    ]
    parts += [_figure(plot) for plot in section.plots]
    if section.samples:
        parts.append(
            '<div class="samples"><h3>Samples from the same noise</h3><p>Each column starts from '
            "the same noise.</p>"
        )
        parts += [_figure(plot, "h4") for plot in section.samples] + ["</div>"]
    return "\n".join([*parts, "</section>"])


def _figure(plot: Plot, heading: str = "h3") -> str:
    svg = as_svg(plot.figure, plot.name).replace(
        "<svg ", f'<svg role="img" aria-label="{escape(plot.alt, quote=True)}" ', 1
    )
    caption = f"<figcaption>{escape(plot.caption)}</figcaption>" if plot.caption else ""
    return (
        f"<figure><{heading}>{escape(plot.title)}</{heading}>"
        f'<div class="drawing" tabindex="0">{svg}</div>{caption}</figure>'
    )


def summary_html(table: pd.DataFrame) -> str:
    """The summary with grouped headings; a bar behind each gain shows it on a logarithmic scale."""
    if table.empty:
        return '<p class="empty">There is no row yet.</p>'
    shown = shown_columns(table)
    groups = {name: [c for c in columns if c in shown] for name, columns in _GROUPS.items()}
    groups = {name: columns for name, columns in groups.items() if columns}
    top = "".join(
        f'<th colspan="{len(columns)}" scope="colgroup">{escape(name)}</th>'
        for name, columns in groups.items()
    )
    order = [(column, i == 0) for columns in groups.values() for i, column in enumerate(columns)]
    heads = "".join(
        f'<th scope="col"{_class(c, first)}>{escape(_SHORT.get(c, HEADS[c]))}</th>'
        for c, first in order
    )
    most = (
        float(table["gain"].astype(float).clip(lower=1.01).max())
        if table["gain"].notna().any()
        else 1.01
    )
    lines = []
    for row in table.to_dict("records"):
        values = "".join(
            f"<td{_class(c, first)}{_bar(row, c, most)}>{escape(shown_value(row, c))}</td>"
            for c, first in order
        )
        lines.append(f"<tr>{values}</tr>")
    return (
        '<div class="scroll" tabindex="0" role="region" aria-label="summary">'
        f'<table><thead><tr class="groups">{top}</tr>'
        f"<tr>{heads}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )


def _class(column: str, first: bool) -> str:
    names = [
        *(["num"] if column not in _TEXT else []),
        *(["first"] if first else []),
        *(["gain"] if column == "gain" else []),
        *(["learned"] if column in ("loss", "fid") else []),
    ]
    return f' class="{" ".join(names)}"' if names else ""


def _bar(row: dict, column: str, most: float) -> str:
    if column != "gain" or not row["gain"] > 1:
        return ""
    return f' style="--bar: {100 * math.log(row["gain"]) / math.log(max(most, row["gain"])):.0f}%"'


def _failures(page: Page) -> str:
    parts = ['<section id="failures">', "<h2>Known failures</h2>"]
    if page.findings:
        parts.append(
            "<ul>" + "".join(f"<li>{escape(text)}</li>" for text in page.findings) + "</ul>"
        )
    elif page.counts:
        parts.append("<p>Every cell improved, and no metric speaks against it.</p>")
    if page.counts:
        told = [f"{counted(count, f'{kind} row')} {status}" for kind, status, count in page.counts]
        parts.append(f"<p>Status: {escape(', '.join(told))}.</p>")
    if len(page.broken):
        parts.append(_broken(page.broken))
    return "\n".join([*parts, "</section>"])


def _broken(rows: pd.DataFrame) -> str:
    columns = ["cell", "kind", "status", "trial", "start", "gamma", "seed", "message"]
    heads = "".join(f'<th scope="col">{name if name != "gamma" else "γ"}</th>' for name in columns)
    lines = []
    for row in rows.head(MOST_ROWS).to_dict("records"):
        texts = [
            ("–" if pd.isna(row[c]) else f"{row[c]:.3g}" if c == "gamma" else str(row[c]))
            for c in columns
        ]
        lines.append("<tr>" + "".join(f"<td>{escape(text)}</td>" for text in texts) + "</tr>")
    more = (
        f"<p>The first {MOST_ROWS} of {len(rows)}; the table of results has all.</p>"
        if len(rows) > MOST_ROWS
        else ""
    )
    return (
        '<details open><summary>Rows that did not come out ok</summary><div class="scroll" '
        'tabindex="0" role="region" '
        f'aria-label="rows that failed"><table class="plain"><thead><tr>{heads}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>{more}</details>"
    )
